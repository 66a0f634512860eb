/*
 * cost.c: DESIGN
 *
 * A prediction is a guess times a ratio. The guess:
 *
 *     per job + images × (per picture + evaluations × rate(family) × megapixels^exponent / speed)
 *
 * where evaluations are steps, twice that with guidance. The ratio is learned. Ratios live in one
 * table of sets of eight, by a 64-bit hash of what they are about (class, model and size; class and
 * model; class and family; class); in a full set the least recently used makes room. A report goes
 * to all four, so that the coarse ones, which every report renews, never leave.
 *
 * A ratio's mean is taken of logarithms, so that half and double weigh the same. It is a plain mean
 * of the first reports and exponentially weighted from then on. A finer ratio with n reports is
 * mixed with the coarser prediction as n : PRIOR.
 *
 * The numbers of the table are guesses of the right order of magnitude, not measurements: they
 * matter until the first reports only.
 */
#include "scheduler/cost.h"

#include "scheduler/cost_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PRIOR 2.0
#define RATIO_LOG_MAX 2.302585092994046 /* ln 10 */
#define LEARNED_LOG_MAX 13.8            /* a million times */

struct class_seed {
    const char *name;
    double speed; /* an A100 is 1 */
    double per_job_s, per_picture_s;
    double load_gb_per_s, load_s;
};

static const struct class_seed classes[] = {
    {"h100", 1.9, 0.05, 0.10, 3.0, 1.0}, {"a100", 1.0, 0.05, 0.15, 2.5, 1.0},
    {"a10", 0.36, 0.05, 0.30, 1.5, 1.0}, {"g8i", 0.06, 0.05, 1.0, 1.0, 0.5},
    {"cpu", 0.012, 0.05, 4.0, 0.8, 0.5},
};

struct family_seed {
    const char *name;
    double rate; /* seconds per evaluation of a megapixel on an A100 */
    double exponent;
    double control; /* a ControlNet's work beside the UNet's, by their operations */
};

static const struct family_seed families[] = {
    {"sd15", 0.085, 1.25, 0.36},
    {"sd21", 0.080, 1.20, 0.36},
    {"sdxl", 0.070, 1.15, 0.45},
    {"sdxl-refiner", 0.060, 1.15, 0.45},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- the guess ---- */

static const struct class_seed *class_of(const char *name)
{
    for (size_t i = 0; i < COUNT(classes); i++)
        if (name && strcmp(classes[i].name, name) == 0)
            return &classes[i];
    return &classes[COUNT(classes) - 1];
}

static const struct family_seed *family_of(const char *name)
{
    for (size_t i = 0; i < COUNT(families); i++)
        if (name && strcmp(families[i].name, name) == 0)
            return &families[i];
    return &families[0];
}

double cost_work(const char *name, double controls, const char *refiner, double refined)
{
    const struct family_seed *family = family_of(name);
    double own = 1 + controls * family->control;
    return refiner ? (1 - refined) * own + refined * family_of(refiner)->rate / family->rate : own;
}

static double guess(const struct cost_query *query)
{
    const struct class_seed *class = class_of(query->class);
    const struct family_seed *family = family_of(query->family);
    double megapixels = (double)query->width * query->height * 1e-6;
    double work = query->work > 0 ? query->work : 1;
    double evaluations = (double)query->steps * (query->guidance ? 2 : 1) * work;
    double step = family->rate * pow(megapixels, family->exponent) / class->speed;
    return class->per_job_s + query->images * (class->per_picture_s + evaluations * step);
}

/* ---- keys ---- */

static uint64_t hash_text(uint64_t h, const char *text)
{
    for (const char *c = text ? text : ""; *c; c++)
        h = (h ^ (unsigned char)*c) * 1099511628211u; /* FNV-1a */
    return (h ^ 0xff) * 1099511628211u;
}

static uint64_t finish_hash(uint64_t h)
{
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15u;
    h ^= h >> 29;
    return h ? h : 1;
}

/* Half octaves of the pixels. */
static int size_bucket(const struct cost_query *query)
{
    double pixels = (double)query->width * query->height;
    return pixels > 0 ? (int)lround(2 * log2(pixels)) : 0;
}

enum level { BY_CLASS, BY_FAMILY, BY_MODEL, BY_SIZE, LEVELS };

static void keys_of(const struct cost_query *query, uint64_t keys[LEVELS])
{
    uint64_t class = hash_text(14695981039346656037u, query->class);
    uint64_t family = hash_text(class ^ 1, query->family);
    uint64_t model = hash_text(family ^ 2, query->model);
    keys[BY_CLASS] = finish_hash(class);
    keys[BY_FAMILY] = finish_hash(family);
    keys[BY_MODEL] = finish_hash(model);
    keys[BY_SIZE] = finish_hash(model ^ (uint64_t)(size_bucket(query) + 3) << 40);
}

static uint64_t switch_key(const char *class)
{
    return finish_hash(hash_text(14695981039346656037u ^ 4, class));
}

/* ---- the table ---- */

static struct cost_ratio *set_of(const struct cost *cost, uint64_t key)
{
    return &cost->ratios[(key >> 20 & cost->set_mask) * COST_WAYS];
}

static const struct cost_ratio *find(struct cost *cost, uint64_t key)
{
    struct cost_ratio *set = set_of(cost, key);
    for (int i = 0; i < COST_WAYS; i++)
        if (set[i].key == key) {
            set[i].used = ++cost->clock;
            return &set[i];
        }
    return NULL;
}

struct cost_ratio *cost_claim(struct cost *cost, uint64_t key)
{
    struct cost_ratio *set = set_of(cost, key), *oldest = set;
    for (int i = 0; i < COST_WAYS; i++) {
        if (set[i].key == key)
            return &set[i];
        if (set[i].used < oldest->used)
            oldest = &set[i];
    }
    *oldest = (struct cost_ratio){.key = key, .used = ++cost->clock};
    return oldest;
}

static void learn(struct cost *cost, uint64_t key, double log_ratio)
{
    struct cost_ratio *ratio = cost_claim(cost, key);
    double weight = 1 / ((double)ratio->reports + 1);
    if (weight < cost->options.learning)
        weight = cost->options.learning;
    double change = log_ratio - (double)ratio->log_mean;
    /* One odd report must not undo what many have taught. */
    if (ratio->reports > 0)
        change = fmax(-RATIO_LOG_MAX, fmin(RATIO_LOG_MAX, change));
    ratio->log_mean += (float)(weight * change);
    ratio->reports += ratio->reports < COST_REPORTS_MAX;
    ratio->used = ++cost->clock;
}

static double mix(struct cost *cost, uint64_t key, double coarser)
{
    const struct cost_ratio *ratio = find(cost, key);
    if (!ratio)
        return coarser;
    double n = (double)ratio->reports;
    return (n * (double)ratio->log_mean + PRIOR * coarser) / (n + PRIOR);
}

/* ---- the face ---- */

int cost_create(struct cost **out, const struct cost_options *options, struct err *err)
{
    struct cost *cost = calloc(1, sizeof(*cost));
    uint32_t sets = 1;
    *out = NULL;
    if (!cost)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for the cost model");
    cost->options = options ? *options : (struct cost_options)COST_OPTIONS_INIT;
    while ((uint64_t)sets * COST_WAYS < cost->options.entries_max && sets < 1u << 24)
        sets *= 2;
    cost->set_mask = sets - 1;
    cost->ratios = calloc((size_t)sets * COST_WAYS, sizeof(*cost->ratios));
    if (!cost->ratios) {
        free(cost);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for the cost model");
    }
    *out = cost;
    return 0;
}

void cost_free(struct cost *cost)
{
    if (!cost)
        return;
    free(cost->ratios);
    free(cost);
}

double cost_predict(struct cost *cost, const struct cost_query *query)
{
    uint64_t keys[LEVELS];
    double log_ratio = 0;
    keys_of(query, keys);
    for (int level = 0; level < LEVELS; level++)
        log_ratio = mix(cost, keys[level], log_ratio);
    return guess(query) * exp(log_ratio);
}

void cost_learn(struct cost *cost, const struct cost_query *query, double seconds)
{
    uint64_t keys[LEVELS];
    double log_ratio = log(seconds / guess(query));
    if (!(seconds > 0) || !isfinite(log_ratio))
        return;
    log_ratio = fmax(-LEARNED_LOG_MAX, fmin(LEARNED_LOG_MAX, log_ratio));
    keys_of(query, keys);
    for (int level = 0; level < LEVELS; level++)
        learn(cost, keys[level], log_ratio);
}

static double guess_switch(const char *name, uint64_t bytes)
{
    const struct class_seed *class = class_of(name);
    return class->load_s + (double)bytes * 1e-9 / class->load_gb_per_s;
}

double cost_switch(struct cost *cost, const char *class, uint64_t bytes)
{
    return guess_switch(class, bytes) * exp(mix(cost, switch_key(class), 0));
}

void cost_learn_switch(struct cost *cost, const char *class, uint64_t bytes, double seconds)
{
    double log_ratio = log(seconds / guess_switch(class, bytes));
    if (!(seconds > 0) || !isfinite(log_ratio))
        return;
    learn(cost, switch_key(class), fmax(-LEARNED_LOG_MAX, fmin(LEARNED_LOG_MAX, log_ratio)));
}

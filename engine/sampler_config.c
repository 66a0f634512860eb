/*
 * sampler_config.c: scheduler_config.json, written by any of diffusers' scheduler classes.
 */
#include "engine/sampler.h"

#include "engine/sampler_parts.h"

#include <stdio.h>
#include <string.h>

/* Settings that change what a sampler does and that none here honours, and their only value. */
static const struct {
    const char *key;
    bool wanted;
} fixed_flags[] = {
    {"thresholding", false}, {"use_lu_lambdas", false},       {"use_flow_sigmas", false},
    {"predict_x0", true},    {"use_dynamic_shifting", false},
};

static const struct {
    const char *key;
    const char *wanted;
} fixed_names[] = {
    {"interpolation_type", "linear"},
    {"timestep_type", "discrete"},
};

/* Settings that must be null or absent. */
static const char *const fixed_nulls[] = {"trained_betas", "solver_p", "sigma_min", "sigma_max"};

/* Classes of models that no sampler here can draw with: their networks' inputs, outputs and
 * timesteps mean something else. */
static const char *const foreign_classes[] = {"EDM", "FlowMatch", "CogVideoX"};

static const char *const predictions[] = {"epsilon", "v_prediction", "sample", NULL};

const char *prediction_name(enum prediction prediction)
{
    return predictions[prediction];
}

static int unsupported(const char *key, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "the scheduler's %s has a value that is not supported", key);
}

static bool is_null(const struct json *value)
{
    return !value || value->type == JSON_NULL;
}

static int check_fixed(const struct json *json, struct err *err)
{
    for (size_t i = 0; i < sizeof(fixed_flags) / sizeof(fixed_flags[0]); i++) {
        const struct json *value = json_get(json, fixed_flags[i].key);
        if (json_bool_or(value, fixed_flags[i].wanted) != fixed_flags[i].wanted)
            return unsupported(fixed_flags[i].key, err);
    }
    for (size_t i = 0; i < sizeof(fixed_names) / sizeof(fixed_names[0]); i++) {
        const char *wanted = fixed_names[i].wanted;
        if (strcmp(json_string_or(json_get(json, fixed_names[i].key), wanted), wanted) != 0)
            return unsupported(fixed_names[i].key, err);
    }
    for (size_t i = 0; i < sizeof(fixed_nulls) / sizeof(fixed_nulls[0]); i++)
        if (!is_null(json_get(json, fixed_nulls[i])))
            return unsupported(fixed_nulls[i], err);
    const struct json *corrector = json_get(json, "disable_corrector");
    return corrector && corrector->count > 0 ? unsupported("disable_corrector", err) : 0;
}

/* Sets `out` to the place of the setting's text among `names`, which NULL ends; leaves it alone if
 * there is no such setting. */
static int read_name(int *out, const struct json *json, const char *key, const char *const *names,
                     struct err *err)
{
    const struct json *value = json_get(json, key);
    if (is_null(value))
        return 0;
    const char *text = json_string_or(value, "");
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], text) == 0) {
            *out = i;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "the scheduler's %s \"%.80s\" is not supported", key, text);
}

static int read_names(struct sampler_config *config, const struct json *json, struct err *err)
{
    static const char *const betas[] = {"", "linear", "scaled_linear", "squaredcos_cap_v2", NULL};
    static const char *const spacings[] = {"", "leading", "trailing", "linspace", NULL};
    static const char *const solvers[] = {"", "midpoint", "heun", "logrho", "bh1", "bh2", NULL};
    static const char *const finals[] = {"zero", "sigma_min", NULL};
    static const char *const algorithms[] = {
        "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis", NULL};
    static const char *const variances[] = {"fixed_small", "fixed_small_log", "fixed_large", NULL};
    int beta = BETAS_UNSET, prediction = PREDICTION_EPSILON, spacing = SPACING_UNSET,
        solver = SOLVER_UNSET, final = 0, algorithm = 0, variance = 0;
    if (read_name(&beta, json, "beta_schedule", betas, err) != 0 ||
        read_name(&prediction, json, "prediction_type", predictions, err) != 0 ||
        read_name(&spacing, json, "timestep_spacing", spacings, err) != 0 ||
        read_name(&solver, json, "solver_type", solvers, err) != 0 ||
        read_name(&final, json, "final_sigmas_type", finals, err) != 0 ||
        read_name(&algorithm, json, "algorithm_type", algorithms, err) != 0 ||
        read_name(&variance, json, "variance_type", variances, err) != 0)
        return -1;
    config->betas = (enum betas)beta;
    config->prediction = (enum prediction)prediction;
    config->spacing = (enum spacing)spacing;
    config->solver = (enum solver)solver;
    config->final_sigma_min = final != 0;
    /* deis is what the file of a DEIS solver says; the DPM solvers take it for dpmsolver++. */
    bool is_deis = strcmp(algorithms[algorithm], "deis") == 0;
    config->algorithm = algorithm < ALGORITHM_OTHER ? (enum algorithm)algorithm
                        : is_deis                   ? ALGORITHM_ODE
                                                    : ALGORITHM_OTHER;
    config->large_variance = strcmp(variances[variance], "fixed_large") == 0;
    return 0;
}

static enum choice read_choice(const struct json *json, const char *key)
{
    const struct json *value = json_get(json, key);
    if (is_null(value))
        return CHOICE_UNSET;
    return json_bool_or(value, false) ? CHOICE_YES : CHOICE_NO;
}

/* A number in a range, or `fallback` if there is none. */
static int read_number(double *out, const struct json *json, const char *key, double low,
                       double high, double fallback, struct err *err)
{
    const struct json *value = json_get(json, key);
    double number = json_double_or(value, is_null(value) ? fallback : low - 1);
    if (number != fallback && !(number >= low && number <= high))
        return err_set(err, ERR_FORMAT, ERR_REJECT, "the scheduler's %s must be %g … %g", key, low,
                       high);
    *out = number;
    return 0;
}

static int read_numbers(struct sampler_config *config, const struct json *json, struct err *err)
{
    double train_steps, offset, order, original;
    const struct json *clipped = json_get(json, "lambda_min_clipped");
    if (read_number(&train_steps, json, "num_train_timesteps", 2, SAMPLER_TRAIN_STEPS_MAX, 1000,
                    err) != 0 ||
        read_number(&offset, json, "steps_offset", 0, 100, 0, err) != 0 ||
        read_number(&order, json, "solver_order", 1, 3, 0, err) != 0 ||
        read_number(&config->beta_start, json, "beta_start", 1e-9, 0.9, 0, err) != 0 ||
        read_number(&config->beta_end, json, "beta_end", 1e-9, 0.9, 0, err) != 0 ||
        read_number(&config->clip_sample_range, json, "clip_sample_range", 0, 1e6, 0, err) != 0 ||
        read_number(&config->timestep_scaling, json, "timestep_scaling", 1e-6, 1e6, 0, err) != 0 ||
        read_number(&original, json, "original_inference_steps", 1, train_steps, 0, err) != 0)
        return -1;
    config->train_steps = (int)train_steps;
    config->steps_offset = (int)offset;
    config->solver_order = (int)order;
    config->original_inference_steps = (int)original;
    /* Files write minus infinity as a bare word or as a string; only a number says anything. */
    config->lambda_min_clipped = json_double_or(clipped, -HUGE_VAL);
    return 0;
}

/* The schedule that the file's flags ask for, of which diffusers allows one. */
static int read_schedule(enum schedule *schedule, const struct json *json, struct err *err)
{
    static const struct {
        const char *key;
        enum schedule schedule;
    } flags[] = {{"use_karras_sigmas", SCHEDULE_KARRAS},
                 {"use_exponential_sigmas", SCHEDULE_EXPONENTIAL},
                 {"use_beta_sigmas", SCHEDULE_BETA}};
    *schedule = SCHEDULE_MODEL;
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        if (!json_bool_or(json_get(json, flags[i].key), false))
            continue;
        if (*schedule != SCHEDULE_MODEL)
            return err_set(err, ERR_FORMAT, ERR_REJECT,
                           "the scheduler's %s contradicts another schedule of it", flags[i].key);
        *schedule = flags[i].schedule;
    }
    return 0;
}

static int read_class(struct sampler_config *config, const struct json *json, struct err *err)
{
    const char *name = json_string_or(json_get(json, "_class_name"), "");
    snprintf(config->own_class, sizeof(config->own_class), "%s", name);
    for (size_t i = 0; i < sizeof(foreign_classes) / sizeof(foreign_classes[0]); i++)
        if (strncmp(name, foreign_classes[i], strlen(foreign_classes[i])) == 0)
            return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                           "the scheduler %.60s is of a kind of model that is not supported", name);
    for (enum sampler sampler = SAMPLER_COUNT - 1; sampler > SAMPLER_MODEL; sampler--) {
        const struct sampler_kind *kind = sampler_kind(sampler);
        if (kind->class_name && strcmp(kind->class_name, name) == 0 &&
            (!kind->has_algorithm || kind->algorithm == config->algorithm))
            config->own = sampler; /* the first of them stays: it takes its order from the file */
    }
    return 0;
}

int sampler_config_read(struct sampler_config *config, const struct json *json, struct err *err)
{
    *config = (struct sampler_config){0};
    if (!json || json->type != JSON_OBJECT)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "the scheduler file holds no object");
    if (check_fixed(json, err) != 0 || read_names(config, json, err) != 0 ||
        read_numbers(config, json, err) != 0 || read_schedule(&config->schedule, json, err) != 0 ||
        read_class(config, json, err) != 0)
        return -1;
    config->rescale_betas_zero_snr = json_bool_or(json_get(json, "rescale_betas_zero_snr"), false);
    config->euler_at_final = json_bool_or(json_get(json, "euler_at_final"), false);
    config->set_alpha_to_one = read_choice(json, "set_alpha_to_one");
    config->clip_sample = read_choice(json, "clip_sample");
    config->skip_prk_steps = read_choice(json, "skip_prk_steps");
    config->lower_order_final = read_choice(json, "lower_order_final");
    return 0;
}

struct sampler_config sampler_config_default(enum sampler own, enum prediction prediction)
{
    struct sampler_config config = {
        .own = own,
        .betas = BETAS_SCALED_LINEAR,
        .beta_start = 0.00085,
        .beta_end = 0.012,
        .train_steps = 1000,
        .prediction = prediction,
        .steps_offset = 1,
        .lambda_min_clipped = -HUGE_VAL,
        .set_alpha_to_one = CHOICE_NO,
        .clip_sample = CHOICE_NO,
        .skip_prk_steps = CHOICE_YES,
    };
    snprintf(config.own_class, sizeof(config.own_class), "%s", sampler_kind(own)->class_name);
    return config;
}

#include "simulator/load.h"

#include "common/clock.h"
#include "common/json.h"
#include "simulator/dice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARRIVAL "x-arrival"
#define NS_PER_S 1e9
#define DAYS_MAX 36500 /* of a load */

const char *const load_tiers[] = {"standard", "fast", "premium", NULL};

int load_init(struct load *load, struct fleet *fleet, uint64_t seed, struct err *err)
{
    *load = (struct load){.fleet = fleet, .seed = seed, .first_ns = INT64_MAX};
    names_init(&load->tenants, LOAD_TENANTS_MAX);
    load->problems = malloc(sizeof(*load->problems));
    if (!load->problems)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for jobs");
    return 0;
}

void load_release(struct load *load)
{
    names_release(&load->tenants);
    free(load->problems);
    free(load->jobs);
    *load = (struct load){0};
}

static struct load_job *add(struct load *load, struct err *err)
{
    if (load->count == LOAD_JOBS_MAX) {
        err_set(err, ERR_LIMIT, ERR_FATAL, "more than %d jobs", LOAD_JOBS_MAX);
        return NULL;
    }
    if (load->count == load->cap) {
        uint32_t cap = load->cap ? load->cap * 2 : 1024;
        void *bigger = realloc(load->jobs, cap * sizeof(*load->jobs));
        if (!bigger) {
            err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for %u jobs", cap);
            return NULL;
        }
        load->jobs = bigger;
        load->cap = cap;
    }
    load->jobs[load->count] = (struct load_job){.not_before_ns = LOAD_TIME_NONE,
                                                .deadline_ns = LOAD_TIME_NONE,
                                                .work = 1,
                                                .max_price = -1,
                                                .images = 1,
                                                .attempts_max = 3,
                                                .class = CLASS_NORMAL};
    return &load->jobs[load->count++];
}

static int enter_tenant(struct load *load, const char *name, struct load_job *job, struct err *err)
{
    job->tenant = names_enter(&load->tenants, name);
    if (job->tenant == NAMES_NONE)
        return err_set(err, ERR_LIMIT, ERR_FATAL, "tenant: more than %d of them", LOAD_TENANTS_MAX);
    return 0;
}

/* ---- the contract ---- */

static int read_arrival(struct load *load, const struct json *value, struct load_job *job,
                        struct err *err)
{
    double seconds;
    if (!value)
        return 0;
    if (json_double(value, &seconds) && seconds >= 0 && seconds < DAYS_MAX * 86400.0) {
        job->arrival_ns = (int64_t)(seconds * NS_PER_S);
        load->has_seconds = true;
        return 0;
    }
    if (value->type != JSON_STRING || !clock_parse_rfc3339(value->text, &job->arrival_ns))
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       ARRIVAL ": must be seconds from the beginning, from 0 on, or a time such as "
                               "\"2026-03-01T12:00:00Z\"");
    load->has_wall_times = true;
    if (job->arrival_ns < load->first_ns)
        load->first_ns = job->arrival_ns;
    return 0;
}

static int take_job(struct load *load, struct job *job, struct load_job *out, struct err *err)
{
    struct fleet *fleet = load->fleet;
    uint32_t refiner = NAMES_NONE;
    out->model = fleet_model(fleet, job->model, err);
    if (out->model == NAMES_NONE)
        return -1;
    if (job->refiner.model && (refiner = fleet_model(fleet, job->refiner.model, err)) == NAMES_NONE)
        return err_prefix(err, "refiner");
    const struct catalogue known = {.models = fleet->models};
    catalogue_fill(&known, (int)out->model, job);
    struct demand demand = demand_of(job, &fleet->models[out->model],
                                     refiner == NAMES_NONE ? NULL : &fleet->models[refiner]);
    out->not_before_ns = job->not_before_ns;
    out->deadline_ns = job->deadline_ns;
    out->work = (float)demand.work;
    out->max_price = (float)demand.max_price;
    out->width = (uint16_t)demand.width;
    out->height = (uint16_t)demand.height;
    out->steps = (uint16_t)demand.steps;
    out->images = (uint8_t)demand.images;
    out->needs = (uint8_t)demand.needs;
    out->attempts_max = (uint8_t)job->max_attempts;
    out->class = (uint8_t)demand_class(job);
    out->guided = demand.guided;
    for (unsigned i = 0; demand.tier && load_tiers[i]; i++)
        if (strcmp(load_tiers[i], demand.tier) == 0)
            out->tier = i & 3;
    load->has_limits = load->has_limits || out->not_before_ns != LOAD_TIME_NONE ||
                       out->deadline_ns != LOAD_TIME_NONE;
    if (read_arrival(load, json_get(job->root, ARRIVAL), out, err) != 0)
        return -1;
    return enter_tenant(load, job->tenant, out, err);
}

static int read_job(struct load *load, const char *text, size_t len, struct load_job *out,
                    struct err *err)
{
    struct job job;
    int rc = job_parse(&job, text, len, load->problems, err);
    const struct job_problem *first = &load->problems->items[0];
    if (rc == 0)
        rc = take_job(load, &job, out, err);
    else if (load->problems->count > 0)
        err_set(err, ERR_INVALID, ERR_REJECT, "%s%s%s", first->field, first->field[0] ? ": " : "",
                first->problem);
    job_release(&job);
    return rc;
}

static bool is_blank(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!strchr(" \t\r", text[i]))
            return false;
    return true;
}

int load_line(struct load *load, uint64_t number, const char *text, size_t len, struct err *err)
{
    struct load_job *job;
    int rc;
    if (is_blank(text, len))
        return 0;
    if (number == 1 && text[0] != '{') {
        rc = load_trace_header(load, text, len, err);
        return rc == 0 ? 0 : err_prefix(err, "line 1");
    }
    job = add(load, err);
    if (!job)
        return -1;
    job->line = (uint32_t)number;
    rc = load->is_trace ? load_trace_line(load, text, len, job, err)
                        : read_job(load, text, len, job, err);
    return rc == 0 ? 0 : err_prefix(err, "line %llu", (unsigned long long)number);
}

/* ---- invented ---- */

#define INVENTED_TENANTS 20

/* Of `count` things, the n-th is drawn with a weight of 1 / n. */
static uint32_t zipf(double uniform, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 1; i <= count; i++)
        sum += 1.0 / i;
    for (uint32_t i = 1; i < count; i++) {
        uniform -= 1 / (i * sum);
        if (uniform < 0)
            return i - 1;
    }
    return count - 1;
}

/* At which part of all jobs' time the part `u` of them has come: the rate is 1 - cos over a day, so
 * that nights are quiet. Solved by bisection. */
static double time_of(double u, double hours)
{
    double low = 0, high = hours, days = 2 * 3.14159265358979323846 / 24, depth = 0.8;
    double whole = hours - depth / days * sin(days * hours);
    for (int i = 0; i < 50; i++) {
        double middle = (low + high) / 2;
        if (middle - depth / days * sin(days * middle) < u * whole)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static int invent(struct load *load, uint64_t n, double hours, uint32_t models, struct err *err)
{
    enum { WHEN = 0, WHO = 1, WHAT = 2, HOW = 3, SIZE = 4, MANY = 5, DRAWS = 6 };
    static const int sides[] = {512, 512, 768, 1024};
    char tenant[32];
    double u[DRAWS];
    struct load_job *job = add(load, err);
    if (!job)
        return -1;
    for (int i = 0; i < DRAWS; i++)
        u[i] = dice_uniform(load->seed, DICE_LOAD, n, (uint64_t)i);
    job->model = zipf(u[WHAT], models);
    const struct catalogue_model *model = &load->fleet->models[job->model];
    int side = sides[(int)(u[SIZE] * 4)];
    job->line = (uint32_t)(n + 1);
    job->arrival_ns = (int64_t)(time_of(u[WHEN], hours) * 3600 * NS_PER_S);
    job->width = (uint16_t)(model->width ? model->width : side);
    job->height = (uint16_t)(model->height ? model->height : side);
    job->steps = (uint16_t)(model->steps ? model->steps : DEMAND_STEPS);
    job->guided = model->guidance_scale > 1 || model->guidance_scale < 0;
    job->images = u[MANY] < 0.7 ? 1 : 4;
    job->class = u[HOW] < 0.1 ? CLASS_INTERACTIVE : u[HOW] < 0.5 ? CLASS_NORMAL : CLASS_BULK;
    snprintf(tenant, sizeof(tenant), "tenant%02u", zipf(u[WHO], INVENTED_TENANTS) + 1);
    return enter_tenant(load, tenant, job, err);
}

int load_invent(struct load *load, uint64_t count, double hours, struct err *err)
{
    uint32_t models = load->fleet->model_names.count;
    if (models == 0 && fleet_model(load->fleet, "model", err) == NAMES_NONE)
        return -1;
    for (uint64_t n = 0; n < count; n++)
        if (invent(load, n, hours, models ? models : 1, err) != 0)
            return -1;
    return 0;
}

/* ---- in order ---- */

static int by_arrival(const void *a, const void *b)
{
    const struct load_job *x = a, *y = b;
    if (x->arrival_ns != y->arrival_ns)
        return x->arrival_ns < y->arrival_ns ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

/* From wall clock or seconds to nanoseconds from the beginning; limits keep their distance from the
 * arrival. */
static void rebase(struct load_job *job, bool wall, int64_t start_ns, double speed)
{
    int64_t came = wall ? job->arrival_ns - start_ns : job->arrival_ns;
    int64_t shift = (int64_t)((double)came / speed) - came - start_ns;
    job->arrival_ns = (int64_t)((double)came / speed);
    if (job->not_before_ns != LOAD_TIME_NONE)
        job->not_before_ns += shift;
    if (job->deadline_ns != LOAD_TIME_NONE)
        job->deadline_ns += shift;
}

int load_finish(struct load *load, int64_t start_ns, double speed, struct err *err)
{
    bool wall = load->has_wall_times;
    if (load->count == 0)
        return err_set(err, ERR_INVALID, ERR_FATAL, "there are no jobs");
    if (wall && load->has_seconds)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       ARRIVAL ": some are seconds and some are times; use one of them");
    if (start_ns == LOAD_TIME_NONE && load->has_limits && !wall)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "jobs have deadlines or not_before, and nothing says when the simulation "
                       "begins: add --start, or give arrivals as times");
    if (start_ns == LOAD_TIME_NONE)
        start_ns = wall ? load->first_ns : 0;
    for (uint32_t i = 0; i < load->count; i++) {
        struct load_job *job = &load->jobs[i];
        if (wall && job->arrival_ns < start_ns)
            job->arrival_ns = start_ns; /* it waits already */
        rebase(job, wall, start_ns, speed);
    }
    qsort(load->jobs, load->count, sizeof(*load->jobs), by_arrival);
    return 0;
}

struct demand load_demand(const struct load_job *job)
{
    return (struct demand){.model = job->model,
                           .tenant = job->tenant,
                           .tier = load_tiers[job->tier],
                           .width = job->width,
                           .height = job->height,
                           .steps = job->steps,
                           .images = job->images,
                           .guided = job->guided,
                           .needs = job->needs,
                           .work = (double)job->work,
                           .max_price = (double)job->max_price};
}

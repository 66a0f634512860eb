/*
 * tally.c: what is counted while the simulation runs, and what it comes to.
 *
 * Samples are means over equal steps of time. How long the run will be is not known, so that
 * whenever there are too many of them, two become one and the step doubles.
 *
 * Fairness is Jain's index of the tenants' mean slowdowns: (Σx)² / (n Σx²), 1 where all are slowed
 * alike and 1/n where one alone is. Source: Jain, Chiu, Hawe, "A quantitative measure of fairness
 * and discrimination for resource allocation in shared computer systems", DEC-TR-301, 1984.
 */
#include "simulator/state.h"

#include <stdlib.h>
#include <string.h>

#define SAMPLES_MAX 1024 /* even */
#define FIRST_STEP_NS NS_PER_S

/* ---- while it runs ---- */

int tally_begin(struct sim *sim, struct err *err)
{
    struct sim_result *result = sim->result;
    result->samples = calloc(SAMPLES_MAX, sizeof(*result->samples));
    result->tenants = calloc(sim->load->tenants.count, sizeof(*result->tenants));
    if (!result->samples || !result->tenants)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for a result");
    result->pool_count = sim->fleet->pool_count;
    for (uint32_t p = 0; p < result->pool_count; p++)
        result->pools[p].name = sim->fleet->pools[p].name;
    sim->sample_ns = FIRST_STEP_NS;
    timer_set(sim, &sim->sample, sim->sample_ns);
    return 0;
}

static void integrate(struct sim *sim, struct integral *integral, uint32_t count)
{
    integral->sum += count * ((double)(sim->now_ns - integral->ns) / NS_PER_S);
    integral->ns = sim->now_ns;
}

void tally_pool(struct sim *sim, uint32_t number, int busy, int paid)
{
    struct pool_state *pool = &sim->pools[number];
    integrate(sim, &sim->busy[number], pool->busy);
    integrate(sim, &sim->paid[number], pool->paid);
    pool->busy += (uint32_t)busy;
    pool->paid += (uint32_t)paid;
    if (pool->paid > sim->result->pools[number].workers_max)
        sim->result->pools[number].workers_max = pool->paid;
}

static void halve_samples(struct sim *sim)
{
    struct sim_result *result = sim->result;
    for (uint32_t i = 0; i < result->sample_count; i += 2) {
        float *to = (float *)&result->samples[i / 2];
        const float *a = (const float *)&result->samples[i];
        const float *b = (const float *)&result->samples[i + 1];
        for (size_t k = 0; k < sizeof(struct sim_sample) / sizeof(float); k++)
            to[k] = (a[k] + b[k]) / 2;
    }
    result->sample_count /= 2;
    sim->sample_ns *= 2;
}

static float mean_since(struct integral *before, const struct integral *now, double step_s)
{
    double sum = now->sum - before->sum;
    *before = *now;
    return (float)(sum / step_s);
}

void tally_sample(struct sim *sim)
{
    struct sim_result *result = sim->result;
    struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
    struct sim_sample *sample = &result->samples[result->sample_count++];
    double step_s = (double)sim->sample_ns / NS_PER_S;
    scheduler_pools(sim->scheduler, pools);
    *sample = (struct sim_sample){.busy = {0}};
    for (uint32_t p = 0; p < result->pool_count; p++) {
        tally_pool(sim, p, 0, 0);
        sample->busy[p] = mean_since(&sim->sampled_busy[p], &sim->busy[p], step_s);
        sample->workers[p] = mean_since(&sim->sampled_paid[p], &sim->paid[p], step_s);
        sample->wanted[p] = (float)pools[sim->pools[p].class].wanted;
        sample->queued[p] = (float)pools[sim->pools[p].class].queued;
    }
    if (result->sample_count == SAMPLES_MAX)
        halve_samples(sim);
    timer_set(sim, &sim->sample, (int64_t)(result->sample_count + 1) * sim->sample_ns);
}

/* ---- what it comes to ---- */

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The nearest rank. Sorts the values. */
static struct sim_spread spread_of(float *values, uint32_t count)
{
    struct sim_spread spread = {.mean = 0};
    if (count == 0)
        return spread;
    qsort(values, count, sizeof(*values), by_value);
    for (uint32_t i = 0; i < count; i++)
        spread.mean += (double)values[i] / count;
    spread.p50 = (double)values[(uint32_t)ceil(0.50 * count) - 1];
    spread.p95 = (double)values[(uint32_t)ceil(0.95 * count) - 1];
    spread.p99 = (double)values[(uint32_t)ceil(0.99 * count) - 1];
    spread.max = (double)values[count - 1];
    return spread;
}

static void count_job(struct sim_group *group, const struct load_job *job,
                      const struct record *record)
{
    uint64_t *const ends[] = {[END_LEFT] = &group->left,
                              [END_DONE] = &group->done,
                              [END_EXPIRED] = &group->expired,
                              [END_DEAD] = &group->dead,
                              [END_REFUSED] = &group->refused};
    (*ends[record->end])++;
    group->jobs++;
    group->pictures += job->images;
    group->missed +=
        record->late || (record->end == END_LEFT && job->deadline_ns != LOAD_TIME_NONE);
    group->work_s += (double)record->work_s;
    group->price += (double)record->price;
    if (record->end == END_DONE)
        group->slowdown += (double)record->slowdown;
}

/* Jobs of a group are numbers in `members`; `values` is room for as many. */
static void close_group(const struct sim *sim, struct sim_group *group, const uint32_t *members,
                        uint32_t count, float *values)
{
    uint32_t done = 0;
    for (uint32_t i = 0; i < count; i++)
        if (sim->records[members[i]].end == END_DONE)
            values[done++] = sim->records[members[i]].wait_s;
    group->wait_s = spread_of(values, done);
    done = 0;
    for (uint32_t i = 0; i < count; i++)
        if (sim->records[members[i]].end == END_DONE)
            values[done++] = sim->records[members[i]].whole_s;
    group->whole_s = spread_of(values, done);
    if (done > 0)
        group->slowdown /= done;
}

/* Jobs by group: a counting sort, `first` of count + 1 places. */
static void sort_by(const struct sim *sim, bool tenant, uint32_t groups, uint32_t *first,
                    uint32_t *members)
{
    memset(first, 0, (groups + 1) * sizeof(*first));
    for (uint32_t i = 0; i < sim->load->count; i++)
        first[(tenant ? sim->load->jobs[i].tenant : sim->load->jobs[i].class) + 1]++;
    for (uint32_t g = 0; g < groups; g++)
        first[g + 1] += first[g];
    for (uint32_t i = sim->load->count; i-- > 0;) {
        uint32_t g = tenant ? sim->load->jobs[i].tenant : sim->load->jobs[i].class;
        members[--first[g + 1]] = i;
    }
    /* Each place has moved to its group's beginning. */
    memmove(first, first + 1, groups * sizeof(*first));
    first[groups] = sim->load->count;
}

static void close_groups(const struct sim *sim, bool tenant, struct sim_group *groups,
                         uint32_t count, uint32_t *first, uint32_t *members, float *values)
{
    sort_by(sim, tenant, count, first, members);
    for (uint32_t g = 0; g < count; g++) {
        for (uint32_t i = first[g]; i < first[g + 1]; i++)
            count_job(&groups[g], &sim->load->jobs[members[i]], &sim->records[members[i]]);
        close_group(sim, &groups[g], members + first[g], first[g + 1] - first[g], values);
    }
}

static void close_all(const struct sim *sim, uint32_t *members, float *values)
{
    struct sim_group *all = &sim->result->all;
    all->name = "all";
    for (uint32_t i = 0; i < sim->load->count; i++) {
        members[i] = i;
        count_job(all, &sim->load->jobs[i], &sim->records[i]);
    }
    close_group(sim, all, members, sim->load->count, values);
}

static double fairness_of(const struct sim_result *result)
{
    double sum = 0, squares = 0;
    uint32_t count = 0;
    for (uint32_t i = 0; i < result->tenant_count; i++) {
        double x = result->tenants[i].slowdown;
        sum += x;
        squares += x * x;
        count += x > 0;
    }
    return squares > 0 ? sum * sum / (count * squares) : 1;
}

static void close_pools(struct sim *sim, float *values)
{
    struct sim_result *result = sim->result;
    double end_s = (double)sim->now_ns / NS_PER_S;
    for (uint32_t p = 0; p < result->pool_count; p++) {
        struct sim_pool *pool = &result->pools[p];
        tally_pool(sim, p, 0, 0);
        pool->busy_s = sim->busy[p].sum;
        pool->paid_s = sim->paid[p].sum;
        pool->workers_mean = end_s > 0 ? pool->paid_s / end_s : pool->workers_max;
        pool->price = pool->paid_s / 3600 * sim->pools[p].price_per_hour;
        for (uint32_t i = 0; i < result->sample_count; i++)
            values[i] = result->samples[i].wanted[p];
        pool->wanted = spread_of(values, result->sample_count);
        result->price += pool->price;
    }
}

static int by_work(const void *a, const void *b)
{
    const struct sim_group *x = a, *y = b;
    if (x->work_s != y->work_s)
        return x->work_s > y->work_s ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void name_groups(const struct sim *sim)
{
    static const char *const classes[] = {"interactive", "normal", "bulk"};
    struct sim_result *result = sim->result;
    for (int c = 0; c < CLASS_COUNT; c++)
        result->classes[c].name = classes[c];
    result->tenant_count = sim->load->tenants.count;
    for (uint32_t t = 0; t < result->tenant_count; t++) {
        result->tenants[t].name = sim->load->tenants.names[t];
        result->tenants[t].weight =
            policy_tenant(sim->options->policy, result->tenants[t].name).weight;
    }
}

int tally_finish(struct sim *sim, struct err *err)
{
    struct sim_result *result = sim->result;
    uint32_t jobs = sim->load->count, tenants = sim->load->tenants.count;
    uint32_t groups = tenants > CLASS_COUNT ? tenants : CLASS_COUNT;
    float *values = malloc((jobs > SAMPLES_MAX ? jobs : SAMPLES_MAX) * sizeof(*values));
    uint32_t *members = malloc(jobs * sizeof(*members));
    uint32_t *first = malloc((groups + 2) * sizeof(*first));
    int rc = -1;
    if (values && members && first) {
        name_groups(sim);
        close_all(sim, members, values);
        close_groups(sim, false, result->classes, CLASS_COUNT, first, members, values);
        close_groups(sim, true, result->tenants, tenants, first, members, values);
        close_pools(sim, values);
        qsort(result->tenants, tenants, sizeof(*result->tenants), by_work);
        result->fairness = fairness_of(result);
        result->span_s = (double)sim->last_end_ns / NS_PER_S;
        result->step_s = (double)sim->sample_ns / NS_PER_S;
        rc = 0;
    } else {
        err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the results of %u jobs", jobs);
    }
    free(values);
    free(members);
    free(first);
    return rc;
}

void sim_result_release(struct sim_result *result)
{
    free(result->samples);
    free(result->tenants);
    *result = (struct sim_result){0};
}

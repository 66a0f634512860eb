/*
 * referee.c: DESIGN
 *
 * The book is the plainest there is: what each job does, what each worker holds, how many jobs each
 * tenant runs. Routes are asked of the policy for the job itself, not for its profile.
 *
 * Overtaking. A watched job counts the assignments of jobs that became ready after it and have its
 * home. Where the book cannot know an order, it counts too little rather than too much: of jobs
 * that come back after a crash or failure; and a watch ends when its job's home changes, or a
 * worker leaves that may have been promised to it: the job then takes a new place in line. Only a
 * job of a single picture that shares its worker is held to the bound when it overtakes: others may
 * have been promised a worker long before they begin.
 */
#include "simulator/referee.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define NOBODY UINT32_MAX

enum fate { UNBORN, WAITS, RUNS, ENDED };

struct book_job {
    uint8_t fate;
    bool crashed;
    uint32_t worker;
    uint32_t order; /* of becoming ready; 0: not known within its moment */
    int64_t ready_ns;
};

/* Workers that can take the same jobs. */
struct book_kind {
    uint32_t device_class, offers;
    uint64_t memory_bytes;
    uint32_t open; /* there, and not draining */
};

struct book_worker {
    struct scheduler_worker is;
    bool present;
    uint32_t kind;
    uint32_t pictures, jobs, alone;
    uint32_t held[SCHEDULER_WORKER_JOBS_MAX];
};

struct watch {
    uint32_t job; /* NOBODY: free */
    uint32_t home, overtaken;
    struct policy_route route;
};

struct referee {
    struct referee_options options;
    struct book_job *jobs;
    struct book_worker *workers;
    struct book_kind kinds[FLEET_POOLS_MAX];
    uint32_t kind_count;
    uint32_t *tenant_runs, *tenant_max;
    struct watch watched[REFEREE_WATCHED];
    uint32_t orders, ended;
    uint64_t checks;
};

int referee_create(struct referee **out, const struct referee_options *options, struct err *err)
{
    const struct load *load = options->load;
    struct referee *r = calloc(1, sizeof(*r));
    *out = r;
    if (r) {
        r->options = *options;
        r->jobs = calloc(load->count, sizeof(*r->jobs));
        r->workers = calloc(options->workers_max, sizeof(*r->workers));
        r->tenant_runs = calloc(load->tenants.count, sizeof(*r->tenant_runs));
        r->tenant_max = calloc(load->tenants.count, sizeof(*r->tenant_max));
    }
    if (!r || !r->jobs || !r->workers || !r->tenant_runs || !r->tenant_max)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to check %u jobs", load->count);
    for (uint32_t i = 0; i < load->tenants.count; i++)
        r->tenant_max[i] = policy_tenant(options->policy, load->tenants.names[i]).running_max;
    for (int i = 0; i < REFEREE_WATCHED; i++)
        r->watched[i].job = NOBODY;
    return 0;
}

void referee_free(struct referee *r)
{
    if (!r)
        return;
    free(r->jobs);
    free(r->workers);
    free(r->tenant_runs);
    free(r->tenant_max);
    free(r);
}

static int breach(const struct referee *r, uint32_t job, int64_t now_ns, struct err *err,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));

static int breach(const struct referee *r, uint32_t job, int64_t now_ns, struct err *err,
                  const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return err_set(err, ERR_CONFLICT, ERR_FATAL,
                   "the scheduler broke a promise, %.3f s after the beginning: the job of line %u "
                   "%s; please report this with the files",
                   (double)now_ns * 1e-9, r->options.load->jobs[job].line, text);
}

/* ---- homes and watches ---- */

static const struct catalogue_model *model_of(const struct referee *r, uint32_t job)
{
    return &r->options.load->fleet->models[r->options.load->jobs[job].model];
}

static struct policy_route route_of(const struct referee *r, uint32_t number)
{
    const struct load_job *job = &r->options.load->jobs[number];
    const struct catalogue_model *model = model_of(r, number);
    struct policy_facts facts = {.tier = load_tiers[job->tier],
                                 .family = model->family,
                                 .model = model->name,
                                 .tenant = r->options.load->tenants.names[job->tenant],
                                 .width = job->width,
                                 .height = job->height,
                                 .confidential = job->needs & NEED_CONFIDENTIAL,
                                 .memory_gb = (double)model->bytes / (1u << 30)};
    struct policy_route route;
    policy_route(r->options.policy, &facts, &route);
    return route;
}

static bool can_take(const struct referee *r, const struct book_kind *kind, uint32_t job)
{
    return kind->open > 0 && kind->memory_bytes >= need_memory(model_of(r, job)) &&
           (r->options.load->jobs[job].needs & ~kind->offers) == 0;
}

/* The first class of the route with a worker that can take it. Of a job with a price NOBODY: that
 * may bar classes that the policy's route still has. */
static uint32_t home_of(const struct referee *r, uint32_t job, const struct policy_route *route)
{
    if (r->options.load->jobs[job].max_price >= 0)
        return NOBODY;
    for (int i = 0; i < route->count; i++)
        for (uint32_t k = 0; k < r->kind_count; k++)
            if (r->kinds[k].device_class == route->classes[i] && can_take(r, &r->kinds[k], job))
                return route->classes[i];
    return NOBODY;
}

static void watch(struct referee *r, uint32_t job)
{
    for (int i = 0; i < REFEREE_WATCHED; i++) {
        struct watch *watch = &r->watched[i];
        if (watch->job != NOBODY)
            continue;
        *watch = (struct watch){.job = job, .route = route_of(r, job)};
        watch->home = home_of(r, job, &watch->route);
        if (watch->home == NOBODY)
            watch->job = NOBODY;
        return;
    }
}

static void forget(struct referee *r, uint32_t job)
{
    for (int i = 0; i < REFEREE_WATCHED; i++)
        if (r->watched[i].job == job)
            r->watched[i].job = NOBODY;
}

/* After the first worker of a kind has come, or the last has gone. */
static void check_homes(struct referee *r)
{
    for (int i = 0; i < REFEREE_WATCHED; i++) {
        struct watch *watch = &r->watched[i];
        if (watch->job != NOBODY && home_of(r, watch->job, &watch->route) != watch->home)
            watch->job = NOBODY;
    }
}

/* A job of several pictures may have been promised the worker that takes no more. */
static void forget_large(struct referee *r)
{
    for (int i = 0; i < REFEREE_WATCHED; i++)
        if (r->watched[i].job != NOBODY && r->options.load->jobs[r->watched[i].job].images > 1)
            r->watched[i].job = NOBODY;
}

static void forget_tenant(struct referee *r, uint32_t tenant)
{
    for (int i = 0; i < REFEREE_WATCHED; i++)
        if (r->watched[i].job != NOBODY &&
            r->options.load->jobs[r->watched[i].job].tenant == tenant)
            r->watched[i].job = NOBODY;
}

static bool is_younger(const struct book_job *a, const struct book_job *than)
{
    return a->ready_ns > than->ready_ns ||
           (a->ready_ns == than->ready_ns && a->order > than->order);
}

/* `job`, which is at home in `home`, goes to a worker: whom does it overtake? */
static int count_overtaken(struct referee *r, uint32_t job, const struct book_worker *worker,
                           bool shares, int64_t now_ns, bool (*promised)(void *user, uint32_t job),
                           void *user, struct err *err)
{
    struct policy_route route = route_of(r, job);
    uint32_t home = home_of(r, job, &route);
    for (int i = 0; i < REFEREE_WATCHED; i++) {
        struct watch *watch = &r->watched[i];
        if (watch->job == NOBODY || watch->home != home ||
            !is_younger(&r->jobs[job], &r->jobs[watch->job]))
            continue;
        if (shares && watch->overtaken >= r->options.overtake_max &&
            worker->is.device_class == home && can_take(r, &r->kinds[worker->kind], watch->job) &&
            !promised(user, watch->job))
            return breach(r, watch->job, now_ns, err,
                          "was overtaken by more than %u younger ones; the last is that of line %u",
                          r->options.overtake_max, r->options.load->jobs[job].line);
        watch->overtaken++;
    }
    return 0;
}

/* ---- workers ---- */

static uint32_t kind_of(struct referee *r, const struct scheduler_worker *is)
{
    uint32_t k = 0;
    while (k < r->kind_count &&
           (r->kinds[k].device_class != is->device_class || r->kinds[k].offers != is->offers ||
            r->kinds[k].memory_bytes != is->memory_bytes))
        k++;
    ASSERT(k < FLEET_POOLS_MAX); /* workers of a pool are alike */
    if (k == r->kind_count)
        r->kinds[r->kind_count++] = (struct book_kind){.device_class = is->device_class,
                                                       .offers = is->offers,
                                                       .memory_bytes = is->memory_bytes};
    return k;
}

static void set_open(struct referee *r, struct book_worker *worker, bool present, bool draining)
{
    struct book_kind *kind = &r->kinds[worker->kind];
    bool was = worker->present && !worker->is.draining, is = present && !draining;
    kind->open += (uint32_t)is - (uint32_t)was;
    worker->present = present;
    worker->is.draining = draining;
    if (was && !is)
        forget_large(r);
    if (was != is && kind->open <= 1) /* its first one, or its last has gone */
        check_homes(r);
}

void referee_worker(struct referee *r, uint32_t number, const struct scheduler_worker *is)
{
    struct book_worker *worker = &r->workers[number];
    bool was_draining = worker->is.draining;
    if (!worker->present)
        worker->kind = kind_of(r, is);
    worker->is = *is;
    worker->is.draining = was_draining;
    set_open(r, worker, true, is->draining);
}

static void put_down(struct referee *r, uint32_t number)
{
    struct book_job *job = &r->jobs[number];
    struct book_worker *worker = &r->workers[job->worker];
    uint32_t i = 0;
    while (worker->held[i] != number)
        i++;
    worker->held[i] = worker->held[--worker->jobs];
    worker->pictures -= r->options.load->jobs[number].images;
    worker->alone -= job->crashed;
    r->tenant_runs[r->options.load->jobs[number].tenant]--;
}

static void wait_again(struct referee *r, uint32_t number, int64_t now_ns)
{
    put_down(r, number);
    r->jobs[number].fate = WAITS;
    r->jobs[number].ready_ns = now_ns;
    r->jobs[number].order = 0;
}

void referee_worker_gone(struct referee *r, uint32_t number, int64_t now_ns)
{
    struct book_worker *worker = &r->workers[number];
    while (worker->jobs > 0) {
        uint32_t job = worker->held[0];
        wait_again(r, job, now_ns);
        r->jobs[job].crashed = true;
    }
    set_open(r, worker, false, false);
}

/* ---- jobs ---- */

int referee_waits(struct referee *r, uint32_t number, int64_t now_ns, bool comes_back,
                  struct err *err)
{
    const struct load_job *load = &r->options.load->jobs[number];
    struct book_job *job = &r->jobs[number];
    if (comes_back && job->fate == RUNS) {
        wait_again(r, number, now_ns);
        return 0;
    }
    if (comes_back || job->fate != UNBORN)
        return breach(r, number, now_ns, err, "came twice, or back from nowhere");
    job->fate = WAITS;
    job->ready_ns = now_ns;
    if (load->not_before_ns != LOAD_TIME_NONE && load->not_before_ns > now_ns) {
        job->ready_ns = load->not_before_ns;
        return 0;
    }
    job->order = ++r->orders;
    watch(r, number);
    return 0;
}

static int check_time(const struct referee *r, uint32_t number, int64_t now_ns, struct err *err)
{
    const struct load_job *load = &r->options.load->jobs[number];
    if (load->not_before_ns != LOAD_TIME_NONE && now_ns < load->not_before_ns)
        return breach(r, number, now_ns, err, "began before its not_before");
    if (load->deadline_ns != LOAD_TIME_NONE && now_ns >= load->deadline_ns)
        return breach(r, number, now_ns, err, "began after its deadline");
    return 0;
}

static int check_place(const struct referee *r, uint32_t number, uint32_t at, int64_t now_ns,
                       struct err *err)
{
    const struct book_worker *worker = &r->workers[at];
    struct policy_route route = route_of(r, number);
    bool on_route = false;
    for (int i = 0; i < route.count; i++)
        on_route = on_route || route.classes[i] == worker->is.device_class;
    if (!worker->present || worker->is.draining)
        return breach(r, number, now_ns, err, "was given to worker %u, which takes none", at);
    if (!on_route)
        return breach(r, number, now_ns, err, "was given to a class that is not on its route");
    if (!can_take(r, &r->kinds[worker->kind], number))
        return breach(r, number, now_ns, err,
                      "was given to worker %u, which has not the memory or offers not what it "
                      "needs",
                      at);
    return 0;
}

static int check_room(const struct referee *r, uint32_t number, const struct book_worker *worker,
                      bool alone, int64_t now_ns, struct err *err)
{
    const struct load_job *load = &r->options.load->jobs[number];
    bool over = worker->pictures + load->images > (uint32_t)worker->is.pictures_max;
    if (worker->jobs > 0 && (over || worker->jobs == SCHEDULER_WORKER_JOBS_MAX))
        return breach(r, number, now_ns, err, "was given to a worker without room for it");
    if (worker->jobs > 0 && (alone || r->jobs[number].crashed || worker->alone > 0))
        return breach(r, number, now_ns, err, "shares a worker with one that must be alone");
    uint32_t max = r->tenant_max[load->tenant];
    if (max > 0 && r->tenant_runs[load->tenant] >= max)
        return breach(r, number, now_ns, err, "is more than its tenant's running_max");
    return 0;
}

int referee_assigned(struct referee *r, uint32_t number, uint32_t at, bool alone, int64_t now_ns,
                     bool (*promised)(void *user, uint32_t job), void *user, struct err *err)
{
    static const char *const fates[] = {"never came", "waits", "runs already", "has ended"};
    const struct load_job *load = &r->options.load->jobs[number];
    struct book_job *job = &r->jobs[number];
    struct book_worker *worker = &r->workers[at];
    bool shares = load->images == 1 && !alone && !job->crashed;
    r->checks++;
    if (job->fate != WAITS)
        return breach(r, number, now_ns, err, "was given to a worker though it %s",
                      fates[job->fate]);
    if (check_time(r, number, now_ns, err) != 0 || check_place(r, number, at, now_ns, err) != 0 ||
        check_room(r, number, worker, alone, now_ns, err) != 0)
        return -1;
    forget(r, number);
    if (count_overtaken(r, number, worker, shares, now_ns, promised, user, err) != 0)
        return -1;
    job->fate = RUNS;
    job->worker = at;
    worker->held[worker->jobs++] = number;
    worker->pictures += load->images;
    worker->alone += job->crashed;
    if (++r->tenant_runs[load->tenant] == r->tenant_max[load->tenant])
        forget_tenant(r, load->tenant);
    return 0;
}

int referee_ended(struct referee *r, uint32_t number, int64_t now_ns, struct err *err)
{
    struct book_job *job = &r->jobs[number];
    if (job->fate == ENDED)
        return breach(r, number, now_ns, err, "ended twice");
    if (job->fate == RUNS)
        put_down(r, number);
    forget(r, number);
    job->fate = ENDED;
    r->ended++;
    return 0;
}

int referee_finish(struct referee *r, uint32_t left, int64_t now_ns, uint64_t *checks,
                   struct err *err)
{
    uint32_t waiting = 0;
    *checks = r->checks;
    for (uint32_t i = 0; i < r->options.load->count; i++) {
        waiting += r->jobs[i].fate == WAITS || r->jobs[i].fate == UNBORN;
        if (r->jobs[i].fate == RUNS)
            return breach(r, i, now_ns, err, "was lost: its worker is gone and it does not wait");
    }
    if (waiting != left)
        return err_set(err, ERR_CONFLICT, ERR_FATAL,
                       "the scheduler lost jobs: it says that %u wait, and %u do", left, waiting);
    return 0;
}

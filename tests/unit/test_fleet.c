/*
 * The scheduler for a fleet: device classes and overflow, quotas, crashes, restoring, draining,
 * explanations; then a soak of many workers and jobs that compares invariants. With ATELIER_BENCH
 * set it also prints decisions per second and bytes per job with a million jobs queued.
 */
#include "scheduler/explain.h"
#include "scheduler/scheduler.h"

#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECOND 1000000000LL
#define FEW 64

enum { A100, A10, G8I };

static struct scheduler *s;
static struct scheduler_actions actions;
static int64_t now;

static void step(struct scheduler_event event)
{
    event.now_ns = now;
    scheduler_step(s, &event, &actions);
}

static struct scheduler_options few(void)
{
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    options.jobs_max = options.workers_max = FEW;
    options.tenants_max = 4;
    options.profiles_max = 16;
    options.retry_jitter = 0;
    return options;
}

static void start(struct scheduler_options options)
{
    struct err err;
    now = 1000 * SECOND;
    assert_int_equal(scheduler_create(&s, &options, &err), 0);
}

static void set_profile(uint32_t number, struct scheduler_profile profile)
{
    step((struct scheduler_event){.type = EVENT_PROFILE, .number = number, .profile = profile});
}

/* Prefers an A100, 10 s at 3.6 an hour: 0.01; or an A10, 30 s at 1.2 an hour: 0.01 too. */
static struct scheduler_profile sdxl(void)
{
    return (struct scheduler_profile){.route = {A100, A10},
                                      .route_count = 2,
                                      .seconds = {[A100] = 10, [A10] = 30},
                                      .switch_s = {[A100] = 5, [A10] = 15}};
}

static struct scheduler_worker machine(uint32_t class, int pictures)
{
    static const float prices[] = {3.6f, 1.2f, 0.9f};
    return (struct scheduler_worker){
        .device_class = class, .pictures_max = pictures, .price_per_hour = prices[class]};
}

static void set_worker(uint32_t worker, struct scheduler_worker is)
{
    step((struct scheduler_event){.type = EVENT_WORKER, .worker = worker, .worker_is = is});
}

static struct scheduler_job plain(void)
{
    return (struct scheduler_job){.width = 512,
                                  .height = 512,
                                  .pictures = 1,
                                  .class = CLASS_NORMAL,
                                  .attempts_max = 3,
                                  .not_before_ns = SCHEDULER_TIME_NONE,
                                  .deadline_ns = SCHEDULER_TIME_NONE};
}

static void submit(uint32_t slot, struct scheduler_job job)
{
    step((struct scheduler_event){.type = EVENT_SUBMIT, .slot = slot, .job = job});
}

static void finish(uint32_t slot, enum outcome outcome)
{
    step((struct scheduler_event){.type = EVENT_FINISH, .slot = slot, .outcome = outcome});
}

static void tell(enum event_type type, uint32_t slot, uint32_t worker)
{
    step((struct scheduler_event){.type = type, .slot = slot, .worker = worker});
}

static struct scheduler_explanation explain(uint32_t slot)
{
    struct scheduler_explanation explanation;
    scheduler_explain(s, slot, &explanation);
    return explanation;
}

static void assert_near(double value, double expected)
{
    if (fabs(value - expected) > 1e-6 + 1e-6 * fabs(expected))
        fail_msg("%.9g instead of %.9g", value, expected);
}

static void assert_assigned(uint32_t slot, uint32_t worker)
{
    assert_int_equal(actions.count, 1);
    assert_int_equal(actions.items[0].type, ACTION_ASSIGN);
    assert_int_equal(actions.items[0].slot, slot);
    assert_int_equal(actions.items[0].worker, worker);
}

/* One A100 busy for 10 s, waiting worth 3.6 an hour (0.001 a second). The A10 asks
 * (30 + 15) s × 1.2 / 3600 = 0.015; to wait asks 10 s × 3.6 / 3600 + wait × 0.001, which is 0.02
 * behind one job. Behind none it is 0.01 and the A10 is never asked. */
static void test_overflow_by_hand(void **state)
{
    (void)state;
    struct scheduler_options options = few();
    options.waiting_per_hour = 3.6;
    start(options);
    set_profile(0, sdxl());
    set_worker(0, machine(A100, 1));
    set_worker(1, machine(A10, 1));
    submit(0, plain());
    assert_assigned(0, 0);
    assert_int_equal(explain(0).placement, PLACEMENT_PREFERRED);
    submit(1, plain());
    assert_assigned(1, 1);
    struct scheduler_explanation e = explain(1);
    assert_int_equal(e.why, WAITING_RUNNING);
    assert_int_equal(e.placement, PLACEMENT_OVERFLOW);
    assert_int_equal(e.class, A10);
    assert_int_equal(e.preferred, A100);
    assert_near(e.cost_here, 0.015);
    assert_near(e.cost_waiting, 0.02);
    assert_near(e.wait_s, 10);
    assert_near(e.price, 30 * 1.2 / 3600);
    scheduler_free(s);

    /* Waiting worth a quarter of that: 0.01 + 10 × 0.00025 = 0.0125 is less than 0.015. */
    options.waiting_per_hour = 0.9;
    start(options);
    set_profile(0, sdxl());
    set_worker(0, machine(A100, 1));
    set_worker(1, machine(A10, 1));
    submit(0, plain());
    submit(1, plain());
    assert_int_equal(actions.count, 0);
    e = explain(1);
    assert_int_equal(e.why, WAITING_CLASS_BUSY);
    assert_near(e.start_s, 10);
    assert_near(e.price, 0.01);
    assert_near(e.seconds[A10], 30);
    /* With the model at hand the A10 asks 30 × 1.2 / 3600 = 0.01: now it is cheaper. */
    struct scheduler_worker a10 = machine(A10, 1);
    a10.resident[a10.resident_count++] = 0;
    set_worker(1, a10);
    assert_assigned(1, 1);
    assert_near(explain(1).cost_here, 0.01);
    assert_near(explain(1).cost_waiting, 0.0125);
    scheduler_free(s);

    /* A deadline in 15 s, lateness worth 36 an hour. To wait ends at 20 s, 5 s late: 0.0125 + 0.05;
     * the A10 would end at 45 s, 30 s late: 0.015 + 0.3. It waits. */
    options.lateness_per_hour = 36;
    options.waiting_per_hour = 36;
    start(options);
    set_profile(0, sdxl());
    set_worker(0, machine(A100, 1));
    set_worker(1, machine(A10, 1));
    submit(0, plain());
    struct scheduler_job job = plain();
    job.deadline_ns = now + 15 * SECOND;
    submit(1, job);
    assert_int_equal(actions.count, 0);
    tell(EVENT_CANCEL, 1, 0);
    submit(2, plain()); /* without one, 0.015 against 0.01 + 10 × 0.01 */
    assert_assigned(2, 1);
    scheduler_free(s);
}

static void test_overflow_where_nobody_is(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    submit(0, plain());
    assert_int_equal(explain(0).why, WAITING_WORKER);
    assert_near(explain(0).start_s, -1);
    set_worker(3, machine(G8I, 4)); /* not on the route */
    assert_int_equal(actions.count, 0);
    set_worker(1, machine(A10, 1));
    assert_assigned(0, 1);
    assert_int_equal(explain(0).placement, PLACEMENT_NO_WORKER);
    submit(1, plain());
    assert_int_equal(explain(1).home, A10);
    assert_int_equal(explain(1).preferred, A100);
    struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
    scheduler_pools(s, pools);
    assert_int_equal(pools[A100].queued, 1); /* so that the pool is scaled up from nothing */
    assert_near(pools[A100].queued_s, 10);
    assert_int_equal(pools[A100].wanted, 1);
    assert_int_equal(pools[A10].running, 1);
    assert_near(pools[A10].running_s, 30);
    assert_near(pools[A10].wait_s, 60);
    set_worker(0, machine(A100, 1));
    assert_assigned(1, 0);
    assert_int_equal(explain(1).placement, PLACEMENT_PREFERRED);
    scheduler_free(s);
}

static void test_a_new_route_moves_what_waits(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    tell(EVENT_PAUSE, 0, 0);
    for (uint32_t i = 0; i < 5; i++)
        submit(i, plain());
    assert_int_equal(explain(2).why, WAITING_WORKER);
    set_worker(0, machine(A100, 1));
    assert_int_equal(explain(2).why, WAITING_PAUSED);
    assert_int_equal(explain(2).ahead, 2);
    struct scheduler_profile profile = sdxl();
    profile.seconds[A100] = 20;
    set_profile(0, profile);
    assert_near(scheduler_count(s).work_s, 100);
    struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
    scheduler_pools(s, pools);
    assert_near(pools[A100].wait_s, 100);
    profile.route[0] = G8I;
    profile.seconds[G8I] = 40;
    set_profile(0, profile);
    assert_int_equal(explain(2).why, WAITING_WORKER);
    assert_int_equal(explain(2).ahead, 2);
    assert_int_equal(explain(2).home, G8I);
    assert_near(scheduler_count(s).work_s, 200);
    set_worker(1, machine(G8I, 1));
    tell(EVENT_RESUME, 0, 0);
    assert_assigned(0, 1);
    scheduler_free(s);
}

static void test_alone(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    set_worker(0, machine(A100, 4));
    submit(0, plain());
    submit(1, plain());
    struct scheduler_job job = plain();
    job.alone = true;
    submit(2, job);
    assert_int_equal(actions.count, 0);
    assert_int_equal(explain(2).why, WAITING_ROOM);
    assert_int_equal(explain(2).worker, 0);
    submit(3, plain()); /* nothing more until it has run */
    assert_int_equal(actions.count, 0);
    finish(0, OUTCOME_DONE);
    assert_int_equal(actions.count, 0);
    finish(1, OUTCOME_DONE);
    assert_assigned(2, 0);
    assert_true(actions.items[0].alone);
    submit(4, plain());
    assert_int_equal(actions.count, 0);
    finish(2, OUTCOME_DONE);
    assert_int_equal(actions.count, 2);
    scheduler_free(s);

    /* An idle worker is better than one that has to be emptied, and a promise can be broken. */
    start(few());
    set_profile(0, sdxl());
    set_worker(0, machine(A100, 4));
    submit(0, plain());
    submit(1, job);
    assert_int_equal(explain(1).why, WAITING_ROOM);
    set_worker(0, (struct scheduler_worker){.device_class = A100, .draining = true});
    assert_int_equal(explain(1).why, WAITING_WORKER);
    set_worker(1, machine(A100, 4));
    assert_assigned(1, 1);
    set_worker(0, machine(A100, 4));
    job.class = CLASS_INTERACTIVE;
    submit(2, job);
    assert_int_equal(explain(2).why, WAITING_ROOM);
    tell(EVENT_CANCEL, 2, 0);
    submit(3, plain());
    assert_assigned(3, 0);
    scheduler_free(s);
}

static void test_crashes_count_apart(void **state)
{
    (void)state;
    struct scheduler_options options = few();
    options.crashes_max = 2;
    start(options);
    set_profile(0, sdxl());
    set_worker(0, machine(A100, 4));
    for (uint32_t i = 0; i < 3; i++)
        submit(i, plain());
    tell(EVENT_WORKER_GONE, 0, 0);
    assert_int_equal(scheduler_count(s).ready, 3);
    set_worker(0, machine(A100, 4));
    assert_int_equal(actions.count, 1);
    assert_true(actions.items[0].alone);
    uint32_t first = actions.items[0].slot;
    assert_int_equal(actions.items[0].attempt, 2);
    assert_int_equal(explain(first).crashes, 1);
    /* Failing is something else than crashing. */
    finish(first, OUTCOME_RETRY);
    assert_int_equal(actions.count, 1);
    uint32_t second = actions.items[0].slot;
    tell(EVENT_WORKER_GONE, 0, 0);
    assert_int_equal(actions.count, 1);
    assert_int_equal(actions.items[0].type, ACTION_GIVE_UP);
    assert_int_equal(actions.items[0].slot, second);
    assert_int_equal(actions.items[0].reason, GIVE_UP_CRASHES);
    assert_int_equal(explain(second).why, WAITING_NOT);
    /* A worker that leaves in good order takes nobody's chances. */
    set_worker(0, machine(A100, 4));
    uint32_t third = actions.items[0].slot;
    tell(EVENT_WORKER_LEFT, 0, 0);
    assert_int_equal(actions.count, 0);
    assert_int_equal(explain(third).crashes, 1);
    assert_int_equal(explain(third).attempt, 2);
    scheduler_free(s);
}

static void test_a_past_is_restored(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    tell(EVENT_PAUSE, 0, 0);
    struct scheduler_job job = plain();
    job.attempts = 4;
    job.crashes = 1;
    job.returns = 1;
    submit(0, job); /* two of three attempts are used */
    submit(1, plain());
    submit(2, plain());
    set_worker(5, machine(A10, 2));
    step((struct scheduler_event){.type = EVENT_ADOPT, .slot = 1, .worker = 5, .attempt = 7});
    assert_int_equal(explain(1).why, WAITING_RUNNING);
    assert_int_equal(explain(1).placement, PLACEMENT_ADOPTED);
    assert_int_equal(explain(1).attempt, 7);
    assert_int_equal(scheduler_count(s).running, 1);
    assert_near(scheduler_count(s).work_s, 20);
    tell(EVENT_RESUME, 0, 0);
    assert_int_equal(actions.count, 0); /* the suspect is first, and waits for an empty worker */
    assert_true(explain(0).alone);
    assert_int_equal(explain(0).why, WAITING_ROOM);
    finish(1, OUTCOME_DONE);
    assert_assigned(0, 5);
    assert_int_equal(actions.items[0].attempt, 5);
    finish(0, OUTCOME_RETRY);
    assert_int_equal(actions.count, 2);
    assert_int_equal(actions.items[0].type, ACTION_GIVE_UP);
    assert_int_equal(actions.items[0].reason, GIVE_UP_ATTEMPTS);
    assert_int_equal(actions.items[1].slot, 2);
    scheduler_free(s);
}

static void test_quota(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    step(
        (struct scheduler_event){.type = EVENT_TENANT, .tenant = 1, .weight = 1, .running_max = 2});
    struct scheduler_job job = plain();
    job.tenant = 1;
    for (uint32_t i = 0; i < 5; i++)
        submit(i, job);
    set_worker(0, machine(A100, 8));
    assert_int_equal(actions.count, 2);
    assert_int_equal(explain(3).why, WAITING_QUOTA);
    submit(10, plain()); /* another's passes */
    assert_assigned(10, 0);
    finish(0, OUTCOME_DONE);
    assert_int_equal(actions.count, 1);
    assert_int_equal(actions.items[0].slot, 2);
    step((struct scheduler_event){.type = EVENT_TENANT, .tenant = 1, .weight = 1});
    assert_int_equal(actions.count, 2);
    scheduler_free(s);
}

static void test_hold_and_drain(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    struct scheduler_job job = plain();
    job.held = true;
    submit(0, job);
    job = plain();
    job.not_before_ns = now + 10 * SECOND;
    submit(1, job);
    tell(EVENT_HOLD, 1, 0);
    set_worker(0, machine(A100, 4));
    assert_int_equal(actions.count, 0);
    assert_int_equal(explain(0).why, WAITING_HELD);
    assert_int_equal(explain(1).why, WAITING_HELD);
    assert_int_equal(scheduler_count(s).held, 2);
    tell(EVENT_RELEASE, 0, 0);
    assert_assigned(0, 0);
    tell(EVENT_RELEASE, 1, 0);
    assert_int_equal(explain(1).why, WAITING_TIME);
    assert_near(explain(1).start_s, 10);
    tell(EVENT_HOLD, 0, 0); /* one that runs may end, but does not come again */
    finish(0, OUTCOME_RETURN);
    assert_int_equal(explain(0).why, WAITING_HELD);
    struct scheduler_worker leaving = machine(A100, 4);
    leaving.draining = true;
    set_worker(0, leaving);
    tell(EVENT_RELEASE, 0, 0);
    assert_int_equal(actions.count, 0);
    struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
    scheduler_pools(s, pools);
    assert_int_equal(pools[A100].workers, 0);
    assert_int_equal(pools[A100].draining, 1);
    set_worker(0, machine(A100, 4));
    assert_assigned(0, 0);
    scheduler_free(s);
}

static void test_a_job_goes_where_its_model_is(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    for (uint32_t i = 0; i < 20; i++) {
        struct scheduler_worker is = machine(A100, 2);
        is.resident[is.resident_count++] = i;
        is.resident[is.resident_count++] = 100 + i;
        set_worker(i, is);
    }
    for (uint32_t i = 0; i < 20; i++) {
        struct scheduler_job job = plain();
        job.model = (i % 2 ? 100 : 0) + (i * 7) % 20;
        submit(i, job);
        assert_assigned(i, (i * 7) % 20);
        assert_false(actions.items[0].change_model);
    }
    scheduler_free(s);
}

static void test_backoff_is_spread(void **state)
{
    (void)state;
    struct scheduler_options options = few();
    options.retry_jitter = 0.5;
    start(options);
    set_profile(0, sdxl());
    set_worker(0, machine(A100, FEW));
    int64_t waits[FEW], least = INT64_MAX, most = 0;
    for (uint32_t i = 0; i < FEW; i++)
        submit(i, plain());
    for (uint32_t i = 0; i < FEW; i++) {
        finish(i, OUTCOME_RETRY);
        waits[i] = (int64_t)(explain(i).start_s * 1e9);
        least = waits[i] < least ? waits[i] : least;
        most = waits[i] > most ? waits[i] : most;
    }
    assert_true(least >= SECOND / 2 && most <= SECOND);
    assert_true(most - least > SECOND / 4);
    scheduler_free(s);
}

/* ---- many ---- */

#define WORKERS 10000
#define JOBS 200000
#define WINDOW 50000
#define PROFILES 12
#define TENANTS 20

enum fate { NEVER, WAITS, RUNS, ENDED };

struct shadow {
    enum fate fate;
    uint32_t number; /* of the job */
    uint32_t worker, profile, tenant;
    int pictures;
    int attempt;
    bool alone;
};

static struct shadow *shadows;
static uint32_t *running, running_count, *place_of;
static uint8_t *ends; /* by job */
static struct {
    struct scheduler_worker is;
    bool present;
    int pictures, jobs, alone;
} machines[WORKERS];
static uint32_t tenant_runs[TENANTS];
static struct scheduler_profile profiles[PROFILES];

static uint32_t pick(uint32_t below)
{
    return (uint32_t)random() % below;
}

static void stop_running(uint32_t slot)
{
    struct shadow *shadow = &shadows[slot];
    machines[shadow->worker].pictures -= shadow->pictures;
    machines[shadow->worker].jobs--;
    machines[shadow->worker].alone -= shadow->alone;
    tenant_runs[shadow->tenant]--;
    uint32_t last = running[--running_count];
    running[place_of[slot]] = last;
    place_of[last] = place_of[slot];
}

static void end_job(uint32_t slot, uint32_t *free_slots, uint32_t *free_count)
{
    assert_int_equal(ends[shadows[slot].number], 0);
    ends[shadows[slot].number] = 1;
    shadows[slot].fate = ENDED;
    free_slots[(*free_count)++] = slot;
}

static bool on_route(const struct scheduler_profile *profile, uint32_t class)
{
    for (int i = 0; i < profile->route_count; i++)
        if (profile->route[i] == class)
            return true;
    return false;
}

static void take_actions(uint32_t *free_slots, uint32_t *free_count)
{
    for (size_t i = 0; i < actions.count; i++) {
        const struct scheduler_action *action = &actions.items[i];
        struct shadow *shadow = &shadows[action->slot];
        assert_int_equal(shadow->fate, WAITS);
        if (action->type != ACTION_ASSIGN) {
            end_job(action->slot, free_slots, free_count);
            continue;
        }
        assert_true(action->attempt > shadow->attempt);
        shadow->attempt = action->attempt;
        shadow->alone = action->alone;
        shadow->fate = RUNS;
        shadow->worker = action->worker;
        assert_true(machines[action->worker].present);
        assert_false(machines[action->worker].is.draining);
        assert_true(on_route(&profiles[shadow->profile], machines[action->worker].is.device_class));
        assert_true((profiles[shadow->profile].needs & ~machines[action->worker].is.offers) == 0);
        assert_true(profiles[shadow->profile].memory_bytes <=
                    machines[action->worker].is.memory_bytes);
        machines[action->worker].pictures += shadow->pictures;
        machines[action->worker].jobs++;
        machines[action->worker].alone += shadow->alone;
        assert_true(
            machines[action->worker].jobs == 1 ||
            (machines[action->worker].alone == 0 &&
             machines[action->worker].pictures <= machines[action->worker].is.pictures_max));
        if (shadow->tenant == 0)
            assert_true(++tenant_runs[0] <= 500);
        else
            tenant_runs[shadow->tenant]++;
        place_of[action->slot] = running_count;
        running[running_count++] = action->slot;
    }
}

static void soak_step(struct scheduler_event event, uint32_t *free_slots, uint32_t *free_count)
{
    step(event);
    take_actions(free_slots, free_count);
    while (actions.more) {
        step((struct scheduler_event){.type = EVENT_TICK});
        take_actions(free_slots, free_count);
    }
}

static struct scheduler_worker random_machine(void)
{
    struct scheduler_worker is = machine(pick(3), 1 + (int)pick(8));
    is.memory_bytes = 16u << pick(3);
    is.offers = pick(4) ? 1 : 3;
    for (uint32_t n = pick(4); is.resident_count < n;)
        is.resident[is.resident_count++] = pick(30);
    return is;
}

static struct scheduler_profile random_profile(void)
{
    struct scheduler_profile profile = {.route = {A100, A10, G8I}, .route_count = 1 + pick(3)};
    for (int i = 0; i < 3; i++) {
        uint8_t swap = profile.route[i];
        uint32_t with = pick(3);
        profile.route[i] = profile.route[with];
        profile.route[with] = swap;
        profile.seconds[i] = 1 + (float)pick(60);
        profile.switch_s[i] = (float)pick(20);
    }
    profile.memory_bytes = 8u << pick(4);
    profile.needs = pick(6) ? 0 : 2;
    return profile;
}

static void random_job(uint32_t slot, uint32_t number, struct scheduler_event *event)
{
    struct scheduler_job job = plain();
    job.model = pick(30);
    job.width = 512 + 128 * (int)pick(4);
    job.pictures = pick(10) ? 1 : 1 + (int)pick(12);
    job.class = pick(CLASS_COUNT);
    job.tenant = pick(TENANTS);
    job.profile = pick(PROFILES);
    job.effort = 0.5 + pick(10);
    if (pick(20) == 0)
        job.not_before_ns = now + (int64_t)pick(1000) * SECOND;
    if (pick(20) == 0)
        job.deadline_ns = now + (int64_t)pick(3000) * SECOND;
    shadows[slot] = (struct shadow){.fate = WAITS,
                                    .number = number,
                                    .profile = job.profile,
                                    .tenant = job.tenant,
                                    .pictures = job.pictures};
    *event = (struct scheduler_event){.type = EVENT_SUBMIT, .slot = slot, .job = job};
}

static void lose(uint32_t worker, bool crash, uint32_t *free_slots, uint32_t *free_count)
{
    for (uint32_t i = running_count; i-- > 0;) {
        uint32_t slot = running[i];
        if (shadows[slot].worker != worker)
            continue;
        stop_running(slot);
        shadows[slot].fate = WAITS;
    }
    machines[worker].present = false;
    soak_step((struct scheduler_event){.type = crash ? EVENT_WORKER_GONE : EVENT_WORKER_LEFT,
                                       .worker = worker},
              free_slots, free_count);
}

static void test_soak(void **state)
{
    (void)state;
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    uint32_t *free_slots = calloc(WINDOW, sizeof(*free_slots)), free_count = 0;
    shadows = calloc(WINDOW, sizeof(*shadows));
    running = calloc(WINDOW, sizeof(*running));
    place_of = calloc(WINDOW, sizeof(*place_of));
    ends = calloc(JOBS, 1);
    srandom(7);
    options.jobs_max = WINDOW;
    options.workers_max = WORKERS;
    options.tenants_max = TENANTS;
    options.profiles_max = PROFILES;
    options.overtake_max = 200;
    start(options);
    for (uint32_t i = 0; i < PROFILES; i++)
        set_profile(i, profiles[i] = random_profile());
    step((struct scheduler_event){
        .type = EVENT_TENANT, .tenant = 0, .weight = 1, .running_max = 500});
    for (uint32_t i = WINDOW; i-- > 0;)
        free_slots[free_count++] = i;
    uint32_t submitted = 0, workers = 0;
    for (uint64_t i = 0; submitted < JOBS || free_count < WINDOW; i++) {
        struct scheduler_event event = {.type = EVENT_TICK};
        uint32_t what = pick(1000), worker = pick(WORKERS);
        now += (int64_t)pick(20000000);
        if (workers < WORKERS && what < 300) {
            machines[workers].is = random_machine();
            machines[workers].present = true;
            event = (struct scheduler_event){
                .type = EVENT_WORKER, .worker = workers, .worker_is = machines[workers].is};
            workers++;
        } else if (submitted < JOBS && what < 650 && free_count > 0) {
            random_job(free_slots[--free_count], submitted++, &event);
        } else if (what < 980 && running_count > 0) {
            uint32_t slot = running[pick(running_count)];
            uint32_t how = pick(50);
            stop_running(slot);
            shadows[slot].fate = WAITS;
            event = (struct scheduler_event){.type = EVENT_FINISH, .slot = slot};
            event.outcome = how == 0 ? OUTCOME_RETRY : how == 1 ? OUTCOME_RETURN : OUTCOME_DONE;
            if (event.outcome == OUTCOME_DONE)
                end_job(slot, free_slots, &free_count);
        } else if (what < 984 && worker < workers && machines[worker].present) {
            lose(worker, pick(2) != 0, free_slots, &free_count);
        } else if (what < 996 && worker < workers) {
            if (!machines[worker].present || machines[worker].jobs == 0)
                machines[worker].is = random_machine();
            machines[worker].is.draining = submitted < JOBS && pick(4) == 0;
            machines[worker].present = true;
            event = (struct scheduler_event){
                .type = EVENT_WORKER, .worker = worker, .worker_is = machines[worker].is};
        } else if (what < 998) {
            uint32_t slot = pick(WINDOW);
            if (shadows[slot].fate != WAITS)
                continue;
            end_job(slot, free_slots, &free_count);
            event = (struct scheduler_event){.type = EVENT_CANCEL, .slot = slot};
        } else if (pick(50) == 0) {
            uint32_t number = pick(PROFILES);
            float faster = (float)(1 + pick(60));
            if (pick(4) == 0 && scheduler_count(s).ready < 5000)
                profiles[number] = random_profile();
            profiles[number].seconds[pick(3)] = faster;
            event = (struct scheduler_event){
                .type = EVENT_PROFILE, .number = number, .profile = profiles[number]};
        } else if (submitted == JOBS && running_count == 0) {
            now += 1000 * SECOND; /* what is left may wait for a retry, or find no worker */
            uint32_t slot = pick(WINDOW);
            if (shadows[slot].fate == WAITS && explain(slot).why == WAITING_WORKER) {
                end_job(slot, free_slots, &free_count);
                event = (struct scheduler_event){.type = EVENT_CANCEL, .slot = slot};
            }
        }
        soak_step(event, free_slots, &free_count);
    }
    struct scheduler_count count = scheduler_count(s);
    assert_int_equal(count.ready + count.delayed + count.held + count.running, 0);
    struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
    scheduler_pools(s, pools);
    for (int c = 0; c < 3; c++) {
        assert_int_equal(pools[c].queued + pools[c].running, 0);
        assert_near(pools[c].queued_s + pools[c].running_s, 0);
    }
    for (uint32_t i = 0; i < JOBS; i++)
        assert_int_equal(ends[i], 1);
    scheduler_free(s);
    free(free_slots);
    free(shadows);
    free(running);
    free(place_of);
    free(ends);
}

/* ---- how fast ---- */

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static size_t resident_bytes(void)
{
    size_t pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%zu %zu", &pages, &resident), 2);
    fclose(file);
    return resident * 4096;
}

static void bench(const char *name, uint32_t jobs, uint32_t workers, uint32_t tenants,
                  uint32_t sizes)
{
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    size_t before = resident_bytes();
    options.jobs_max = jobs + 100;
    options.bytes_max = SIZE_MAX;
    options.workers_max = workers;
    options.tenants_max = tenants;
    start(options);
    for (uint32_t i = 0; i < 64; i++)
        set_profile(i, (struct scheduler_profile){.route = {i % 3, (i + 1) % 3},
                                                  .route_count = 2,
                                                  .memory_bytes = i % 4,
                                                  .seconds = {10, 20, 30},
                                                  .switch_s = {5, 5, 5}});
    for (uint32_t i = 0; i < workers; i++) {
        struct scheduler_worker is = machine(i % 3, 4);
        is.memory_bytes = 16;
        is.resident_count = 3;
        for (uint32_t m = 0; m < 3; m++)
            is.resident[m] = (i + m) % 50;
        set_worker(i, is);
    }
    size_t empty = resident_bytes();
    uint32_t *queue = calloc(2 * jobs + 100, sizeof(*queue)), head = 0, tail = 0;
    double begun = seconds_now();
    for (uint32_t i = 0; i < jobs; i++) {
        struct scheduler_job job = plain();
        job.model = pick(50);
        job.profile = pick(64);
        job.width = 512 + 8 * (int)pick(sizes);
        job.tenant = pick(tenants);
        job.class = pick(CLASS_COUNT);
        submit(i, job);
        for (size_t a = 0; a < actions.count; a++)
            queue[tail++] = actions.items[a].slot;
    }
    double queued = seconds_now();
    size_t full = resident_bytes();
    uint32_t done = 0, rounds = jobs < 300000 ? jobs : 300000;
    double worst = 0;
    for (; done < rounds && head < tail; done++) {
        double t = seconds_now();
        now += SECOND / 1000;
        finish(queue[head++], OUTCOME_DONE);
        for (size_t a = 0; a < actions.count; a++)
            queue[tail++] = actions.items[a].slot;
        t = seconds_now() - t;
        worst = t > worst ? t : worst;
    }
    double drained = seconds_now();
    printf("%s: %u jobs, %u workers, %u tenants: submit %.0f/s, complete+assign %.0f/s (worst "
           "%.2f ms), %.0f bytes a job resident, %.0f reserved, %.1f MB for workers\n",
           name, jobs, workers, tenants, jobs / (queued - begun), done / (drained - queued),
           worst * 1e3, (double)(full - empty) / jobs,
           (double)scheduler_memory_bytes(s) / options.jobs_max, (double)(empty - before) * 1e-6);
    struct scheduler_event gone = {.type = EVENT_WORKER_GONE};
    double t = seconds_now();
    for (gone.worker = 0; gone.worker < workers; gone.worker += 3)
        step(gone);
    printf("  all workers of a class gone: %.1f ms\n", (seconds_now() - t) * 1e3);
    free(queue);
    scheduler_free(s);
}

static void test_bench(void **state)
{
    (void)state;
    if (!getenv("ATELIER_BENCH"))
        skip();
    bench("usual", 1000000, 10000, 20, 4);
    bench("many groups", 1000000, 10000, 500, 32);
    bench("small", 20000, 100, 20, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overflow_by_hand),
        cmocka_unit_test(test_overflow_where_nobody_is),
        cmocka_unit_test(test_a_new_route_moves_what_waits),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_crashes_count_apart),
        cmocka_unit_test(test_a_past_is_restored),
        cmocka_unit_test(test_quota),
        cmocka_unit_test(test_hold_and_drain),
        cmocka_unit_test(test_a_job_goes_where_its_model_is),
        cmocka_unit_test(test_backoff_is_spread),
        cmocka_unit_test(test_soak),
        cmocka_unit_test(test_bench),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * The scheduler against its promises: examples first, then random streams, where a plain model of
 * every job (who became ready when, who passed whom) judges each action.
 */
#include "scheduler/explain.h"
#include "scheduler/scheduler.h"

#include "tests/unit/unit.h"

#include <stdlib.h>
#include <string.h>

#define SECOND 1000000000LL
#define SLOTS 400

static struct scheduler *s;
static struct scheduler_actions actions;
static int64_t now;

static void step(struct scheduler_event event)
{
    event.now_ns = now;
    scheduler_step(s, &event, &actions);
}

static void set_profile(uint32_t number, struct scheduler_profile profile)
{
    step((struct scheduler_event){.type = EVENT_PROFILE, .number = number, .profile = profile});
}

static enum waiting why(uint32_t slot)
{
    struct scheduler_explanation explanation;
    scheduler_explain(s, slot, &explanation);
    return explanation.why;
}

static void start(struct scheduler_options options)
{
    struct err err;
    now = 1000 * SECOND;
    assert_int_equal(scheduler_create(&s, &options, &err), 0);
    set_profile(0, (struct scheduler_profile){.route_count = 1, .seconds = {1}});
}

static void add_worker(uint32_t worker, int pictures)
{
    step((struct scheduler_event){
        .type = EVENT_WORKER,
        .worker = worker,
        .worker_is = {.pictures_max = pictures, .memory_bytes = 100, .offers = 1}});
}

static struct scheduler_job plain(uint32_t model)
{
    return (struct scheduler_job){.model = model,
                                  .width = 512,
                                  .height = 512,
                                  .pictures = 1,
                                  .class = CLASS_NORMAL,
                                  .attempts_max = 3,
                                  .not_before_ns = SCHEDULER_TIME_NONE,
                                  .deadline_ns = SCHEDULER_TIME_NONE,
                                  .bytes = 100};
}

static void submit(uint32_t slot, struct scheduler_job job)
{
    step((struct scheduler_event){.type = EVENT_SUBMIT, .slot = slot, .job = job});
}

static void finish(uint32_t slot, enum outcome outcome)
{
    step((struct scheduler_event){.type = EVENT_FINISH, .slot = slot, .outcome = outcome});
}

static void assert_assigned(uint32_t slot)
{
    assert_int_equal(actions.count, 1);
    assert_int_equal(actions.items[0].type, ACTION_ASSIGN);
    assert_int_equal(actions.items[0].slot, slot);
}

static void test_a_model_is_loaded_once(void **state)
{
    (void)state;
    int changes = 0, done = 0;
    start((struct scheduler_options)SCHEDULER_OPTIONS_INIT);
    step((struct scheduler_event){.type = EVENT_PAUSE});
    for (uint32_t i = 0; i < 300; i++) {
        struct scheduler_job job = plain(i % 3);
        job.width = i % 2 ? 512 : 768;
        submit(i, job);
    }
    add_worker(0, 4);
    step((struct scheduler_event){.type = EVENT_RESUME});
    uint32_t queue[300], head = 0, tail = 0;
    while (done < 300) {
        for (size_t i = 0; i < actions.count; i++) {
            queue[tail++] = actions.items[i].slot;
            changes += actions.items[i].change_model;
        }
        assert_true(tail - head <= 4);
        finish(queue[head++], OUTCOME_DONE);
        done++;
    }
    assert_int_equal(changes, 2);
    /* Within a model, sizes travel together too. */
    int shapes = 0;
    for (uint32_t i = 1; i < 300; i++)
        shapes += queue[i] % 2 != queue[i - 1] % 2;
    assert_true(shapes <= 5);
    scheduler_free(s);
}

static void test_classes_in_order(void **state)
{
    (void)state;
    start((struct scheduler_options)SCHEDULER_OPTIONS_INIT);
    step((struct scheduler_event){.type = EVENT_PAUSE});
    for (uint32_t i = 0; i < 3; i++) {
        struct scheduler_job job = plain(0);
        job.class = CLASS_BULK - i;
        submit(i, job);
    }
    add_worker(0, 1);
    step((struct scheduler_event){.type = EVENT_RESUME});
    assert_assigned(2);
    finish(2, OUTCOME_DONE);
    assert_assigned(1);
    finish(1, OUTCOME_DONE);
    assert_assigned(0);
    scheduler_free(s);
}

static void test_times(void **state)
{
    (void)state;
    start((struct scheduler_options)SCHEDULER_OPTIONS_INIT);
    add_worker(0, 1);
    struct scheduler_job job = plain(0);
    job.not_before_ns = now + 10 * SECOND;
    submit(0, job);
    assert_int_equal(actions.count, 0);
    assert_true(actions.wake_ns == job.not_before_ns);
    assert_int_equal(why(0), WAITING_TIME);
    now += 10 * SECOND - 1;
    step((struct scheduler_event){.type = EVENT_TICK});
    assert_int_equal(actions.count, 0);
    now += 1;
    step((struct scheduler_event){.type = EVENT_TICK});
    assert_assigned(0);
    job = plain(0);
    job.deadline_ns = now + SECOND;
    submit(1, job);
    assert_true(actions.wake_ns == job.deadline_ns);
    now += SECOND;
    step((struct scheduler_event){.type = EVENT_TICK});
    assert_int_equal(actions.count, 1);
    assert_int_equal(actions.items[0].type, ACTION_EXPIRE);
    assert_int_equal(why(1), WAITING_NOT);
    scheduler_free(s);
}

static void test_urgent_deadlines_first(void **state)
{
    (void)state;
    start((struct scheduler_options)SCHEDULER_OPTIONS_INIT);
    step((struct scheduler_event){.type = EVENT_PAUSE});
    submit(0, plain(0));
    struct scheduler_job job = plain(1);
    job.deadline_ns = now + 300 * SECOND;
    submit(1, job);
    job.deadline_ns = now + 200 * SECOND;
    submit(2, job);
    add_worker(0, 1);
    step((struct scheduler_event){.type = EVENT_RESUME});
    assert_assigned(2);
    finish(2, OUTCOME_DONE);
    assert_assigned(1);
    scheduler_free(s);
}

static void test_retries_back_off_and_end(void **state)
{
    (void)state;
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    options.retry_jitter = 0;
    start(options);
    add_worker(0, 1);
    submit(0, plain(0));
    assert_assigned(0);
    finish(0, OUTCOME_RETURN);
    assert_assigned(0);
    assert_int_equal(actions.items[0].attempt, 2); /* a number of its own, but not counted */
    finish(0, OUTCOME_RETRY);
    assert_true(actions.wake_ns == now + SECOND);
    now += SECOND;
    step((struct scheduler_event){.type = EVENT_TICK});
    assert_assigned(0);
    assert_int_equal(actions.items[0].attempt, 3);
    finish(0, OUTCOME_RETRY);
    assert_true(actions.wake_ns == now + 2 * SECOND);
    now += 2 * SECOND;
    step((struct scheduler_event){.type = EVENT_TICK});
    finish(0, OUTCOME_RETRY);
    assert_int_equal(actions.count, 1);
    assert_int_equal(actions.items[0].type, ACTION_GIVE_UP);
    assert_int_equal(actions.items[0].reason, GIVE_UP_ATTEMPTS);
    scheduler_free(s);
}

static void test_the_window_pushes_back(void **state)
{
    (void)state;
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    options.jobs_max = 4;
    options.bytes_max = 1000;
    start(options);
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(scheduler_has_room(s, 100));
        submit(i, plain(0));
    }
    assert_false(scheduler_has_room(s, 100));
    step((struct scheduler_event){.type = EVENT_CANCEL, .slot = 2});
    assert_true(scheduler_has_room(s, 700));
    assert_false(scheduler_has_room(s, 701));
    for (uint32_t i = 0; i < 4; i++)
        if (i != 2)
            step((struct scheduler_event){.type = EVENT_CANCEL, .slot = i});
    assert_true(scheduler_has_room(s, 5000));
    scheduler_free(s);
}

static void test_workers_get_only_what_they_can_take(void **state)
{
    (void)state;
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    options.workers_max = 2;
    start(options);
    set_profile(1, (struct scheduler_profile){.route_count = 1, .memory_bytes = 200});
    set_profile(2, (struct scheduler_profile){.route_count = 1, .needs = 2});
    struct scheduler_job job = plain(0);
    job.profile = 1;
    submit(0, job);
    job.profile = 2;
    submit(1, job);
    add_worker(0, 4);
    assert_int_equal(actions.count, 0);
    assert_int_equal(why(0), WAITING_WORKER);
    submit(2, plain(0));
    assert_assigned(2);
    step((struct scheduler_event){
        .type = EVENT_WORKER, .worker = 1, .worker_is = {.pictures_max = 1, .memory_bytes = 300}});
    assert_assigned(0);
    assert_int_equal(actions.items[0].worker, 1);
    step((struct scheduler_event){.type = EVENT_WORKER_GONE, .worker = 1});
    assert_int_equal(why(0), WAITING_WORKER);
    scheduler_free(s);
}

static void test_tenants_share(void **state)
{
    (void)state;
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    options.fairness_s = 5;
    start(options);
    step((struct scheduler_event){.type = EVENT_TENANT, .tenant = 1, .weight = 3});
    step((struct scheduler_event){.type = EVENT_PAUSE});
    for (uint32_t i = 0; i < 400; i++) {
        struct scheduler_job job = plain(i % 2);
        job.tenant = i % 2;
        submit(i, job);
    }
    add_worker(0, 1);
    step((struct scheduler_event){.type = EVENT_RESUME});
    int served[2] = {0};
    for (int i = 0; i < 200; i++) {
        uint32_t slot = actions.items[0].slot;
        served[slot % 2]++;
        finish(slot, OUTCOME_DONE);
    }
    assert_in_range(served[1], 140, 160);
    assert_int_equal(served[0] + served[1], 200);
    scheduler_free(s);
}

/* ---- random streams ---- */

struct shadow {
    enum { NONE, WAITS, RUNS } state;
    struct scheduler_job job;
    uint64_t ready_order; /* 0: not ready yet */
    uint32_t overtaken;
    uint32_t outlived; /* younger jobs that expired meanwhile */
    bool promised;     /* has left the line for a worker that is being emptied */
    uint32_t worker;
    int64_t wake;
    int attempt, returns;
};

static struct shadow shadows[SLOTS];
static uint64_t orders;

static void shadow_wake(void)
{
    /* The scheduler wakes delayed jobs in order of time. */
    for (;;) {
        struct shadow *next = NULL;
        for (int i = 0; i < SLOTS; i++)
            if (shadows[i].state == WAITS && shadows[i].ready_order == 0 &&
                shadows[i].wake <= now && (!next || shadows[i].wake < next->wake))
                next = &shadows[i];
        if (!next)
            return;
        next->ready_order = ++orders;
        next->overtaken = next->outlived = 0;
    }
}

static bool better_class_waits(const struct shadow *taken)
{
    for (int i = 0; i < SLOTS; i++)
        if (shadows[i].state == WAITS && shadows[i].ready_order && !shadows[i].promised &&
            shadows[i].job.class < taken->job.class)
            return true;
    return false;
}

static void pass_older(const struct scheduler_options *options, const struct shadow *taken)
{
    for (int j = 0; j < SLOTS; j++)
        if (shadows[j].state == WAITS && shadows[j].ready_order && !shadows[j].promised &&
            shadows[j].ready_order < taken->ready_order) {
            shadows[j].overtaken++;
            assert_true(shadows[j].overtaken <= options->overtake_max);
        }
}

/* Jobs that a worker is being emptied for from this step on. */
static uint32_t find_promised(void)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < SLOTS; i++)
        if (shadows[i].state == WAITS && !shadows[i].promised && why(i) == WAITING_ROOM) {
            shadows[i].promised = true;
            found++;
        }
    return found;
}

static void judge_actions(const struct scheduler_options *options, int room[])
{
    static bool was_promised[SLOTS];
    for (int i = 0; i < SLOTS; i++)
        was_promised[i] = shadows[i].promised;
    uint32_t promised = find_promised();
    for (size_t i = 0; i < actions.count; i++) {
        const struct scheduler_action *action = &actions.items[i];
        struct shadow *shadow = &shadows[action->slot];
        if (action->type == ACTION_EXPIRE) {
            assert_int_equal(shadow->state, WAITS);
            assert_true(shadow->job.deadline_ns <= now);
            shadow->state = NONE;
            shadow->promised = false;
            for (int j = 0; j < SLOTS; j++)
                shadows[j].outlived += shadows[j].ready_order < shadow->ready_order;
            continue;
        }
        if (action->type == ACTION_GIVE_UP) {
            assert_int_equal(shadow->attempt - shadow->returns, shadow->job.attempts_max);
            shadow->state = NONE;
            continue;
        }
        assert_int_equal(shadow->state, WAITS);
        assert_true(shadow->ready_order > 0);
        assert_true(shadow->job.not_before_ns <= now);
        assert_true(shadow->job.deadline_ns == SCHEDULER_TIME_NONE ||
                    shadow->job.deadline_ns > now);
        if (!shadow->promised && better_class_waits(shadow))
            assert_true(shadow->overtaken + shadow->outlived + promised >= options->overtake_max);
        shadow->state = RUNS;
        shadow->worker = action->worker;
        shadow->attempt = action->attempt;
        room[action->worker] -= shadow->job.pictures;
        if (!shadow->promised)
            pass_older(options, shadow);
        shadow->promised = false;
    }
    for (int i = 0; i < SLOTS; i++)
        if (shadows[i].state == WAITS && shadows[i].promised && !was_promised[i])
            pass_older(options, &shadows[i]);
}

static uint32_t pick(uint32_t below)
{
    return (uint32_t)random() % below;
}

static struct scheduler_job random_job(void)
{
    struct scheduler_job job = plain(pick(4));
    job.width = 512 + 8 * (int)pick(3);
    job.pictures = pick(10) ? 1 : 1 + (int)pick(6);
    job.class = pick(CLASS_COUNT);
    job.tenant = pick(3);
    job.effort = (1 + pick(20)) / (double)job.pictures;
    if (pick(5) == 0)
        job.not_before_ns = now + (int64_t)pick(50) * SECOND + pick(SECOND);
    if (pick(8) == 0)
        job.deadline_ns = now + (int64_t)(1 + pick(400)) * SECOND;
    return job;
}

static uint32_t running_slot(void)
{
    uint32_t from = pick(SLOTS);
    for (uint32_t i = 0; i < SLOTS; i++)
        if (shadows[(from + i) % SLOTS].state == RUNS)
            return (from + i) % SLOTS;
    return SLOTS;
}

static void random_stream(unsigned seed, int steps)
{
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    srandom(seed);
    options.jobs_max = SLOTS;
    options.workers_max = 3;
    options.tenants_max = 3;
    options.overtake_max = 5 + pick(40);
    options.fairness_s = pick(100);
    options.retry_jitter = 0;
    start(options);
    memset(shadows, 0, sizeof(shadows));
    orders = 0;
    int room[3];
    uint32_t workers = 1 + pick(3);
    for (uint32_t i = 0; i < workers; i++)
        add_worker(i, room[i] = 1 + (int)pick(6));
    uint64_t ended = 0, submitted = 0;
    bool filling = true;
    for (int i = 0; i < steps; i++) {
        uint32_t what = pick(10);
        now += pick(3) ? 0 : (int64_t)pick(3) * SECOND;
        shadow_wake();
        /* Jobs that the deadline ends at this very step leave before anything is assigned. */
        uint32_t slot = pick(SLOTS);
        filling = filling ? pick(300) != 0 : pick(300) == 0;
        if (what < (filling ? 6u : 3u) && shadows[slot].state == NONE) {
            struct scheduler_job job = random_job();
            shadows[slot] = (struct shadow){.state = WAITS, .job = job, .wake = job.not_before_ns};
            submitted++;
            shadow_wake();
            submit(slot, job);
        } else if (what < 9 && (slot = running_slot()) < SLOTS) {
            struct shadow *shadow = &shadows[slot];
            enum outcome outcome = pick(12)  ? OUTCOME_DONE
                                   : pick(2) ? OUTCOME_RETRY
                                             : OUTCOME_RETURN;
            room[shadow->worker] += shadow->job.pictures;
            if (outcome == OUTCOME_DONE) {
                shadow->state = NONE;
                ended++;
            } else if (outcome == OUTCOME_RETURN ||
                       shadow->attempt - shadow->returns < shadow->job.attempts_max) {
                int failures = shadow->attempt - shadow->returns;
                int64_t wait = outcome == OUTCOME_RETURN ? 0 : SECOND << (failures - 1);
                shadow->returns += outcome == OUTCOME_RETURN;
                shadow->state = WAITS;
                shadow->ready_order = 0;
                shadow->wake = now + wait;
                shadow_wake();
            }
            finish(slot, outcome);
        } else {
            step((struct scheduler_event){.type = EVENT_TICK});
        }
        judge_actions(&options, room);
        for (uint32_t w = 0; w < workers; w++)
            if (room[w] < 0) { /* only a job that is larger than the worker, alone */
                int alone = 0;
                for (int j = 0; j < SLOTS; j++)
                    alone += shadows[j].state == RUNS && shadows[j].worker == w;
                assert_int_equal(alone, 1);
            }
    }
    /* Drained, everything ends. */
    for (int guard = 0; guard < 100000; guard++) {
        struct scheduler_count count = scheduler_count(s);
        if (count.ready + count.delayed + count.running == 0)
            break;
        uint32_t slot = running_slot();
        now += SECOND;
        shadow_wake();
        if (slot < SLOTS) {
            room[shadows[slot].worker] += shadows[slot].job.pictures;
            shadows[slot].state = NONE;
            finish(slot, OUTCOME_DONE);
        } else {
            step((struct scheduler_event){.type = EVENT_TICK});
        }
        judge_actions(&options, room);
    }
    struct scheduler_count count = scheduler_count(s);
    assert_int_equal(count.ready + count.delayed + count.running, 0);
    assert_true(count.work_s > -1e-6 && count.work_s < 1e-6);
    for (int i = 0; i < SLOTS; i++)
        assert_int_equal(shadows[i].state, NONE);
    assert_true(submitted > 0 && ended > 0);
    scheduler_free(s);
}

static void test_random_streams(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 60; seed++)
        random_stream(seed, 1500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_model_is_loaded_once),
        cmocka_unit_test(test_classes_in_order),
        cmocka_unit_test(test_times),
        cmocka_unit_test(test_urgent_deadlines_first),
        cmocka_unit_test(test_retries_back_off_and_end),
        cmocka_unit_test(test_the_window_pushes_back),
        cmocka_unit_test(test_workers_get_only_what_they_can_take),
        cmocka_unit_test(test_tenants_share),
        cmocka_unit_test(test_random_streams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

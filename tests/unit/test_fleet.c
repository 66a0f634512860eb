/*
 * The scheduler for a fleet, by example: device classes and overflow, quotas, crashes, restoring,
 * draining, explanations.
 */
#include "tests/unit/fleet.h"

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

/* What a draining worker hands back, one after the other, goes to others. */
static void test_a_draining_worker_gets_nothing_back(void **state)
{
    (void)state;
    start(few());
    set_profile(0, sdxl());
    struct scheduler_worker is = machine(A100, 4);
    set_worker(0, is);
    submit(0, plain());
    submit(1, plain());
    set_worker(1, is);
    is.draining = true;
    for (uint32_t slot = 0; slot < 2; slot++) {
        set_worker(0, is);
        finish(slot, OUTCOME_RETURN);
        assert_assigned(slot, 1);
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
        cmocka_unit_test(test_a_draining_worker_gets_nothing_back),
        cmocka_unit_test(test_backoff_is_spread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

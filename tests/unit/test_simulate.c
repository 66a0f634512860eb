/*
 * The simulator: cases whose times can be computed by hand from the cost model's table, what it
 * refuses, rules broken on purpose, and at random: whatever the fleet, the load and the faults, the
 * referee finds nothing. SIMULATIONS says how many random ones.
 */
#include "simulator/report.h"

#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLICY                                                                                     \
    "{\"classes\": {\"a100\": {\"price_per_hour\": 3.6}, \"a10\": {\"price_per_hour\": 1.2}},"     \
    " \"tenants\": {\"small\": {\"queued_max\": 2}, \"narrow\": {\"running_max\": 1}},"            \
    " \"rules\": [{\"if\": {\"tier\": \"premium\"}, \"route\": [\"a100\"]},"                       \
    "             {\"route\": [\"a100\", \"a10\"]}]}"
#define ONE_MODEL "\"models\": {\"m\": {\"family\": \"sd15\", \"gb\": 2}}"
#define ONE_WORKER "{\"pools\": {\"a100\": {\"memory_gb\": 40}}, " ONE_MODEL "}"
#define JOB "{\"model\": \"m\", \"prompt\": \"\", \"width\": 512, \"height\": 512, \"steps\": 20"

/* Of the table in cost.c: an A100 loads 2 GB in 1 s and 2 / 2.5 s. */
#define LOAD_S 1.8

/* The same for a guided picture of 512² in 20 steps. */
static double draw_s(void)
{
    return 0.05 + 0.15 + 40 * 0.085 * pow(512 * 512 * 1e-6, 1.25);
}

struct run {
    struct policy *policy;
    struct fleet fleet;
    struct load load;
    struct sim_options options;
    struct sim_result result;
    struct err err;
};

static void prepare(struct run *run, const char *fleet)
{
    *run = (struct run){.options = SIM_OPTIONS_INIT};
    if (policy_parse(&run->policy, POLICY, strlen(POLICY), "p.json", &run->err) != 0 ||
        fleet_parse(&run->fleet, fleet, strlen(fleet), "w.json", &run->err) != 0 ||
        load_init(&run->load, &run->fleet, 1, &run->err) != 0)
        fail_msg("%s", run->err.message);
    run->options.policy = run->policy;
    run->options.fleet = &run->fleet;
    run->options.load = &run->load;
}

static void add(struct run *run, const char *line)
{
    if (load_line(&run->load, run->load.count + 2, line, strlen(line), &run->err) != 0)
        fail_msg("%s", run->err.message);
}

static int simulate(struct run *run)
{
    if (load_finish(&run->load, LOAD_TIME_NONE, 1, &run->err) != 0)
        fail_msg("%s", run->err.message);
    return sim_run(&run->options, &run->result, &run->err);
}

static void must_simulate(struct run *run)
{
    if (simulate(run) != 0)
        fail_msg("%s", run->err.message);
}

static void end(struct run *run)
{
    sim_result_release(&run->result);
    load_release(&run->load);
    fleet_release(&run->fleet);
    policy_free(run->policy);
}

static void assert_near(double value, double expected)
{
    if (fabs(value - expected) > 1e-4 * (1 + fabs(expected)))
        fail_msg("%.9g instead of %.9g", value, expected);
}

/* ---- by hand ---- */

static void test_two_jobs_one_after_the_other(void **state)
{
    (void)state;
    struct run run;
    prepare(&run, ONE_WORKER);
    add(&run, JOB "}");
    add(&run, JOB "}");
    must_simulate(&run);
    const struct sim_result *r = &run.result;
    assert_int_equal(r->all.done, 2);
    assert_near(r->all.wait_s.p50, LOAD_S);
    assert_near(r->all.wait_s.max, LOAD_S + draw_s());
    assert_near(r->span_s, LOAD_S + 2 * draw_s());
    assert_near(r->price, r->span_s * 3.6 / 3600);
    assert_near(r->all.price, 2 * draw_s() * 3.6 / 3600);
    assert_near(r->pools[0].busy_s, r->span_s);
    assert_int_equal(r->pools[0].loads, 1);
    assert_int_equal(r->checks, 2);
    end(&run);
}

/* Two at once take the time of both; twice as long unless a full worker is faster. */
static void test_pictures_share_a_worker(void **state)
{
    (void)state;
    static const char *const fleets[] = {
        "{\"pools\": {\"a100\": {\"memory_gb\": 40, \"pictures_max\": 2}}, " ONE_MODEL "}",
        "{\"pools\": {\"a100\": {\"memory_gb\": 40, \"pictures_max\": 2, \"batch_speed\": "
        "2}}, " ONE_MODEL "}"};
    for (int i = 0; i < 2; i++) {
        struct run run;
        prepare(&run, fleets[i]);
        add(&run, JOB "}");
        add(&run, JOB "}");
        must_simulate(&run);
        assert_near(run.result.all.wait_s.max, LOAD_S);
        assert_near(run.result.span_s, LOAD_S + (i == 0 ? 2 : 1) * draw_s());
        assert_near(run.result.all.price, (i == 0 ? 2 : 1) * draw_s() * 3.6 / 3600);
        end(&run);
    }
}

/* There is room for one model: each of three turns loads. */
static void test_models_make_room(void **state)
{
    (void)state;
    struct run run;
    prepare(&run, "{\"pools\": {\"a100\": {\"memory_gb\": 3}}, "
                  "\"models\": {\"*\": {\"family\": \"sd15\", \"gb\": 2}}}");
    add(&run, JOB ", \"x-arrival\": 0}");
    add(&run, "{\"model\": \"n\", \"prompt\": \"\", \"x-arrival\": 100, \"steps\": 20}");
    add(&run, JOB ", \"x-arrival\": 200}");
    must_simulate(&run);
    assert_int_equal(run.result.pools[0].loads, 3);
    assert_near(run.result.span_s, 200 + LOAD_S + draw_s());
    end(&run);
}

static void test_a_worker_that_has_to_start(void **state)
{
    (void)state;
    struct run run;
    prepare(&run, "{\"pools\": {\"a100\": {\"memory_gb\": 40, \"workers\": 0, \"start_s\": 60,"
                  " \"scale\": {\"max\": 3, \"every_s\": 10, \"idle_s\": 100}}}, " ONE_MODEL "}");
    add(&run, JOB ", \"x-arrival\": 5}");
    add(&run, JOB ", \"x-arrival\": 3605}");
    must_simulate(&run);
    /* Wished for at the 10th second and the 3610th; gone in between. */
    assert_near(run.result.all.wait_s.p50, 5 + 60 + LOAD_S);
    assert_near(run.result.all.wait_s.max, 5 + 60 + LOAD_S);
    assert_int_equal(run.result.pools[0].loads, 2);
    assert_near(run.result.pools[0].workers_max, 1);
    assert_true(run.result.pools[0].paid_s < 400);
    end(&run);
}

static void test_ends(void **state)
{
    (void)state;
    struct run run;
    prepare(&run, ONE_WORKER);
    /* Ten minutes of work, then one whose deadline passes meanwhile. */
    add(&run, JOB ", \"images\": 64, \"tenant\": \"small\", \"x-arrival\": "
                  "\"2026-03-01T12:00:00Z\"}");
    add(&run, JOB ", \"tenant\": \"small\", \"x-arrival\": \"2026-03-01T12:00:01Z\","
                  " \"deadline\": \"2026-03-01T12:00:20Z\"}");
    add(&run, JOB ", \"tenant\": \"small\", \"x-arrival\": \"2026-03-01T12:00:02Z\"}");
    add(&run, JOB ", \"confidential\": true, \"x-arrival\": \"2026-03-01T12:00:03Z\"}");
    add(&run, JOB ", \"max_price\": 1e-9, \"x-arrival\": \"2026-03-01T12:00:03Z\"}");
    must_simulate(&run);
    assert_int_equal(run.result.all.done, 1);
    assert_int_equal(run.result.all.expired, 1);
    assert_int_equal(run.result.all.missed, 1);
    assert_int_equal(run.result.all.refused, 3); /* quota, no pool for it, price */
    end(&run);

    prepare(&run, "{\"pools\": {\"a10\": {\"memory_gb\": 40}}, " ONE_MODEL "}");
    add(&run, JOB ", \"tier\": \"premium\"}");
    add(&run, JOB "}");
    must_simulate(&run);
    assert_int_equal(run.result.all.left, 1);
    assert_int_equal(run.result.all.done, 1);
    end(&run);
}

/* Speed 2: jobs come twice as fast; a deadline stays as far from its arrival. */
static void test_speed(void **state)
{
    (void)state;
    struct run run;
    prepare(&run, ONE_WORKER);
    add(&run, JOB ", \"x-arrival\": \"2026-03-01T12:00:00Z\"}");
    add(&run, JOB ", \"x-arrival\": \"2026-03-01T14:00:00+01:00\","
                  " \"deadline\": \"2026-03-01T13:00:10Z\"}");
    assert_int_equal(load_finish(&run.load, LOAD_TIME_NONE, 2, &run.err), 0);
    assert_int_equal(run.load.jobs[1].arrival_ns / 1000000000, 1800);
    assert_int_equal(run.load.jobs[1].deadline_ns / 1000000000, 1810);
    end(&run);
}

static void test_a_trace(void **state)
{
    (void)state;
    static const char header[] = "gmt_create,predict_type,groupId,num_images_per_prompt,"
                                 "num_inference_steps,checkpoint_model_version_id";
    struct run run;
    prepare(&run, ONE_WORKER);
    assert_int_equal(load_line(&run.load, 1, header, strlen(header), &run.err), 0);
    add(&run, "2024-11-15 16:57:50,TXT_2_IMG,G7,4.0,30.0,m");
    add(&run, "2024-11-15 16:58:50,TXT_2_IMG,G8,,,m\r");
    must_simulate(&run);
    assert_int_equal(run.result.all.pictures, 5);
    assert_int_equal(run.result.tenant_count, 2);
    assert_string_equal(run.result.tenants[0].name, "G7");
    assert_near(run.result.span_s, 60 + draw_s());
    static const char *const wrong[][2] = {
        {"2024-11-15,TXT_2_IMG,G7,4.0,30.0,m", "line 4: gmt_create"},
        {"2024-11-15 16:57:50,TXT_2_IMG,G7,many,30.0,m", "line 4: num_images_per_prompt: \"many\""},
        {"2024-11-15 16:57:50,TXT_2_IMG,G7,4.0,30.0,mm",
         "line 4: model: \"mm\" is not under \"models\" of w.json"},
    };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(load_line(&run.load, 4, wrong[i][0], strlen(wrong[i][0]), &run.err), -1);
        assert_contains(run.err.message, wrong[i][1]);
    }
    end(&run);
}

/* ---- what is refused ---- */

static void test_wrong_fleets(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"{}", "pools: must be an object"},
        {"{\"pools\": {\"a\": {}}}", "pools.a: needs \"memory_gb\""},
        {"{\"pools\": {\"a\": {\"memory_gb\": 1, \"worker\": 2}}}", "did you mean \"workers\"?"},
        {"{\"pools\": {\"a\": {\"memory_gb\": 1, \"scale\": {\"min\": 3, \"max\": 2}}}}",
         "pools.a.scale: \"min\" is above"},
        {"{\"pools\": {\"a\": {\"memory_gb\": 1, \"precisions\": \"f8\"}}}", "must name f32"},
        {"{\"pools\": {\"a\": {\"memory_gb\": 1}}, \"models\": {\"m\": {\"family\": \"sd16\"}}}",
         "models.m.family: \"sd16\" is none of sd15, sd21, sdxl, sdxl-refiner; did you mean"},
        {"{\"pools\": {\"a\": {\"memory_gb\": 1}}, \"failures\": 1}", "failures: must be below 1"},
    };
    struct fleet fleet;
    struct err err;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(fleet_parse(&fleet, wrong[i][0], strlen(wrong[i][0]), "w.json", &err), -1);
        assert_contains(err.message, wrong[i][1]);
    }
}

static void test_wrong_loads(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {JOB ", \"x-arrival\": -1}", "line 2: x-arrival: must be seconds"},
        {JOB ", \"stepps\": 1}", "line 2: stepps"},
        {"{\"model\": \"n\", \"prompt\": \"\"}", "line 2: model: \"n\" is not under \"models\""},
    };
    struct run run;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        prepare(&run, ONE_WORKER);
        assert_int_equal(load_line(&run.load, 2, wrong[i][0], strlen(wrong[i][0]), &run.err), -1);
        assert_contains(run.err.message, wrong[i][1]);
        end(&run);
    }
    prepare(&run, ONE_WORKER);
    assert_int_equal(load_line(&run.load, 1, "a,b", 3, &run.err), -1);
    assert_contains(run.err.message, "no column \"gmt_create\"");
    add(&run, JOB ", \"deadline\": \"2026-03-01T13:00:10Z\"}");
    assert_int_equal(load_finish(&run.load, LOAD_TIME_NONE, 1, &run.err), -1);
    assert_contains(run.err.message, "--start");
    end(&run);
    prepare(&run, "{\"pools\": {\"h100\": {\"memory_gb\": 40}}, " ONE_MODEL "}");
    add(&run, JOB "}");
    assert_int_equal(simulate(&run), -1);
    assert_contains(run.err.message, "pools.h100: the routing policy has no device class");
    end(&run);
}

/* ---- broken on purpose ---- */

#define TWO_POOLS                                                                                  \
    "{\"pools\": {\"a100\": {\"memory_gb\": 40}, \"a10\": {\"memory_gb\": 1},"                     \
    " \"big\": {\"class\": \"a10\", \"memory_gb\": 40}}, " ONE_MODEL "}"

struct tampering {
    int (*change)(struct scheduler_action *action);
    int done;
};

static void tamper(void *user, struct scheduler_action *action)
{
    struct tampering *tampering = user;
    if (!tampering->done && action->type == ACTION_ASSIGN)
        tampering->done = tampering->change(action);
}

static int to_worker_0(struct scheduler_action *action)
{
    return action->worker != 0 ? (action->worker = 0, 1) : 0;
}

static int to_the_small_one(struct scheduler_action *action)
{
    action->worker = 1;
    return 1;
}

static int the_first_job(struct scheduler_action *action)
{
    return action->slot != 0 ? (action->slot = 0, 1) : 0;
}

static void test_broken_promises_are_seen(void **state)
{
    (void)state;
    static const struct {
        int (*change)(struct scheduler_action *action);
        const char *fields, *problem;
    } cases[] = {
        {to_worker_0, "", "to a worker without room for it"},
        {to_the_small_one, "", "has not the memory"},
        {to_the_small_one, ", \"tier\": \"premium\"", "not on its route"},
        {the_first_job, "", "though it runs already"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct run run;
        struct tampering tampering = {.change = cases[i].change};
        char line[512];
        prepare(&run, TWO_POOLS);
        snprintf(line, sizeof(line), JOB "%s, \"images\": 64}", cases[i].fields);
        for (int n = 0; n < 20; n++)
            add(&run, line);
        run.options.tamper = tamper;
        run.options.user = &tampering;
        assert_int_equal(simulate(&run), -1);
        assert_contains(run.err.message, cases[i].problem);
        end(&run);
    }
}

/* Interactive jobs come all the time and would keep a bulk one waiting for ever. */
static void test_starvation_is_seen(void **state)
{
    (void)state;
    for (int broken = 0; broken < 2; broken++) {
        struct run run;
        char line[512];
        prepare(&run, ONE_WORKER);
        for (int n = 0; n < 200; n++) {
            snprintf(line, sizeof(line), JOB ", \"priority\": \"%s\", \"x-arrival\": %g}",
                     n == 3 ? "bulk" : "interactive", n * 0.5);
            add(&run, line);
        }
        run.options.overtake_max = 8;
        run.options.tampered_overtake_max = broken ? 100000 : 0;
        assert_int_equal(simulate(&run), broken ? -1 : 0);
        if (broken)
            assert_contains(run.err.message, "was overtaken by more than 8 younger ones");
        end(&run);
    }
}

/* ---- at random ---- */

static double die(uint64_t seed, int nth)
{
    uint64_t x = (seed * 1000003 + (uint64_t)nth) * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9u;
    return (double)((x ^ x >> 32) >> 11) / (double)(1ull << 53);
}

static void random_fleet(uint64_t seed, char *out, size_t size)
{
    snprintf(out, size,
             "{\"pools\": {"
             "\"a100\": {\"workers\": %d, \"pictures_max\": %d, \"memory_gb\": %d, \"start_s\": 60,"
             " \"crashes_per_hour\": %g, \"scale\": {\"min\": %d, \"max\": %d}},"
             "\"a10\": {\"workers\": %d, \"pictures_max\": %d, \"memory_gb\": %d, \"start_s\": 30,"
             " \"batch_speed\": 1.5, \"crashes_per_hour\": %g},"
             "\"spot\": {\"class\": \"a10\", \"workers\": %d, \"pictures_max\": 2,"
             " \"memory_gb\": %d, \"price_per_hour\": 0.4, \"reclaims_per_hour\": %g}},"
             "\"models\": {\"a\": {\"family\": \"sd15\", \"gb\": 2}, \"b\": {\"family\": \"sd21\","
             " \"gb\": 2.6}, \"c\": {\"family\": \"sdxl\", \"gb\": 7, \"tier\": \"premium\"}},"
             "\"noise\": %g, \"failures\": %g}",
             (int)(die(seed, 0) * 4), 1 + (int)(die(seed, 1) * 8), 3 + (int)(die(seed, 2) * 40),
             die(seed, 3), (int)(die(seed, 4) * 3), 3 + (int)(die(seed, 5) * 6),
             1 + (int)(die(seed, 6) * 5), 1 + (int)(die(seed, 7) * 4), 3 + (int)(die(seed, 8) * 20),
             die(seed, 9) * 2, (int)(die(seed, 10) * 5), 3 + (int)(die(seed, 11) * 20),
             die(seed, 12) * 4, die(seed, 13) * 0.5, die(seed, 14) * 0.05);
}

/* Limits and quotas that invented jobs have not. */
static void add_limits(struct run *run, uint64_t seed)
{
    for (uint32_t i = 0; i < run->load.count; i++) {
        struct load_job *job = &run->load.jobs[i];
        if (die(seed, (int)i + 100) < 0.1)
            job->not_before_ns = job->arrival_ns + (int64_t)(die(seed, (int)i + 200) * 6e11);
        if (die(seed, (int)i + 300) < 0.2)
            job->deadline_ns = job->arrival_ns + (int64_t)(die(seed, (int)i + 400) * 3e12);
        if (die(seed, (int)i + 500) < 0.1)
            job->max_price = (float)(die(seed, (int)i + 600) * 0.01);
    }
    run->load.has_limits = false; /* they count from the beginning already */
}

static void run_at_random(struct run *run, uint64_t seed, struct buf *report)
{
    char fleet[2048];
    random_fleet(seed, fleet, sizeof(fleet));
    prepare(run, fleet);
    run->load.seed = run->options.seed = seed;
    if (load_invent(&run->load, 2000, 0.2 + die(seed, 20) * 3, &run->err) != 0)
        fail_msg("%s", run->err.message);
    add_limits(run, seed);
    run->options.overtake_max = 20 + (uint32_t)(die(seed, 21) * 200);
    run->options.jobs_max = die(seed, 22) < 0.3 ? 300 : 1000000;
    if (simulate(run) != 0)
        fail_msg("seed %llu: %s", (unsigned long long)seed, run->err.message);
    const struct report_column columns[] = {{"p.json", &run->result}, {"<p&>", &run->result}};
    report_json(columns, 1, report);
    report_text(columns, 1, report);
    report_text(columns, 2, report);
    report_svg(columns, 2, report);
    assert_false(report->failed);
}

static void test_nothing_breaks_at_random(void **state)
{
    (void)state;
    const char *count = getenv("SIMULATIONS");
    uint64_t crashes = 0, reclaims = 0, expired = 0, dead = 0, refused = 0;
    for (uint64_t seed = 1; seed <= (count ? strtoull(count, NULL, 10) : 40); seed++) {
        struct run run;
        struct buf report;
        buf_init(&report, 1 << 20);
        run_at_random(&run, seed, &report);
        const struct sim_group *all = &run.result.all;
        assert_int_equal(all->done + all->expired + all->dead + all->refused + all->left, 2000);
        for (uint32_t p = 0; p < run.result.pool_count; p++) {
            crashes += run.result.pools[p].crashes;
            reclaims += run.result.pools[p].reclaims;
            assert_true(run.result.pools[p].busy_s <= run.result.pools[p].paid_s + 1e-3);
        }
        expired += all->expired;
        dead += all->dead;
        refused += all->refused;
        end(&run);
        buf_release(&report);
    }
    printf("%llu crashes, %llu reclaimed, %llu jobs expired, %llu dead, %llu refused\n",
           (unsigned long long)crashes, (unsigned long long)reclaims, (unsigned long long)expired,
           (unsigned long long)dead, (unsigned long long)refused);
    assert_true(crashes > 0 && reclaims > 0 && expired > 0 && refused > 0);
}

static void test_the_same_again(void **state)
{
    (void)state;
    struct buf reports[2];
    for (int i = 0; i < 2; i++) {
        struct run run;
        buf_init(&reports[i], 1 << 20);
        run_at_random(&run, 7, &reports[i]);
        end(&run);
    }
    assert_string_equal(reports[0].data, reports[1].data);
    buf_release(&reports[0]);
    buf_release(&reports[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_jobs_one_after_the_other),
        cmocka_unit_test(test_pictures_share_a_worker),
        cmocka_unit_test(test_models_make_room),
        cmocka_unit_test(test_a_worker_that_has_to_start),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_speed),
        cmocka_unit_test(test_a_trace),
        cmocka_unit_test(test_wrong_fleets),
        cmocka_unit_test(test_wrong_loads),
        cmocka_unit_test(test_broken_promises_are_seen),
        cmocka_unit_test(test_starvation_is_seen),
        cmocka_unit_test(test_nothing_breaks_at_random),
        cmocka_unit_test(test_the_same_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The cost model: sensible before the first report, right after some, bounded for ever. */
#include "scheduler/cost.h"

#include "common/json.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static struct cost *cost;

static void start(uint32_t entries)
{
    struct cost_options options = COST_OPTIONS_INIT;
    struct err err;
    options.entries_max = entries;
    assert_int_equal(cost_create(&cost, &options, &err), 0);
}

static struct cost_query usual(const char *class, const char *model)
{
    return (struct cost_query){.class = class,
                               .family = "sd15",
                               .model = model,
                               .width = 512,
                               .height = 512,
                               .steps = 20,
                               .images = 1,
                               .guidance = true};
}

static double predict(struct cost_query query)
{
    return cost_predict(cost, &query);
}

static void learn(struct cost_query query, double seconds)
{
    cost_learn(cost, &query, seconds);
}

static void assert_about(double value, double expected, double part)
{
    if (!(fabs(value - expected) <= part * expected))
        fail_msg("%g instead of %g", value, expected);
}

static void test_first_guesses_are_in_order(void **state)
{
    (void)state;
    static const char *const slower[] = {"h100", "a100", "a10", "g8i", "cpu"};
    start(1024);
    for (int i = 1; i < 5; i++)
        assert_true(predict(usual(slower[i - 1], "m")) < predict(usual(slower[i], "m")));
    struct cost_query query = usual("a100", "m");
    double one = predict(query);
    query.steps = 40;
    assert_true(predict(query) > 1.5 * one);
    query.steps = 20;
    query.guidance = false;
    assert_true(predict(query) < one);
    query = usual("a100", "m");
    query.work = cost_work("sd15", 0, NULL, 0);
    assert_true(predict(query) == one);
    query.work = cost_work("sd15", 1, NULL, 0); /* one ControlNet, all along */
    assert_true(predict(query) > 1.2 * one && predict(query) < 1.5 * one);
    query.work = cost_work("sd15", 2.5, NULL, 0);
    assert_true(predict(query) > 1.6 * one && predict(query) < 2 * one);
    /* The refiner is the lighter one, and draws without the base's ControlNets. */
    assert_true(cost_work("sdxl", 0, "sdxl-refiner", 0.2) < 1);
    assert_true(cost_work("sdxl", 0, "sdxl-refiner", 1) <
                cost_work("sdxl", 0, "sdxl-refiner", 0.2));
    assert_true(cost_work("sdxl", 2, "sdxl-refiner", 0.5) < cost_work("sdxl", 2, NULL, 0));
    query = usual("a100", "m");
    query.images = 4;
    assert_true(predict(query) > 3 * one && predict(query) < 4.1 * one);
    query = usual("a100", "m");
    query.width = query.height = 1024; /* attention: more than in proportion */
    assert_true(predict(query) > 3 * one);
    assert_true(cost_switch(cost, "a10", 7u << 30) > cost_switch(cost, "a10", 2u << 30));
    struct cost_query unknown = {
        .class = "tpu", .width = 64, .height = 64, .steps = 1, .images = 1};
    assert_true(predict(unknown) > 0);
    cost_free(cost);
}

static void test_reports_correct_and_spread(void **state)
{
    (void)state;
    start(1024);
    double guess = predict(usual("a10", "m"));
    for (int i = 0; i < 60; i++)
        learn(usual("a10", "m"), 3 * guess);
    assert_about(predict(usual("a10", "m")), 3 * guess, 0.05);
    /* A sibling and another family of the class follow; another class does not. */
    assert_about(predict(usual("a10", "n")), 3 * guess, 0.10);
    struct cost_query sdxl = usual("a10", "x");
    sdxl.family = "sdxl";
    double before = predict(sdxl);
    struct cost_query elsewhere = usual("a100", "m");
    cost_free(cost);
    start(1024);
    assert_about(before, 3 * predict(sdxl), 0.10);
    double there = predict(elsewhere);
    learn(usual("a10", "m"), 100);
    assert_about(predict(elsewhere), there, 1e-9);
    cost_free(cost);
}

static void test_it_follows_a_change_and_shrugs_off_an_outlier(void **state)
{
    (void)state;
    start(1024);
    struct cost_query query = usual("g8i", "m");
    for (int i = 0; i < 200; i++)
        learn(query, 10 + (i % 3));
    double settled = predict(query);
    assert_about(settled, 11, 0.05);
    learn(query, 1e9);
    assert_true(predict(query) < 1.4 * settled);
    learn(query, 0);
    learn(query, -1);
    learn(query, NAN);
    for (int i = 0; i < 100; i++)
        learn(query, 5);
    assert_about(predict(query), 5, 0.05);
    for (int i = 0; i < 30; i++)
        cost_learn_switch(cost, "a10", 4000000000, 20);
    assert_about(cost_switch(cost, "a10", 4000000000), 20, 0.15);
    cost_free(cost);
}

static void test_memory_is_bounded(void **state)
{
    (void)state;
    struct buf text;
    start(64);
    struct cost_query query = usual("a100", "m");
    double guess = predict(query);
    for (int i = 0; i < 5000; i++) {
        char name[16];
        snprintf(name, sizeof(name), "m%d", i);
        query.model = name;
        learn(query, 2 * guess);
    }
    query.model = "never seen";
    assert_about(predict(query), 2 * guess, 0.1); /* the coarse ones have stayed */
    buf_init(&text, 1 << 20);
    cost_write(cost, &text);
    assert_false(text.failed);
    assert_true(text.len < 64 * 64);
    buf_release(&text);
    cost_free(cost);
}

static void test_it_is_kept(void **state)
{
    (void)state;
    struct buf text, again;
    struct json_doc *doc;
    struct err err;
    start(256);
    for (int i = 0; i < 9; i++)
        learn(usual("a10", "m"), 1 + i);
    cost_learn_switch(cost, "a10", 1000, 3);
    double expected = predict(usual("a10", "m"));
    buf_init(&text, 1 << 20);
    buf_init(&again, 1 << 20);
    cost_write(cost, &text);
    cost_free(cost);
    start(256);
    assert_int_equal(json_parse(&doc, text.data, text.len, NULL, &err), 0);
    assert_int_equal(cost_read(cost, json_root(doc), &err), 0);
    assert_about(predict(usual("a10", "m")), expected, 1e-6);
    json_doc_free(doc);
    /* A wrong form is refused and leaves the first guess. */
    static const char *const wrong[] = {
        "{}",
        "[]",
        "{\"version\":2,\"ratios\":[]}",
        "{\"version\":1,\"ratios\":[[]]}",
        "{\"version\":1,\"ratios\":[[\"0123456789abcdef\",0.5,1],[\"x\",1,1]]}",
        "{\"version\":1,\"ratios\":[[\"0123456789abcdef\",1e9,1]]}",
        "{\"version\":1,\"ratios\":[[\"0123456789abcdef\",1,-1]]}",
        "{\"version\":1,\"ratios\":[[\"0000000000000000\",1,1]]}",
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(json_parse(&doc, wrong[i], strlen(wrong[i]), NULL, &err), 0);
        assert_int_equal(cost_read(cost, json_root(doc), &err), -1);
        assert_int_equal(err.code, ERR_FORMAT);
        json_doc_free(doc);
        cost_write(cost, &again);
        assert_string_equal(again.data, "{\"version\":1,\"ratios\":[]}");
        buf_clear(&again);
    }
    buf_release(&text);
    buf_release(&again);
    cost_free(cost);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_guesses_are_in_order),
        cmocka_unit_test(test_reports_correct_and_spread),
        cmocka_unit_test(test_it_follows_a_change_and_shrugs_off_an_outlier),
        cmocka_unit_test(test_memory_is_bounded),
        cmocka_unit_test(test_it_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

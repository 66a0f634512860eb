/* The routing policy: the shipped file routes as documented, and every mistake is told its place.
 */
#include "scheduler/policy.h"

#include "tests/unit/unit.h"

#include <string.h>

static struct policy *shipped(void)
{
    struct policy *policy;
    struct err err;
    if (policy_read(&policy, "deploy/routing.json", &err) != 0)
        fail_msg("%s", err.message);
    return policy;
}

static void assert_route(const struct policy *policy, struct policy_facts facts,
                         const char *expected)
{
    struct policy_route route;
    char names[256] = "";
    policy_route(policy, &facts, &route);
    for (int i = 0; i < route.count; i++) {
        strcat(names, i ? " " : "");
        strcat(names, policy_class(policy, route.classes[i])->name);
    }
    assert_string_equal(names, expected);
}

static void test_the_shipped_policy(void **state)
{
    (void)state;
    struct policy *policy = shipped();
    assert_route(policy, (struct policy_facts){.family = "sd15", .width = 512, .height = 512},
                 "a10 a100 g8i");
    assert_route(
        policy,
        (struct policy_facts){.tier = "fast", .family = "sd15", .width = 512, .height = 512},
        "g8i a10 a100");
    assert_route(policy, (struct policy_facts){.family = "sd21", .width = 768, .height = 768},
                 "a10 a100 g8i");
    assert_route(policy, (struct policy_facts){.family = "sd21", .width = 768, .height = 776},
                 "a100 a10");
    assert_route(
        policy,
        (struct policy_facts){.tier = "fast", .family = "sdxl", .width = 512, .height = 512},
        "a100 a10");
    assert_route(policy, (struct policy_facts){.family = "sd15", .width = 1024, .height = 1024},
                 "a100 a10");
    assert_route(policy, (struct policy_facts){.width = 384, .height = 384}, "g8i a10 a100");
    struct policy_facts facts = {
        .family = "sdxl", .width = 1024, .height = 1024, .confidential = true};
    assert_route(policy, facts, "g8i");
    facts.confidential = false;
    facts.memory_gb = 30;
    assert_route(policy, facts, "a100");
    facts.memory_gb = 81;
    assert_route(policy, facts, "");
    char why[256];
    policy_why_not(policy, &facts, why, sizeof(why));
    assert_contains(why, "a100 has most, 80 GB");
    struct policy_route route;
    policy_route(policy, &facts, &route);
    assert_int_equal(route.rule, 0);
    policy_free(policy);
}

static void test_tenants(void **state)
{
    (void)state;
    static const char text[] =
        "{\"classes\": {\"a\": {\"price_per_hour\": 1}}, \"rules\": [{\"route\": [\"a\"]}],"
        " \"tenants\": {\"*\": {\"queued_max\": 7}, \"b\": {\"weight\": 2.5, \"running_max\": 3},"
        "               \"a\": {}}}";
    struct policy *policy;
    struct err err;
    assert_int_equal(policy_parse(&policy, text, strlen(text), "t.json", &err), 0);
    struct policy_tenant tenant = policy_tenant(policy, "b");
    assert_true(tenant.weight == 2.5 && tenant.running_max == 3 && tenant.queued_max == 0);
    assert_int_equal(policy_tenant(policy, "a").queued_max, 0);
    assert_int_equal(policy_tenant(policy, "c").queued_max, 7);
    assert_true(policy_tenant(policy, "c").weight == 1);
    /* Without a pool for them, confidential jobs go nowhere. */
    struct policy_facts facts = {.width = 64, .height = 64, .confidential = true};
    assert_route(policy, facts, "");
    char why[256];
    policy_why_not(policy, &facts, why, sizeof(why));
    assert_contains(why, "no pools.confidential");
    policy_free(policy);
}

static void test_mistakes_are_told_their_place(void **state)
{
    (void)state;
#define CLASSES "\"classes\": {\"a10\": {\"price_per_hour\": 1}}"
#define RULES "\"rules\": [{\"route\": [\"a10\"]}]"
    static const struct {
        const char *text, *expected;
    } mistakes[] = {
        {"[]", "p.json: must be an object"},
        {"{", "p.json: "},
        {"{" CLASSES ", \"ruels\": []}", "there is no key \"ruels\"; did you mean \"rules\"?"},
        {"{" RULES "}", "classes: must be an object with at least one class"},
        {"{\"classes\": {\"a10\": {}}, " RULES "}", "classes.a10: needs \"price_per_hour\""},
        {"{\"classes\": {\"a10\": {\"price_per_hour\": -1}}, " RULES "}",
         "classes.a10.price_per_hour: must be a number of at least 0"},
        {"{\"classes\": {\"a10\": {\"price\": 1}}, " RULES "}", "classes.a10: there is no key"},
        {"{" CLASSES "}", "rules: must be a list"},
        {"{" CLASSES ", \"rules\": [{\"route\": []}]}", "rules[0].route: must be a list"},
        {"{" CLASSES ", \"rules\": [{\"route\": [\"a01\"]}]}",
         "rules[0].route[0]: \"a01\" is not under \"classes\"; did you mean \"a10\"?"},
        {"{" CLASSES ", \"rules\": [{\"route\": [\"a10\", \"a10\"]}]}",
         "rules[0].route[1]: \"a10\" is in the list already"},
        {"{" CLASSES ", \"rules\": [{\"if\": {\"tier\": \"fast\"}, \"route\": [\"a10\"]}]}",
         "the last rule must fit every job"},
        {"{" CLASSES ", \"rules\": [{\"route\": [\"a10\"]}, {\"route\": [\"a10\"]}]}",
         "rules[1]: is never tried"},
        {"{" CLASSES ", \"rules\": [{\"if\": {\"tier\": [\"fast\", \"fsat\"]}, \"route\": "
         "[\"a10\"]}, {\"route\": [\"a10\"]}]}",
         "rules[0].if.tier[1]: \"fsat\" is none of fast, standard, premium; did you mean"},
        {"{" CLASSES ", \"rules\": [{\"if\": {}, \"route\": [\"a10\"]}, {\"route\": [\"a10\"]}]}",
         "rules[0].if: is empty"},
        {"{" CLASSES ", \"rules\": [{\"if\": {\"min_pixels\": 0.5}, \"route\": [\"a10\"]}]}",
         "rules[0].if.min_pixels: must be a whole number"},
        {"{" CLASSES ", \"rules\": [{\"if\": {\"min_pixels\": 9, \"max_pixels\": 8}, \"route\": "
         "[\"a10\"]}]}",
         "rules[0].if: no picture has both"},
        {"{" CLASSES ", " RULES ", \"tenants\": {\"x\": {\"weight\": 0}}}",
         "tenants.x.weight: must be a number of at least 0.001"},
        {"{" CLASSES ", " RULES ", \"tenants\": {\"x\": {\"running_max\": \"3\"}}}",
         "tenants.x.running_max: must be a whole number"},
        {"{" CLASSES ", " RULES ", \"pools\": {\"secret\": [\"a10\"]}}",
         "pools: there is no key \"secret\"; known are confidential"},
        {"{" CLASSES ", " RULES ", \"pools\": {\"confidential\": [\"b\"]}}",
         "pools.confidential[0]: \"b\" is not under \"classes\""},
        {"{" CLASSES ", " RULES ", \"value_of_waiting_per_hour\": \"1\"}",
         "value_of_waiting_per_hour: must be a number"},
    };
    for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
        struct policy *policy;
        struct err err;
        const char *text = mistakes[i].text;
        assert_int_equal(policy_parse(&policy, text, strlen(text), "p.json", &err), -1);
        assert_null(policy);
        assert_int_equal(err.class, ERR_FATAL);
        assert_contains(err.message, mistakes[i].expected);
        assert_contains(err.message, "p.json: ");
    }
}

static void test_a_file_that_is_not_there(void **state)
{
    (void)state;
    struct policy *policy;
    struct err err;
    assert_int_equal(policy_read(&policy, "deploy/no-such.json", &err), -1);
    assert_contains(err.message, "deploy/no-such.json");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_shipped_policy),
        cmocka_unit_test(test_tenants),
        cmocka_unit_test(test_mistakes_are_told_their_place),
        cmocka_unit_test(test_a_file_that_is_not_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

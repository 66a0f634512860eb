/* The random stream against torch.randn (tests/golden/rng.jsonl). */
#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "engine/rng.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/golden/"
#define VALUES_MAX (1 << 16)

static void check_values(const struct json *want, const float *got)
{
    for (const struct json *value = want->child; value; value = value->next, got++) {
        double expected = json_double_or(value, NAN);
        if (!(fabs(*got - expected) <= 5e-7 + 2e-7 * fabs(expected)))
            fail_msg("%.9g instead of %.9g", *got, expected);
    }
}

static void check_call(struct rng *rng, const struct json *call)
{
    static float values[VALUES_MAX];
    size_t n = (size_t)json_int_or(json_get(call, "n"), 0);
    assert_in_range(n, 1, VALUES_MAX);
    rng_normal(rng, values, n);
    const struct json *last = json_get(call, "last");
    check_values(json_get(call, "first"), values);
    check_values(last, values + n - last->count);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    assert_true(fabs(sum - json_double_or(json_get(call, "sum"), NAN)) < 1e-4);
    assert_true(fabs(squares - json_double_or(json_get(call, "squares"), NAN)) < 1e-3);
}

static void check_line(const char *line, size_t len)
{
    struct json_doc *doc;
    struct err err;
    if (json_parse(&doc, line, len, NULL, &err) != 0)
        fail_msg("%s", err.message);
    struct rng rng;
    int64_t seed = json_int_or(json_get(json_root(doc), "seed"), -1);
    rng_seed(&rng, RNG_TORCH, (uint64_t)seed);
    for (const struct json *call = json_get(json_root(doc), "calls")->child; call;
         call = call->next)
        check_call(&rng, call);
    json_doc_free(doc);
}

static void test_values_match_torch(void **state)
{
    (void)state;
    struct buf text;
    struct err err;
    buf_init(&text, 4 << 20);
    assert_int_equal(file_read(&text, GOLDEN "rng.jsonl", &err), 0);
    int lines = 0;
    for (const char *line = text.data; *line; lines++) {
        size_t len = strcspn(line, "\n");
        check_line(line, len);
        line += len + (line[len] == '\n');
    }
    assert_true(lines >= 50);
    buf_release(&text);
}

static void test_a_copy_goes_on_like_the_original(void **state)
{
    (void)state;
    struct rng rng, copy;
    float a[40], b[40];
    rng_seed(&rng, RNG_TORCH, 7);
    rng_normal(&rng, a, 3); /* leaves half a pair */
    memcpy(&copy, &rng, sizeof(rng));
    assert_true(rng_is_valid(&copy));
    for (size_t n = 1; n <= 40; n += 13) {
        rng_normal(&rng, a, n);
        rng_normal(&copy, b, n);
        assert_memory_equal(a, b, n * sizeof(float));
    }
}

static void test_foreign_states_are_told(void **state)
{
    (void)state;
    struct rng rng;
    rng_seed(&rng, RNG_TORCH, 7);
    struct rng bad = rng;
    bad.next = RNG_WORDS + 1;
    assert_false(rng_is_valid(&bad));
    bad = rng;
    bad.kind = RNG_KIND_COUNT;
    assert_false(rng_is_valid(&bad));
    bad = rng;
    bad.has_spare = 1;
    bad.spare = NAN;
    assert_false(rng_is_valid(&bad));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_match_torch),
        cmocka_unit_test(test_a_copy_goes_on_like_the_original),
        cmocka_unit_test(test_foreign_states_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The random streams against torch.randn and A1111's (tests/golden/rng.jsonl). */
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
    int kind = rng_by_name(json_string_or(json_get(json_root(doc), "rng"), "torch"));
    assert_in_range(kind, RNG_TORCH, RNG_KIND_COUNT - 1);
    rng_seed(&rng, (enum rng_kind)kind, (uint64_t)seed);
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
    assert_true(lines >= 90);
    buf_release(&text);
}

/* The values that A1111's modules/rng_philox.py shows for seed 0, which are those of a GPU's
 * torch.randn. */
static void test_philox_as_published(void **state)
{
    (void)state;
    static const float want[] = {-0.92466259f, -0.42534415f, -2.6438457f,  0.14518388f,
                                 -0.12086647f, -0.57972564f, -0.62285122f, -0.32838709f,
                                 -1.07454231f, -0.36314407f, -1.67105067f, 2.26550497f};
    struct rng rng;
    float got[12];
    rng_seed(&rng, RNG_PHILOX, 0);
    rng_normal(&rng, got, 12);
    for (int i = 0; i < 12; i++)
        assert_true(fabsf(got[i] - want[i]) <= 1e-7f * fmaxf(1, fabsf(want[i])));
}

static void test_a_copy_goes_on_like_the_original(void **state)
{
    (void)state;
    struct rng rng, copy;
    float a[40], b[40];
    for (int kind = 0; kind < RNG_KIND_COUNT; kind++) {
        rng_seed(&rng, (enum rng_kind)kind, 7);
        rng_normal(&rng, a, 3); /* leaves half a pair */
        memcpy(&copy, &rng, sizeof(rng));
        assert_true(rng_is_valid(&copy));
        for (size_t n = 1; n <= 40; n += 13) {
            rng_normal(&rng, a, n);
            rng_normal(&copy, b, n);
            assert_memory_equal(a, b, n * sizeof(float));
        }
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
    rng_seed(&rng, RNG_PHILOX, 7);
    assert_true(rng_is_valid(&rng));
    bad = rng;
    bad.next = 1;
    assert_false(rng_is_valid(&bad));
    bad = rng;
    bad.words[RNG_WORDS - 1] = 1;
    assert_false(rng_is_valid(&bad));
    assert_int_equal(rng_by_name("mersenne"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_match_torch),
        cmocka_unit_test(test_philox_as_published),
        cmocka_unit_test(test_a_copy_goes_on_like_the_original),
        cmocka_unit_test(test_foreign_states_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What text encoders made is found again by its whole key, and what was used longest ago goes. */
#include "engine/text_cache.h"

#include "tests/unit/unit.h"

#include <stdlib.h>
#include <string.h>

#define COUNT ((size_t)1 << 20) /* floats of an entry: 16 of them fill the cache */

static struct text_key key_of(int number)
{
    struct text_key key;

    memset(&key, 0, sizeof(key));
    key.ids[76] = number;
    return key;
}

static void add(struct text_cache *cache, const struct text_key *key, float value)
{
    float *values = calloc(COUNT, sizeof(float));

    assert_non_null(values);
    values[0] = value;
    text_cache_add(cache, key, values, COUNT - 1, values, 1);
    free(values);
}

static void test_every_field_counts(void **state)
{
    struct text_cache cache = {0};
    struct text_key key = key_of(1), other;
    float embeds[3] = {1, 2, 3}, pooled[2] = {4, 5};
    const float *found;

    (void)state;
    assert_null(text_cache_find(&cache, &key));
    text_cache_add(&cache, &key, embeds, 3, pooled, 2);
    found = text_cache_find(&cache, &key);
    assert_non_null(found);
    for (int i = 0; i < 5; i++)
        assert_true(found[i] == (float)(i + 1));
    for (size_t i = 0; i < sizeof(key); i++) {
        other = key;
        ((unsigned char *)&other)[i] ^= 1;
        assert_null(text_cache_find(&cache, &other));
    }
    text_cache_release(&cache);
    assert_null(text_cache_find(&cache, &key));
}

static void test_the_longest_idle_goes(void **state)
{
    struct text_cache cache = {0};
    struct text_key key;

    (void)state;
    for (int i = 0; i < 16; i++) {
        key = key_of(i);
        add(&cache, &key, (float)i);
    }
    key = key_of(0); /* used again: number 1 is now the oldest */
    assert_non_null(text_cache_find(&cache, &key));
    key = key_of(16);
    add(&cache, &key, 16);
    for (int i = 0; i <= 16; i++) {
        const float *found;
        key = key_of(i);
        found = text_cache_find(&cache, &key);
        assert_true(i == 1 ? found == NULL : found != NULL && found[0] == (float)i);
    }
    assert_true(cache.bytes <= TEXT_CACHE_MAX_BYTES);
    text_cache_release(&cache);
    assert_int_equal(cache.bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_field_counts),
        cmocka_unit_test(test_the_longest_idle_goes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

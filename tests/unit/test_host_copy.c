#include "engine/cuda/host_copy.h"

#include "tests/unit/unit.h"

#include <stdlib.h>
#include <string.h>

/* Lengths about what is shared and about whole chunks; nothing beyond the end is touched. */
static void test_all_is_copied(void **state)
{
    static const size_t LENGTHS[] = {0,
                                     1,
                                     HOST_COPY_SHARED_BYTES - 1,
                                     HOST_COPY_SHARED_BYTES,
                                     HOST_COPY_SHARED_BYTES + 1,
                                     9 * HOST_COPY_CHUNK_BYTES,
                                     9 * HOST_COPY_CHUNK_BYTES + 7};
    const size_t most = 9 * HOST_COPY_CHUNK_BYTES + 8;
    struct host_copier *copier = host_copier_create();
    unsigned char *from = malloc(most), *to = malloc(most);

    (void)state;
    assert_non_null(copier);
    for (int turn = 0; turn < 20; turn++)
        for (size_t i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
            size_t length = LENGTHS[i];
            for (size_t k = 0; k < most; k++)
                from[k] = (unsigned char)(k * 7 + k / 256 + (size_t)turn);
            memset(to, 0xee, most);
            host_copy(copier, to, from, length);
            assert_memory_equal(to, from, length);
            assert_int_equal(to[length], 0xee);
        }
    host_copier_free(copier);
    free(from);
    free(to);
}

static void test_none_is_freed(void **state)
{
    (void)state;
    host_copier_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_is_copied),
        cmocka_unit_test(test_none_is_freed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Memory for weights: where pieces lie, that they stay apart, and that what is given back is gone.
 */
#include "tests/unit/unit.h"

#include "engine/arena.h"
#include "engine/cpu/pool.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECES 40
#define MIB ((size_t)1 << 20)

static size_t size_of(int i)
{
    static const size_t SIZES[] = {1, 64, 100000, 131072, 131073, 3276800, 40 * MIB + 7, 70 * MIB};

    return SIZES[(size_t)i % (sizeof(SIZES) / sizeof(SIZES[0]))];
}

/* Whether the first whole page of a piece has memory behind it. */
static bool is_there(const void *piece)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    unsigned char there = 0;

    if (mincore((void *)(((uintptr_t)piece + page - 1) / page * page), 1, &there) != 0)
        return false; /* not even an address */
    return there & 1;
}

static void test_pieces_stay_apart(void **state)
{
    struct pool pool;
    unsigned char *pieces[PIECES];

    (void)state;
    pool_init(&pool);
    for (int i = 0; i < PIECES; i++) {
        pieces[i] = pool_alloc(&pool, size_of(i));
        assert_non_null(pieces[i]);
        assert_int_equal((uintptr_t)pieces[i] % ARENA_ALIGN_BYTES, 0);
        pieces[i][0] = pieces[i][size_of(i) - 1] = (unsigned char)i;
    }
    for (int i = 1; i < PIECES; i += 2) {
        pool_free(&pool, pieces[i], size_of(i));
        pieces[i] = pool_alloc(&pool, size_of(i + 3));
        pieces[i][0] = pieces[i][size_of(i + 3) - 1] = (unsigned char)i;
    }
    for (int i = 0; i < PIECES; i++) {
        size_t bytes = size_of(i % 2 == 1 ? i + 3 : i);
        assert_int_equal(pieces[i][0], i);
        assert_int_equal(pieces[i][bytes - 1], i);
        pool_free(&pool, pieces[i], bytes);
    }
    pool_free(&pool, NULL, 5 * MIB);
    pool_release(&pool);
}

static void test_what_is_given_back_is_gone(void **state)
{
    struct pool pool;
    char *kept, *given;

    (void)state;
    pool_init(&pool);
    kept = pool_alloc(&pool, 4 * MIB);
    given = pool_alloc(&pool, 4 * MIB);
    memset(kept, 7, 4 * MIB);
    memset(given, 8, 4 * MIB);
    assert_true(is_there(given));
    pool_free(&pool, given, 4 * MIB);
    assert_false(is_there(given + MIB));
    assert_true(is_there(kept));
    assert_int_equal(kept[4 * MIB - 1], 7);
    pool_free(&pool, kept, 4 * MIB);
    assert_false(is_there(kept));
    /* The slab is used again from its beginning. */
    assert_ptr_equal(pool_alloc(&pool, 4 * MIB), kept);
    pool_free(&pool, kept, 4 * MIB);
    pool_release(&pool);
}

static void *take_and_give(void *user)
{
    struct pool *pool = user;

    for (int i = 0; i < 200; i++) {
        size_t bytes = MIB / 4 * (size_t)(1 + i % 3);
        unsigned char *piece = pool_alloc(pool, bytes);
        piece[0] = piece[bytes - 1] = (unsigned char)i;
        assert_int_equal(piece[0], piece[bytes - 1]);
        pool_free(pool, piece, bytes);
    }
    return NULL;
}

static void test_threads_share_it(void **state)
{
    struct pool pool;
    pthread_t threads[4];

    (void)state;
    pool_init(&pool);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_and_give, &pool), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    pool_release(&pool);
}

static void test_more_than_there_is(void **state)
{
    struct pool pool;

    (void)state;
    pool_init(&pool);
    assert_null(pool_alloc(&pool, (size_t)1 << 60));
    pool_release(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_stay_apart),
        cmocka_unit_test(test_what_is_given_back_is_gone),
        cmocka_unit_test(test_threads_share_it),
        cmocka_unit_test(test_more_than_there_is),
    };

    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}

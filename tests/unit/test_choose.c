/* Which tile a product gets: the table first, sizes near those that were tuned, then the formula.
 */
#include "engine/cuda/choose.h"

#include "tests/unit/unit.h"

#include <stdlib.h>
#include <string.h>

static const int CARDS[] = {80, 86, 90};

/* A layer's sizes, its neighbours in the table and the same layer on another card. */
static const struct tuned ENTRIES[] = {
    {80, 320, 9, 320, 4096, {.rows = 64, .columns = 64, .splits = 5}},
    {90, 320, 1, 320, 4096, {.rows = 64, .columns = 64, .splits = 6}},
    {90, 320, 9, 320, 1024, {.rows = 128, .columns = 64, .splits = 2}},
    {90, 320, 9, 320, 4096, {.rows = 128, .columns = 128, .splits = 3}},
    {90, 320, 9, 320, 9216, {.rows = 64, .columns = 64, .splits = 4}},
    {90, 320, 9, 640, 4096, {.rows = 64, .columns = 64, .splits = 7}},
};
static const struct tuned_table TABLE = {ENTRIES, sizeof(ENTRIES) / sizeof(ENTRIES[0])};
static const struct tuned_table NOTHING = {ENTRIES, 0};

static void assert_tile(struct product_tile tile, int rows, int columns, int splits)
{
    assert_int_equal(tile.rows, rows);
    assert_int_equal(tile.columns, columns);
    assert_int_equal(tile.splits, splits);
}

static bool same(const struct product_tile *a, const struct product_tile *b)
{
    return a->rows == b->rows && a->columns == b->columns && a->splits == b->splits &&
           a->group == b->group;
}

static void assert_by_formula(int sm, int64_t rows, int out, int taps, int in)
{
    struct product_tile got = choose_tile_from(&TABLE, sm, rows, out, taps, in);
    struct product_tile formula = choose_tile_from(&NOTHING, sm, rows, out, taps, in);

    assert_true(same(&got, &formula));
}

static void test_every_entry_is_found(void **state)
{
    (void)state;
    for (int i = 0; i < TABLE.count; i++) {
        const struct tuned *t = &ENTRIES[i];
        struct product_tile tile = choose_tile_from(&TABLE, t->sm, t->rows, t->out, t->taps, t->in);
        assert_true(same(&tile, &t->tile));
    }
}

static void test_a_size_near_a_tuned_one(void **state)
{
    (void)state;
    assert_tile(choose_tile_from(&TABLE, 90, 2048, 320, 9, 320), 128, 64, 2); /* as far from both */
    assert_tile(choose_tile_from(&TABLE, 90, 2049, 320, 9, 320), 128, 128, 3);
    assert_tile(choose_tile_from(&TABLE, 90, 6000, 320, 9, 320), 128, 128, 3);
    assert_tile(choose_tile_from(&TABLE, 90, 7000, 320, 9, 320), 64, 64, 4);
    assert_tile(choose_tile_from(&TABLE, 90, 18432, 320, 9, 320), 64, 64, 4);
    assert_tile(choose_tile_from(&TABLE, 90, 512, 320, 9, 320), 128, 64, 2);
}

static void test_what_was_not_tuned(void **state)
{
    (void)state;
    assert_by_formula(90, 18433, 320, 9, 320);
    assert_by_formula(90, 511, 320, 9, 320);
    assert_by_formula(80, 1024, 320, 9,
                      320); /* four times smaller, and another card's are nearer */
    assert_by_formula(86, 4096, 320, 9, 320);
    assert_by_formula(90, 4096, 321, 9, 320);
    assert_by_formula(90, 4096, 320, 9, 328);
    assert_by_formula(90, 4096, 8, 1, 8);
    assert_by_formula(99, 4096, 5120, 9, 5120);
}

/* Shapes of SD1.5 at 512 x 512. */
static void test_the_formula(void **state)
{
    (void)state;
    assert_tile(choose_tile_from(&NOTHING, 80, 4096, 320, 9, 320), 128, 64, 1);
    assert_tile(choose_tile_from(&NOTHING, 80, 64, 1280, 9, 1280), 128, 64, 5);
    assert_tile(choose_tile_from(&NOTHING, 80, 4096, 320, 1, 320), 128, 64, 1);
    assert_tile(choose_tile_from(&NOTHING, 80, 262144, 128, 9, 128), 128, 128, 1);
}

static void test_warpgroups_are_for_hopper(void **state)
{
    (void)state;
    for (int c = 0; c < 3; c++) {
        struct product_tile tiles[CANDIDATES_MAX];
        int count = choose_candidates(CARDS[c], 4096, 320, 9, 320, tiles), groups = 0;
        for (int i = 0; i < count; i++)
            groups += tiles[i].group;
        assert_int_equal(groups > 0, CARDS[c] == 90);
    }
    assert_true(choose_tile_from(&NOTHING, 90, 262144, 128, 9, 128).group);
}

static void test_the_library_is_for_linear_layers(void **state)
{
    static const struct tuned OURS = {90, 640, 1, 640, 4096, {.rows = 64, .columns = 64}};
    const struct tuned_table table = {&OURS, 1};

    (void)state;
    assert_true(choose_tile_from(&NOTHING, 90, 4096, 640, 1, 640).library);
    assert_false(choose_tile_from(&NOTHING, 90, 4096, 640, 9, 640).library);
    assert_false(choose_tile_from(&table, 90, 4096, 640, 1, 640).library); /* as it was measured */
}

static void test_candidates(void **state)
{
    static const int64_t ROWS[] = {1, 63, 64, 256, 1024, 4096, 16384, 1 << 20};
    static const int WIDTHS[] = {8, 24, 320, 1280, 2560, 10240};

    (void)state;
    for (int c = 0; c < 3; c++)
        for (int r = 0; r < 8; r++)
            for (int w = 0; w < 36; w++)
                for (int taps = 1; taps <= 9; taps += 8) {
                    struct product_tile tiles[CANDIDATES_MAX], chosen;
                    int out = WIDTHS[w % 6], in = WIDTHS[w / 6], found = 0;
                    int count = choose_candidates(CARDS[c], ROWS[r], out, taps, in, tiles);
                    assert_in_range(count, 3, CANDIDATES_MAX);
                    chosen = choose_tile_from(&NOTHING, CARDS[c], ROWS[r], out, taps, in);
                    for (int i = 0; i < count; i++) {
                        assert_in_range(tiles[i].splits, 1, 8);
                        found += same(&tiles[i], &chosen);
                        for (int j = 0; j < i; j++)
                            assert_false(same(&tiles[i], &tiles[j]));
                    }
                    assert_int_equal(found, 1);
                }
}

static void test_what_is_compiled_in(void **state)
{
    (void)state;
    for (int i = 0; i < tuned_tiles.count; i++) {
        const struct tuned *t = &tuned_tiles.entries[i];
        struct product_tile tiles[CANDIDATES_MAX];
        int count, found = 0;
        assert_true(i == 0 || tuned_compare(t - 1, t) < 0);
        if (t->sm == 0)
            continue;
        count = choose_candidates(t->sm, t->rows, t->out, t->taps, t->in, tiles);
        for (int j = 0; j < count; j++)
            found += same(&tiles[j], &t->tile);
        assert_int_equal(found, 1); /* it is of a kind that this version has */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_entry_is_found),
        cmocka_unit_test(test_a_size_near_a_tuned_one),
        cmocka_unit_test(test_what_was_not_tuned),
        cmocka_unit_test(test_the_formula),
        cmocka_unit_test(test_warpgroups_are_for_hopper),
        cmocka_unit_test(test_the_library_is_for_linear_layers),
        cmocka_unit_test(test_candidates),
        cmocka_unit_test(test_what_is_compiled_in),
    };
    return cmocka_run_group_tests_name("choose", tests, NULL, NULL);
}

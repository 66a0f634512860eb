#include "engine/cuda/choose.h"

#include <math.h>

#define DEPTH 32 /* of k per stage of kernel_product_tensor */
#define SPLITS_MAX 8
#define SPLIT_STAGES_MIN 12 /* a split shorter than this is mostly prologue */
#define SPLIT_WAVES_MAX 2   /* more waves of blocks on the card gain nothing by splits */
#define PAIR 2              /* samples that usually come together: a guidance pair */
#define NEAR 2              /* times the rows that an entry was tuned for */

/* What the kernels have. The kind of card has to be sm_min at least. */
static const struct kind {
    struct product_tile tile;
    double efficiency; /* products per time against the first: of warps by the bytes of shared
                          memory that they read, of warpgroups a guess until one is measured */
    int sm_min;
} KINDS[] = {
    {{.rows = 128, .columns = 128}, 1.0, 80},
    {{.rows = 128, .columns = 64}, 0.85, 80},
    {{.rows = 64, .columns = 64}, 0.65, 80},
    {{.rows = 128, .columns = 256, .group = true}, 1.5, 90},
    {{.rows = 128, .columns = 160, .group = true}, 1.4, 90},
    {{.rows = 128, .columns = 128, .group = true}, 1.3, 90},
};

#define KIND_COUNT ((int)(sizeof(KINDS) / sizeof(KINDS[0])))

_Static_assert(sizeof(KINDS) / sizeof(KINDS[0]) * SPLITS_MAX <= CANDIDATES_MAX,
               "candidates for every kind and split");

/* A fixed number per kind of card, so that a cut-down one makes the same picture. */
static int multiprocessors(int sm)
{
    return sm >= 90 ? 132 : sm == 86 ? 72 : 108;
}

static int64_t tiles(int64_t count, int each)
{
    return (count + each - 1) / each;
}

/* Of k, one split of it after another. */
static int64_t stages_of(int taps, int in)
{
    return (int64_t)taps * tiles(in, DEPTH);
}

static int64_t blocks_of(const struct product_tile *t, int64_t rows, int out)
{
    return tiles(PAIR * rows, t->rows) * tiles(out, t->columns);
}

/* ---- the table ---- */

static int compare(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

int tuned_compare(const void *a_, const void *b_)
{
    const struct tuned *a = a_, *b = b_;
    int order = compare(a->sm, b->sm);

    order = order != 0 ? order : compare(a->out, b->out);
    order = order != 0 ? order : compare(a->taps, b->taps);
    order = order != 0 ? order : compare(a->in, b->in);
    return order != 0 ? order : compare(a->rows, b->rows);
}

/* The first entry that does not come before `key`. */
static int find(const struct tuned_table *table, const struct tuned *key)
{
    int low = 0, high = table->count;

    while (low < high) {
        int middle = low + (high - low) / 2;
        if (tuned_compare(&table->entries[middle], key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* How many times one's rows the other's are; 0: another layer, or no entry at all. */
static double distance(const struct tuned_table *table, int at, const struct tuned *key)
{
    const struct tuned *t = table->entries;

    if (at < 0 || at >= table->count)
        return 0;
    t += at;
    if (t->sm != key->sm || t->out != key->out || t->taps != key->taps || t->in != key->in)
        return 0;
    return t->rows > key->rows ? (double)t->rows / (double)key->rows
                               : (double)key->rows / (double)t->rows;
}

/* NULL: the layer was not tuned at a size near this one. */
static const struct tuned *find_near(const struct tuned_table *table, const struct tuned *key)
{
    int above = find(table, key), below = above - 1;
    double up = distance(table, above, key), down = distance(table, below, key);
    int nearest = down > 0 && (up == 0 || down <= up) ? below : above;
    double times = nearest == below ? down : up;

    return times > 0 && times <= NEAR ? &table->entries[nearest] : NULL;
}

/* ---- the formula ---- */

struct candidate {
    struct product_tile tile;
    double efficiency;
};

static int list_candidates(int sm, int64_t rows, int out, int64_t stages,
                           struct candidate candidates[CANDIDATES_MAX])
{
    int count = 0;

    for (int i = 0; i < KIND_COUNT; i++) {
        struct candidate c = {KINDS[i].tile, KINDS[i].efficiency};
        int64_t most = SPLIT_WAVES_MAX * multiprocessors(sm) / blocks_of(&c.tile, rows, out);
        most = most < stages / SPLIT_STAGES_MIN ? most : stages / SPLIT_STAGES_MIN;
        most = most < 1 ? 1 : most > SPLITS_MAX ? SPLITS_MAX : most;
        for (c.tile.splits = 1; c.tile.splits <= most && sm >= KINDS[i].sm_min; c.tile.splits++)
            candidates[count++] = c;
    }
    return count;
}

int choose_candidates(int sm, int64_t rows, int out, int taps, int in,
                      struct product_tile tiles[CANDIDATES_MAX])
{
    struct candidate candidates[CANDIDATES_MAX];
    int count = list_candidates(sm, rows, out, stages_of(taps, in), candidates);

    for (int i = 0; i < count; i++)
        tiles[i] = candidates[i].tile;
    return count;
}

/* In products of one block, one wave of blocks after another. Splits fill a wave; whether they pay
 * beyond one is left to measurements. */
static double cost_of(int sm, const struct candidate *c, int64_t blocks, int64_t stages)
{
    const struct product_tile *t = &c->tile;
    int64_t waves = tiles(blocks * t->splits, multiprocessors(sm));

    if (t->splits > 1 && waves > 1)
        return INFINITY;
    return (double)waves * t->rows * t->columns / c->efficiency *
           ((double)stages / t->splits + (t->splits > 1 ? 8 : 4));
}

static struct product_tile by_formula(int sm, int64_t rows, int out, int taps, int in)
{
    struct candidate candidates[CANDIDATES_MAX];
    int64_t stages = stages_of(taps, in);
    int count = list_candidates(sm, rows, out, stages, candidates), best = 0;
    double least = INFINITY;

    for (int i = 0; i < count; i++) {
        double cost =
            cost_of(sm, &candidates[i], blocks_of(&candidates[i].tile, rows, out), stages);
        if (cost < least) {
            least = cost;
            best = i;
        }
    }
    candidates[best].tile.library = taps == 1;
    return candidates[best].tile;
}

struct product_tile choose_tile_from(const struct tuned_table *table, int sm, int64_t rows, int out,
                                     int taps, int in)
{
    const struct tuned key = {.sm = sm, .out = out, .taps = taps, .in = in, .rows = rows};
    const struct tuned *tuned = find_near(table, &key);

    return tuned != NULL ? tuned->tile : by_formula(sm, rows, out, taps, in);
}

struct product_tile choose_tile(int sm, int64_t rows, int out, int taps, int in)
{
    return choose_tile_from(&tuned_tiles, sm, rows, out, taps, in);
}

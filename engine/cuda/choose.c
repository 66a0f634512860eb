#include "engine/cuda/choose.h"

#define DEPTH 32 /* of k per stage of kernel_product_tensor */
#define SPLITS_MAX 8
#define SPLIT_STAGES_MIN 12 /* a split shorter than this is mostly prologue */
#define PAIR 2              /* samples that usually come together: a guidance pair */

/* A fixed number per kind of card, so that a cut-down one makes the same picture. */
static int multiprocessors(int sm)
{
    return sm >= 90 ? 132 : sm == 86 ? 72 : 108;
}

static int64_t tiles(int64_t count, int each)
{
    return (count + each - 1) / each;
}

struct product_tile choose_tile(int sm, int64_t rows, int out, int taps, int in)
{
    static const struct product_tile CHOICES[] = {
        {128, 128, 1, false}, {128, 64, 1, false}, {64, 64, 1, false}};
    /* Products per byte of shared memory that a tile reads, against the largest. */
    static const double EFFICIENCY[] = {1.0, 0.85, 0.65};
    int64_t stages = (int64_t)taps * tiles(in, DEPTH);
    struct product_tile best = CHOICES[0];
    double least = 0;

    for (int i = 0; i < 3; i++) {
        struct product_tile t = CHOICES[i];
        int64_t blocks = tiles(PAIR * rows, t.rows) * tiles(out, t.columns), waves;
        int64_t splits = multiprocessors(sm) / blocks, most = stages / SPLIT_STAGES_MIN;
        double cost;
        splits = splits < most ? splits : most;
        splits = splits < 1 ? 1 : splits > SPLITS_MAX ? SPLITS_MAX : splits;
        waves = tiles(blocks * splits, multiprocessors(sm));
        cost = (double)waves * t.rows * t.columns / EFFICIENCY[i] *
               ((double)stages / (double)splits + (splits > 1 ? 8 : 4));
        if (i == 0 || cost < least) {
            least = cost;
            best = t;
            best.splits = (int)splits;
        }
    }
    return best;
}

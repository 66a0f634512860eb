/*
 * choose.h: which kernel computes a product, with which tiles.
 *
 * The choice is by the layer, the picture's size and the kind of card, never by how many pictures
 * there are: what a sample's bytes are must not depend on its batch. Nothing is tried while
 * pictures are drawn, so that the first one at a new size waits for no measurement: what `atelier
 * bench tune` measured is compiled in (tuned.c), and a formula answers for the rest.
 */
#ifndef ATELIER_ENGINE_CUDA_CHOOSE_H
#define ATELIER_ENGINE_CUDA_CHOOSE_H

#include "engine/cuda/kernels.h"

#include <stdbool.h>

/* The fastest tile for a layer, `taps` × `in` to `out`, at `rows` output rows of one sample. */
struct tuned {
    int sm, out, taps, in;
    int64_t rows;
    struct product_tile tile;
};

/* Sorted by tuned_compare. */
struct tuned_table {
    const struct tuned *entries;
    int count;
};

extern const struct tuned_table tuned_tiles; /* tuned.c */

/* By sm, out, taps, in, rows: one layer's sizes lie side by side. As qsort's. */
int tuned_compare(const void *a, const void *b);

/* Tiles for `rows` output rows of one sample, `out` columns and a sum of `taps` × `in`. */
struct product_tile choose_tile(int sm, int64_t rows, int out, int taps, int in);

/* The same by another table. An entry stands for sizes of its layer up to twice and down to half
 * its own; where there are two, the nearer one does. */
struct product_tile choose_tile_from(const struct tuned_table *table, int sm, int64_t rows, int out,
                                     int taps, int in);

/* All tiles of our own that the card has, with all splits that are worth a trial. Returns how many.
 */
#define CANDIDATES_MAX 64
int choose_candidates(int sm, int64_t rows, int out, int taps, int in,
                      struct product_tile tiles[CANDIDATES_MAX]);

#endif

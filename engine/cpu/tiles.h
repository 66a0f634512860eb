/*
 * tiles.h: products of bf16 pairs on AMX tiles, for kernels.c alone.
 *
 * 32 rows by one panel of 32 columns at a time: four tiles of sums, two of A, two of B, so that
 * each load serves two products. A panel's pairs of rows lie as the instruction wants them. What is
 * left of k after whole tiles is copied beside zeros, because changing the tiles' shapes in
 * mid-product would lose the sums.
 *
 * Each sum takes k in the same order whatever m and n are: 32 at a time from 0 on, even ones and
 * odd ones each in a chain of their own.
 */
#ifndef ATELIER_ENGINE_CPU_TILES_H
#define ATELIER_ENGINE_CPU_TILES_H

#include "engine/cpu/tile_ops.h"

#include <stdbool.h>
#include <string.h>

#define TILE_DEPTH 32 /* k of one product */
#define TILE_COLUMNS 16
#define TILES_ROWS (2 * TILE_ROWS)
#define TILES_GROUP 96 /* rows whose rest of k is copied at a time: three blocks */

/* One block of rows against one panel. */
struct tile_block {
    int k; /* whole tiles' */
    const uint16_t *a, *b;
    size_t lda;
    /* The rest of k with zeros up to TILE_DEPTH, rows of A at that stride; NULL: there is none. */
    const uint16_t *a_rest, *b_rest;
    float *c;
    size_t ldc;
    bool add;
};

/* Tiles 0 to 3 sum: those of rows 0 … 15, then of rows 16 … 31, two of columns each; 4 and 5 are of
 * A, 6 and 7 of B. */
#define TILES_BEGIN(tile, row, column)                                                             \
    do {                                                                                           \
        if (t->add)                                                                                \
            TILE_LOAD(tile, t->c + (row)*t->ldc + (column), t->ldc * sizeof(float));               \
        else                                                                                       \
            TILE_ZERO(tile);                                                                       \
    } while (0)
#define TILES_END(tile, row, column)                                                               \
    TILE_STORE(tile, t->c + (row)*t->ldc + (column), t->ldc * sizeof(float))

static inline __attribute__((always_inline)) void
tiles_step(bool two_rows, bool two_columns, const uint16_t *a, size_t lda, const uint16_t *b)
{
    const size_t stride = (two_columns ? 2 : 1) * TILE_ROW_BYTES;

    TILE_LOAD(6, b, stride);
    TILE_LOAD(4, a, lda * sizeof(*a));
    TILE_DOT(0, 4, 6);
    if (two_columns) {
        TILE_LOAD(7, (const char *)b + TILE_ROW_BYTES, stride);
        TILE_DOT(1, 4, 7);
    }
    if (two_rows) {
        TILE_LOAD(5, a + TILE_ROWS * lda, lda * sizeof(*a));
        TILE_DOT(2, 5, 6);
        if (two_columns)
            TILE_DOT(3, 5, 7);
    }
}

static inline __attribute__((always_inline)) void tiles_block(bool two_rows, bool two_columns,
                                                              const struct tile_block *t)
{
    const size_t width = (two_columns ? 2 : 1) * TILE_COLUMNS;

    TILES_BEGIN(0, 0, 0);
    if (two_columns)
        TILES_BEGIN(1, 0, TILE_COLUMNS);
    if (two_rows)
        TILES_BEGIN(2, TILE_ROWS, 0);
    if (two_rows && two_columns)
        TILES_BEGIN(3, TILE_ROWS, TILE_COLUMNS);
    for (int p = 0; p < t->k; p += TILE_DEPTH)
        tiles_step(two_rows, two_columns, t->a + p, t->lda, t->b + (size_t)p * width);
    if (t->a_rest != NULL)
        tiles_step(two_rows, two_columns, t->a_rest, TILE_DEPTH, t->b_rest);
    TILES_END(0, 0, 0);
    if (two_columns)
        TILES_END(1, 0, TILE_COLUMNS);
    if (two_rows)
        TILES_END(2, TILE_ROWS, 0);
    if (two_rows && two_columns)
        TILES_END(3, TILE_ROWS, TILE_COLUMNS);
}

/* Sums' and A's tiles of so many rows, at most TILE_ROWS. */
static void tiles_configure(int rows)
{
    struct tile_config config = {.palette = 1};

    for (int i = 0; i < TILE_COUNT; i++) {
        config.rows[i] = (uint8_t)(i < 6 ? rows : TILE_ROWS);
        config.row_bytes[i] = TILE_ROW_BYTES;
    }
    TILE_CONFIGURE(&config);
}

/* One panel against `rows` rows, all in whole tiles or at most one tile of them. */
static void tiles_panel(struct tile_block t, int rows, bool two_columns)
{
    for (int i = 0; i < rows; i += TILES_ROWS) {
        bool two_rows = rows - i > TILE_ROWS;
        if (two_rows && two_columns)
            tiles_block(true, true, &t);
        else if (two_rows)
            tiles_block(true, false, &t);
        else if (two_columns)
            tiles_block(false, true, &t);
        else
            tiles_block(false, false, &t);
        t.a += TILES_ROWS * t.lda;
        t.c += TILES_ROWS * t.ldc;
        if (t.a_rest != NULL)
            t.a_rest += TILES_ROWS * TILE_DEPTH;
    }
}

/* Panels of t.b against at most TILES_GROUP rows, which the tiles are configured for. Each panel
 * goes by all rows in turn, so that it is read from afar once. */
static void tiles_panels(struct tile_block t, int rows, int n, size_t panel_stride, int rest)
{
    _Alignas(64) uint16_t a_rest[TILES_GROUP * TILE_DEPTH], b_rest[TILE_DEPTH * 2 * TILE_COLUMNS];

    if (rest > 0) {
        memset(a_rest, 0, (size_t)rows * TILE_DEPTH * sizeof(*a_rest));
        memset(b_rest, 0, sizeof(b_rest));
        for (int i = 0; i < rows; i++)
            memcpy(a_rest + i * TILE_DEPTH, t.a + (size_t)i * t.lda + t.k,
                   (size_t)rest * sizeof(*a_rest));
        t.a_rest = a_rest;
        t.b_rest = b_rest;
    }
    for (int j = 0; j < n; j += 2 * TILE_COLUMNS) {
        bool two_columns = n - j > TILE_COLUMNS;
        size_t width = two_columns ? 2 * TILE_COLUMNS : TILE_COLUMNS;
        memcpy(b_rest, t.b + (size_t)t.k * width, (size_t)rest * width * sizeof(*b_rest));
        tiles_panel(t, rows, two_columns);
        t.b += panel_stride;
        t.c += 2 * TILE_COLUMNS;
    }
}

/* See gemm_bf16 in kernels.h. */
static void tiles_gemm(int m, int n, int k, const uint16_t *a, size_t lda, const uint16_t *panels,
                       size_t panel_stride, float *c, size_t ldc, bool add)
{
    int rest = k % TILE_DEPTH, group, rows;

    for (int first = 0; first < m; first += group) {
        group = m - first < TILES_GROUP ? m - first : TILES_GROUP;
        for (int i = 0; i < group; i += rows) {
            struct tile_block t = {.k = k - rest,
                                   .a = a + (size_t)(first + i) * lda,
                                   .b = panels,
                                   .lda = lda,
                                   .c = c + (size_t)(first + i) * ldc,
                                   .ldc = ldc,
                                   .add = add};
            rows = group - i < TILE_ROWS ? group - i : (group - i) / TILE_ROWS * TILE_ROWS;
            tiles_configure(rows < TILE_ROWS ? rows : TILE_ROWS);
            tiles_panels(t, rows, n, panel_stride, rest);
        }
    }
    TILE_RELEASE();
}

#endif

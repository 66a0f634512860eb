/*
 * tiles_emulated.h: AMX's instructions in C, so that tiles.h runs on any processor and under
 * AddressSanitizer. What the instructions would refuse (#UD, #GP) is an assertion.
 *
 * Source of the sums' order and of denormals as zero: TDPBF16PS in Intel's Software Developer's
 * Manual, volume 2.
 */
#ifndef ATELIER_TESTS_CPU_TILES_EMULATED_H
#define ATELIER_TESTS_CPU_TILES_EMULATED_H

#include "common/err.h"

#include <math.h>
#include <string.h>

static _Thread_local struct {
    struct tile_config config;
    uint8_t data[TILE_COUNT][TILE_ROWS][TILE_ROW_BYTES];
} tiles;

static void tile_check(int tile)
{
    ASSERT(tiles.config.palette == 1 && tiles.config.rows[tile] > 0);
}

static void tile_configure(const struct tile_config *config)
{
    static const uint8_t none[sizeof(config->zero)];

    ASSERT(config->palette == 1 && config->first_row == 0);
    ASSERT(memcmp(config->zero, none, sizeof(none)) == 0);
    for (int i = 0; i < 16; i++) {
        ASSERT((config->rows[i] == 0) == (config->row_bytes[i] == 0));
        ASSERT(config->rows[i] <= (i < TILE_COUNT ? TILE_ROWS : 0));
        ASSERT(config->row_bytes[i] <= TILE_ROW_BYTES);
    }
    memset(&tiles, 0, sizeof(tiles));
    tiles.config = *config;
}

static void tile_release(void)
{
    memset(&tiles, 0, sizeof(tiles));
}

static void tile_zero(int tile)
{
    tile_check(tile);
    memset(tiles.data[tile], 0, sizeof(tiles.data[tile]));
}

static void tile_load(int tile, const void *from, size_t stride)
{
    tile_zero(tile);
    for (int row = 0; row < tiles.config.rows[tile]; row++)
        memcpy(tiles.data[tile][row], (const char *)from + (size_t)row * stride,
               tiles.config.row_bytes[tile]);
}

static void tile_store(int tile, void *to, size_t stride)
{
    tile_check(tile);
    for (int row = 0; row < tiles.config.rows[tile]; row++)
        memcpy((char *)to + (size_t)row * stride, tiles.data[tile][row],
               tiles.config.row_bytes[tile]);
}

static float tile_flushed(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

/* Tile a's rows as they are and b's pairs of rows, as f32. */
static void tile_widen(float to[TILE_ROWS][32], int tile)
{
    for (int row = 0; row < TILE_ROWS; row++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *half = &tiles.data[tile][row][2 * i];
            uint32_t bits = (uint32_t)half[0] << 16 | (uint32_t)half[1] << 24;
            float x;
            memcpy(&x, &bits, sizeof(x));
            to[row][i] = tile_flushed(x);
        }
}

/* A product of two bf16 is exact in f32, far from its limits at least, so that product and sum
 * round once, as the original does. */
static void tile_dot(int c, int a, int b)
{
    int rows = tiles.config.rows[c], columns = tiles.config.row_bytes[c] / 4;
    int pairs = tiles.config.row_bytes[a] / 4;
    float x[TILE_ROWS][32], y[TILE_ROWS][32];

    tile_check(a);
    tile_check(b);
    tile_check(c);
    ASSERT(tiles.config.rows[a] == rows && tiles.config.rows[b] == pairs);
    ASSERT(tiles.config.row_bytes[b] == columns * 4 && a != b && a != c && b != c);
    tile_widen(x, a);
    tile_widen(y, b);
    for (int m = 0; m < rows; m++) {
        float chains[32] = {0}, sums[TILE_ROWS];
        for (int p = 0; p < pairs; p++)
            for (int n = 0; n < 2 * columns; n++)
                chains[n] = tile_flushed(x[m][2 * p + n % 2] * y[p][n] + chains[n]);
        memcpy(sums, tiles.data[c][m], sizeof(sums));
        for (int n = 0; n < columns; n++)
            sums[n] = tile_flushed(tile_flushed(sums[n]) +
                                   tile_flushed(chains[2 * n] + chains[2 * n + 1]));
        memcpy(tiles.data[c][m], sums, sizeof(sums));
    }
}

#define TILE_CONFIGURE(config) tile_configure(config)
#define TILE_RELEASE() tile_release()
#define TILE_ZERO(tile) tile_zero(tile)
#define TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) tile_store(tile, to, stride)
#define TILE_DOT(c, a, b) tile_dot(c, a, b)

#endif

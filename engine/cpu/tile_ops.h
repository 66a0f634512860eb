/*
 * tile_ops.h: the AMX instructions that tiles.h needs. Tiles are named by literal numbers, 0 to 7.
 *
 * Said in assembly and not by the compiler's intrinsics, which in gcc 12 do not tell that a tile's
 * load reads memory: what was just written to a buffer could then be left out. Source: Intel 64 and
 * IA-32 Architectures Software Developer's Manual, volume 2, and volume 1, chapter 18.
 */
#ifndef ATELIER_ENGINE_CPU_TILE_OPS_H
#define ATELIER_ENGINE_CPU_TILE_OPS_H

#include <stddef.h>
#include <stdint.h>

#define TILE_COUNT 8
#define TILE_ROWS 16
#define TILE_ROW_BYTES 64

/* What LDTILECFG reads. A tile that is left at 0 rows must not be used. */
struct tile_config {
    uint8_t palette, first_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

#if defined(KERNELS_TILES_EMULATED)
#include "tests/cpu/tiles_emulated.h"
#else

/* Sets the shapes of this thread's tiles and zeroes them. */
#define TILE_CONFIGURE(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(config)) : "memory")
/* After it the thread has no tiles, and its switches need not save any. */
#define TILE_RELEASE() __asm__ volatile("tilerelease" : : : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : : : "memory")
/* Rows of the tile from and to memory; `stride` in bytes. */
#define TILE_LOAD(tile, from, stride)                                                              \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                                            \
                     :                                                                             \
                     : "r"(from), "r"((size_t)(stride))                                            \
                     : "memory")
#define TILE_STORE(tile, to, stride)                                                               \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)"                                        \
                     :                                                                             \
                     : "r"(to), "r"((size_t)(stride))                                              \
                     : "memory")
/* c (rows × 16 f32) += a (rows × 32 bf16) · b (16 pairs of rows × 16 columns of bf16) */
#define TILE_DOT(c, a, b)                                                                          \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

#endif
#endif

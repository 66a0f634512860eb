/*
 * warpgroup.h: products of four warps together, Hopper's wgmma. sm_90a alone has them; compiled for
 * another card they end the kernel, and choose.c never takes it there.
 *
 * The matrices lie in shared memory, rows of 64 16-bit elements of k (128 bytes), eight rows
 * after one another (1024 bytes), the tile at a multiple of 1024. Within its row a 16-byte part
 * lies at its number xor the row's last three bits, which is what the cards' manual calls a swizzle
 * of 128 bytes: group_at says where. The second matrix may lie the other way: 64 of its columns in
 * such a row, and k from row to row. The first one may be in registers, as mma.sync's.
 *
 * The instructions run beside the threads. What they read must have been made visible with
 * group_show by every thread that wrote it, and a barrier; sums, and a matrix in registers, are
 * theirs from group_begin until group_wait.
 *
 * Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
 */
#ifndef ATELIER_ENGINE_CUDA_WARPGROUP_H
#define ATELIER_ENGINE_CUDA_WARPGROUP_H

#include "engine/cuda/target.h"

#define WARPGROUP 128
#define GROUP_ROWS 64  /* of the first matrix, one warpgroup's */
#define GROUP_DEPTH 64 /* elements of k in a row of a tile */
#define GROUP_STEP 16  /* elements of k of one instruction */
#define GROUP_EIGHT_BYTES 1024

/* Where part `part` of row `row` lies in a tile, in elements. */
static __device__ __forceinline__ int group_at(int row, int part)
{
    return row * GROUP_DEPTH + (part ^ (row & 7)) * 8;
}

/* Eight rows after eight rows; the distance of further 64 columns, which no tile has, is not read:
 * "Canonical layouts" in the manual. */
static __device__ __forceinline__ uint64_t group_matrix_at(uint64_t address)
{
    return (address & 0x3ffff) >> 4 | (uint64_t)1 << 16 | (uint64_t)(GROUP_EIGHT_BYTES >> 4) << 32 |
           (uint64_t)1 << 62;
}

/* How the instruction is told of a tile's columns from k = step · GROUP_STEP on. */
static __device__ __forceinline__ uint64_t group_matrix(const void *tile, int step)
{
    return group_matrix_at(shared_address(tile) + (uint32_t)step * GROUP_STEP * 2);
}

/* The same of a tile whose rows are k, from row step · GROUP_STEP on. */
static __device__ __forceinline__ uint64_t group_matrix_across(const void *tile, int step)
{
    return group_matrix_at(shared_address(tile) + (uint32_t)step * (2 * GROUP_EIGHT_BYTES));
}

#ifndef ATELIER_CUDA_EMULATED

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUP_ASM(...) asm volatile(__VA_ARGS__)
#else
#define WARPGROUP_ASM(...) __trap()
#endif

#define WG_SUMS_64                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#define WG_SUMS_128                                                                                \
    WG_SUMS_64 ", "                                                                                \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define WG_SUMS_160                                                                                \
    WG_SUMS_128 ", "                                                                               \
                "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"

#define WG_SUMS_256                                                                                \
    WG_SUMS_160 ", "                                                                               \
                "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
                "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, " \
                "%110, %111, "                                                                     \
                "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "   \
                "%125, %126, %127"

#define WG_4(s, j) "+f"(s[j][0]), "+f"(s[j][1]), "+f"(s[j][2]), "+f"(s[j][3])
#define WG_16(s, j) WG_4(s, j), WG_4(s, j + 1), WG_4(s, j + 2), WG_4(s, j + 3)
#define WG_64(s, j) WG_16(s, j), WG_16(s, j + 4), WG_16(s, j + 8), WG_16(s, j + 12)
#define WG_OPERANDS_128(s) WG_64(s, 0)
#define WG_OPERANDS_160(s) WG_64(s, 0), WG_16(s, 16)
#define WG_OPERANDS_256(s) WG_64(s, 0), WG_64(s, 16)

#define WG_MULTIPLY(columns, type, a_at, b_at)                                                     \
    WARPGROUP_ASM("{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                   \
                  "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type            \
                  " {" WG_SUMS_##columns "}, %" #a_at ", %" #b_at ", add, 1, 1, 0, 0;\n}"          \
                  : WG_OPERANDS_##columns(sum)                                                     \
                  : "l"(a), "l"(b))

/* sum += a · bᵀ over 16 of k: 64 rows of a, COLUMNS rows of b. A lane's fragments are mma.sync's:
 * warp w of the four has rows 16 w and on. */
template <bool BF16, int COLUMNS>
static __device__ __forceinline__ void group_multiply(float sum[COLUMNS / 8][4], uint64_t a,
                                                      uint64_t b)
{
    static_assert(COLUMNS == 128 || COLUMNS == 160 || COLUMNS == 256, "");
    if constexpr (COLUMNS == 128 && BF16)
        WG_MULTIPLY(128, "bf16", 64, 65);
    else if constexpr (COLUMNS == 128)
        WG_MULTIPLY(128, "f16", 64, 65);
    else if constexpr (COLUMNS == 160 && BF16)
        WG_MULTIPLY(160, "bf16", 80, 81);
    else if constexpr (COLUMNS == 160)
        WG_MULTIPLY(160, "f16", 80, 81);
    else if constexpr (BF16)
        WG_MULTIPLY(256, "bf16", 128, 129);
    else
        WG_MULTIPLY(256, "f16", 128, 129);
}

#define WG_MULTIPLY_HELD(type)                                                                     \
    WARPGROUP_ASM("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"                                 \
                  "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" WG_SUMS_64      \
                  "}, {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}"                               \
                  : WG_16(sum, 0), WG_16(sum, 4)                                                   \
                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add),             \
                    "n"(ACROSS))

/* The same with a in registers and 64 columns; without `add` the sums begin here. ACROSS: b is
 * group_matrix_across's. */
template <bool BF16, bool ACROSS>
static __device__ __forceinline__ void group_multiply_held(float sum[8][4], const uint32_t a[4],
                                                           uint64_t b, bool add)
{
    if constexpr (BF16)
        WG_MULTIPLY_HELD("bf16");
    else
        WG_MULTIPLY_HELD("f16");
}

/* What this thread wrote to shared memory and has waited for is visible to the instructions. */
static __device__ __forceinline__ void group_show()
{
    WARPGROUP_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Before the first product after the sums were touched. */
static __device__ __forceinline__ void group_begin()
{
    WARPGROUP_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void group_commit()
{
    WARPGROUP_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most `pending` of the committed groups are under way. */
template <int pending> static __device__ __forceinline__ void group_wait()
{
    WARPGROUP_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* Keeps the compiler from reading sums before the wait above it. */
template <int N> static __device__ __forceinline__ void group_take(float sum[N][4])
{
#pragma unroll
    for (int j = 0; j < N; j++)
        WARPGROUP_ASM("" : WG_4(sum, j)::"memory");
}

/* Keeps the compiler from putting anything else before the wait above it where products found their
 * first matrix. */
template <int N> static __device__ __forceinline__ void group_let_go(uint32_t a[N][4])
{
#pragma unroll
    for (int j = 0; j < N; j++)
        WARPGROUP_ASM("" : "+r"(a[j][0]), "+r"(a[j][1]), "+r"(a[j][2]), "+r"(a[j][3])::"memory");
}

#endif
#endif

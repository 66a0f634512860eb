/*
 * emulator.h: a card of one block at a time, in host C++; see engine/cuda/target.h.
 *
 * Every thread of a block is a fiber. Fibers run one at a time, in order or in reverse, and hand
 * over only at barriers and at instructions of a whole warp, so that a kernel that lacks a barrier
 * computes something else in one of the two orders. The emulation is as unkind as the card may be:
 * shared memory begins as NaN, a copy to shared memory happens only when it is waited for (or,
 * where that is asked for, at once), and a warp instruction that not all 32 threads of a warp
 * reach, or a barrier that not all of a block do, ends the program. Built with AddressSanitizer it
 * also watches every address.
 */
#ifndef ATELIER_TESTS_CUDA_EMULATOR_H
#define ATELIER_TESTS_CUDA_EMULATOR_H

#include "engine/cuda/queue.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct emulated_index {
    unsigned x, y, z;
};

struct emulated_fiber;

/* Of the fiber that runs. */
extern emulated_index threadIdx, blockIdx, blockDim, gridDim;

void emulator_set_reverse(bool reverse);
/* Copies happen when they are asked for, as the card may do, too: a stage that is filled while
 * somebody still reads it is found. */
void emulator_set_early(bool early);
/* Launches so far. */
long emulator_launches();

void emulator_run(const struct command *command, void (*body)(const void *args));

/* Gives a copy of the command to a stream; `run` does it when its turn comes (runtime.cpp). */
int emulated_launch(const struct command *command, void *stream,
                    void (*run)(const struct command *command));

template <auto kernel, typename Args> void emulator_body(const void *args)
{
    kernel(*(const Args *)args);
}

template <auto kernel, typename Args> void emulator_start(const struct command *c)
{
    emulator_run(c, emulator_body<kernel, Args>);
}

template <auto kernel, typename Args> int run_kernel(const struct command *c, void *stream)
{
    return emulated_launch(c, stream, emulator_start<kernel, Args>);
}

char *shared_memory();
void barrier();
float shuffle_xor(float v, int mask);
float shuffle(float v, int lane);
void copy_async(void *to, const void *from, bool valid);
static inline void copy_async_kept(void *to, const void *from, bool valid)
{
    copy_async(to, from, valid);
}
void copy_commit();
uint32_t shared_address(const void *p); /* from the beginning of the block's */
void emulated_copy_wait(int pending);
void load_matrices(uint32_t r[4], const void *row);
void load_matrices_transposed(uint32_t r[4], const void *row);
void multiply_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
void multiply_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
uint32_t pack_f16(float low, float high);
uint32_t pack_bf16(float low, float high);
float widen_f16(uint16_t v);
float widen_bf16(uint16_t v);

/* A product of a warpgroup that is under way, for one thread: see engine/cuda/warpgroup.h. */
struct emulated_product {
    float (*sum)[4];
    int columns;
    bool bf16;
    uint64_t a, b;        /* descriptors */
    const uint32_t *held; /* what is there of a in registers, in place of descriptor a; or NULL */
    bool across;          /* b's rows are k */
    bool fresh;           /* the sums begin here */
};

void emulated_group_multiply(const emulated_product &product);
void emulated_group_wait(int pending);
void group_show();
void group_begin();
void group_commit();

template <bool BF16, int COLUMNS>
inline void group_multiply(float sum[COLUMNS / 8][4], uint64_t a, uint64_t b)
{
    emulated_group_multiply({sum, COLUMNS, BF16, a, b, NULL, false, false});
}

template <bool BF16, bool ACROSS>
inline void group_multiply_held(float sum[8][4], const uint32_t a[4], uint64_t b, bool add)
{
    emulated_group_multiply({sum, 64, BF16, 0, b, a, ACROSS, !add});
}

template <int pending> inline void group_wait()
{
    emulated_group_wait(pending);
}

template <int N> inline void group_take(float (*)[4])
{
}

template <int N> inline void group_let_go(uint32_t (*)[4])
{
}

template <int pending> inline void copy_wait()
{
    emulated_copy_wait(pending);
}

static inline float exp_fast(float v)
{
    return expf(v);
}

static inline float exp2_fast(float v)
{
    float r = exp2f(v);

    return r >= 0x1p-126f ? r : 0;
}

#endif

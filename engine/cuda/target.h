/*
 * target.h: what kernels are written in. They include this and nothing else of CUDA's.
 *
 * Compiled by nvcc these are the card's own instructions. Compiled as host C++ (with
 * ATELIER_CUDA_EMULATED) the same names come from tests/cuda/emulator.h, which runs every thread of
 * a block as a fiber and does the warp's instructions in plain C++, so that each kernel is executed
 * and compared on machines without a card.
 *
 * Rules that make both possible: one argument struct per kernel, only dynamic shared memory, full
 * warps, warp instructions outside divergent branches.
 */
#ifndef ATELIER_ENGINE_CUDA_TARGET_H
#define ATELIER_ENGINE_CUDA_TARGET_H

#include "engine/cuda/queue.h"

#include <stdint.h>

#define WARP 32
#define SHARED_MAX (99u << 10)       /* of a block's bytes, on sm_86, which has the least */
#define SHARED_MAX_SM90 (227u << 10) /* on sm_90 */
#define ARGS_MAX 4096                /* bytes of a kernel's arguments */

#ifdef ATELIER_CUDA_EMULATED
#include "tests/cuda/emulator.h"
#else

static __device__ __forceinline__ char *shared_memory()
{
    extern __shared__ __align__(1024) char dynamic_shared_memory[];
    return dynamic_shared_memory;
}

static __device__ __forceinline__ void barrier()
{
    __syncthreads();
}

static __device__ __forceinline__ float shuffle_xor(float v, int mask)
{
    return __shfl_xor_sync(0xffffffffu, v, mask);
}

static __device__ __forceinline__ float shuffle(float v, int lane)
{
    return __shfl_sync(0xffffffffu, v, lane);
}

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory without passing registers; zeros when !valid, and then `from` is not
 * read and may lie anywhere. */
static __device__ __forceinline__ void copy_async(void *to, const void *from, bool valid)
{
    asm volatile("{\n.reg .pred skip;\nsetp.eq.b32 skip, %2, 0;\n"
                 "cp.async.cg.shared.global [%0], [%1], 16, skip;\n}" ::"r"(shared_address(to)),
                 "l"(from), "r"((int)valid)
                 : "memory");
}

/* The same through the first cache: for what is asked for again soon. */
static __device__ __forceinline__ void copy_async_kept(void *to, const void *from, bool valid)
{
    asm volatile("{\n.reg .pred skip;\nsetp.eq.b32 skip, %2, 0;\n"
                 "cp.async.ca.shared.global [%0], [%1], 16, skip;\n}" ::"r"(shared_address(to)),
                 "l"(from), "r"((int)valid)
                 : "memory");
}

static __device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most `pending` of this thread's groups are under way. */
template <int pending> static __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Four 8×8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8 and
 * receives elements 2·(lane % 4) and the next of row lane / 4 of each. */
static __device__ __forceinline__ void load_matrices(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The same, each matrix transposed. */
static __device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void multiply_f16(float c[4], const uint32_t a[4], uint32_t b0,
                                                    uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void multiply_bf16(float c[4], const uint32_t a[4], uint32_t b0,
                                                     uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* `low` in the low half; nearest, ties to even. */
static __device__ __forceinline__ uint32_t pack_f16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

static __device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

static __device__ __forceinline__ float widen_f16(uint16_t v)
{
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
}

static __device__ __forceinline__ float widen_bf16(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

/* A few units in the last place off. */
static __device__ __forceinline__ float exp_fast(float v)
{
    return __expf(v);
}

/* 2^v in one instruction, 2^-22 off; zero for what would be denormal. */
static __device__ __forceinline__ float exp2_fast(float v)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

/* What starts a kernel; the argument struct lies behind the command. */
template <auto kernel, typename Args> int run_kernel(const struct command *c, void *stream)
{
    if (c->shared_bytes > 48 * 1024) {
        int rc = (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           (int)c->shared_bytes);
        if (rc != 0)
            return rc;
    }
    kernel<<<dim3(c->grid[0], c->grid[1], c->grid[2]), c->threads, c->shared_bytes,
             (cudaStream_t)stream>>>(*(const Args *)command_args(c));
    return (int)cudaGetLastError();
}

#endif

/* Appends a launch of `kernel(args)`. Nothing is launched over an empty grid. */
template <auto kernel, typename Args>
void enqueue(struct queue *queue, const Args &args, int64_t x, int64_t y, int64_t z, int threads,
             size_t shared_bytes)
{
    static_assert(sizeof(Args) <= ARGS_MAX, "");
    struct command c = {};

    if (x == 0 || y == 0 || z == 0)
        return;
    c.run = run_kernel<kernel, Args>;
    c.grid[0] = (uint32_t)x;
    c.grid[1] = (uint32_t)y;
    c.grid[2] = (uint32_t)z;
    c.threads = (uint32_t)threads;
    c.shared_bytes = (uint32_t)shared_bytes;
    queue_push(queue, &c, &args, sizeof(args));
}

#endif

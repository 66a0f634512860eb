/*
 * cuda.h: what the C files of the CUDA back end share: backend_cuda.c with weights and the small
 * operators, products.c with the large ones.
 */
#ifndef ATELIER_ENGINE_CUDA_CUDA_H
#define ATELIER_ENGINE_CUDA_CUDA_H

#include "engine/backend.h"
#include "engine/cuda/blas.h"
#include "engine/cuda/choose.h"
#include "engine/cuda/device.h"
#include "engine/cuda/tune.h"

#include <pthread.h>

struct weight {
    void *data; /* out × kernel × kernel × in */
    size_t bytes;
    enum dtype dtype;
    int out, in, kernel;
    bool interleaved; /* GEGLU: 8 rows of values, their 8 gates, … */
};

/* What a pass has asked for, and pinned memory for what it takes along. */
struct cuda_lane {
    struct queue queue;
    char *staging;
    size_t staging_bytes, staging_used;
};

struct cuda_backend {
    struct backend base;
    struct device *device;
    struct device_info info;
    pthread_mutex_t sending; /* weights come in while another thread computes */
    struct blas *blas;       /* NULL: own products only */
    struct cuda_lane lanes[DEVICE_LANES];
    struct product_tile forced; /* rows 0: choose_tile's */
    int choose_sm;              /* the card's kind as choose_tile is asked */
    bool attention_groups;      /* attention by warpgroups, where its kernel takes it */
    product_watch *watch;       /* NULL: nobody watches */
    void *watch_user;
};

static inline struct cuda_backend *cuda_of(const struct pass *pass)
{
    return (struct cuda_backend *)pass->backend;
}

static inline struct queue *queue_of(const struct pass *pass)
{
    return &cuda_of(pass)->lanes[pass->lane].queue;
}

static inline struct matrix matrix_of(const struct tensor *t)
{
    return (struct matrix){.data = t->data,
                           .rows = tensor_rows(t),
                           .columns = t->c,
                           .ld = t->ld,
                           .dtype = (int)t->dtype};
}

/* A vector is kept three times, each at a multiple of 256 bytes: f32, bf16, f16; cuBLAS takes a
 * bias in the type of its product only. */
static inline size_t vector_offset(size_t count, enum dtype dtype)
{
    size_t f32 = (count * sizeof(float) + 255) & ~(size_t)255;
    size_t bf16 = (count * sizeof(uint16_t) + 255) & ~(size_t)255;

    return dtype == DTYPE_F32 ? 0 : dtype == DTYPE_BF16 ? f32 : f32 + bf16;
}

static inline const void *vector_in(const float *vector, size_t count, enum dtype dtype)
{
    return vector == NULL ? NULL : (const char *)vector + vector_offset(count, dtype);
}

static inline bool aligned(const void *p, size_t bytes)
{
    return (uintptr_t)p % bytes == 0;
}

/* Whether a row's pairs can be stored, or loaded, at once. */
static inline bool pairs(const struct tensor *t)
{
    return t == NULL || (t->ld % 2 == 0 && aligned(t->data, 2 * dtype_bytes(t->dtype)));
}

/* ---- products.c ---- */

/* Sets what products and attention are computed with, from the card and the environment.
 * ERR_DEVICE, ERR_INVALID.
 */
int cuda_choose_products(struct cuda_backend *cuda, struct err *err) must_check;

void cuda_conv2d(struct pass *pass, const struct conv2d *args);
void cuda_matmul(struct pass *pass, const struct matmul *args);

#endif

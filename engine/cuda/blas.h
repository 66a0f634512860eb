/*
 * blas.h: matrix products of linear layers by cublasLt, where that library is.
 *
 * It is opened with dlopen: 500 MB that a machine without a card need not have, and without which
 * the back end's own kernels compute everything. Only blas.cu includes its headers.
 *
 * cublasLt picks an algorithm from the shape, and with it the order of additions. So it is asked
 * once, for two samples' rows, split sums forbidden, and that algorithm then serves any number of
 * samples: a row's bytes do not depend on how many rows there are.
 */
#ifndef ATELIER_ENGINE_CUDA_BLAS_H
#define ATELIER_ENGINE_CUDA_BLAS_H

#include "engine/cuda/queue.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct blas;
struct blas_product; /* one algorithm for one layer and size; lives as long as the library is open
                      */
struct device;

/* NULL when the library is absent, or ATELIER_CUBLAS is 0 in the environment. Looked for where
 * shared libraries are, then where toolkits and Python's packages have it; ATELIER_CUBLAS may name
 * the folder instead. Once opened it stays in the process. */
struct blas *blas_open(struct device *device);
void blas_close(struct blas *blas);

/* Its version and file, or why there is none. */
#define BLAS_TEXT_BYTES 512
void blas_describe(const struct blas *blas, char text[BLAS_TEXT_BYTES]);

/* A layer and size. */
struct blas_shape {
    int dtype; /* of everything: f16, bf16 */
    int out, in;
    bool bias, residual;
    int64_t each; /* rows of one sample */
};

/* Its algorithm, or NULL: there is none. */
struct blas_product *blas_find(struct blas *blas, const struct blas_shape *shape);

/* y [rows × out] = x [rows × in] · w [out × in]ᵀ + bias [out] + residual [rows × out], rounded
 * once; rows of x, y and residual are so many elements apart. bias and residual are NULL where the
 * shape has none; y may be the residual. */
struct blas_args {
    const void *x, *w, *bias, *residual;
    void *y;
    int64_t rows, x_ld, residual_ld, y_ld;
};

void blas_enqueue(struct queue *queue, const struct blas_product *product,
                  const struct blas_args *args);

#ifdef __cplusplus
}
#endif
#endif

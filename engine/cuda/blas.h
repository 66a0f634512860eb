/*
 * blas.h: matrix products of linear layers by cublasLt, where that library is.
 *
 * It is opened with dlopen: 500 MB that a machine without a card need not have, and without which
 * the back end's own kernels compute everything. Only blas.cu includes its headers.
 *
 * cublasLt picks an algorithm from the shape, and with it the order of additions. So it is asked
 * once for one sample's rows, split sums forbidden, and that algorithm then serves any number of
 * samples: a row's bytes do not depend on how many rows there are.
 */
#ifndef ATELIER_ENGINE_CUDA_BLAS_H
#define ATELIER_ENGINE_CUDA_BLAS_H

#include "engine/cuda/queue.h"

#ifdef __cplusplus
extern "C" {
#endif

struct blas;
struct blas_product; /* one algorithm for one layer and size; lives as long as the library is open
                      */
struct device;

/* NULL when the library is absent, or ATELIER_CUBLAS is 0 in the environment. */
struct blas *blas_open(struct device *device);
void blas_close(struct blas *blas);

/* The algorithm for y = x · wᵀ, `each` rows per sample, or NULL: there is none. dtype: f16, bf16.
 */
struct blas_product *blas_find(struct blas *blas, int dtype, int64_t each, int out, int in);

/* y [rows × out, y_ld apart] = x [rows × in, x_ld apart] · w [out × in]ᵀ, all of one 16-bit type.
 */
void blas_enqueue(struct queue *queue, struct blas_product *product, const void *x, int x_ld,
                  const void *w, void *y, int y_ld, int64_t rows);

#ifdef __cplusplus
}
#endif
#endif

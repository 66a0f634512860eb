/* Stands for cublasLt on the host when ATELIER_EMULATED_BLAS is set: plain sums. */
#include "engine/cuda/blas.h"

#include "engine/tensor.h"
#include "tests/cuda/emulator.h"

#include <cstdlib>

struct blas {
    int unused;
};

struct blas_product {
    int dtype, out, in;
};

struct blas *blas_open(struct device *)
{
    return getenv("ATELIER_EMULATED_BLAS") != NULL ? (struct blas *)calloc(1, sizeof(struct blas))
                                                   : NULL;
}

void blas_close(struct blas *b)
{
    free(b);
}

struct blas_product *blas_find(struct blas *, int dtype, int64_t, int out, int in)
{
    static blas_product products[64];
    static int count;

    for (int i = 0; i < count; i++)
        if (products[i].dtype == dtype && products[i].out == out && products[i].in == in)
            return &products[i];
    if (count == 64)
        return NULL;
    products[count] = {dtype, out, in};
    return &products[count++];
}

struct call {
    const struct blas_product *product;
    const uint16_t *x, *w;
    uint16_t *y;
    int64_t rows;
    int x_ld, y_ld;
};

static void product(const struct command *command)
{
    const struct call *c = (const struct call *)command_args(command);
    const struct blas_product *p = c->product;
    enum dtype dtype = (enum dtype)p->dtype;

    for (int64_t row = 0; row < c->rows; row++)
        for (int o = 0; o < p->out; o++) {
            float sum = 0;
            for (int i = 0; i < p->in; i++)
                sum += element_to_f32(c->x, dtype, (size_t)(row * c->x_ld + i)) *
                       element_to_f32(c->w, dtype, (size_t)o * p->in + i);
            c->y[row * c->y_ld + o] = dtype == DTYPE_BF16 ? bf16_from_f32(sum) : f16_from_f32(sum);
        }
}

static int run_call(const struct command *command, void *stream)
{
    emulated_launch(command, stream, product);
    return 0;
}

void blas_enqueue(struct queue *queue, struct blas_product *product, const void *x, int x_ld,
                  const void *w, void *y, int y_ld, int64_t rows)
{
    struct call call = {
        product, (const uint16_t *)x, (const uint16_t *)w, (uint16_t *)y, rows, x_ld, y_ld};
    struct command command = {};

    command.run = run_call;
    queue_push(queue, &command, &call, sizeof(call));
}

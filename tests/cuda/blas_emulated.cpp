/* Stands for cublasLt on the host when ATELIER_EMULATED_BLAS is set: plain sums. */
#include "engine/cuda/blas.h"

#include "engine/tensor.h"
#include "tests/cuda/emulator.h"

#include <cstdio>
#include <cstdlib>

struct blas {
    int unused;
};

struct blas_product {
    blas_shape shape;
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

void blas_describe(const struct blas *b, char text[BLAS_TEXT_BYTES])
{
    snprintf(text, BLAS_TEXT_BYTES, b != NULL ? "plain sums" : "no cublasLt on an emulated card");
}

struct blas_product *blas_find(struct blas *, const struct blas_shape *s)
{
    static blas_product products[128];
    static int count;

    for (int i = 0; i < count; i++) {
        const blas_shape *known = &products[i].shape;
        if (known->dtype == s->dtype && known->out == s->out && known->in == s->in &&
            known->bias == s->bias && known->residual == s->residual)
            return &products[i];
    }
    if (count == 128)
        return NULL;
    products[count].shape = *s;
    return &products[count++];
}

struct call {
    const struct blas_product *product;
    struct blas_args args;
};

static float at(const blas_shape *s, const void *matrix, int64_t index)
{
    return element_to_f32(matrix, (enum dtype)s->dtype, (size_t)index);
}

static void product(const struct command *command)
{
    const struct call *c = (const struct call *)command_args(command);
    const blas_shape *s = &c->product->shape;
    const blas_args *a = &c->args;

    for (int64_t row = 0; row < a->rows; row++)
        for (int o = 0; o < s->out; o++) {
            float sum = 0;
            for (int i = 0; i < s->in; i++)
                sum += at(s, a->x, row * a->x_ld + i) * at(s, a->w, (int64_t)o * s->in + i);
            if (s->bias)
                sum += at(s, a->bias, o);
            if (s->residual)
                sum += at(s, a->residual, row * a->residual_ld + o);
            ((uint16_t *)a->y)[row * a->y_ld + o] =
                s->dtype == DTYPE_BF16 ? bf16_from_f32(sum) : f16_from_f32(sum);
        }
}

static int run_call(const struct command *command, void *stream)
{
    return emulated_launch(command, stream, product);
}

void blas_enqueue(struct queue *queue, const struct blas_product *product,
                  const struct blas_args *args)
{
    struct call call = {product, *args};
    struct command command = {};

    command.run = run_call;
    queue_push(queue, &command, &call, sizeof(call));
}

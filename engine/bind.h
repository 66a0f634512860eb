/*
 * bind.h: weights of a file become parameters of a model, once, at load.
 *
 * A binder walks a model's parameters by their diffusers names, checks each shape and hands the
 * data to the back end. It carries the first failure; after it every call is a no-op, so that a
 * model's binding table reads as a table. What was created is owned by the `struct parameters` that
 * the network keeps, whether binding succeeded or not. They remember what each matrix and filter
 * was made of and called, which is what adapters go by.
 *
 *     bind_linear(&binder, &w->to_q, 320, 320, BIND_NO_BIAS, "%s.to_q", prefix);
 *     if (binder.failed) ...
 */
#ifndef ATELIER_ENGINE_BIND_H
#define ATELIER_ENGINE_BIND_H

#include "engine/backend.h"
#include "engine/checkpoint.h"

#define BIND_STACK_MAX 3

/* A matrix or filter as it was bound; `slot` of its struct linear or conv is its number from 1. */
struct layer {
    const struct linear *linear; /* the network's own, or NULL */
    const struct conv *conv;     /* the same of a filter */
    struct weight_part parts[BIND_STACK_MAX], biases[BIND_STACK_MAX]; /* as long as the checkpoint;
                                                                         data NULL: no bias */
    int part_count;
    bool geglu, exact;
};

/* One part of a layer, as diffusers names it. */
struct target {
    char *name; /* without ".weight" */
    int slot, part;
    int in, out, kernel; /* of the part */
};

/* The layer's bias as the file has it, zeros where it has none; out: [its outputs]. */
void layer_bias(const struct layer *layer, float *out);

struct parameters {
    struct backend *backend;
    struct weight **weights;
    struct {
        float *data;
        size_t bytes;
    } * vectors;
    struct layer *layers;
    struct target *targets;
    int weight_count, vector_count, layer_count, target_count;
};

void parameters_release(struct parameters *parameters);
size_t parameters_bytes(const struct parameters *parameters); /* as they are now */

/* Creates a weight, or copies a vector to the back end, for `parameters` to own. Fails with
 * ERR_MEMORY (ERR_RETRY). */
int parameters_weight(struct parameters *parameters, const struct weight_spec *spec,
                      struct weight **weight, struct err *err) must_check;
int parameters_vector(struct parameters *parameters, const float *values, size_t count,
                      const float **vector, struct err *err) must_check;

struct binder {
    struct checkpoint *checkpoint;
    enum component component;
    struct parameters *parameters;
    bool exact; /* for the matrices bound from now on, see weight_spec */
    bool wide;  /* the same for matrices and filters */
    bool failed;
    struct err *err;
};

struct binder bind_begin(struct checkpoint *checkpoint, enum component component,
                         struct parameters *parameters, struct backend *backend, struct err *err);

enum bind_bias { BIND_NO_BIAS, BIND_BIAS };

/* A matrix out × in, stored with two dimensions or as a 1×1 convolution. */
void bind_linear(struct binder *binder, struct linear *linear, int in, int out, enum bind_bias bias,
                 const char *name, ...) __attribute__((format(printf, 6, 7)));

/* Like bind_linear, for a feed-forward layer whose second half gates the first. */
void bind_geglu(struct binder *binder, struct linear *linear, int in, int out, const char *name,
                ...) __attribute__((format(printf, 5, 6)));

/* `count` matrices of the same shape, stacked along their outputs: prefix.parts[i]. */
void bind_stack(struct binder *binder, struct linear *linear, int in, int out_each, int count,
                const char *const parts[], enum bind_bias bias, const char *prefix, ...)
    __attribute__((format(printf, 8, 9)));

/* A matrix width × width and its bias: what makes the values among the queries, keys and values
 * that torch's MultiheadAttention keeps as one, prefix.in_proj_weight and prefix.in_proj_bias. */
void bind_values(struct binder *binder, struct linear *linear, int width, const char *prefix, ...)
    __attribute__((format(printf, 4, 5)));

/* A 3×3 convolution with bias. */
void bind_conv(struct binder *binder, struct conv *conv, int in, int out, int stride,
               const char *name, ...) __attribute__((format(printf, 6, 7)));

void bind_norm(struct binder *binder, struct norm *norm, int channels, int groups, float eps,
               const char *name, ...) __attribute__((format(printf, 6, 7)));

/* A table rows × columns that op_embed reads. */
void bind_embedding(struct binder *binder, struct embedding *embedding, int rows, int columns,
                    const char *name);

/* The tensor's dimension `axis`, or 0 when it is not there. Marks nothing as missing. */
int bind_dim(struct checkpoint *checkpoint, enum component component, int axis, const char *name,
             ...) __attribute__((format(printf, 4, 5)));

#endif

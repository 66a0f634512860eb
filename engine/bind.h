/*
 * bind.h: weights of a file become parameters of a model, once, at load.
 *
 * A binder walks a model's parameters by their diffusers names, checks each shape and hands the
 * data to the back end. It carries the first failure; after it every call is a no-op, so that a
 * model's binding table reads as a table. What was created is owned by the `struct parameters` that
 * the network keeps, whether binding succeeded or not.
 *
 *     bind_linear(&binder, &w->to_q, 320, 320, BIND_NO_BIAS, "%s.to_q", prefix);
 *     if (binder.failed) ...
 */
#ifndef ATELIER_ENGINE_BIND_H
#define ATELIER_ENGINE_BIND_H

#include "engine/backend.h"
#include "engine/checkpoint.h"

#define BIND_STACK_MAX 3

struct parameters {
    struct backend *backend;
    struct weight **weights;
    struct {
        float *data;
        size_t bytes;
    } * vectors;
    int weight_count, vector_count;
};

void parameters_release(struct parameters *parameters);

struct binder {
    struct checkpoint *checkpoint;
    enum component component;
    struct parameters *parameters;
    bool exact; /* for the matrices bound from now on, see weight_spec */
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

/*
 * The part of an operator that every back end shares: checking shapes, planning, stopping after the
 * first failure. A shape that does not fit is a bug in a model's forward function or in binding, so
 * it is asserted, never judged.
 */
#include "engine/backend.h"

#include <time.h>

struct pass pass_begin(struct backend *backend, int lane, struct arena *arena, enum dtype act,
                       struct err *err)
{
    struct pass pass = {.backend = backend, .arena = arena, .lane = lane, .act = act, .err = err};

    if (backend->ops->begin != NULL)
        backend->ops->begin(&pass);
    return pass;
}

struct pass pass_plan(struct backend *backend, struct arena *arena, enum dtype act, struct err *err)
{
    return (struct pass){
        .backend = backend, .arena = arena, .planning = true, .act = act, .err = err};
}

bool pass_fail(struct pass *pass, enum err_code code, enum err_class class, const char *message)
{
    if (!pass->failed)
        err_set(pass->err, code, class, "%s", message);
    pass->failed = true;
    return false;
}

enum dtype weight_compute(const struct backend *backend, const struct weight_spec *spec, int out)
{
    bool narrow = spec->kernel > 1 && (spec->in < CONV_NARROW || out < CONV_NARROW);

    if (spec->exact || narrow)
        return DTYPE_F32;
    return spec->wide && backend->compute == DTYPE_F16 ? DTYPE_BF16 : backend->compute;
}

size_t vector_bytes(const struct backend *backend, size_t count)
{
    return backend->ops->vector_bytes != NULL ? backend->ops->vector_bytes(count)
                                              : count * sizeof(float);
}

static double seconds_now(const struct pass *pass)
{
    struct timespec t;

    if (pass->profile == NULL)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Adds an operator that began at `begin`. */
static void measured(struct pass *pass, enum op_kind kind, double begin, double flop)
{
    struct op_time *time;

    if (pass->profile == NULL || pass->planning)
        return;
    pass->backend->ops->finish(pass);
    time = &pass->profile->ops[kind];
    time->calls++;
    time->seconds += seconds_now(pass) - begin;
    time->flop += flop;
}

struct tensor pass_tensor_of(struct pass *pass, enum dtype dtype, int n, int h, int w, int c)
{
    struct tensor t = {.dtype = dtype, .n = n, .h = h, .w = w, .c = c, .ld = c};

    if (pass->failed)
        return t;
    t.data = arena_take(pass->arena, tensor_bytes(&t));
    if (t.data == NULL)
        pass_fail(pass, ERR_MEMORY, ERR_RETRY, "the activation arena is full");
    return t;
}

struct tensor pass_tensor(struct pass *pass, int n, int h, int w, int c)
{
    return pass_tensor_of(pass, pass->act, n, h, w, c);
}

void pass_drop(struct pass *pass, struct tensor *t)
{
    arena_give(pass->arena, t->data);
    t->data = NULL;
}

void *pass_scratch(struct pass *pass, size_t bytes)
{
    void *memory;

    if (pass->failed)
        return NULL;
    memory = arena_take(pass->arena, bytes);
    if (memory == NULL)
        pass_fail(pass, ERR_MEMORY, ERR_RETRY, "the activation arena has no room for scratch");
    return memory;
}

void pass_scratch_drop(struct pass *pass, void *memory)
{
    arena_give(pass->arena, memory);
}

void op_upload(struct pass *pass, struct tensor *y, const float *planes)
{
    double begin = seconds_now(pass);

    if (!pass->failed && !pass->planning)
        pass->backend->ops->upload(pass, y, planes);
    measured(pass, OP_OTHER, begin, 0);
}

void op_download(struct pass *pass, float *planes, const struct tensor *x)
{
    double begin = seconds_now(pass);

    if (!pass->failed && !pass->planning)
        pass->backend->ops->download(pass, planes, x);
    measured(pass, OP_OTHER, begin, 0);
}

/* Upsampling doubles a size, or leaves the last pixel out where the level above was odd. */
static bool conv_size_fits(int in, int out, const struct conv2d *args)
{
    if (args->upsample)
        return out == in * 2 || out == in * 2 - 1;
    if (args->conv->stride == 1)
        return out == in;
    return out == (args->pad_end_only ? in / 2 : (in + 1) / 2);
}

void op_conv2d(struct pass *pass, const struct conv2d *args)
{
    const struct tensor *x = args->x, *y = args->y;
    int taps = args->conv->kernel * args->conv->kernel;
    double begin = seconds_now(pass);

    ASSERT(x->c == args->conv->in && y->c == args->conv->out && x->n == y->n);
    ASSERT(conv_size_fits(x->h, y->h, args) && conv_size_fits(x->w, y->w, args));
    ASSERT(!args->upsample || args->conv->stride == 1);
    ASSERT(args->residual == NULL || tensor_rows(args->residual) == tensor_rows(y));
    ASSERT(args->time == NULL || (args->time->n == y->n && args->time->c == y->c));
    if (pass_changes(pass, args->conv->slot))
        changed_conv2d(pass, args);
    else if (!pass->failed)
        pass->backend->ops->conv2d(pass, args);
    measured(pass, args->conv->stride == 1 ? OP_CONV3X3 : OP_CONV_STRIDED, begin,
             2.0 * (double)tensor_rows(y) * x->c * y->c * taps);
}

void op_matmul(struct pass *pass, const struct matmul *args)
{
    int columns = args->act == ACT_GEGLU ? args->linear->out / 2 : args->linear->out;
    double begin = seconds_now(pass);

    ASSERT(args->x->c == args->linear->in && args->y->c == columns);
    ASSERT(tensor_rows(args->x) == tensor_rows(args->y));
    ASSERT(args->residual == NULL || args->residual->c == columns);
    if (pass_changes(pass, args->linear->slot))
        changed_matmul(pass, args);
    else if (!pass->failed)
        pass->backend->ops->matmul(pass, args);
    measured(pass, OP_MATMUL, begin,
             2.0 * (double)tensor_rows(args->x) * args->linear->in * args->linear->out);
}

void op_attention(struct pass *pass, const struct attention *args)
{
    double begin = seconds_now(pass);

    ASSERT(args->q->c == args->k->c && args->k->c == args->v->c && args->q->c == args->y->c);
    ASSERT(args->q->c % args->heads == 0 && args->q->n == args->k->n);
    ASSERT(tensor_rows(args->k) == tensor_rows(args->v));
    if (!pass->failed)
        pass->backend->ops->attention(pass, args);
    measured(pass, OP_ATTENTION, begin,
             4.0 * (double)tensor_rows(args->q) * args->k->h * args->k->w * args->q->c);
}

struct affine op_group_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                            bool silu)
{
    size_t bytes = (size_t)x->n * (size_t)x->c * sizeof(float);
    struct affine affine = {.silu = silu};
    double begin = seconds_now(pass);

    ASSERT(x->c == norm->channels && x->c % norm->groups == 0);
    affine.scale = pass_scratch(pass, bytes);
    affine.shift = pass_scratch(pass, bytes);
    if (!pass->failed)
        pass->backend->ops->group_norm(pass, x, norm, &affine);
    measured(pass, OP_GROUP_NORM, begin, 0);
    return affine;
}

void affine_drop(struct pass *pass, struct affine *affine)
{
    pass_scratch_drop(pass, affine->scale);
    pass_scratch_drop(pass, affine->shift);
    *affine = (struct affine){0};
}

void op_layer_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                   struct tensor *y)
{
    double begin = seconds_now(pass);

    ASSERT(x->c == norm->channels && y->c == x->c && tensor_rows(x) == tensor_rows(y));
    if (!pass->failed && !pass->planning)
        pass->backend->ops->layer_norm(pass, x, norm, y);
    measured(pass, OP_LAYER_NORM, begin, 0);
}

void op_concat(struct pass *pass, const struct tensor *a, const struct tensor *b, struct tensor *y)
{
    double begin = seconds_now(pass);

    ASSERT(y->c == a->c + b->c && tensor_rows(a) == tensor_rows(b));
    ASSERT(tensor_rows(y) == tensor_rows(a) && a->dtype == y->dtype && b->dtype == y->dtype);
    if (!pass->failed && !pass->planning)
        pass->backend->ops->concat(pass, a, b, y);
    measured(pass, OP_OTHER, begin, 0);
}

void op_damp(struct pass *pass, struct tensor *x, float by)
{
    double begin = seconds_now(pass);

    ASSERT(x->n == 1);
    if (!pass->failed && !pass->planning)
        pass->backend->ops->damp(pass, x, by);
    measured(pass, OP_OTHER, begin, 0);
}

void op_mean(struct pass *pass, const struct tensor *x, struct tensor *y)
{
    double begin = seconds_now(pass);

    ASSERT(y->c == x->c && y->n == x->n && y->h == 1 && y->w == 1);
    if (!pass->failed && !pass->planning)
        pass->backend->ops->mean(pass, x, y);
    measured(pass, OP_OTHER, begin, 0);
}

void op_silu(struct pass *pass, const struct tensor *x, struct tensor *y)
{
    double begin = seconds_now(pass);

    ASSERT(y->c == x->c && tensor_rows(y) == tensor_rows(x));
    if (!pass->failed && !pass->planning)
        pass->backend->ops->silu(pass, x, y);
    measured(pass, OP_OTHER, begin, 0);
}

void op_add(struct pass *pass, const struct tensor *x, float scale, struct tensor *y)
{
    double begin = seconds_now(pass);
    struct tensor from = *x;

    if (tensor_rows(x) == 1) { /* every row of y's begins at the same place */
        from = (struct tensor){.data = x->data, .dtype = x->dtype, .n = y->n, .c = x->c, .ld = 0};
        from.h = y->h;
        from.w = y->w;
    }
    ASSERT(y->c == from.c && tensor_rows(y) == tensor_rows(&from));
    if (!pass->failed && !pass->planning)
        pass->backend->ops->add(pass, &from, scale, y);
    measured(pass, OP_OTHER, begin, 0);
}

void op_embed(struct pass *pass, const int *ids, const struct embedding *tokens,
              const struct embedding *positions, struct tensor *y)
{
    ASSERT(tokens->columns == y->c && positions->columns == y->c && positions->rows >= y->w);
    if (!pass->failed && !pass->planning)
        pass->backend->ops->embed(pass, ids, tokens, positions, y);
}

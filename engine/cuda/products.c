/*
 * Products of the CUDA back end: which kernel computes a convolution or a linear layer, and what
 * goes before and after it.
 *
 * The input goes through kernel_apply first when a norm or another type stands before it: the copy
 * is small beside the product, and cp.async cannot compute.
 */
#include "engine/cuda/cuda.h"
#include "engine/cuda/group_check.h"

#include <stdio.h>
#include <stdlib.h>

/* Whether tensor cores take it; x stands for what they will read. */
static bool tensor_takes(const struct weight *w, const struct tensor *x, const struct tensor *y,
                         const struct tensor *residual, bool geglu)
{
    return w->dtype != DTYPE_F32 && w->in % 8 == 0 && w->out % 8 == 0 && x->ld % 8 == 0 &&
           aligned(x->data, 16) && pairs(y) && pairs(residual) && (!geglu || w->interleaved);
}

static struct pre pre_of(const struct affine *affine)
{
    return affine == NULL
               ? (struct pre){0}
               : (struct pre){.scale = affine->scale, .shift = affine->shift, .silu = affine->silu};
}

/* x after its affine, dense, in `dtype`. */
static struct tensor materialise(struct pass *pass, const struct tensor *x, enum dtype dtype,
                                 const struct affine *affine)
{
    struct tensor y = pass_tensor_of(pass, dtype, x->n, x->h, x->w, x->c);
    struct matrix from = matrix_of(x), to = matrix_of(&y);
    struct pre pre = pre_of(affine);

    if (!pass->planning && !pass->failed)
        kernel_apply(queue_of(pass), &from, &to, (int64_t)x->h * x->w, &pre);
    return y;
}

static void *partial_of(struct pass *pass, int splits, const struct tensor *y, int out)
{
    return pass_scratch(pass,
                        (size_t)splits * (size_t)tensor_rows(y) * (size_t)out * sizeof(float));
}

/* The additions of an operator: each leaves its sums in a slab behind the product's own. */
struct more {
    const struct addition *additions;
    int count;
};

static void set_x(struct product *p, const struct tensor *x)
{
    p->x = x->data;
    p->x_dtype = (int)x->dtype;
    p->x_ld = x->ld;
    p->x_h = x->h;
    p->x_w = x->w;
}

/* (scale ⊙ t) · upᵀ into the slabs that follow `splits` of p's. */
static void sum_additions(struct pass *pass, const struct product *p, const struct more *more)
{
    int64_t rows = (int64_t)p->n * p->y_h * p->y_w;

    for (int i = 0; i < more->count; i++) {
        const struct addition *a = &more->additions[i];
        const struct weight *up = a->up->weight;
        struct product q = {.w = up->data,
                            .w_dtype = (int)up->dtype,
                            .x = a->t->data,
                            .x_dtype = (int)a->t->dtype,
                            .x_ld = a->t->ld,
                            .pre = {.scale = a->scale},
                            .round = (int)up->dtype,
                            .partial = p->partial + (p->splits + i) * rows * p->out,
                            .n = 1,
                            .x_h = 1,
                            .x_w = (int)rows,
                            .y_h = 1,
                            .y_w = (int)rows,
                            .in = up->in,
                            .out = up->out,
                            .kernel = 1,
                            .stride = 1,
                            .splits = 1};
        kernel_product_simple(queue_of(pass), &q);
    }
}

static struct product_tile tile_of(const struct cuda_backend *cuda, const struct product *p,
                                   const struct tensor *y)
{
    return cuda->forced.rows > 0 ? cuda->forced
                                 : choose_tile(cuda->choose_sm, (int64_t)y->h * y->w, p->out,
                                               p->kernel * p->kernel, p->in);
}

static void product_on_tensor_cores(struct pass *pass, struct product *p, const struct tensor *y,
                                    const struct product_tile *tile, const struct more *more)
{
    p->splits = tile->splits;
    if (tile->splits > 1 || more->count > 0)
        p->partial = partial_of(pass, tile->splits + more->count, y, p->out);
    if (!pass->planning && !pass->failed) {
        if (tile->group)
            kernel_product_group(queue_of(pass), p, tile);
        else
            kernel_product_tensor(queue_of(pass), p, tile);
        sum_additions(pass, p, more);
        p->splits += more->count;
        if (p->splits > 1)
            kernel_product_finish(queue_of(pass), p);
    }
    pass_scratch_drop(pass, p->partial);
}

/* Whether rows may be read and written 16 bytes at a time. */
static bool rows_aligned(const void *data, int ld)
{
    return ld % 8 == 0 && aligned(data, 16);
}

/* Whether cuBLAS does all that is asked: it adds a bias and a residual on its way, and a second
 * pass over its sums would cost more than it gains. */
static bool blas_takes(const struct product *p)
{
    return p->kernel == 1 && p->time == NULL && p->act == PRODUCT_NONE &&
           p->y_dtype == p->w_dtype && rows_aligned(p->y, p->y_ld) &&
           (p->residual == NULL ||
            (p->residual_dtype == p->w_dtype && rows_aligned(p->residual, p->residual_ld)));
}

/* Linear layers through cuBLAS; false when it does not take this one. */
static bool product_by_blas(struct pass *pass, struct product *p, const struct tensor *y)
{
    struct cuda_backend *cuda = cuda_of(pass);
    struct blas_shape shape = {.dtype = p->w_dtype,
                               .out = p->out,
                               .in = p->in,
                               .each = (int64_t)y->h * y->w,
                               .bias = p->bias != NULL,
                               .residual = p->residual != NULL};
    const struct blas_product *found;

    if (cuda->blas == NULL || !blas_takes(p) || (found = blas_find(cuda->blas, &shape)) == NULL)
        return false;
    if (!pass->planning && !pass->failed)
        blas_enqueue(
            queue_of(pass), found,
            &(struct blas_args){.x = p->x,
                                .w = p->w,
                                .bias = vector_in(p->bias, (size_t)p->out, (enum dtype)p->w_dtype),
                                .residual = p->residual,
                                .y = p->y,
                                .rows = tensor_rows(y),
                                .x_ld = p->x_ld,
                                .residual_ld = p->residual_ld,
                                .y_ld = p->y_ld});
    return true;
}

static void product_simply(struct pass *pass, struct product *p, const struct tensor *y,
                           const struct more *more)
{
    bool apart = p->act == PRODUCT_GEGLU || more->count > 0;

    p->splits = 1;
    if (apart)
        p->partial = partial_of(pass, 1 + more->count, y, p->out);
    if (!pass->planning && !pass->failed) {
        if (p->kernel == 1 && y->h * y->w == 1 && !apart)
            kernel_product_rows(queue_of(pass), p);
        else
            kernel_product_simple(queue_of(pass), p);
        sum_additions(pass, p, more);
        p->splits += more->count;
        if (apart)
            kernel_product_finish(queue_of(pass), p);
    }
    pass_scratch_drop(pass, p->partial);
}

static void tell_watch(const struct pass *pass, const struct product *p)
{
    const struct cuda_backend *cuda = cuda_of(pass);

    cuda->watch(cuda->watch_user, &(struct product_shape){.n = p->n,
                                                          .h = p->y_h,
                                                          .w = p->y_w,
                                                          .out = p->out,
                                                          .taps = p->kernel * p->kernel,
                                                          .in = p->in});
}

static void product(struct pass *pass, struct product *p, const struct weight *w,
                    const struct tensor *x, const struct tensor *y, const struct tensor *residual,
                    const struct affine *pre, const struct more *more)
{
    struct tensor dense = *x;
    struct product_tile tile;
    bool as_it_is = pre == NULL && x->dtype == w->dtype;

    p->w = w->data;
    p->w_dtype = (int)w->dtype;
    p->in = w->in;
    p->out = w->out;
    p->kernel = w->kernel;
    p->interleaved = w->interleaved;
    p->round = (int)w->dtype;
    p->n = y->n;
    p->y = y->data;
    p->y_dtype = (int)y->dtype;
    p->y_ld = y->ld;
    p->y_h = y->h;
    p->y_w = y->w;
    if (residual != NULL) {
        p->residual = residual->data;
        p->residual_dtype = (int)residual->dtype;
        p->residual_ld = residual->ld;
    }
    if (!as_it_is)
        dense.ld = dense.c, dense.data = NULL; /* where arenas begin, for the question below */
    if (!tensor_takes(w, &dense, y, residual, p->act == PRODUCT_GEGLU) ||
        (w->kernel == 1 && y->h * y->w == 1)) {
        set_x(p, x);
        p->pre = pre_of(pre);
        product_simply(pass, p, y, more);
        return;
    }
    if (cuda_of(pass)->watch != NULL)
        tell_watch(pass, p);
    if (!as_it_is)
        dense = materialise(pass, x, w->dtype, pre);
    set_x(p, &dense);
    tile = tile_of(cuda_of(pass), p, y);
    if (!tile.library || more->count > 0 || !product_by_blas(pass, p, y))
        product_on_tensor_cores(pass, p, y, &tile, more);
    if (!as_it_is)
        pass_drop(pass, &dense);
}

void cuda_conv2d(struct pass *pass, const struct conv2d *a)
{
    struct product p = {.bias = a->conv->bias,
                        .stride = a->conv->stride,
                        .pad = a->pad_end_only ? 0 : a->conv->kernel / 2,
                        .upsample = a->upsample};

    if (a->time != NULL) {
        p.time = a->time->data;
        p.time_ld = a->time->ld;
    }
    product(pass, &p, a->conv->weight, a->x, a->y, a->residual, a->pre,
            &(struct more){a->additions, a->addition_count});
}

static int act_of(enum activation act)
{
    switch (act) {
    case ACT_SILU:
        return PRODUCT_SILU;
    case ACT_GELU:
        return PRODUCT_GELU;
    case ACT_QUICK_GELU:
        return PRODUCT_QUICK_GELU;
    case ACT_GEGLU:
        return PRODUCT_GEGLU;
    default:
        return PRODUCT_NONE;
    }
}

void cuda_matmul(struct pass *pass, const struct matmul *a)
{
    struct product p = {.bias = a->linear->bias, .stride = 1, .act = act_of(a->act)};

    product(pass, &p, a->linear->weight, a->x, a->y, a->residual, a->pre,
            &(struct more){a->additions, a->addition_count});
}

/* ---- how they are chosen ---- */

void cuda_watch(struct backend *backend, product_watch *watch, void *user)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;

    cuda->watch = watch;
    cuda->watch_user = user;
}

void cuda_force(struct backend *backend, const struct product_tile *tile)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;

    cuda->forced = tile != NULL ? *tile : (struct product_tile){0};
}

double cuda_bus_rate(struct backend *backend)
{
    return device_bus_rate(((struct cuda_backend *)backend)->device);
}

bool cuda_has_library(const struct backend *backend)
{
    return ((const struct cuda_backend *)backend)->blas != NULL;
}

int cuda_sm(const struct backend *backend)
{
    return ((const struct cuda_backend *)backend)->choose_sm;
}

static bool is_tile(const struct product_tile *t)
{
    bool group = t->rows == 128 && (t->columns == 128 || t->columns == 160 || t->columns == 256);
    bool warps = (t->rows == 64 || t->rows == 128) && (t->columns == 64 || t->columns == t->rows);

    return (t->group ? group : warps) && t->splits >= 1 && t->splits <= 64;
}

/* ATELIER_CUDA_TILE=ROWSxCOLUMNSxSPLITS, with a g for warpgroups, for tests and measurements: one
 * tile for every product. */
static int read_forced_tile(struct cuda_backend *cuda, struct err *err)
{
    const char *wish = getenv("ATELIER_CUDA_TILE");
    struct product_tile t = {0};
    char group = 0;

    if (wish == NULL)
        return 0;
    if (sscanf(wish, "%dx%dx%d%c", &t.rows, &t.columns, &t.splits, &group) >= 3)
        t.group = group == 'g';
    if (!is_tile(&t) || (t.group && cuda->choose_sm != 90))
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "ATELIER_CUDA_TILE: there is no tile %.32s on this card", wish);
    cuda->forced = t;
    return 0;
}

#define REPORT "; please report what scripts/gpu-check says"

/* What this card's warpgroups are taken for. ATELIER_CUDA_GROUP=0: nothing; 1: everything, unseen,
 * so that tests can say how far off they are. */
static int try_groups(struct cuda_backend *cuda, struct group_verdict *verdict, struct err *err)
{
    static const char *const WRONG[2][2] = {
        {"products and attention by warpgroups are wrong on this card and are not used" REPORT,
         "products by warpgroups are wrong on this card and are not used" REPORT},
        {"attention by warpgroups is wrong on this card and is not used" REPORT, NULL}};
    const char *wish = getenv("ATELIER_CUDA_GROUP");
    bool forced = wish != NULL && (strcmp(wish, "0") == 0 || strcmp(wish, "1") == 0);

    *verdict = (struct group_verdict){0};
    if (cuda->info.sm != 90)
        return 0;
    if (forced)
        verdict->products = verdict->attention = *wish == '1';
    else if (groups_check(cuda->device, verdict) != 0)
        return err_set(err, ERR_DEVICE, ERR_FATAL,
                       "%s, when its warpgroups were tried; ATELIER_CUDA_GROUP=0 does without them",
                       *device_error(cuda->device) ? device_error(cuda->device)
                                                   : "there was no memory");
    else
        cuda->base.warning = WRONG[verdict->products][verdict->attention];
    return 0;
}

int cuda_choose_products(struct cuda_backend *cuda, struct err *err)
{
    struct group_verdict groups;

    if (try_groups(cuda, &groups, err) != 0)
        return -1;
    cuda->attention_groups = groups.attention;
    cuda->choose_sm = cuda->info.sm == 90 && !groups.products ? 80 : cuda->info.sm;
    return read_forced_tile(cuda, err);
}

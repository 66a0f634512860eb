/*
 * The one file that sees oneDNN. Its C interface changed between 2.x and 3.x: memory descriptors
 * became handles and operation descriptors went away; the small functions below hide that.
 */
#include "engine/cpu/direct.h"

#include <dnnl.h>
#include <stdlib.h>

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t desc_t;
typedef const_dnnl_memory_desc_t desc_ref;
#else
typedef dnnl_memory_desc_t desc_t;
typedef const dnnl_memory_desc_t *desc_ref;
#endif

#define SHAPES_MAX 64 /* primitives kept per layer; the oldest goes first */
#define LAYOUTS_MAX 4 /* of one layer's weights; oneDNN wants one or two */

struct direct_engine {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    bool bf16;
};

struct primitive {
    int h, w;
    bool pad_end_only;
    dnnl_primitive_t conv;
    dnnl_memory_t src, dst, scratch;
    dnnl_memory_t weights; /* one of the layer's layouts */
    size_t scratch_bytes;
};

struct direct {
    struct primitive shapes[SHAPES_MAX];
    int count, next;
    dnnl_memory_t layouts[LAYOUTS_MAX]; /* the weights, once per layout that a shape wanted */
    int layout_count;
    dnnl_memory_t bias;
    size_t weights_bytes;
};

/* ---- what differs between 2.x and 3.x ---- */

static dnnl_status_t desc_make(desc_t *desc, int rank, const dnnl_dim_t *dims,
                               dnnl_data_type_t type, dnnl_format_tag_t tag)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_tag(desc, rank, dims, type, tag);
#else
    return dnnl_memory_desc_init_by_tag(desc, rank, dims, type, tag);
#endif
}

static void desc_drop(desc_t *desc)
{
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_destroy(*desc);
#else
    (void)desc;
#endif
}

static desc_ref desc_of(const desc_t *desc)
{
#if DNNL_VERSION_MAJOR >= 3
    return *desc;
#else
    return desc;
#endif
}

static dnnl_status_t conv_desc_make(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                    const desc_t d[4], const dnnl_dim_t *strides,
                                    const dnnl_dim_t *left, const dnnl_dim_t *right,
                                    const_dnnl_primitive_attr_t attr)
{
    const dnnl_dims_t dilates = {0, 0};
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_convolution_forward_primitive_desc_create(
        pd, engine, dnnl_forward_inference, dnnl_convolution_direct, d[0], d[1], d[2], d[3],
        strides, dilates, left, right, attr);
#else
    dnnl_convolution_desc_t op;
    dnnl_status_t status = dnnl_dilated_convolution_forward_desc_init(
        &op, dnnl_forward_inference, dnnl_convolution_direct, &d[0], &d[1], &d[2], &d[3], strides,
        dilates, left, right);
    return status != dnnl_success ? status
                                  : dnnl_primitive_desc_create(pd, &op, attr, engine, NULL);
#endif
}

static size_t desc_bytes(desc_ref desc)
{
    return dnnl_memory_desc_get_size(desc);
}

/* ---- engine ---- */

int direct_engine_create(struct direct_engine **out, struct err *err)
{
    struct direct_engine *e = calloc(1, sizeof(*e));

    if (e == NULL || dnnl_engine_create(&e->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&e->stream, e->engine, dnnl_stream_default_flags) != dnnl_success) {
        direct_engine_free(e);
        return err_set(err, ERR_DEVICE, ERR_FATAL, "oneDNN does not start on this processor");
    }
    e->bf16 = dnnl_get_effective_cpu_isa() >= dnnl_cpu_isa_avx512_core;
    *out = e;
    return 0;
}

void direct_engine_free(struct direct_engine *e)
{
    if (e == NULL)
        return;
    if (e->stream)
        dnnl_stream_destroy(e->stream);
    if (e->engine)
        dnnl_engine_destroy(e->engine);
    free(e);
}

bool direct_supports(const struct direct_engine *engine, enum dtype dtype)
{
    return dtype == DTYPE_F32 || (dtype == DTYPE_BF16 && engine->bf16);
}

static void primitive_release(struct primitive *p)
{
    if (p->conv)
        dnnl_primitive_destroy(p->conv);
    dnnl_memory_t memories[] = {p->src, p->dst, p->scratch};
    for (int i = 0; i < 3; i++)
        if (memories[i])
            dnnl_memory_destroy(memories[i]);
    *p = (struct primitive){0};
}

size_t direct_free(struct direct *direct)
{
    size_t bytes = direct ? direct->weights_bytes : 0;

    for (int i = 0; direct != NULL && i < direct->count; i++)
        primitive_release(&direct->shapes[i]);
    for (int i = 0; direct != NULL && i < direct->layout_count; i++)
        dnnl_memory_destroy(direct->layouts[i]);
    if (direct != NULL && direct->bias)
        dnnl_memory_destroy(direct->bias);
    free(direct);
    return bytes;
}

/* ---- primitives ---- */

/* The filter in the file's order and the compute type, ready to be reordered. */
static void *source_filter(const struct cpu_backend *cpu, const struct weight *w,
                           enum dtype compute)
{
    const struct weight_part *part = &w->parts[0];
    const int each = w->in * 9;
    const struct pre as_it_is = {.scale = NULL};
    char *copy = malloc((size_t)w->out * (size_t)each * dtype_bytes(compute));

    if (copy == NULL)
        return NULL;
#pragma omp parallel for schedule(static) num_threads(cpu->base.threads)
    for (int o = 0; o < w->out; o++) {
        size_t at = (size_t)o * (size_t)each;
        const char *row = (const char *)part->data + at * dtype_bytes(part->dtype);
        char *to = copy + at * dtype_bytes(compute);
        if (compute == DTYPE_F32)
            cpu->kernels->load_f32((float *)to, row, part->dtype, each, &as_it_is);
        else
            cpu->kernels->load_bf16((uint16_t *)to, row, part->dtype, each, &as_it_is);
    }
    return copy;
}

static bool reorder_weights(const struct cpu_backend *cpu, dnnl_memory_t *made_memory,
                            const struct weight *w, desc_ref wanted, enum dtype compute,
                            dnnl_data_type_t type)
{
    struct direct_engine *e = cpu->direct;
    const dnnl_dims_t dims = {w->out, w->in, 3, 3};
    dnnl_memory_t plain = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    void *copy = source_filter(cpu, w, compute);
    bool made = false;
    desc_t desc;

    if (copy == NULL || desc_make(&desc, 4, dims, type, dnnl_oihw) != dnnl_success) {
        free(copy);
        return false;
    }
    if (dnnl_memory_create(&plain, desc_of(&desc), e->engine, copy) == dnnl_success &&
        dnnl_memory_create(made_memory, wanted, e->engine, DNNL_MEMORY_ALLOCATE) == dnnl_success &&
        dnnl_reorder_primitive_desc_create(&pd, desc_of(&desc), e->engine, wanted, e->engine,
                                           NULL) == dnnl_success &&
        dnnl_primitive_create(&reorder, pd) == dnnl_success) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, *made_memory}};
        made = dnnl_primitive_execute(reorder, e->stream, 2, args) == dnnl_success &&
               dnnl_stream_wait(e->stream) == dnnl_success;
    }
    if (reorder)
        dnnl_primitive_destroy(reorder);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (plain)
        dnnl_memory_destroy(plain);
    desc_drop(&desc);
    free(copy);
    return made;
}

/* The layer's weights in the wanted layout: those of an earlier shape where the layout is the same.
 */
static bool find_weights(struct cpu_backend *cpu, struct direct *d, const struct conv2d *a,
                         desc_ref wanted, enum dtype compute, dnnl_data_type_t type,
                         dnnl_memory_t *weights)
{
    for (int i = 0; i < d->layout_count; i++) {
#if DNNL_VERSION_MAJOR >= 3
        const_dnnl_memory_desc_t have = NULL;
#else
        const dnnl_memory_desc_t *have = NULL;
#endif
        if (dnnl_memory_get_memory_desc(d->layouts[i], &have) == dnnl_success &&
            dnnl_memory_desc_equal(have, wanted)) {
            *weights = d->layouts[i];
            return true;
        }
    }
    if (d->layout_count == LAYOUTS_MAX)
        return false;
    *weights = NULL;
    if (!reorder_weights(cpu, weights, a->conv->weight, wanted, compute, type)) {
        if (*weights)
            dnnl_memory_destroy(*weights);
        return false;
    }
    d->layouts[d->layout_count++] = *weights;
    d->weights_bytes += desc_bytes(wanted);
    cpu->base.weights_bytes += desc_bytes(wanted);
    return true;
}

static bool make_primitive(struct cpu_backend *cpu, const struct conv2d *a, const struct tensor *x,
                           struct direct *d, struct primitive *p)
{
    struct direct_engine *e = cpu->direct;
    const struct conv *c = a->conv;
    dnnl_data_type_t type = x->dtype == DTYPE_F32 ? dnnl_f32 : dnnl_bf16;
    const dnnl_dims_t src = {1, c->in, x->h, x->w}, dst = {1, c->out, a->y->h, a->y->w};
    const dnnl_dims_t filter = {c->out, c->in, 3, 3}, bias = {c->out};
    const dnnl_dims_t strides = {c->stride, c->stride};
    const dnnl_dims_t left = {!a->pad_end_only, !a->pad_end_only};
    dnnl_dims_t right = {0};
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_attr_t attr = NULL;
    desc_t descs[4];
    bool made = false;

    right[0] = (dst[2] - 1) * c->stride + 3 - src[2] - left[0];
    right[1] = (dst[3] - 1) * c->stride + 3 - src[3] - left[1];
    if (desc_make(&descs[0], 4, src, type, dnnl_nhwc) != dnnl_success ||
        desc_make(&descs[1], 4, filter, type, dnnl_format_tag_any) != dnnl_success ||
        desc_make(&descs[2], 1, bias, dnnl_f32, dnnl_x) != dnnl_success ||
        desc_make(&descs[3], 4, dst, type, dnnl_nhwc) != dnnl_success ||
        dnnl_primitive_attr_create(&attr) != dnnl_success)
        return false;
    dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (conv_desc_make(&pd, e->engine, descs, strides, left, right, attr) == dnnl_success &&
        dnnl_primitive_create(&p->conv, pd) == dnnl_success) {
        desc_ref wanted = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        desc_ref pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        p->scratch_bytes = desc_bytes(pad);
        made = dnnl_memory_create(&p->src, desc_of(&descs[0]), e->engine, DNNL_MEMORY_NONE) ==
                   dnnl_success &&
               dnnl_memory_create(&p->dst, desc_of(&descs[3]), e->engine, DNNL_MEMORY_NONE) ==
                   dnnl_success &&
               dnnl_memory_create(&p->scratch, pad, e->engine, DNNL_MEMORY_NONE) == dnnl_success &&
               (d->bias != NULL || dnnl_memory_create(&d->bias, desc_of(&descs[2]), e->engine,
                                                      (void *)(uintptr_t)c->bias) == dnnl_success);
        made = made && find_weights(cpu, d, a, wanted, x->dtype, type, &p->weights);
    }
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    dnnl_primitive_attr_destroy(attr);
    for (int i = 0; i < 4; i++)
        desc_drop(&descs[i]);
    p->h = x->h;
    p->w = x->w;
    p->pad_end_only = a->pad_end_only;
    return made;
}

static struct primitive *find_primitive(struct cpu_backend *cpu, const struct conv2d *a,
                                        const struct tensor *x)
{
    struct weight *w = a->conv->weight;
    struct primitive made = {0};

    if (w->direct == NULL && (w->direct = calloc(1, sizeof(*w->direct))) == NULL)
        return NULL;
    for (int i = 0; i < w->direct->count; i++) {
        struct primitive *p = &w->direct->shapes[i];
        if (p->h == x->h && p->w == x->w && p->pad_end_only == a->pad_end_only)
            return p;
    }
    if (!make_primitive(cpu, a, x, w->direct, &made)) {
        primitive_release(&made);
        return NULL;
    }
    struct primitive *slot =
        &w->direct->shapes[w->direct->count < SHAPES_MAX ? w->direct->count++
                                                         : w->direct->next++ % SHAPES_MAX];
    primitive_release(slot);
    *slot = made;
    return slot;
}

void direct_conv2d(struct pass *pass, const struct conv2d *a, const struct tensor *x,
                   struct tensor *y)
{
    struct cpu_backend *cpu = cpu_of(pass);
    struct primitive *p = find_primitive(cpu, a, x);
    void *scratch;

    if (p == NULL) {
        pass_fail(pass, ERR_DEVICE, ERR_RETRY, "oneDNN cannot make a convolution for this shape");
        return;
    }
    scratch = pass_scratch(pass, p->scratch_bytes);
    for (int n = 0; n < x->n && !pass->planning && !pass->failed; n++) {
        struct direct *d = a->conv->weight->direct;
        dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->src},
                                  {DNNL_ARG_WEIGHTS, p->weights},
                                  {DNNL_ARG_BIAS, d->bias},
                                  {DNNL_ARG_DST, p->dst},
                                  {DNNL_ARG_SCRATCHPAD, p->scratch}};
        dnnl_memory_set_data_handle(p->src, row_at(x, (int64_t)n * x->h * x->w));
        dnnl_memory_set_data_handle(p->dst, row_at(y, (int64_t)n * y->h * y->w));
        dnnl_memory_set_data_handle(p->scratch, scratch);
        if (dnnl_primitive_execute(p->conv, cpu->direct->stream, 5, args) != dnnl_success ||
            dnnl_stream_wait(cpu->direct->stream) != dnnl_success)
            pass_fail(pass, ERR_DEVICE, ERR_RETRY, "oneDNN failed in a convolution");
    }
    pass_scratch_drop(pass, scratch);
}

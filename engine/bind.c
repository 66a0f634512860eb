#include "engine/bind.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct name {
    char text[CHECKPOINT_NAME_MAX_BYTES];
};

#define FORMAT_NAME(name, format)                                                                  \
    do {                                                                                           \
        va_list args_;                                                                             \
        va_start(args_, format);                                                                   \
        vsnprintf((name).text, sizeof((name).text), format, args_);                                \
        va_end(args_);                                                                             \
    } while (0)

struct binder bind_begin(struct checkpoint *checkpoint, enum component component,
                         struct parameters *parameters, struct backend *backend, struct err *err)
{
    *parameters = (struct parameters){.backend = backend};
    return (struct binder){
        .checkpoint = checkpoint, .component = component, .parameters = parameters, .err = err};
}

void parameters_release(struct parameters *p)
{
    for (int i = 0; i < p->weight_count; i++)
        p->backend->ops->weight_free(p->backend, p->weights[i]);
    for (int i = 0; i < p->vector_count; i++) {
        p->backend->ops->memory_free(p->backend, p->vectors[i].data, p->vectors[i].bytes);
        p->backend->weights_bytes -= p->vectors[i].bytes;
    }
    for (int i = 0; i < p->target_count; i++)
        free(p->targets[i].name);
    free(p->weights);
    free(p->vectors);
    free(p->layers);
    free(p->targets);
    *p = (struct parameters){.backend = p->backend};
}

size_t parameters_bytes(const struct parameters *p)
{
    size_t bytes = 0;

    for (int i = 0; i < p->weight_count; i++)
        bytes += p->backend->ops->weight_bytes(p->weights[i]);
    for (int i = 0; i < p->vector_count; i++)
        bytes += p->vectors[i].bytes;
    return bytes;
}

/* Room for one more entry; capacity doubles at powers of two. */
static void *grow(void *array, int count, size_t entry_bytes)
{
    if (count & (count - 1))
        return array;
    return realloc(array, (size_t)(count ? 2 * count : 1) * entry_bytes);
}

static void fail(struct binder *b, enum err_code code, const char *name, const char *problem)
{
    char stored[CHECKPOINT_NAME_MAX_BYTES];

    checkpoint_stored_name(b->checkpoint, b->component, name, stored);
    err_set(b->err, code, code == ERR_MEMORY ? ERR_RETRY : ERR_REJECT, "%s: tensor '%s' %s",
            checkpoint_file(b->checkpoint, b->component), stored, problem);
    b->failed = true;
}

static void fail_shape(struct binder *b, const struct stored_tensor *t, const char *name,
                       const int64_t *want, int rank)
{
    char text[160];
    int at = snprintf(text, sizeof(text), "has the shape [");

    for (int i = 0; i < t->rank; i++)
        at += snprintf(text + at, sizeof(text) - (size_t)at, "%s%lld", i ? ", " : "",
                       (long long)t->dims[i]);
    at += snprintf(text + at, sizeof(text) - (size_t)at, "], the model needs [");
    for (int i = 0; i < rank; i++)
        at += snprintf(text + at, sizeof(text) - (size_t)at, "%s%lld", i ? ", " : "",
                       (long long)want[i]);
    snprintf(text + at, sizeof(text) - (size_t)at, "]");
    fail(b, ERR_FORMAT, name, text);
}

/* The tensor, if it is there, holds weights and has the shape; trailing dimensions of 1 are free.
 */
static const struct stored_tensor *want(struct binder *b, const char *name, const int64_t *dims,
                                        int rank)
{
    const struct stored_tensor *t =
        checkpoint_synthesize(b->checkpoint, b->component, name, dims, rank);

    if (t == NULL)
        t = checkpoint_find(b->checkpoint, b->component, name);
    if (t == NULL) {
        fail(b, ERR_FORMAT, name, "is missing; the file is incomplete or of another kind");
        return NULL;
    }
    if (!t->usable) {
        fail(b, ERR_FORMAT, name, "has a dtype that holds no weights; F32, F16 and BF16 are read");
        return NULL;
    }
    for (int i = 0; i < (t->rank > rank ? t->rank : rank); i++) {
        int64_t have = i < t->rank ? t->dims[i] : 1, need = i < rank ? dims[i] : 1;
        if (have != need) {
            fail_shape(b, t, name, dims, rank);
            return NULL;
        }
    }
    return t;
}

static float *make_vector(struct parameters *p, size_t count)
{
    size_t bytes = vector_bytes(p->backend, count);
    void *grown = grow(p->vectors, p->vector_count, sizeof(p->vectors[0]));
    float *data = grown ? p->backend->ops->memory_alloc(p->backend, bytes) : NULL;

    if (grown != NULL)
        p->vectors = grown;
    if (data == NULL)
        return NULL;
    p->vectors[p->vector_count].data = data;
    p->vectors[p->vector_count++].bytes = bytes;
    p->backend->weights_bytes += bytes;
    return data;
}

/* One f32 vector out of `count` stored ones of `each` elements, end to end. `sources`, optional,
 * get what they were read from. */
static const float *bind_vector(struct binder *b, const struct name *names, int count, int each,
                                struct weight_part *sources)
{
    const int64_t dims[] = {each};
    float *host = NULL, *device = NULL;

    if (b->failed)
        return NULL;
    host = malloc((size_t)count * (size_t)each * sizeof(float));
    device = host ? make_vector(b->parameters, (size_t)count * (size_t)each) : NULL;
    if (device == NULL)
        fail(b, ERR_MEMORY, names[0].text, "finds no memory");
    for (int i = 0; i < count && !b->failed; i++) {
        const struct stored_tensor *t = want(b, names[i].text, dims, 1);
        if (t != NULL && sources != NULL)
            sources[i] = (struct weight_part){.data = t->data, .dtype = t->dtype, .out = each};
        for (int j = 0; t != NULL && j < each; j++)
            host[i * each + j] = element_to_f32(t->data, t->dtype, (size_t)j);
    }
    if (!b->failed)
        b->parameters->backend->ops->vector_upload(b->parameters->backend, device, host,
                                                   (size_t)count * (size_t)each);
    free(host);
    return b->failed ? NULL : device;
}

int parameters_weight(struct parameters *p, const struct weight_spec *spec, struct weight **weight,
                      struct err *err)
{
    void *grown = grow(p->weights, p->weight_count, sizeof(p->weights[0]));

    if (grown == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a list of weights");
    p->weights = grown;
    if (p->backend->ops->weight_create(p->backend, spec, weight, err) != 0)
        return -1;
    p->weights[p->weight_count++] = *weight;
    return 0;
}

int parameters_vector(struct parameters *p, const float *values, size_t count, const float **vector,
                      struct err *err)
{
    float *data = make_vector(p, count);

    if (data == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a vector of %zu values", count);
    p->backend->ops->vector_upload(p->backend, data, values, count);
    *vector = data;
    return 0;
}

/* Found out weight by weight, so that what others draw with meanwhile keeps its room. */
static void check_budget(struct binder *b)
{
    const struct backend *backend = b->parameters->backend;
    size_t max = backend->weights_max_bytes, have = backend->weights_bytes;

    if (max == 0 || have <= max)
        return;
    err_set(b->err, ERR_MEMORY, ERR_RETRY,
            "%s: its weights do not fit; the engine may keep %zu MiB of weights beside what its "
            "pictures need",
            checkpoint_file(b->checkpoint, b->component), max >> 20);
    b->failed = true;
}

static struct weight *make_weight(struct binder *b, const struct weight_spec *spec)
{
    struct weight *weight = NULL;

    if (parameters_weight(b->parameters, spec, &weight, b->err) != 0)
        b->failed = true;
    else
        check_budget(b);
    return weight;
}

/* The next layer, of which `spec` is made. 0 when there is no memory. */
static int add_layer(struct binder *b, const struct linear *linear, const struct conv *conv,
                     const struct weight_spec *spec)
{
    struct parameters *p = b->parameters;
    struct layer *grown = grow(p->layers, p->layer_count, sizeof(p->layers[0]));

    if (grown == NULL)
        return 0;
    p->layers = grown;
    p->layers[p->layer_count] = (struct layer){.linear = linear,
                                               .conv = conv,
                                               .part_count = spec->part_count,
                                               .geglu = spec->geglu,
                                               .exact = spec->exact};
    memcpy(p->layers[p->layer_count].parts, spec->parts,
           (size_t)spec->part_count * sizeof(spec->parts[0]));
    return ++p->layer_count;
}

static bool add_target(struct binder *b, const char *name, const struct weight_spec *spec, int part)
{
    struct parameters *p = b->parameters;
    struct target *grown = grow(p->targets, p->target_count, sizeof(p->targets[0]));

    if (grown == NULL)
        return false;
    p->targets = grown;
    p->targets[p->target_count] = (struct target){.name = strdup(name),
                                                  .slot = p->layer_count,
                                                  .part = part,
                                                  .in = spec->in,
                                                  .out = spec->parts[part].out,
                                                  .kernel = spec->kernel};
    return p->targets[p->target_count++].name != NULL;
}

void layer_bias(const struct layer *layer, float *out)
{
    for (int p = 0; p < layer->part_count; p++) {
        const struct weight_part *bias = &layer->biases[p];
        for (int o = 0; o < layer->parts[p].out; o++)
            *out++ = bias->data ? element_to_f32(bias->data, bias->dtype, (size_t)o) : 0;
    }
}

/* Enters a layer whose parts are called names[i]; returns its slot. */
static int list_layer(struct binder *b, const struct linear *linear, const struct conv *conv,
                      const struct weight_spec *spec, const struct name *names)
{
    int slot = b->failed ? 0 : add_layer(b, linear, conv, spec);

    for (int i = 0; slot > 0 && i < spec->part_count; i++)
        if (!add_target(b, names[i].text, spec, i))
            slot = 0;
    if (slot == 0 && !b->failed)
        fail(b, ERR_MEMORY, names[0].text, "finds no memory");
    return slot;
}

/* Where the layer that was entered last keeps its biases' sources. */
static struct weight_part *last_biases(struct binder *b)
{
    return b->failed ? NULL : b->parameters->layers[b->parameters->layer_count - 1].biases;
}

/* names[i] + ".weight" for each part, then names[i] + ".bias". */
static void bind_matrix(struct binder *b, struct linear *linear, int in, int out_each, int count,
                        const struct name *names, enum bind_bias bias, bool geglu)
{
    const int64_t dims[] = {out_each, in};
    struct weight_part parts[BIND_STACK_MAX];
    struct weight_spec spec = {.parts = parts,
                               .part_count = count,
                               .in = in,
                               .kernel = 1,
                               .geglu = geglu,
                               .exact = b->exact,
                               .wide = b->wide};
    struct name full[BIND_STACK_MAX];

    for (int i = 0; i < count && !b->failed; i++) {
        snprintf(full[i].text, sizeof(full[i].text), "%.180s.weight", names[i].text);
        const struct stored_tensor *t = want(b, full[i].text, dims, 2);
        if (t != NULL)
            parts[i] = (struct weight_part){.data = t->data, .dtype = t->dtype, .out = out_each};
        snprintf(full[i].text, sizeof(full[i].text), "%.180s.bias", names[i].text);
    }
    if (b->failed)
        return;
    *linear = (struct linear){.in = in, .out = out_each * count};
    linear->weight = make_weight(b, &spec);
    linear->slot = list_layer(b, linear, NULL, &spec, names);
    if (bias == BIND_BIAS)
        linear->bias = bind_vector(b, full, count, out_each, last_biases(b));
}

void bind_linear(struct binder *b, struct linear *linear, int in, int out, enum bind_bias bias,
                 const char *format, ...)
{
    struct name name;

    FORMAT_NAME(name, format);
    bind_matrix(b, linear, in, out, 1, &name, bias, false);
}

void bind_geglu(struct binder *b, struct linear *linear, int in, int out, const char *format, ...)
{
    struct name name;

    FORMAT_NAME(name, format);
    bind_matrix(b, linear, in, out, 1, &name, BIND_BIAS, true);
}

void bind_stack(struct binder *b, struct linear *linear, int in, int out_each, int count,
                const char *const parts[], enum bind_bias bias, const char *format, ...)
{
    struct name prefix, names[BIND_STACK_MAX];

    ASSERT(count <= BIND_STACK_MAX);
    FORMAT_NAME(prefix, format);
    for (int i = 0; i < count; i++)
        snprintf(names[i].text, sizeof(names[i].text), "%.150s.%.30s", prefix.text, parts[i]);
    bind_matrix(b, linear, in, out_each, count, names, bias, false);
}

void bind_conv(struct binder *b, struct conv *conv, int in, int out, int stride, const char *format,
               ...)
{
    const int64_t dims[] = {out, in, 3, 3};
    struct weight_part part = {.out = out};
    struct weight_spec spec = {
        .parts = &part, .part_count = 1, .in = in, .kernel = 3, .wide = b->wide};
    struct name name, full;
    const struct stored_tensor *t;

    FORMAT_NAME(name, format);
    snprintf(full.text, sizeof(full.text), "%.180s.weight", name.text);
    if (b->failed || (t = want(b, full.text, dims, 4)) == NULL)
        return;
    part.data = t->data;
    part.dtype = t->dtype;
    *conv = (struct conv){.in = in, .out = out, .kernel = 3, .stride = stride};
    conv->weight = make_weight(b, &spec);
    conv->slot = list_layer(b, NULL, conv, &spec, &name);
    snprintf(full.text, sizeof(full.text), "%.180s.bias", name.text);
    conv->bias = bind_vector(b, &full, 1, out, last_biases(b));
}

void bind_norm(struct binder *b, struct norm *norm, int channels, int groups, float eps,
               const char *format, ...)
{
    struct name name, full;

    FORMAT_NAME(name, format);
    *norm = (struct norm){.channels = channels, .groups = groups, .eps = eps};
    snprintf(full.text, sizeof(full.text), "%.180s.weight", name.text);
    norm->gamma = bind_vector(b, &full, 1, channels, NULL);
    snprintf(full.text, sizeof(full.text), "%.180s.bias", name.text);
    norm->beta = bind_vector(b, &full, 1, channels, NULL);
}

/* The last third of a stored query, key and value. */
static struct weight_part last_third(const struct stored_tensor *t, int out, int in)
{
    size_t skipped = 2 * (size_t)out * (size_t)in * dtype_bytes(t->dtype);

    return (struct weight_part){
        .data = (const char *)t->data + skipped, .dtype = t->dtype, .out = out};
}

void bind_values(struct binder *b, struct linear *linear, int width, const char *format, ...)
{
    const int64_t dims[] = {3 * width, width};
    const struct stored_tensor *weight = NULL, *bias = NULL;
    struct name prefix, full;
    struct weight_part part;
    float *values;

    FORMAT_NAME(prefix, format);
    snprintf(full.text, sizeof(full.text), "%.170s.in_proj_weight", prefix.text);
    if (!b->failed)
        weight = want(b, full.text, dims, 2);
    snprintf(full.text, sizeof(full.text), "%.170s.in_proj_bias", prefix.text);
    if (!b->failed)
        bias = want(b, full.text, dims, 1);
    if (b->failed)
        return;
    *linear = (struct linear){.in = width, .out = width};
    part = last_third(weight, width, width);
    linear->weight = make_weight(b, &(struct weight_spec){.parts = &part,
                                                          .part_count = 1,
                                                          .in = width,
                                                          .kernel = 1,
                                                          .exact = b->exact,
                                                          .wide = b->wide});
    part = last_third(bias, width, 1);
    values = malloc((size_t)width * sizeof(float));
    for (int i = 0; values != NULL && i < width; i++)
        values[i] = element_to_f32(part.data, part.dtype, (size_t)i);
    if (values == NULL)
        fail(b, ERR_MEMORY, full.text, "finds no memory");
    else if (!b->failed &&
             parameters_vector(b->parameters, values, (size_t)width, &linear->bias, b->err) != 0)
        b->failed = true;
    free(values);
}

void bind_embedding(struct binder *b, struct embedding *embedding, int rows, int columns,
                    const char *name)
{
    const int64_t dims[] = {rows, columns};
    const struct stored_tensor *t = b->failed ? NULL : want(b, name, dims, 2);

    if (t == NULL)
        return;
    *embedding = (struct embedding){
        .rows = rows, .columns = columns, .stored = {.data = t->data, .dtype = t->dtype}};
    embedding->table = make_weight(
        b, &(struct weight_spec){
               .parts = &(struct weight_part){.data = t->data, .dtype = t->dtype, .out = rows},
               .part_count = 1,
               .in = columns,
               .kernel = 1,
               .lookup = true});
}

int bind_dim(struct checkpoint *checkpoint, enum component component, int axis, const char *format,
             ...)
{
    const struct stored_tensor *t;
    struct name name;

    FORMAT_NAME(name, format);
    t = checkpoint_find(checkpoint, component, name.text);
    return t != NULL && axis < t->rank && t->dims[axis] <= INT32_MAX ? (int)t->dims[axis] : 0;
}

/*
 * The CUDA back end's table: weights, scratch, and the small operators.
 *
 * Operators append commands to a queue (cuda/queue.h); the card runs them when op_download asks for
 * a result, as a graph if it has run the same list before. So a pass has one host synchronisation,
 * at its end. Host data goes through pinned staging memory that kernels read and write in place.
 *
 * Activations are in the type of the pass; products (cuda/products.c) take f16 or bf16 with f32
 * accumulation, or f32.
 */
#include "engine/cuda/cuda.h"

#include <stdlib.h>

#define STEP_PIXELS (8 * 16384) /* four pictures of 1024×1024 with guidance, sixteen of 512×512 */
#define BATCH_PIXELS (16 * 512 * 512) /* the same, at eight by eight pixels a latent's */
#define STAGING_BYTES (16u << 20)     /* grows to what one transfer needs */
#define VECTOR_PIECE 12288            /* values; few layers have as many channels */
#define HEAD_MAX 512
#define HEAD_NARROW 160
#define FULL                                                                                       \
    "the card has no memory left to launch a kernel; give the processes that share it less each "  \
    "(--memory)"

/* ---- weights ---- */

/* One part of a stack, piece by piece. */
static int send_part(struct cuda_backend *cuda, const struct weight *w,
                     const struct weight_part *part, int row)
{
    size_t each = dtype_bytes(part->dtype), piece = DEVICE_SEND_MAX_BYTES / each;
    size_t count = (size_t)part->out * (size_t)w->in * (size_t)(w->kernel * w->kernel);
    struct queue commands = {0};
    int rc = 0;

    for (size_t first = 0; first < count && rc == 0; first += piece) {
        size_t n = count - first < piece ? count - first : piece;
        void *landing = device_landing(cuda->device);
        queue_clear(&commands);
        kernel_rearrange(&commands, &(struct rearrange){.from = landing,
                                                        .w = w->data,
                                                        .first = (int64_t)first,
                                                        .count = (int64_t)n,
                                                        .from_dtype = part->dtype,
                                                        .w_dtype = w->dtype,
                                                        .in = w->in,
                                                        .taps = w->kernel * w->kernel,
                                                        .row = row,
                                                        .half = w->interleaved ? w->out / 2 : 0});
        rc = device_send(cuda->device, landing, (const char *)part->data + first * each, n * each,
                         &commands);
    }
    queue_release(&commands);
    return rc;
}

static const char *cuda_failure(const struct backend *backend)
{
    const char *why = device_error(((const struct cuda_backend *)backend)->device);
    return why[0] != '\0' ? why : NULL;
}

static int fill_weight(struct cuda_backend *cuda, struct weight *w, const struct weight_spec *spec,
                       struct err *err)
{
    int row = 0, rc = 0;

    w->bytes =
        (size_t)w->out * (size_t)w->in * (size_t)(w->kernel * w->kernel) * dtype_bytes(w->dtype);
    w->data = device_alloc(cuda->device, w->bytes);
    if (w->data == NULL && cuda_failure(&cuda->base) == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY,
                       "the card has no memory for a weight of %zu bytes", w->bytes);
    if (w->data == NULL)
        return err_set(err, ERR_DEVICE, ERR_FATAL, "%s", cuda_failure(&cuda->base));
    pthread_mutex_lock(&cuda->sending);
    for (int p = 0; p < spec->part_count && rc == 0; row += spec->parts[p++].out)
        rc = send_part(cuda, w, &spec->parts[p], row);
    pthread_mutex_unlock(&cuda->sending);
    if (rc == DEVICE_FULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, FULL);
    return rc == 0 ? 0 : err_set(err, ERR_DEVICE, ERR_FATAL, "%s", device_error(cuda->device));
}

static int cuda_weight_create(struct backend *backend, const struct weight_spec *spec,
                              struct weight **out, struct err *err)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    struct weight *w = calloc(1, sizeof(*w));

    if (w == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a weight");
    for (int p = 0; p < spec->part_count; p++)
        w->out += spec->parts[p].out;
    w->in = spec->in;
    w->kernel = spec->kernel;
    w->dtype = spec->lookup ? spec->parts[0].dtype : weight_compute(backend, spec, w->out);
    w->interleaved = spec->geglu && w->out % 16 == 0;
    if (cuda->watch == NULL && fill_weight(cuda, w, spec, err) != 0) {
        device_free(cuda->device, w->data);
        free(w);
        return -1;
    }
    backend->weights_bytes += w->bytes;
    *out = w;
    return 0;
}

static void cuda_weight_free(struct backend *backend, struct weight *w)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;

    if (w == NULL)
        return;
    backend->weights_bytes -= w->bytes;
    device_free(cuda->device, w->data);
    free(w);
}

static size_t cuda_weight_bytes(const struct weight *w)
{
    return w->bytes;
}

static void *cuda_memory_alloc(struct backend *backend, size_t bytes)
{
    return device_alloc(((struct cuda_backend *)backend)->device, bytes);
}

static void cuda_memory_free(struct backend *backend, void *memory, size_t bytes)
{
    (void)bytes;
    device_free(((struct cuda_backend *)backend)->device, memory);
}

static size_t cuda_vector_bytes(size_t count)
{
    return vector_offset(count, DTYPE_F16) + count * sizeof(uint16_t);
}

/* A failure stays with the device, and the next run reports it. */
static void send_bytes(struct cuda_backend *cuda, void *to, const void *from, size_t bytes)
{
    pthread_mutex_lock(&cuda->sending);
    for (size_t i = 0; i < bytes; i += DEVICE_SEND_MAX_BYTES) {
        size_t n = bytes - i < DEVICE_SEND_MAX_BYTES ? bytes - i : DEVICE_SEND_MAX_BYTES;
        if (device_send(cuda->device, (char *)to + i, (const char *)from + i, n, NULL) != 0)
            break;
    }
    pthread_mutex_unlock(&cuda->sending);
}

/* Rounds to the type. */
static void put_in(void *to, enum dtype dtype, const float *src, size_t count)
{
    if (dtype == DTYPE_F32)
        memcpy(to, src, count * sizeof(float));
    for (size_t i = 0; dtype != DTYPE_F32 && i < count; i++)
        ((uint16_t *)to)[i] = dtype == DTYPE_BF16 ? bf16_from_f32(src[i]) : f16_from_f32(src[i]);
}

/* Nearly every vector goes at once; longer ones piece by piece, type by type. */
static void cuda_vector_upload(struct backend *backend, float *dst, const float *src, size_t count)
{
    static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    struct cuda_backend *cuda = (struct cuda_backend *)backend;
    _Alignas(64) char image[VECTOR_PIECE * sizeof(float) * 2 + 512] = {0};
    size_t pieces = (count + VECTOR_PIECE - 1) / VECTOR_PIECE;

    for (int t = 0; t < 3; t++)
        for (size_t p = 0; p < pieces; p++) {
            size_t first = p * VECTOR_PIECE, each = dtype_bytes(TYPES[t]);
            size_t n = count - first < VECTOR_PIECE ? count - first : VECTOR_PIECE;
            size_t at = vector_offset(count, TYPES[t]) + first * each;
            put_in(image + (pieces == 1 ? at : 0), TYPES[t], src + first, n);
            if (pieces > 1)
                send_bytes(cuda, (char *)dst + at, image, n * each);
        }
    if (pieces == 1)
        send_bytes(cuda, dst, image, cuda_vector_bytes(count));
}

/* ---- running ---- */

static struct cuda_lane *lane_of(const struct pass *pass)
{
    return &cuda_of(pass)->lanes[pass->lane];
}

static void forget(struct cuda_lane *lane)
{
    queue_clear(&lane->queue);
    lane->staging_used = 0;
}

/* What was asked for and never fetched may touch memory that has been given back. */
static void cuda_begin(struct pass *pass)
{
    forget(lane_of(pass));
}

static bool run(struct pass *pass)
{
    struct cuda_backend *cuda = cuda_of(pass);
    struct cuda_lane *lane = lane_of(pass);
    int rc = device_start(cuda->device, pass->lane, &lane->queue);

    if (rc == 0) {
        if (cuda->base.wait_begin != NULL)
            cuda->base.wait_begin(cuda->base.wait_user);
        rc = device_wait(cuda->device, pass->lane);
        if (cuda->base.wait_end != NULL)
            cuda->base.wait_end(cuda->base.wait_user);
    }
    forget(lane);
    if (rc == DEVICE_FULL)
        return pass_fail(pass, ERR_MEMORY, ERR_RETRY, FULL);
    return rc == 0 || pass_fail(pass, ERR_DEVICE, ERR_FATAL, device_error(cuda->device));
}

/* Pinned memory until the next run. NULL: the pass has failed. */
static void *stage(struct pass *pass, size_t bytes)
{
    struct device *device = cuda_of(pass)->device;
    struct cuda_lane *lane = lane_of(pass);
    void *at;

    bytes = (bytes + 255) & ~(size_t)255;
    if (lane->staging_bytes - lane->staging_used < bytes && lane->queue.count > 0 && !run(pass))
        return NULL;
    if (lane->staging_bytes < bytes) {
        size_t size = bytes > STAGING_BYTES ? bytes : STAGING_BYTES;
        device_host_free(device, lane->staging);
        lane->staging = device_host_alloc(device, size);
        lane->staging_bytes = lane->staging ? size : 0;
        lane->staging_used = 0;
    }
    if (lane->staging == NULL) {
        pass_fail(pass, ERR_MEMORY, ERR_RETRY, "no pinned memory for a transfer");
        return NULL;
    }
    at = lane->staging + lane->staging_used;
    lane->staging_used += bytes;
    return at;
}

static size_t planes_bytes(const struct tensor *t)
{
    return (size_t)tensor_rows(t) * (size_t)t->c * sizeof(float);
}

static void cuda_upload(struct pass *pass, struct tensor *y, const float *planes)
{
    float *staged = stage(pass, planes_bytes(y));
    struct matrix m = matrix_of(y);

    if (staged == NULL)
        return;
    memcpy(staged, planes, planes_bytes(y));
    kernel_upload(queue_of(pass), staged, &m, (int64_t)y->h * y->w);
}

static void cuda_download(struct pass *pass, float *planes, const struct tensor *x)
{
    float *staged = stage(pass, planes_bytes(x));
    struct matrix m = matrix_of(x);

    if (staged == NULL)
        return;
    kernel_download(queue_of(pass), staged, &m, (int64_t)x->h * x->w);
    if (run(pass))
        memcpy(planes, staged, planes_bytes(x));
}

static void cuda_finish(struct pass *pass)
{
    if (!pass->failed && !pass->planning)
        run(pass);
}

/* ---- operators ---- */

static bool eights(const struct tensor *t)
{
    return t->dtype != DTYPE_F32 && t->ld % 8 == 0 && aligned(t->data, 16);
}

static void cuda_attention(struct pass *pass, const struct attention *a)
{
    int d = a->q->c / a->heads;
    struct attend args = {.q = a->q->data,
                          .k = a->k->data,
                          .v = a->v->data,
                          .y = a->y->data,
                          .q_ld = a->q->ld,
                          .k_ld = a->k->ld,
                          .v_ld = a->v->ld,
                          .y_ld = a->y->ld,
                          .q_dtype = (int)a->q->dtype,
                          .k_dtype = (int)a->k->dtype,
                          .v_dtype = (int)a->v->dtype,
                          .y_dtype = (int)a->y->dtype,
                          .n = a->q->n,
                          .tq = a->q->h * a->q->w,
                          .tk = a->k->h * a->k->w,
                          .heads = a->heads,
                          .d = d,
                          .causal = a->causal,
                          .scale = a->scale};
    bool tensor = eights(a->q) && eights(a->k) && eights(a->v) && a->q->dtype == a->k->dtype &&
                  a->q->dtype == a->v->dtype && d % 8 == 0 && pairs(a->y);

    if (d > HEAD_MAX)
        pass_fail(pass, ERR_UNSUPPORTED, ERR_REJECT,
                  "the cuda back end has no attention for heads wider than 512");
    if (pass->planning || pass->failed)
        return;
    if (!tensor)
        kernel_attention_simple(queue_of(pass), &args);
    else if (cuda_of(pass)->attention_groups && attention_group_takes(&args))
        kernel_attention_group(queue_of(pass), &args);
    else if (d <= HEAD_NARROW)
        kernel_attention(queue_of(pass), &args);
    else
        kernel_attention_wide(queue_of(pass), &args);
}

static void cuda_group_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                            struct affine *out)
{
    int64_t pixels = (int64_t)x->h * x->w, chunk = group_norm_chunk(pixels);
    int64_t chunks = (pixels + chunk - 1) / chunk;
    float *partial =
        pass_scratch(pass, (size_t)(x->n * chunks) * (size_t)norm->groups * 2 * sizeof(float));
    struct matrix m = matrix_of(x);

    if (!pass->planning && !pass->failed)
        kernel_group_norm(queue_of(pass), &m, x->n, norm->groups, norm->eps, norm->gamma,
                          norm->beta, partial, out->scale, out->shift);
    pass_scratch_drop(pass, partial);
}

static void cuda_layer_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                            struct tensor *y)
{
    struct matrix from = matrix_of(x), to = matrix_of(y);

    kernel_layer_norm(queue_of(pass), &from, &to, norm->eps, norm->gamma, norm->beta);
}

static void cuda_concat(struct pass *pass, const struct tensor *a, const struct tensor *b,
                        struct tensor *y)
{
    struct matrix ma = matrix_of(a), mb = matrix_of(b), my = matrix_of(y);

    kernel_concat(queue_of(pass), &ma, &mb, &my);
}

static void cuda_silu(struct pass *pass, const struct tensor *x, struct tensor *y)
{
    struct matrix from = matrix_of(x), to = matrix_of(y);

    kernel_apply(queue_of(pass), &from, &to, (int64_t)x->h * x->w, &(struct pre){.silu = 1});
}

static void cuda_add(struct pass *pass, const struct tensor *x, float scale, struct tensor *y)
{
    struct matrix from = matrix_of(x), to = matrix_of(y);

    kernel_add(queue_of(pass), &from, scale, &to);
}

static void cuda_damp(struct pass *pass, struct tensor *x, float by)
{
    struct matrix m = matrix_of(x);

    kernel_damp(queue_of(pass), &m, x->h, x->w, by);
}

static void cuda_mean(struct pass *pass, const struct tensor *x, struct tensor *y)
{
    struct matrix from = matrix_of(x), to = matrix_of(y);

    kernel_mean(queue_of(pass), &from, x->h, x->w, &to);
}

static void cuda_embed(struct pass *pass, const int *ids, const struct embedding *tokens,
                       const struct embedding *positions, struct tensor *y)
{
    size_t bytes = (size_t)tensor_rows(y) * sizeof(int);
    int *staged = stage(pass, bytes);
    struct matrix m = matrix_of(y);

    if (staged == NULL)
        return;
    memcpy(staged, ids, bytes);
    kernel_embed(queue_of(pass), staged, tokens->table->data, (int)tokens->table->dtype,
                 positions->table->data, (int)positions->table->dtype, y->w, &m);
}

static void cuda_destroy(struct backend *backend)
{
    struct cuda_backend *cuda = (struct cuda_backend *)backend;

    for (int i = 0; i < DEVICE_LANES; i++) {
        queue_release(&cuda->lanes[i].queue);
        device_host_free(cuda->device, cuda->lanes[i].staging);
    }
    blas_close(cuda->blas);
    device_close(cuda->device);
    pthread_mutex_destroy(&cuda->sending);
    free(cuda);
}

static const struct backend_ops CUDA_OPS = {
    .name = "cuda",
    .weight_create = cuda_weight_create,
    .weight_free = cuda_weight_free,
    .weight_bytes = cuda_weight_bytes,
    .memory_alloc = cuda_memory_alloc,
    .memory_free = cuda_memory_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .vector_upload = cuda_vector_upload,
    .vector_bytes = cuda_vector_bytes,
    .begin = cuda_begin,
    .conv2d = cuda_conv2d,
    .matmul = cuda_matmul,
    .attention = cuda_attention,
    .group_norm = cuda_group_norm,
    .layer_norm = cuda_layer_norm,
    .concat = cuda_concat,
    .silu = cuda_silu,
    .add = cuda_add,
    .damp = cuda_damp,
    .mean = cuda_mean,
    .embed = cuda_embed,
    .failure = cuda_failure,
    .finish = cuda_finish,
    .destroy = cuda_destroy,
};

int backend_cuda_cards(void)
{
    return device_count();
}

int backend_cuda_open(struct backend **backend, const struct backend_options *options,
                      struct err *err)
{
    struct cuda_backend *cuda = calloc(1, sizeof(*cuda));
    char why[DEVICE_MESSAGE_MAX_BYTES];

    if (cuda == NULL)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "no memory for the cuda back end");
    cuda->device = device_open(options->card, &cuda->info, why);
    if (cuda->device == NULL) {
        free(cuda);
        return err_set(err, ERR_DEVICE, ERR_FATAL, "%s", why);
    }
    pthread_mutex_init(&cuda->sending, NULL);
    cuda->blas = blas_open(cuda->device);
    cuda->base = (struct backend){.ops = &CUDA_OPS,
                                  .compute = options->compute,
                                  .isa = cuda->info.isa,
                                  .device = cuda->info.name,
                                  .native_bf16 = true,
                                  .batch_pixels = BATCH_PIXELS,
                                  .lanes = DEVICE_LANES,
                                  .step_pixels_max = STEP_PIXELS,
                                  .memory_bytes = cuda->info.free_bytes};
    if (cuda_choose_products(cuda, err) != 0) {
        cuda_destroy(&cuda->base);
        return -1;
    }
    *backend = &cuda->base;
    return 0;
}

/*
 * The back end that keeps nothing: binding to it checks every tensor's name, type and shape against
 * a file's header, and reads no weights. It has no operators; sessions refuse its models.
 */
#include "engine/backend.h"

#include <stdlib.h>

struct weight {
    char nothing;
};

static int outline_weight_create(struct backend *backend, const struct weight_spec *spec,
                                 struct weight **weight, struct err *err)
{
    (void)backend, (void)spec;
    *weight = calloc(1, sizeof(**weight));
    return *weight ? 0 : err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to list a weight");
}

static void outline_weight_free(struct backend *backend, struct weight *weight)
{
    (void)backend;
    free(weight);
}

static size_t outline_weight_bytes(const struct weight *weight)
{
    (void)weight;
    return 0;
}

static void *outline_memory_alloc(struct backend *backend, size_t bytes)
{
    (void)backend, (void)bytes;
    return malloc(1);
}

static void outline_memory_free(struct backend *backend, void *memory, size_t bytes)
{
    (void)backend, (void)bytes;
    free(memory);
}

static void outline_vector_upload(struct backend *backend, float *dst, const float *src,
                                  size_t count)
{
    (void)backend, (void)dst, (void)src, (void)count;
}

static void outline_destroy(struct backend *backend)
{
    free(backend);
}

static const struct backend_ops OUTLINE_OPS = {
    .name = "outline",
    .weight_create = outline_weight_create,
    .weight_free = outline_weight_free,
    .weight_bytes = outline_weight_bytes,
    .memory_alloc = outline_memory_alloc,
    .memory_free = outline_memory_free,
    .vector_upload = outline_vector_upload,
    .destroy = outline_destroy,
};

int backend_outline_open(struct backend **backend, struct err *err)
{
    struct backend *outline = malloc(sizeof(*outline));

    if (outline == NULL)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "no memory for an outline");
    *outline = (struct backend){.ops = &OUTLINE_OPS,
                                .compute = DTYPE_F32,
                                .isa = "none",
                                .outline = true,
                                .threads = 1,
                                .step_pixels_max = CPU_STEP_PIXELS,
                                .batch_pixels = CPU_BATCH_PIXELS,
                                .lanes = 1};
    *backend = outline;
    return 0;
}

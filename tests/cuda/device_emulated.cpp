/*
 * A card that is this processor: memory of malloc, kernels of the emulator. Fresh memory is NaN,
 * landing buffers change places, and what is sent is gone from there when the next piece comes.
 *
 * ATELIER_EMULATED_SM is the kind of card (80), ATELIER_EMULATED_ORDER=reverse runs threads from
 * the last to the first, ATELIER_EMULATED_BLAS=1 has a cublasLt.
 */
#include "engine/cuda/device.h"

#include "tests/cuda/emulator.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

struct device {
    char *landing;
    char error[DEVICE_MESSAGE_MAX_BYTES];
};

struct device *device_open(struct device_info *info, char why[DEVICE_MESSAGE_MAX_BYTES])
{
    const char *sm = getenv("ATELIER_EMULATED_SM"), *order = getenv("ATELIER_EMULATED_ORDER");

    *info = {};
    snprintf(info->name, sizeof(info->name), "an emulated card");
    info->sm = sm != NULL ? atoi(sm) : 80;
    snprintf(info->isa, sizeof(info->isa), "sm_%d", info->sm);
    info->multiprocessors = 4;
    info->memory_bytes = info->free_bytes = (size_t)4 << 30;
    info->shared_max_bytes = 99u << 10;
    why[0] = 0;
    emulator_set_reverse(order != NULL && strcmp(order, "reverse") == 0);
    return (struct device *)calloc(1, sizeof(struct device));
}

void device_close(struct device *d)
{
    if (d != NULL)
        free(d->landing);
    free(d);
}

void *device_alloc(struct device *, size_t bytes)
{
    size_t size = (bytes + 255) & ~(size_t)255;
    void *memory = aligned_alloc(256, size);

    if (memory != NULL)
        memset(memory, 0xff, size);
    return memory;
}

void device_free(struct device *, void *memory)
{
    free(memory);
}

void *device_host_alloc(struct device *d, size_t bytes)
{
    return device_alloc(d, bytes);
}

void device_host_free(struct device *, void *memory)
{
    free(memory);
}

void *device_landing(struct device *d)
{
    if (d->landing == NULL)
        d->landing = (char *)device_alloc(d, DEVICE_SEND_MAX_BYTES);
    return d->landing;
}

static void run_all(const struct queue *queue)
{
    for (const struct command *c = queue_next(queue, NULL); c != NULL; c = queue_next(queue, c))
        c->run(c, NULL);
}

int device_send(struct device *d, void *to, const void *bytes, size_t count,
                const struct queue *commands)
{
    memcpy(to, bytes, count);
    if (commands != NULL)
        run_all(commands);
    if (to == d->landing) {
        free(d->landing);
        d->landing = NULL;
    }
    return 0;
}

int device_run(struct device *, const struct queue *queue)
{
    if (queue->failed)
        return -1;
    run_all(queue);
    return 0;
}

const char *device_error(const struct device *d)
{
    return d->error;
}

void *device_stream(struct device *)
{
    return NULL;
}

void device_graphs(const struct device *, long *launched, long *captured)
{
    *launched = *captured = 0;
}

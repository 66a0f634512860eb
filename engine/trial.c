#include "engine/trial.h"

#include <stdlib.h>
#include <time.h>

int trial_begin(struct trial *t, struct backend *backend, size_t bytes, struct err *err)
{
    *t = (struct trial){.backend = backend, .bytes = bytes};
    t->memory = backend->ops->memory_alloc(backend, bytes);
    if (t->memory == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to measure in");
    arena_init(&t->arena, t->memory, bytes);
    t->pass = pass_begin(backend, 0, &t->arena, backend->compute, err);
    return 0;
}

void trial_end(struct trial *t)
{
    t->backend->ops->memory_free(t->backend, t->memory, t->bytes);
}

float *trial_values(size_t count)
{
    float *values = malloc(count * sizeof(float));
    uint32_t state = 12345;

    for (size_t i = 0; values != NULL && i < count; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)state * 0x1p-31f;
    }
    return values;
}

double trial_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#include "engine/cuda/group_check.h"

#include "engine/cuda/kernels.h"

#include <stdlib.h>
#include <string.h>

/* No multiples of what a tile takes. */
#define ROWS 72
#define IN 136
#define OUT 168

struct check {
    struct device *device;
    uint16_t *x, *w;       /* on the card */
    float *warps, *groups; /* pinned: what each made */
};

/* Whole numbers from -4 to 4 in bf16. */
static void fill(uint16_t *values, size_t count, unsigned seed)
{
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = bf16_from_f32((float)((int)(seed >> 16) % 9 - 4));
    }
}

static int send(struct check *t, uint16_t **to, size_t count, unsigned seed)
{
    const size_t piece = DEVICE_SEND_MAX_BYTES / sizeof(**to);
    uint16_t *values = malloc(count * sizeof(*values));
    int rc = -1;

    *to = device_alloc(t->device, count * sizeof(**to));
    if (values != NULL && *to != NULL) {
        fill(values, count, seed);
        rc = 0;
    }
    for (size_t i = 0; i < count && rc == 0; i += piece) {
        size_t n = count - i < piece ? count - i : piece;
        rc = device_send(t->device, *to + i, values + i, n * sizeof(*values), NULL);
    }
    free(values);
    return rc;
}

static int compute(struct check *t)
{
    static const struct product_tile WARPS = {128, 64, 1, false};
    static const struct product_tile GROUPS[] = {
        {128, 256, 1, true}, {128, 160, 1, true}, {128, 128, 1, true}};
    const size_t bytes = (size_t)ROWS * OUT * sizeof(float);
    struct product p = {.x = t->x,
                        .w = t->w,
                        .x_dtype = DTYPE_BF16,
                        .x_ld = IN,
                        .w_dtype = DTYPE_BF16,
                        .y_dtype = DTYPE_F32,
                        .y_ld = OUT,
                        .n = 1,
                        .x_h = 1,
                        .x_w = ROWS,
                        .y_h = 1,
                        .y_w = ROWS,
                        .in = IN,
                        .out = OUT,
                        .kernel = 1,
                        .stride = 1,
                        .splits = 1};
    struct queue queue = {0};
    int rc = 1;

    for (size_t i = 0; i < sizeof(GROUPS) / sizeof(GROUPS[0]) && rc == 1; i++) {
        queue_clear(&queue);
        p.y = t->warps;
        kernel_product_tensor(&queue, &p, &WARPS);
        p.y = t->groups;
        kernel_product_group(&queue, &p, &GROUPS[i]);
        memset(t->groups, 0xff, bytes);
        rc = device_run(t->device, &queue) != 0 ? -1 : memcmp(t->warps, t->groups, bytes) == 0;
    }
    queue_release(&queue);
    return rc;
}

int groups_agree(struct device *device)
{
    const size_t bytes = (size_t)ROWS * OUT * sizeof(float);
    struct check t = {.device = device,
                      .warps = device_host_alloc(device, bytes),
                      .groups = device_host_alloc(device, bytes)};
    int rc = -1;

    if (t.warps != NULL && t.groups != NULL && send(&t, &t.x, (size_t)ROWS * IN, 1) == 0 &&
        send(&t, &t.w, (size_t)OUT * IN, 2) == 0)
        rc = compute(&t);
    device_free(device, t.x);
    device_free(device, t.w);
    device_host_free(device, t.warps);
    device_host_free(device, t.groups);
    return rc;
}

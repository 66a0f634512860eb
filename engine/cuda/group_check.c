#include "engine/cuda/group_check.h"

#include "engine/cuda/kernels.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* No multiples of what a tile takes, several tiles each way, and more stages of k, and tiles of
 * keys, than are under way at once. The largest sum, 16 · IN, is exact in f32. Attention has x's
 * first HEADS · HEAD columns as queries, w's as keys and its next ones as values. */
#if defined(ATELIER_CUDA_EMULATED) /* where operators' tests have all that in other ways */
#define ROWS 72
#define IN 136
#define OUT 168
#define HEADS 1
#else
#define ROWS 328
#define IN 584
#define OUT 328
#define HEADS 4
#endif
#define HEAD 64

/* Scores are spread over some units, and attention's results over -4 to 4. Its scores are exact and
 * its probabilities rounded alike, its sums are not: far less than this apart, and far less than
 * anything wrong would be. */
#define ATTENTION_SCALE (1 / 32.0f)
#define ATTENTION_APART 1e-3f

static_assert(2 * HEADS * HEAD <= IN && HEADS * HEAD <= OUT, "");

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

/* By value: a zero may have either sign. A NaN, as what was not written is, is near nothing. */
static bool near(const float *a, const float *b, size_t count, float apart)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabsf(a[i] - b[i]) <= apart))
            return false;
    return true;
}

/* Whether what the queue makes in both buffers is the same; -1: the card failed. */
static int agree(struct check *t, struct queue *queue, size_t count, float apart)
{
    memset(t->warps, 0xff, count * sizeof(float));
    memset(t->groups, 0xff, count * sizeof(float));
    if (device_run(t->device, 0, queue) != 0)
        return -1;
    return near(t->warps, t->groups, count, apart);
}

static int products_agree(struct check *t, struct queue *queue)
{
    static const struct product_tile WARPS = {.rows = 128, .columns = 64, .splits = 1};
    static const struct product_tile GROUPS[] = {
        {128, 256, 1, true, false}, {128, 160, 1, true, false}, {128, 128, 1, true, false}};
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
    int rc = 1;

    for (size_t i = 0; i < sizeof(GROUPS) / sizeof(GROUPS[0]) && rc == 1; i++) {
        queue_clear(queue);
        p.y = t->warps;
        kernel_product_tensor(queue, &p, &WARPS);
        p.y = t->groups;
        kernel_product_group(queue, &p, &GROUPS[i]);
        rc = agree(t, queue, (size_t)ROWS * OUT, 0);
    }
    return rc;
}

/* Of heads of 64, and of 40, which do not fill what they are multiplied as. */
static int attention_agrees(struct check *t, struct queue *queue)
{
    struct attend a = {.q = t->x,
                       .k = t->w,
                       .v = t->w + HEADS * HEAD,
                       .q_ld = IN,
                       .k_ld = IN,
                       .v_ld = IN,
                       .q_dtype = DTYPE_BF16,
                       .k_dtype = DTYPE_BF16,
                       .v_dtype = DTYPE_BF16,
                       .y_dtype = DTYPE_F32,
                       .n = 1,
                       .tq = ROWS,
                       .tk = OUT,
                       .heads = HEADS,
                       .scale = ATTENTION_SCALE};
    int rc = 1;

    for (a.d = 40; a.d <= HEAD && rc == 1; a.d += 24) {
        a.y_ld = HEADS * a.d;
        queue_clear(queue);
        a.y = t->warps;
        kernel_attention(queue, &a);
        a.y = t->groups;
        kernel_attention_group(queue, &a);
        rc = agree(t, queue, (size_t)ROWS * HEADS * (size_t)a.d, ATTENTION_APART);
    }
    return rc;
}

static int compute(struct check *t, struct group_verdict *verdict)
{
    struct queue queue = {0};
    int products = products_agree(t, &queue);
    int attention = products < 0 ? -1 : attention_agrees(t, &queue);

    queue_release(&queue);
    *verdict = (struct group_verdict){.products = products == 1, .attention = attention == 1};
    return products < 0 || attention < 0 ? -1 : 0;
}

int groups_check(struct device *device, struct group_verdict *verdict)
{
    const size_t bytes = (size_t)ROWS * OUT * sizeof(float);
    struct check t = {.device = device,
                      .warps = device_host_alloc(device, bytes),
                      .groups = device_host_alloc(device, bytes)};
    int rc = -1;

    *verdict = (struct group_verdict){0};
    if (t.warps != NULL && t.groups != NULL && send(&t, &t.x, (size_t)ROWS * IN, 1) == 0 &&
        send(&t, &t.w, (size_t)OUT * IN, 2) == 0)
        rc = compute(&t, verdict);
    device_free(device, t.x);
    device_free(device, t.w);
    device_host_free(device, t.warps);
    device_host_free(device, t.groups);
    return rc;
}

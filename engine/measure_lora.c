/* A LoRA of a trainer's usual extent, and what changing to one takes. */
#include "engine/measure.h"
#include "engine/runtime.h"
#include "engine/trial.h"

#include <stdio.h>

static bool is_usual(const struct target *t)
{
    return t->kernel == 1 && strstr(t->name, "transformer_blocks") != NULL;
}

/* One tensor's entry of the header. */
static void describe(struct buf *out, const struct target *t, const char *suffix, int rows,
                     int columns, size_t *at)
{
    size_t bytes = (size_t)rows * (size_t)columns * sizeof(uint16_t);

    buf_printf(out, "%s\"lora_unet_", *at ? "," : "");
    for (const char *c = t->name; *c != '\0'; c++)
        buf_char(out, *c == '.' ? '_' : *c);
    buf_printf(out, ".%s.weight\":{\"dtype\":\"F16\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}",
               suffix, rows, columns, *at, *at + bytes);
    *at += bytes;
}

int measure_lora(const struct model *model, int rank, struct buf *out, struct err *err)
{
    const struct parameters *p = &model->unet.parameters;
    uint32_t state = 1;
    uint64_t len = 0;
    size_t start = out->len, bytes = 0;

    buf_append(out, &len, sizeof(len));
    buf_char(out, '{');
    for (int i = 0; i < p->target_count; i++) {
        const struct target *t = &p->targets[i];
        if (!is_usual(t))
            continue;
        describe(out, t, "lora_down", rank, t->in, &bytes);
        describe(out, t, "lora_up", t->out, rank, &bytes);
    }
    buf_char(out, '}');
    len = out->len - start - sizeof(len);
    for (size_t i = 0; i < bytes / sizeof(uint16_t) && !out->failed; i++) {
        state = state * 1664525u + 1013904223u;
        uint16_t half = (uint16_t)(state >> 16 & 0x9fff); /* no more than 2^-8 */
        buf_append(out, &half, sizeof(half));
    }
    if (out->failed)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a LoRA of rank %d", rank);
    memcpy(out->data + start, &len, sizeof(len));
    return 0;
}

int measure_switch(struct model *model, struct adapter *adapter, double *seconds, struct err *err)
{
    struct draw_adapter one = {.adapter = adapter, .scale = 0.75};
    struct adaptation *adaptation = NULL;
    double begin;
    int rc;

    fair_lock_take(&model->engine->lock);
    begin = trial_now();
    rc = adaptation_acquire(&adaptation, model, &one, 1, err);
    *seconds = trial_now() - begin;
    adaptation_release(adaptation);
    fair_lock_give(&model->engine->lock);
    return rc;
}

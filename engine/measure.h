/*
 * measure.h: where an engine's time goes, and what its device could do at best.
 *
 * For benchmarks only; a normal run pays one branch per operator.
 */
#ifndef ATELIER_ENGINE_MEASURE_H
#define ATELIER_ENGINE_MEASURE_H

#include "common/err.h"

#include <stddef.h>

struct adapter;
struct buf;
struct engine;
struct model;

enum op_kind {
    OP_CONV3X3, /* stride 1 */
    OP_CONV_STRIDED,
    OP_MATMUL,
    OP_ATTENTION,
    OP_GROUP_NORM,
    OP_LAYER_NORM,
    OP_OTHER, /* concat, embedding, transfers */
    OP_KIND_COUNT,
};

struct op_time {
    long calls;
    double seconds;
    double flop; /* 2 × multiply-adds of the direct form, whatever algorithm computed it */
};

struct profile {
    struct op_time ops[OP_KIND_COUNT];
};

const char *op_kind_name(enum op_kind kind);

/* From now on every operator's time is added to `profile` (borrowed); NULL stops that. */
void engine_profile(struct engine *engine, struct profile *profile);

/* This device's own best rates, in FLOP/s: each the fastest of several runs of one large operator.
 */
struct ceiling {
    double matmul; /* 4096 × 1024 × 4096 in the engine's type; on a card 8192³ */
    double direct; /* 3×3, 512 → 512 channels at 64², oneDNN's direct form; 0 on other back ends */
};

int engine_ceiling(struct engine *engine, struct ceiling *ceiling, struct err *err) must_check;

/* Bytes per second from pinned memory to the card, over which weights come; 0: there is none. */
double engine_bus_rate(struct engine *engine);

/* The library beside the back end's own kernels, or why there is none; empty where none is meant to
 * be. */
void measure_library(const struct engine *engine, char *text, size_t bytes);

/* Writes a synthetic SD1.5 as the single file that it could have come from. ERR_IO. */
int measure_file(const struct model *model, const char *path, struct err *err) must_check;

/* Writes a ControlNet for a synthetic model. ERR_IO. */
int measure_controlnet(const struct model *model, const char *path, struct err *err) must_check;

/* Appends a LoRA file for the model as trainers make them: f16, `rank` for every matrix of the
 * UNet's attentions and feed-forwards, kohya's names, random values. ERR_MEMORY. */
int measure_lora(const struct model *model, int rank, struct buf *out, struct err *err) must_check;

/* What changing to an adapter that is loaded takes: making the combination that sessions share.
 * Nothing holds it afterwards. */
int measure_switch(struct model *model, struct adapter *adapter, double *seconds,
                   struct err *err) must_check;

#endif

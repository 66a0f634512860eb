/*
 * tune.h: which tile is the fastest for each product of a model on this card, for
 * engine/cuda/tuned.c.
 *
 * The products are those that planning passes of a step and a decoding ask for. Each is timed by
 * itself, in the type of the engine, with every tile that choose_candidates lists, and linear
 * layers by cublasLt where that is.
 */
#ifndef ATELIER_ENGINE_TUNE_H
#define ATELIER_ENGINE_TUNE_H

#include "engine/cuda/choose.h"
#include "engine/engine.h"

#define TUNE_LINE_BYTES 96

struct tune_result {
    int number, count;      /* of the product, from 1, and of how many */
    int samples;            /* that were computed at once */
    struct tuned tuned;     /* the fastest tile; results come in tuned_compare's order */
    struct product_tile as; /* what choose_tile would have taken */
    double seconds, as_seconds;
    int tried;                  /* tiles, and the library */
    bool by_library;            /* it was tried, too */
    char line[TUNE_LINE_BYTES]; /* as tuned.c has it */
};

struct tune_options {
    const char *model; /* NULL: SD1.5 and SDXL at full size and their usual sizes */
    int width, height; /* pixels; with `model` */
    int pictures;      /* at once, each with guidance */
    /* What is told and asked; each may be NULL, and none may call the engine. */
    void (*listed)(void *user, int count); /* so many products are to be tuned */
    void (*found)(void *user, const struct tune_result *result);
    bool (*stop)(void *user); /* asked before each trial; true ends it there */
    void *user;
};

/* ERR_UNSUPPORTED: the engine's back end has no tiles, or nothing takes them in its type. */
int engine_tune(struct engine *engine, const struct tune_options *options,
                struct err *err) must_check;

#endif

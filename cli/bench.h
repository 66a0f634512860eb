/* bench.h: what the engine's benchmarks share; bench.c has their options and opens the engine. */
#ifndef ATELIER_CLI_BENCH_H
#define ATELIER_CLI_BENCH_H

#include "engine/engine.h"

#include <stdbool.h>
#include <stdint.h>

#define BENCH_REPEATS 3
#define BENCH_PATH_BYTES 4096

struct bench_options {
    const char *what, *backend, *isa, *precision, *family, *model, *out;
    int64_t threads, width, height, batch, steps;
    bool json, weights_16bit;
};

double bench_now(void); /* seconds */

/* Progress, for people. */
void bench_say(const struct bench_options *options, const char *what);

const char *bench_precision(enum precision precision);

/* A new file's name, where temporary files go. -1: none can be made. */
int bench_temporary(char path[BENCH_PATH_BYTES], struct err *err) must_check;

struct bench_lora {
    struct adapter_info is;
    double load, change; /* seconds, the best of several */
};

/* Loads a LoRA of rank 16 made for the model from the page cache, several times; the last one stays
 * loaded. The first load also lists the model's names, once for all. */
int bench_load_lora(struct model *model, struct adapter **adapter, struct bench_lora *lora,
                    struct err *err) must_check;
#define BENCH_LORA_RANK 16

/* Each prints its figures. */
int bench_engine(struct engine *engine, const struct bench_options *options,
                 struct err *err) must_check;
int bench_switch(struct engine *engine, const struct bench_options *options,
                 struct err *err) must_check;
int bench_scenes(struct engine *engine, const struct bench_options *options,
                 struct err *err) must_check;
int bench_tune(struct engine *engine, const struct bench_options *options,
               struct err *err) must_check;

#endif

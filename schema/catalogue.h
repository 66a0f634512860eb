/*
 * catalogue.h: the models directory: which models there are, by name.
 *
 * A model is a folder with a model_index.json, or a .safetensors or .ckpt file; it is named by the
 * folder, or by the file without its ending. An optional catalogue.json in the directory gives
 * tiers and defaults:
 *
 *     {"models": {"tiny-shapes": {"tier": "fast", "family": "sd15", "prediction": "epsilon",
 *                                 "source": "s3://models/tiny-shapes.tar", "sha256": "…",
 *                                 "defaults": {"steps": 20, "guidance_scale": 4, "width": 128}}}}
 *
 * Adapters lie beside the models, or in the folders loras, embeddings and controlnets; they are
 * looked for when a job names one. A model with a source need not be there: a worker fetches it. An
 * unknown key, or a model that is neither there nor has a source, is an error. Read once, then
 * constant: any thread.
 */
#ifndef ATELIER_SCHEMA_CATALOGUE_H
#define ATELIER_SCHEMA_CATALOGUE_H

#include "common/err.h"
#include "common/file.h"
#include "schema/job.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CATALOGUE_MODELS_MAX 10000
#define CATALOGUE_WORDS_MAX 10000

struct json_doc;

struct catalogue_model {
    char *name;
    char *path;             /* NULL: not there; to be fetched from `source` */
    const char *source;     /* URI of a .safetensors file or of a folder, or NULL */
    const char *sha256;     /* of that file, hexadecimal, or NULL */
    const char *family;     /* "sd15", "sd21", "sdxl", …: for routing and prices; or NULL */
    uint64_t bytes;         /* of its weights, for the same; 0: not said */
    const char *tier;       /* or NULL */
    const char *prediction; /* "epsilon" or "v_prediction" over what is detected; or NULL */
    /* Defaults for jobs that do not say; "not given" as in struct job. */
    int width, height, steps;
    double guidance_scale;
    const char *sampler, *schedule, *negative_prompt;
    bool listed; /* in catalogue.json */
};

struct catalogue {
    char dir[FILE_PATH_MAX_BYTES];
    struct catalogue_model *models; /* sorted by name */
    size_t count;
    char **words; /* names in the folder embeddings, sorted */
    size_t word_count;
    struct json_doc *doc; /* of catalogue.json; owns the strings above */
};

/* Reads a directory. Errors: it is not there, holds no model, a bad catalogue.json. */
int catalogue_open(struct catalogue *catalogue, const char *dir, struct err *err) must_check;
void catalogue_release(struct catalogue *catalogue);

/* The model's number, or -1. */
int catalogue_find(const struct catalogue *catalogue, const char *name);

/* Writes a hint with the nearest names, "; did you mean …?", or all names when there are few. */
void catalogue_hint(const struct catalogue *catalogue, const char *name, char *out, size_t size);

/* Where an adapter is: NAME.safetensors, the pytorch_lora_weights or learned_embeds file in a
 * folder NAME, or such a folder with a config.json, in `folder` ("loras", "embeddings",
 * "controlnets") below the models directory or in that itself. Errors: ERR_INVALID for what is no
 * file's name, ERR_NOT_FOUND with the nearest names; both ERR_REJECT, without the name itself. */
int catalogue_adapter(const struct catalogue *catalogue, const char *folder, const char *name,
                      char path[FILE_PATH_MAX_BYTES], struct err *err) must_check;

/* Gives a job that names no embeddings those whose names are words of its prompts. */
void catalogue_find_words(const struct catalogue *catalogue, struct job *job);

/* Fills in what the job leaves to the model and the catalogue says. */
void catalogue_fill(const struct catalogue *catalogue, int model, struct job *job);

#endif

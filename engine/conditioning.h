/*
 * conditioning.h: what the UNet is told about a picture besides its latents and the time.
 *
 * A picture has one row per sample that it adds to a pass (enum conditioning_rows). A row is told a
 * text, which may be another one at another step, with pooled vector and, for SDXL, the numbers
 * that describe the picture. A text is its embedding, token by token, of any number of chunks; rows
 * of different length go into passes of their own. Everything is on the host and plain values: it
 * is saved with the session.
 */
#ifndef ATELIER_ENGINE_CONDITIONING_H
#define ATELIER_ENGINE_CONDITIONING_H

#include "common/buf.h"
#include "engine/unet.h"

#define CONDITIONING_ROWS_MAX 17          /* a negative prompt and PROMPT_PARTS_MAX */
#define CONDITIONING_STAGES_MAX 8192      /* of all rows */
#define CONDITIONING_MAX_BYTES (1u << 28) /* of all texts */

enum conditioning_rows {
    ROWS_ALONE, /* the prompt */
    ROWS_TEXT,  /* the negative prompt, then each part of the prompt */
    ROWS_BOTH,  /* the prompt, the negative prompt, and that without the picture */
};

struct conditioning_text {
    int32_t tokens;
    int32_t reserved;
    uint64_t at; /* in `values`: tokens × width, then pooled_width */
};

struct conditioning_stage {
    int32_t until; /* the last call of the model that is told this, counted from 0 */
    int32_t text;
};

struct conditioning_row {
    float weight;  /* in guidance */
    int32_t first; /* stage; they end where the next row's begin */
    float ids[UNET_IDS_MAX];
};

struct conditioning {
    int width;        /* of a token's embedding */
    int pooled_width; /* 0: the network takes no pooled text and no numbers */
    int id_count;
    double guidance_scale; /* that a distilled network is told */
    enum conditioning_rows rows_are;
    int row_count, stage_count, text_count;
    size_t value_count;
    struct conditioning_row rows[CONDITIONING_ROWS_MAX];
    struct conditioning_stage *stages; /* owned, as are those below */
    struct conditioning_text *texts;
    float *values;
};

/* Without rows and texts; nothing to release yet. */
void conditioning_init(struct conditioning *c, const struct unet_config *unet);
void conditioning_release(struct conditioning *c);

/* A text of zeros; its number, or -1: there is no room or no memory for it. */
int conditioning_add_text(struct conditioning *c, int tokens) must_check;

/* A row with no stages yet; the next stages are its own. Its last stage's `until` counts for
 * nothing. -1: no memory, or too many. */
int conditioning_add_row(struct conditioning *c, float weight) must_check;
int conditioning_add_stage(struct conditioning *c, int until, int text) must_check;

/* The text that a row is told at a call. */
int conditioning_text_at(const struct conditioning *c, int row, int call);

int conditioning_tokens(const struct conditioning *c, int text);
float *conditioning_text(const struct conditioning *c, int text);
float *conditioning_pooled(const struct conditioning *c, int text);

/* How many rows are told a text of so many tokens at some time. */
int conditioning_rows_of(const struct conditioning *c, int tokens);

/* As bytes and back, `*at` moving on; -1: they are not what was saved, or memory is out. */
void conditioning_save(const struct conditioning *c, struct buf *out);
int conditioning_restore(struct conditioning *c, const struct unet_config *unet, const char **at,
                         const char *end) must_check;

#endif

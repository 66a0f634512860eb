/*
 * reading.h: the texts of a request as one model reads them: parsed and in tokens, nothing computed
 * yet. It lays out the model's conditioning: its rows, what each is told at which call, and texts
 * of zeros, which session_text.c fills in.
 *
 * A dialect is followed with its program's quirks (prompt.h). a1111: the stages of a part are
 * padded with chunks without text to the longest's count (sd_hijack_clip.py, forward), the parts of
 * a prompt to the longest's by repeating the last vector (prompt_parser.py, stack_conds); prompt
 * and negative prompt of different length go into passes of their own, which is what its
 * CFGDenoiser does. A stage that lasts `until` step n is told to calls 0 ... n, one more than it
 * seems, since the program counts calls from 0 and compares with <=. comfyui: of two encoders the
 * longer text is cut (sdxl_clip.py).
 */
#ifndef ATELIER_ENGINE_READING_H
#define ATELIER_ENGINE_READING_H

#include "engine/prompt.h"
#include "engine/runtime.h"

struct vocabulary;

struct reading_text {
    int text; /* in the conditioning */
    int uses; /* stages of its part that are this text */
    struct prompt_tokens tokens[ENCODERS_MAX];
};

/* What is encoded and weighed together: a part of a prompt, all its stages. */
struct reading_part {
    const char *field;  /* of the request */
    const char *prefix; /* of its stages' names for observers */
    int clip_skip;      /* diffusers' meaning; it never reaches the negative prompt */
    int row;            /* of the conditioning */
    int before;         /* texts of the prompt's parts before this one */
    int chunks;
    struct reading_text *texts;
    int text_count;
};

struct reading {
    struct model *model;
    enum dialect dialect;
    struct vocabulary *vocabularies[ENCODERS_MAX]; /* with the request's inversions; NULL: none */
    struct reading_part parts[CONDITIONING_ROWS_MAX];
    int part_count;
};

/* Reads prompt and negative prompt. `steps` as prompt_parse has them; with `inversions` the
 * request's words are of this model. On failure, too, the reading is the caller's to release.
 * Errors (ERR_REJECT) name the field; ERR_MEMORY. */
int reading_make(struct reading *reading, struct conditioning *conditioning, struct model *model,
                 const struct draw *draw, int steps, bool inversions, struct err *err) must_check;
void reading_release(struct reading *reading); /* a zeroed one is empty */

#endif

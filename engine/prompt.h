/*
 * prompt.h: the dialects in which prompts are written: weights, chunks, changes over the steps.
 *
 * A prompt is read into parts that are drawn towards together (AND), each a list of stages, which
 * follow each other over the steps, each a list of pieces of text with a weight. Plain text
 * (DIALECT_DIFFUSERS) is one part of one stage of one piece. What does not parse is taken
 * literally, as the programs do whose dialects these are; no text is an error.
 *
 *     prompt_parse(&prompt, DIALECT_A1111, "a [cat:dog:0.5], (blue:1.3) BREAK hills", 20,
 *                  true, &err);
 *     stage = prompt_stage_at(&prompt, part, step);
 *     prompt_tokenize(&tokens, &prompt, stage, &reader, &err);
 *
 * Sources: a1111: modules/prompt_parser.py and modules/sd_hijack_clip.py of
 * AUTOMATIC1111/stable-diffusion-webui 1.10 (weights ×1.1 per round and ÷1.1 per square bracket,
 * (text:weight), BREAK, [from:to:when], [a|b], AND, chunks of 75 tokens that end at a comma where
 * one is near). comfyui: comfy/sd1_clip.py of ComfyUI 0.3 (×1.1 per round bracket, (text:weight) in
 * place of what is around it, chunks of 75 tokens that do not part short words).
 */
#ifndef ATELIER_ENGINE_PROMPT_H
#define ATELIER_ENGINE_PROMPT_H

#include "common/buf.h"
#include "engine/tokenizer.h"

#include <stdbool.h>

#define PROMPT_PARTS_MAX 16
#define PROMPT_STAGES_MAX 2048 /* of all parts together */
#define PROMPT_CHUNKS_MAX 256  /* of one stage: 16 KiB of digits, a token each, make 219 */
#define PROMPT_CHUNK_TOKENS 75 /* without start and end */

enum dialect { DIALECT_DIFFUSERS, DIALECT_A1111, DIALECT_COMFYUI, DIALECT_COUNT };

/* "diffusers", "a1111", "comfyui"; -1 / NULL for an unknown one. */
int dialect_by_name(const char *name);
const char *dialect_name(enum dialect dialect);

struct prompt_piece {
    size_t at, len; /* in prompt.text */
    float weight;
    bool chunk; /* a new chunk begins here: BREAK; it has no text */
};

struct prompt_stage {
    int until;        /* its last step, from 1 */
    struct buf text;  /* of all pieces */
    size_t pieces_at; /* in prompt.pieces */
    int piece_count;
};

struct prompt_part {
    float weight;
    int stages_at, stage_count; /* in prompt.stages */
};

struct prompt {
    enum dialect dialect;
    struct prompt_part parts[PROMPT_PARTS_MAX];
    int part_count;
    struct prompt_stage *stages;
    int stage_count;
    struct prompt_piece *pieces;
    size_t piece_count, piece_cap;
};

/* `steps` is how many the picture takes: times in a prompt are shares of it or step numbers. a1111
 * counts calls of the model there, and joins parts (`joins`) in prompts, not in negative ones.
 * Errors: ERR_INVALID for bytes that are no UTF-8, ERR_LIMIT for more parts or stages than the
 * maxima (both ERR_REJECT), ERR_MEMORY. */
int prompt_parse(struct prompt *prompt, enum dialect dialect, const char *text, int steps,
                 bool joins, struct err *err) must_check;
void prompt_release(struct prompt *prompt); /* a zeroed prompt is empty */

/* The stage of a part at a step, counted from 1. */
const struct prompt_stage *prompt_stage_at(const struct prompt *prompt, int part, int step);

/* ---- tokens ---- */

/* A word that stands for learned vectors: of ids `first` and up, which no tokenizer gives. a1111
 * finds it by its tokens wherever they follow each other, the longest name first; comfyui where a
 * word is `embedding:` and the name, and drops such a word when there is no such name. */
struct prompt_word {
    const char *name;
    uint32_t first;
    int vectors; /* 1 ... PROMPT_CHUNK_TOKENS */
};

/* What reads a prompt for one text encoder; all of it is borrowed. */
struct prompt_reader {
    const struct tokenizer *tokenizer;
    int length; /* tokens of a chunk with start and end, at most TOKENIZER_CLIP_TOKENS */
    const struct prompt_word *words;
    int word_count;
};

/* Tokens of one stage, chunk after chunk of `length`: start, the text's, end, padding. */
struct prompt_tokens {
    int chunks, length;
    uint32_t *ids;  /* owned */
    float *weights; /* owned; 1 for start, end and padding */
};

/* Errors: ERR_LIMIT over PROMPT_CHUNKS_MAX (ERR_REJECT), ERR_MEMORY. */
int prompt_tokenize(struct prompt_tokens *tokens, const struct prompt *prompt,
                    const struct prompt_stage *stage, const struct prompt_reader *reader,
                    struct err *err) must_check;

/* Appends chunks without text until there are so many. */
int prompt_tokens_pad(struct prompt_tokens *tokens, int chunks, const struct tokenizer *tokenizer,
                      struct err *err) must_check;
void prompt_tokens_release(struct prompt_tokens *tokens);

/* ---- weights ---- */

/* What the text encoder made of one stage. */
struct prompt_embeds {
    const struct prompt_tokens *tokens;
    float *values; /* chunks × length × width */
    int uses;      /* stages of the part with this very text */
};

/* Applies the weights in place. a1111 encodes all stages of a part together and restores the mean
 * of them together, chunk by chunk, so that `stages` are all of a part's, equally many chunks each.
 * comfyui moves each vector from its place in `empty`, the encoding of a chunk without text. */
void prompt_weigh(enum dialect dialect, const struct prompt_embeds *stages, int count, int width,
                  const float *empty);

/* Whether any weight is not 1. */
bool prompt_is_weighed(const struct prompt_tokens *tokens);

#endif

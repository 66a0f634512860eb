/*
 * tokenizer.h: prompts to CLIP token ids, as transformers 5.23's CLIPTokenizer has them.
 *
 * A text is cut at special tokens, brought into NFC and lower case, split into words, and each word
 * into byte pairs. A tokenizer is made once per model and is read-only from then on: any thread may
 * use it, it lives until it is freed.
 *
 *     tokenizer_create_folder(&tokenizer, "model/tokenizer", &err);
 *     uint32_t ids[77];
 *     size_t count;
 *     tokenizer_encode(tokenizer, prompt, strlen(prompt), ids, 77, &count, &err);
 *
 * Special tokens stand for themselves wherever they occur in a text: with the pad token "!" (SD2)
 * every "!" of a prompt is the pad token. Each is looked for in the text as it came or in the
 * normalized text, as the tree's files say ("normalized").
 */
#ifndef ATELIER_ENGINE_TOKENIZER_H
#define ATELIER_ENGINE_TOKENIZER_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

#define TOKENIZER_TEXT_MAX_BYTES (64u << 10)
#define TOKENIZER_CLIP_TOKENS 77 /* context of every CLIP text encoder */

#define TOKENIZER_START "<|startoftext|>"
#define TOKENIZER_END "<|endoftext|>"

struct tokenizer;

/* Reads a tree's tokenizer folder: vocab.json and merges.txt, or else tokenizer.json; and for the
 * special tokens tokenizer_config.json and special_tokens_map.json, as far as they exist. Errors
 * name the file (ERR_REJECT). */
int tokenizer_create_folder(struct tokenizer **tokenizer, const char *folder,
                            struct err *err) must_check;

/* The vocabulary of 49,408 tokens that ships in the program, for single-file checkpoints. `pad` is
 * TOKENIZER_END for SD1 and "!" for SD2. */
int tokenizer_create_builtin(struct tokenizer **tokenizer, const char *pad,
                             struct err *err) must_check;

/* The same with `count` more tokens, whose ids begin at tokenizer_vocabulary_size: each is found
 * wherever its text occurs in the normalized text, the longest first, as transformers finds what
 * add_tokens was given. `base` outlives it. Errors: ERR_INVALID for a text that is empty, too long
 * or no UTF-8 (ERR_REJECT), ERR_MEMORY. */
int tokenizer_extend(struct tokenizer **tokenizer, const struct tokenizer *base,
                     const char *const texts[], size_t count, struct err *err) must_check;

void tokenizer_free(struct tokenizer *tokenizer);

/* Fills ids[0..max_tokens) with start, the text's tokens, end, and padding. A longer text loses its
 * last tokens; `count` (may be NULL) receives the tokens of the whole text with start and end, so
 * that count > max_tokens means that it was cut. Errors: ERR_INVALID for bytes that are no UTF-8,
 * ERR_LIMIT over TOKENIZER_TEXT_MAX_BYTES (both ERR_REJECT), ERR_MEMORY. */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len, uint32_t *ids,
                     size_t max_tokens, size_t *count, struct err *err) must_check;

/* The text's tokens alone: no start, no end, no padding. Writes at most `max` of them; `count`
 * receives how many there are. */
int tokenizer_encode_raw(const struct tokenizer *tokenizer, const char *text, size_t len,
                         uint32_t *ids, size_t max, size_t *count, struct err *err) must_check;

/* The same with room for all of them: `ids` is the caller's to free. A byte can make more than one
 * token: NFC takes some characters apart, and lower case lengthens some. */
int tokenizer_encode_all(const struct tokenizer *tokenizer, const char *text, size_t len,
                         uint32_t **ids, size_t *count, struct err *err) must_check;

uint32_t tokenizer_start_id(const struct tokenizer *tokenizer);
uint32_t tokenizer_end_id(const struct tokenizer *tokenizer);
uint32_t tokenizer_pad_id(const struct tokenizer *tokenizer);

/* One more than the largest id that an encoding can hold. */
uint32_t tokenizer_vocabulary_size(const struct tokenizer *tokenizer);

#endif

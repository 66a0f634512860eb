/*
 * tokenizer_bpe.h: byte pair encoding of one word. Only tokenizer*.c includes it.
 *
 * Made in two strides: first every word of the vocabulary with its id, then the merges in the order
 * of their rank, then bpe_finish, after which it is read-only.
 */
#ifndef ATELIER_ENGINE_TOKENIZER_BPE_H
#define ATELIER_ENGINE_TOKENIZER_BPE_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BPE_NONE UINT32_MAX
#define BPE_WORD_MAX_BYTES 1024

struct bpe;
struct bpe_scratch;

/* NULL when there is no memory. `words` and `merges` are how many will be added at most. */
struct bpe *bpe_create(size_t words, size_t merges);
void bpe_free(struct bpe *bpe);

/* A word of the vocabulary in its letters (see bpe_letter). -1 for an id or a length out of range.
 */
int bpe_add_word(struct bpe *bpe, const char *word, size_t len, uint32_t id) must_check;

/* The next merge: `left` and `right` become the word that they spell. -1 if the vocabulary lacks
 * one of the three. */
int bpe_add_merge(struct bpe *bpe, const char *left, size_t left_len, const char *right,
                  size_t right_len) must_check;

/* BPE_NONE for a word that the vocabulary lacks. Not after bpe_finish. */
uint32_t bpe_find(const struct bpe *bpe, const char *word, size_t len);

/* One more than the largest id. */
uint32_t bpe_size(const struct bpe *bpe);

/* Drops the words. `unknown` stands for a byte that has no letter in the vocabulary. */
void bpe_finish(struct bpe *bpe, uint32_t unknown);

/* The letter that stands for a byte, as UTF-8 with a NUL. */
void bpe_letter(unsigned char byte, char out[5]);

/* Memory for one encoding at a time; it grows with the longest word. NULL when there is none. */
struct bpe_scratch *bpe_scratch_create(void);
void bpe_scratch_free(struct bpe_scratch *scratch);

/* Where to put the bytes of the next word, at most `max_bytes`; NULL when there is no memory. */
unsigned char *bpe_scratch_word(struct bpe_scratch *scratch, size_t max_bytes);

/* Encodes the first `len` > 0 bytes put there as one word. Returns its tokens, which the scratch
 * holds until the next word. */
const uint32_t *bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, size_t len,
                           size_t *count);

#endif

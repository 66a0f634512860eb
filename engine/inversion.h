/*
 * inversion.h: textual inversion: words that stand for learned vectors instead of rows of a text
 * encoder's table. engine.h has the files.
 *
 * A vocabulary is one encoder's tokenizer with the words of a request's inversions added, as
 * diffusers adds them: the first vector's token is the word, the next ones' are word_1, word_2, …,
 * and a prompt's word becomes "word word_1 word_2" before it is tokenized. A token's id is the
 * tokenizer's size and up, so that a pooled position that looks for the largest id finds it, as
 * transformers does.
 *
 * Source: Gal et al. 2022, "An Image is Worth One Word"; diffusers' TextualInversionLoaderMixin.
 */
#ifndef ATELIER_ENGINE_INVERSION_H
#define ATELIER_ENGINE_INVERSION_H

#include "common/buf.h"
#include "engine/clip.h"
#include "engine/engine.h"
#include "engine/prompt.h"

#define INVERSION_VECTORS_MAX 75 /* of one word: a prompt has room for no more */

struct encoder;
struct vocabulary;

/* Encoder `number` of the inversions' model. Errors: ERR_INVALID for a name that is no token
 * (ERR_REJECT), ERR_MEMORY. */
int vocabulary_create(struct vocabulary **vocabulary, const struct model *model, int number,
                      const struct draw_inversion *inversions, int count,
                      struct err *err) must_check;
void vocabulary_free(struct vocabulary *vocabulary); /* NULL is fine */

const struct tokenizer *vocabulary_tokenizer(const struct vocabulary *vocabulary);

/* The words themselves, for the dialects that find them in their own ways. Borrowed. */
const struct prompt_word *vocabulary_words(const struct vocabulary *vocabulary, int *count);

/* Writes the prompt with each word of several vectors spelled out. */
int vocabulary_expand(const struct vocabulary *vocabulary, const char *prompt, struct buf *out,
                      struct err *err) must_check;

/* The vector of an added token, at this position of the prompt; false for a token of the table. */
bool vocabulary_row(const struct vocabulary *vocabulary, uint32_t id, int position, float *values);

#endif

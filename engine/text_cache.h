/*
 * text_cache.h: what a model's text encoders made of chunks of text, kept for the next picture that
 * asks for the same: a bulk batch has few prompts and often one negative prompt.
 *
 * A chunk's encoding depends on its key alone, so what comes out of the cache is bit for bit what
 * encoding it again would give. The encodings used longest ago go when TEXT_CACHE_MAX_BYTES is
 * reached. Used under the engine's lock.
 */
#ifndef ATELIER_ENGINE_TEXT_CACHE_H
#define ATELIER_ENGINE_TEXT_CACHE_H

#include "engine/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TEXT_CACHE_MAX_BYTES ((size_t)64 << 20) /* some 250 chunks of SD1.5 */

/* Zero it before filling it in: keys are compared as bytes. */
struct text_key {
    uint64_t adapted; /* adapted_rows.id: the changes that the encoder's layers see */
    uint64_t learned; /* of the vectors that stand for tokens beyond its table; 0: none */
    int32_t encoder, skip, pooled_at;
    int32_t ids[TOKENIZER_CLIP_TOKENS];
};

struct text_cache {
    struct text_entry *newest; /* a list, by use */
    size_t bytes;
};

/* `count` floats: the embeddings, then the pooled vector; or NULL. They live until the next call.
 */
const float *text_cache_find(struct text_cache *cache, const struct text_key *key);

/* Keeps a copy of two runs of floats as one. Where there is no memory for it nothing is kept. */
void text_cache_add(struct text_cache *cache, const struct text_key *key, const float *embeds,
                    size_t embed_count, const float *pooled, size_t pooled_count);

void text_cache_release(struct text_cache *cache); /* a zeroed one is empty */

/* Mixes bytes into a key's `learned`. */
uint64_t text_key_mix(uint64_t hash, const void *bytes, size_t len);

#endif

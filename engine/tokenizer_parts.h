/*
 * tokenizer_parts.h: what a tokenizer is made of. Only tokenizer*.c includes it.
 */
#ifndef ATELIER_ENGINE_TOKENIZER_PARTS_H
#define ATELIER_ENGINE_TOKENIZER_PARTS_H

#include "engine/tokenizer_bpe.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPECIALS_MAX 64
#define SPECIAL_MAX_BYTES 64

/* A text that is one token wherever it occurs. */
struct special {
    uint32_t codes[SPECIAL_MAX_BYTES];
    size_t len;
    uint32_t id;
    bool normalized; /* looked for after NFC and lower case, not before */
};

struct tokenizer {
    struct bpe *bpe;
    struct special specials[SPECIALS_MAX];
    size_t specials_count;
    struct special *added; /* of an extended tokenizer, which borrows the rest from another */
    size_t added_count;
    uint32_t start, end, pad, size;
};

#endif

/* Any bytes: an encoding whose ids are in the vocabulary, or an error for what is no UTF-8. */
#include "engine/tokenizer.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tokenizer;
    uint32_t ids[TOKENIZER_CLIP_TOKENS];
    size_t count;
    struct err err;

    if (tokenizer == NULL && tokenizer_create_builtin(&tokenizer, TOKENIZER_END, &err) != 0)
        abort();
    if (tokenizer_encode(tokenizer, (const char *)data, size, ids, TOKENIZER_CLIP_TOKENS, &count,
                         &err) != 0) {
        ASSERT(err.code == ERR_INVALID || err.code == ERR_LIMIT);
        return 0;
    }
    ASSERT(ids[0] == tokenizer_start_id(tokenizer));
    ASSERT(count >= 2);
    for (size_t i = 0; i < TOKENIZER_CLIP_TOKENS; i++) {
        ASSERT(ids[i] < tokenizer_vocabulary_size(tokenizer));
        ASSERT(i < count || ids[i] == tokenizer_pad_id(tokenizer));
    }
    return 0;
}

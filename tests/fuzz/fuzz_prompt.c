/* Any text in any dialect: stages that cover the steps, chunks of known tokens, finite weights. */
#include "engine/prompt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 30
#define WORD_ID 100000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_stage(const struct prompt *prompt, const struct prompt_stage *stage,
                        const struct tokenizer *tokenizer)
{
    static const struct prompt_word WORDS[] = {{"toy", WORD_ID, 3}, {"a cat", WORD_ID + 3, 75}};
    struct prompt_reader reader = {.tokenizer = tokenizer,
                                   .length = TOKENIZER_CLIP_TOKENS,
                                   .words = WORDS,
                                   .word_count = sizeof(WORDS) / sizeof(WORDS[0])};
    struct prompt_tokens tokens;
    struct err err;

    for (int i = 0; i < stage->piece_count; i++) {
        const struct prompt_piece *piece = &prompt->pieces[stage->pieces_at + (size_t)i];
        ASSERT(piece->at + piece->len <= stage->text.len);
    }
    if (prompt_tokenize(&tokens, prompt, stage, &reader, &err) != 0) {
        ASSERT(err.code == ERR_INVALID || err.code == ERR_LIMIT);
        return;
    }
    ASSERT(tokens.chunks >= 1 && tokens.chunks <= PROMPT_CHUNKS_MAX);
    for (int i = 0; i < tokens.chunks * TOKENIZER_CLIP_TOKENS; i++) {
        ASSERT(tokens.ids[i] < tokenizer_vocabulary_size(tokenizer) ||
               (tokens.ids[i] >= WORD_ID && tokens.ids[i] < WORD_ID + 78));
        ASSERT(!isnan(tokens.weights[i]));
    }
    prompt_tokens_release(&tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *tokenizer;
    struct prompt prompt;
    struct err err;
    char *text;

    if (tokenizer == NULL && tokenizer_create_builtin(&tokenizer, TOKENIZER_END, &err) != 0)
        abort();
    if (size < 1 || size > 4096)
        return 0;
    text = strndup((const char *)data + 1, size - 1);
    if (text == NULL)
        abort();
    if (prompt_parse(&prompt, (enum dialect)(data[0] % DIALECT_COUNT), text, STEPS, size % 7 != 0,
                     &err) == 0) {
        for (int part = 0; part < prompt.part_count; part++) {
            const struct prompt_stage *last = NULL;
            for (int step = 1; step <= STEPS; step++) {
                const struct prompt_stage *stage = prompt_stage_at(&prompt, part, step);
                ASSERT(stage->until >= step);
                if (stage != last && (step < 4 || step == STEPS))
                    check_stage(&prompt, stage, tokenizer);
                last = stage;
            }
        }
        prompt_release(&prompt);
    } else {
        ASSERT(err.code == ERR_LIMIT);
    }
    free(text);
    return 0;
}

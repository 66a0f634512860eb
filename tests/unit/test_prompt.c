/*
 * The dialects against the examples that their own programs give: the docstrings of
 * modules/prompt_parser.py of stable-diffusion-webui 1.10, and what comfy/sd1_clip.py of ComfyUI
 * 0.3 does by reading it.
 */
#include "engine/prompt.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 10

static struct tokenizer *tokenizer;

static struct prompt parse(enum dialect dialect, const char *text)
{
    struct prompt prompt;
    struct err err;
    assert_int_equal(prompt_parse(&prompt, dialect, text, STEPS, true, &err), 0);
    return prompt;
}

/* ---- weights ---- */

/* "text|weight;…" of the only stage; a break is "#". */
static void assert_pieces(enum dialect dialect, const char *text, const char *expected)
{
    struct prompt prompt = parse(dialect, text);
    const struct prompt_stage *stage = prompt_stage_at(&prompt, 0, 1);
    char shown[2048] = "";
    for (int i = 0; i < stage->piece_count; i++) {
        const struct prompt_piece *piece = &prompt.pieces[stage->pieces_at + (size_t)i];
        size_t at = strlen(shown);
        if (piece->chunk)
            snprintf(shown + at, sizeof(shown) - at, "#;");
        else
            snprintf(shown + at, sizeof(shown) - at, "%.*s|%.4g;", (int)piece->len,
                     stage->text.data + piece->at, (double)piece->weight);
    }
    assert_string_equal(shown, expected);
    prompt_release(&prompt);
}

static void test_weights_of_a1111(void **state)
{
    static const char *const examples[][2] = {
        {"normal text", "normal text|1;"},
        {"an (important) word", "an |1;important|1.1; word|1;"},
        {"(unbalanced", "unbalanced|1.1;"},
        {"\\(literal\\]", "(literal]|1;"},
        {"(unnecessary)(parens)", "unnecessaryparens|1.1;"},
        {"a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
         "a |1;house|1.573; |1.1;on|1; a |1.1;hill|0.55;, sun, |1.1;sky|1.464;.|1.1;"},
        {"", ""},
        {"a BREAK b", "a|1;#;b|1;"},
        {"a BREAK BREAK b", "a|1;#;|1;#;b|1;"},
        {"BREAKFAST, BREAK", "BREAKFAST,|1;#;|1;"},
        {"(a BREAK b:1.5)", "a|1.5;BREAK|-1.5;b|1.5;"},
        {"((((a:1.1", "a|1.464;"}, /* the number is the part's weight, as at the end of any part */
        {"a:1.2) b", "a:1.2) b|1;"},
        {"(a:1.2.3)", "a:1.2.3|1.1;"},
        {"back\\slash", "backslash|1;"},
        {"time: 10:30 h", "time: 10:30 h|1;"},
        {"(a: 1.5 )b", "a|1.5;b|1;"},
        {"[low]", "low|0.9091;"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(examples) / sizeof(examples[0]); i++)
        assert_pieces(DIALECT_A1111, examples[i][0], examples[i][1]);
}

static void test_weights_of_comfyui(void **state)
{
    static const char *const examples[][2] = {
        {"normal text", "normal text|1;"},
        {"an (important) word", "an |1;important|1.1; word|1;"},
        {"((twice))", "twice|1.21;"},
        {"(outer (inner:0.5) again:1.3)", "outer |1.3;inner|0.5; again|1.3;"},
        {"((a:1.2))", "a|1.2;"},
        {"\\(kept\\) [as it is]", "(kept) [as it is]|1;"},
        {"(no number: here)", "no number: here|1.1;"},
        {"(:1.5)", ":1.5|1.1;"},
        {"(unbalanced", "(unbalanced|1;"},
        {"a) (b", "a) (b|1;"},
        {"a BREAK b", "a BREAK b|1;"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(examples) / sizeof(examples[0]); i++)
        assert_pieces(DIALECT_COMFYUI, examples[i][0], examples[i][1]);
}

static void test_plain_text_stays(void **state)
{
    (void)state;
    assert_pieces(DIALECT_DIFFUSERS, "a (b:1.2) [c:d:3] BREAK e AND f",
                  "a (b:1.2) [c:d:3] BREAK e AND f|1;");
}

/* ---- changes over the steps ---- */

/* "until:text;…" before weights are read: brackets that are weights show as what is left. */
static void assert_stages(const char *text, const char *expected)
{
    struct prompt prompt = parse(DIALECT_A1111, text);
    char shown[2048] = "";
    for (int i = 0; i < prompt.stage_count; i++) {
        size_t at = strlen(shown);
        snprintf(shown + at, sizeof(shown) - at, "%d:%s;", prompt.stages[i].until,
                 prompt.stages[i].text.data);
    }
    assert_string_equal(shown, expected);
    prompt_release(&prompt);
}

static void test_changes(void **state)
{
    static const char *const examples[][2] = {
        {"test", "10:test;"},
        {"a [b:3]", "3:a ;10:a b;"},
        {"a [b: 3]", "3:a ;10:a b;"},
        {"a [[[b]]:2]", "2:a ;10:a b;"},
        {"[(a:2):3]", "3:;10:a;"},
        {"a [b : c : 1] d", "1:a b  d;10:a  c  d;"},
        {"a[b:[c:d:2]:1]e", "1:abe;2:ace;10:ade;"},
        {"a [unbalanced", "10:a unbalanced;"},
        {"a [b:.5] c", "5:a  c;10:a b c;"},
        {"((a][:b:c [d:3]", "3:a]:b:c ;10:a]:b:c d;"},
        {"[a|b]", "1:a;2:b;3:a;4:b;5:a;6:b;7:a;8:b;9:a;10:b;"},
        {"[fe|]male",
         "1:female;2:male;3:female;4:male;5:female;6:male;7:female;8:male;9:female;10:male;"},
        {"[fe|||]male", "1:female;2:male;3:male;4:male;5:female;6:male;7:male;8:male;9:female;"
                        "10:male;"},
        {"[from::4]", "4:from;10:;"},
        {"[a:b:99]", "10:a;"},
        {"[a:b:0]", "10:b;"},
        {"a | b [c:3]", "10:a | b c:3;"}, /* the original's parser gives up on it */
        {"[a:b:c:3]", "10:a:b:c:3;"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(examples) / sizeof(examples[0]); i++)
        assert_stages(examples[i][0], examples[i][1]);
}

static void test_parts(void **state)
{
    struct prompt prompt = parse(DIALECT_A1111, "a cat AND a dog :1.2 AND LANDS [x:5] : 0.5");
    (void)state;
    assert_int_equal(prompt.part_count, 3);
    assert_string_equal(prompt_stage_at(&prompt, 0, 7)->text.data, "a cat ");
    assert_true(fabsf(prompt.parts[1].weight - 1.2f) < 1e-6f);
    assert_string_equal(prompt_stage_at(&prompt, 1, 1)->text.data, " a dog");
    assert_true(prompt.parts[2].weight == 0.5f);
    assert_string_equal(prompt_stage_at(&prompt, 2, 5)->text.data, " LANDS ");
    assert_string_equal(prompt_stage_at(&prompt, 2, 6)->text.data, " LANDS x");
    prompt_release(&prompt);
}

/* ---- chunks ---- */

static struct prompt_tokens tokens_with(enum dialect dialect, const char *text,
                                        const struct prompt_word *words, int word_count)
{
    struct prompt prompt = parse(dialect, text);
    struct prompt_reader reader = {.tokenizer = tokenizer,
                                   .length = TOKENIZER_CLIP_TOKENS,
                                   .words = words,
                                   .word_count = word_count};
    struct prompt_tokens tokens;
    struct err err;
    assert_int_equal(
        prompt_tokenize(&tokens, &prompt, prompt_stage_at(&prompt, 0, 1), &reader, &err), 0);
    prompt_release(&prompt);
    return tokens;
}

static struct prompt_tokens tokens_of(enum dialect dialect, const char *text)
{
    return tokens_with(dialect, text, NULL, 0);
}

/* Tokens between start and end. */
static int length_of(const struct prompt_tokens *tokens, int chunk)
{
    const uint32_t *ids = tokens->ids + chunk * TOKENIZER_CLIP_TOKENS;
    int n = 0;
    assert_int_equal(ids[0], tokenizer_start_id(tokenizer));
    while (ids[1 + n] != tokenizer_end_id(tokenizer))
        n++;
    return n;
}

static void repeat(char *out, const char *word, int times)
{
    for (*out = '\0'; times > 0; times--)
        strcat(out, word);
}

static void test_chunks(void **state)
{
    char text[4096];
    struct prompt_tokens tokens;
    (void)state;

    tokens = tokens_of(DIALECT_A1111, "");
    assert_int_equal(tokens.chunks, 1);
    assert_int_equal(length_of(&tokens, 0), 0);
    prompt_tokens_release(&tokens);

    tokens = tokens_of(DIALECT_A1111, "a (cat:1.5) BREAK dog");
    assert_int_equal(tokens.chunks, 2);
    assert_int_equal(length_of(&tokens, 0), 2);
    assert_true(tokens.weights[1] == 1 && tokens.weights[2] == 1.5f && tokens.weights[3] == 1);
    assert_int_equal(length_of(&tokens, 1), 1);
    prompt_tokens_release(&tokens);

    repeat(text, "cat ", 80);
    tokens = tokens_of(DIALECT_A1111, text);
    assert_int_equal(tokens.chunks, 2);
    assert_int_equal(length_of(&tokens, 0), 75);
    assert_int_equal(length_of(&tokens, 1), 5);
    prompt_tokens_release(&tokens);

    /* 60 cats, a comma, 20 dogs: the dogs move on, the comma stays. */
    repeat(text, "cat ", 60);
    strcat(text, ",");
    repeat(text + strlen(text), " dog", 20);
    tokens = tokens_of(DIALECT_A1111, text);
    assert_int_equal(length_of(&tokens, 0), 61);
    assert_int_equal(length_of(&tokens, 1), 20);
    prompt_tokens_release(&tokens);

    /* A comma more than 20 tokens back is left where it is. */
    repeat(text, "cat ", 54);
    strcat(text, ",");
    repeat(text + strlen(text), " dog", 25);
    tokens = tokens_of(DIALECT_A1111, text);
    assert_int_equal(length_of(&tokens, 0), 75);
    prompt_tokens_release(&tokens);
}

static void test_chunks_of_comfyui(void **state)
{
    char text[4096];
    struct prompt_tokens tokens;
    (void)state;
    repeat(text, "cat ", 73);
    strcat(text, "1234 dog");
    tokens = tokens_of(DIALECT_COMFYUI, text); /* four digits, four tokens: the word moves on */
    assert_int_equal(tokens.chunks, 2);
    assert_int_equal(length_of(&tokens, 0), 73);
    assert_int_equal(length_of(&tokens, 1), 5);
    prompt_tokens_release(&tokens);
    repeat(text, "cat ", 73);
    strcat(text, "123456789");
    tokens = tokens_of(DIALECT_COMFYUI, text); /* nine tokens: it is cut */
    assert_int_equal(length_of(&tokens, 0), 75);
    assert_int_equal(length_of(&tokens, 1), 7);
    prompt_tokens_release(&tokens);
}

#define TOY 90000u
#define TOY_BOAT 90010u

/* Each id of a chunk's text with TOY or more, as far as `text` goes: "." for any other. */
static void assert_words(enum dialect dialect, const char *text, const char *expected)
{
    static const struct prompt_word words[] = {{"toy", TOY, 2}, {"toy boat", TOY_BOAT, 3}};
    struct prompt_tokens tokens = tokens_with(dialect, text, words, 2);
    char shown[256] = "";
    for (int i = 0, n = length_of(&tokens, 0); i < n; i++) {
        uint32_t id = tokens.ids[1 + i];
        char letter = (char)(id >= TOY_BOAT ? 'A' + id - TOY_BOAT
                             : id >= TOY    ? 'a' + id - TOY
                                            : '.');
        snprintf(shown + i, sizeof(shown) - (size_t)i, "%c", letter);
    }
    assert_string_equal(shown, expected);
    prompt_tokens_release(&tokens);
}

static void test_words_for_vectors(void **state)
{
    (void)state;
    assert_words(DIALECT_A1111, "a toy, a Toy boat toys", ".ab..ABC.");
    assert_words(DIALECT_A1111, "a (toy:1.2) boat", ".ab.");
    assert_words(DIALECT_COMFYUI, "a toy, embedding:toy house", "...ab.");
    assert_words(DIALECT_COMFYUI, "a (embedding:toy,:1.2) embedding:cat x", ".ab..");
    assert_words(DIALECT_COMFYUI, "embedding:cat,", ".");
    assert_words(DIALECT_COMFYUI, "embedding:", "");
}

/* A word's vectors go into one chunk. */
static void test_vectors_stay_together(void **state)
{
    static const struct prompt_word words[] = {{"toy", TOY, 10}};
    char text[4096];
    (void)state;
    repeat(text, "cat ", 70);
    strcat(text, "toy");
    struct prompt_tokens tokens = tokens_with(DIALECT_A1111, text, words, 1);
    assert_int_equal(tokens.chunks, 2);
    assert_int_equal(length_of(&tokens, 0), 70);
    assert_int_equal(length_of(&tokens, 1), 10);
    prompt_tokens_release(&tokens);
}

static void test_padding_with_chunks(void **state)
{
    struct prompt_tokens tokens = tokens_of(DIALECT_A1111, "a cat");
    struct err err;
    (void)state;
    assert_int_equal(prompt_tokens_pad(&tokens, 3, tokenizer, &err), 0);
    assert_int_equal(tokens.chunks, 3);
    assert_int_equal(length_of(&tokens, 0), 2);
    assert_int_equal(length_of(&tokens, 2), 0);
    prompt_tokens_release(&tokens);
}

/* U+0344 is two bytes and, taken apart, four tokens. */
static void test_more_tokens_than_bytes(void **state)
{
    static const enum dialect dialects[] = {DIALECT_A1111, DIALECT_COMFYUI};
    static const char accents[] = "\xcd\x84\xcd\x84\xcd\x84\xcd\x84";
    struct err err;
    size_t count;
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct prompt_tokens tokens = tokens_of(dialects[i], accents);
        uint32_t *ids;
        assert_int_equal(
            tokenizer_encode_all(tokenizer, accents, strlen(accents), &ids, &count, &err), 0);
        assert_true(count > strlen(accents) + 1);
        assert_int_equal(length_of(&tokens, 0), count);
        assert_memory_equal(tokens.ids + 1, ids, count * sizeof(*ids));
        free(ids);
        prompt_tokens_release(&tokens);
    }
}

/* 16 KiB of any kind make no more than the maximum of chunks, but for a BREAK every six bytes. */
static void test_long_prompts(void **state)
{
    static char text[16385];
    struct prompt_tokens tokens;
    struct prompt prompt;
    struct err err;
    (void)state;
    memset(text, '1', 16384);
    tokens = tokens_of(DIALECT_A1111, text);
    assert_int_equal(tokens.chunks, 219);
    assert_int_equal(length_of(&tokens, 218), 16384 - 218 * 75);
    prompt_tokens_release(&tokens);
    tokens = tokens_of(DIALECT_COMFYUI, text);
    assert_int_equal(tokens.chunks, 219);
    prompt_tokens_release(&tokens);
    repeat(text, "a BREAK ", 300);
    prompt = parse(DIALECT_A1111, text);
    struct prompt_reader reader = {.tokenizer = tokenizer, .length = TOKENIZER_CLIP_TOKENS};
    assert_int_equal(prompt_tokenize(&tokens, &prompt, &prompt.stages[0], &reader, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    assert_contains(err.message, "256 chunks");
    prompt_release(&prompt);
}

/* ---- weighing ---- */

static void test_weighing(void **state)
{
    enum { WIDTH = 3, COUNT = TOKENIZER_CLIP_TOKENS * WIDTH };
    float embeds[COUNT], empty[COUNT], before = 0, after = 0;
    struct prompt_tokens tokens = tokens_of(DIALECT_COMFYUI, "a (cat:1.5)");
    (void)state;
    for (int i = 0; i < COUNT; i++) {
        embeds[i] = 1 + (float)(i % 7);
        empty[i] = 2;
        before += embeds[i];
    }
    struct prompt_embeds stage = {.tokens = &tokens, .values = embeds, .uses = 1};
    prompt_weigh(DIALECT_COMFYUI, &stage, 1, WIDTH, empty);
    assert_true(embeds[1 * WIDTH] == 1 + 3 % 7);
    assert_true(embeds[2 * WIDTH] == (1 + 6 % 7 - 2) * 1.5f + 2);
    embeds[2 * WIDTH] = 7, embeds[2 * WIDTH + 1] = 1, embeds[2 * WIDTH + 2] = 2;
    prompt_weigh(DIALECT_A1111, &stage, 1, WIDTH, NULL);
    for (int i = 0; i < COUNT; i++)
        after += embeds[i];
    assert_true(fabsf(after / before - 1) < 1e-5f);
    assert_true(fabsf(embeds[2 * WIDTH] / embeds[0] - 7 * 1.5f) < 1e-4f);
    prompt_tokens_release(&tokens);
}

/* The mean is that of all stages of a part, each as often as it is told. */
static void test_stages_are_weighed_together(void **state)
{
    enum { COUNT = TOKENIZER_CLIP_TOKENS };
    float plain[COUNT], heavy[COUNT];
    struct prompt_tokens one = tokens_of(DIALECT_A1111, "a cat");
    struct prompt_tokens two = tokens_of(DIALECT_A1111, "a (cat:2)");
    struct prompt_embeds stages[] = {{&one, plain, 3}, {&two, heavy, 1}};
    float before = 3 * COUNT + COUNT, after = 3 * COUNT + COUNT + 1;
    (void)state;
    for (int i = 0; i < COUNT; i++)
        plain[i] = heavy[i] = 1;
    prompt_weigh(DIALECT_A1111, stages, 2, 1, NULL);
    assert_true(fabsf(plain[2] - before / after) < 1e-6f);
    assert_true(fabsf(heavy[2] - 2 * before / after) < 1e-6f);
    prompt_tokens_release(&one);
    prompt_tokens_release(&two);
}

/* ---- what is hostile ---- */

static void test_deep_nesting(void **state)
{
    static char text[16385];
    static const char *const marks[] = {"(", "[", "((a:", "[a|", "[a:", ")", "]", ":", "\\", "|"};
    (void)state;
    for (size_t m = 0; m < sizeof(marks) / sizeof(marks[0]); m++)
        for (int dialect = 0; dialect < DIALECT_COUNT; dialect++) {
            struct prompt_tokens tokens;
            repeat(text, marks[m], (int)(2000 / strlen(marks[m])));
            tokens = tokens_of((enum dialect)dialect, text);
            prompt_tokens_release(&tokens);
        }
    memset(text, '(', 16384);
    struct prompt prompt = parse(DIALECT_A1111, text);
    prompt_release(&prompt);
    prompt = parse(DIALECT_COMFYUI, text);
    prompt_release(&prompt);
}

/* AND joins no negative prompts, and a number at their end is text. */
static void test_negative_prompts_are_not_joined(void **state)
{
    struct prompt prompt;
    struct err err;
    (void)state;
    assert_int_equal(prompt_parse(&prompt, DIALECT_A1111, "a AND [b:c:2]:1.5", 4, false, &err), 0);
    assert_int_equal(prompt.part_count, 1);
    assert_int_equal(prompt.stage_count, 2);
    assert_true(prompt.parts[0].weight == 1);
    assert_string_equal(prompt_stage_at(&prompt, 0, 3)->text.data, "a AND c:1.5");
    prompt_release(&prompt);
}

static void test_too_much(void **state)
{
    char text[512];
    struct prompt prompt;
    struct err err;
    (void)state;
    repeat(text, "a AND ", 20);
    assert_int_equal(prompt_parse(&prompt, DIALECT_A1111, text, STEPS, true, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, "16 parts");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_of_a1111),
        cmocka_unit_test(test_weights_of_comfyui),
        cmocka_unit_test(test_plain_text_stays),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_chunks_of_comfyui),
        cmocka_unit_test(test_words_for_vectors),
        cmocka_unit_test(test_vectors_stay_together),
        cmocka_unit_test(test_padding_with_chunks),
        cmocka_unit_test(test_more_tokens_than_bytes),
        cmocka_unit_test(test_long_prompts),
        cmocka_unit_test(test_weighing),
        cmocka_unit_test(test_stages_are_weighed_together),
        cmocka_unit_test(test_deep_nesting),
        cmocka_unit_test(test_negative_prompts_are_not_joined),
        cmocka_unit_test(test_too_much),
    };
    struct err err;
    if (tokenizer_create_builtin(&tokenizer, TOKENIZER_END, &err) != 0)
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_free(tokenizer);
    return rc;
}

/* Tokens against transformers (tests/golden/tokens.jsonl), and what the golden texts cannot hold.
 */
#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "engine/tokenizer.h"
#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define GOLDEN "tests/golden/"
#define IDS_MAX 70000
#define KINDS_MAX 16

struct kind {
    char name[64];
    struct tokenizer *tokenizer;
};

static struct tokenizer *make(const char *name)
{
    struct err err;
    struct tokenizer *tokenizer;
    char folder[FILE_PATH_MAX_BYTES];
    int result;
    snprintf(folder, sizeof(folder), GOLDEN "%s", name);
    if (strcmp(name, "clip") == 0)
        result = tokenizer_create_builtin(&tokenizer, TOKENIZER_END, &err);
    else if (strcmp(name, "clip-pad!") == 0)
        result = tokenizer_create_builtin(&tokenizer, "!", &err);
    else
        result = tokenizer_create_folder(&tokenizer, folder, &err);
    if (result != 0)
        fail_msg("%s", err.message);
    return tokenizer;
}

static struct tokenizer *kind_get(struct kind *kinds, const char *name)
{
    int i = 0;
    while (kinds[i].tokenizer && strcmp(kinds[i].name, name) != 0)
        i++;
    assert_in_range(i, 0, KINDS_MAX - 1);
    if (!kinds[i].tokenizer) {
        snprintf(kinds[i].name, sizeof(kinds[i].name), "%s", name);
        kinds[i].tokenizer = make(name);
    }
    return kinds[i].tokenizer;
}

static bool same_ids(const struct json *want, const uint32_t *got, size_t count)
{
    size_t i = 0;
    for (const struct json *id = want->child; id; id = id->next, i++)
        if (i == count || json_int_or(id, -1) != got[i])
            return false;
    return i == count;
}

static void check_line(struct kind *kinds, const char *line, size_t len)
{
    static uint32_t ids[IDS_MAX];
    struct err err;
    struct json_doc *doc;
    if (json_parse(&doc, line, len, NULL, &err) != 0)
        fail_msg("%s", err.message);
    const struct json *row = json_root(doc), *text = json_get(row, "text");
    const char *name = json_string_or(json_get(row, "tokenizer"), "");
    struct tokenizer *tokenizer = kind_get(kinds, name);
    size_t count = 0;
    const struct json *want = json_get(row, "ids"), *padded = json_get(row, "padded");
    assert_int_equal(
        tokenizer_encode(tokenizer, text->text, text->text_len, ids, want->count, &count, &err), 0);
    if (count != want->count || !same_ids(want, ids, want->count))
        fail_msg("%s: other tokens for \"%s\"", name, text->text);
    if (padded) {
        assert_int_equal(
            tokenizer_encode(tokenizer, text->text, text->text_len, ids, 77, &count, &err), 0);
        if (!same_ids(padded, ids, 77))
            fail_msg("%s: otherwise padded: \"%s\"", name, text->text);
    }
    json_doc_free(doc);
}

static void test_tokens_match_transformers(void **state)
{
    (void)state;
    struct kind kinds[KINDS_MAX] = {0};
    struct buf text;
    struct err err;
    buf_init(&text, 16 << 20);
    assert_int_equal(file_read(&text, GOLDEN "tokens.jsonl", &err), 0);
    int lines = 0;
    for (const char *line = text.data; *line; lines++) {
        size_t len = strcspn(line, "\n");
        check_line(kinds, line, len);
        line += len + (line[len] == '\n');
    }
    assert_true(lines > 1000);
    for (int i = 0; i < KINDS_MAX; i++)
        tokenizer_free(kinds[i].tokenizer);
    buf_release(&text);
}

static void test_bytes_that_are_no_utf8_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\xff", "a\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82 a"};
    struct tokenizer *tokenizer = make("models/sd1-small/tokenizer");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err err = {0};
        uint32_t ids[77];
        assert_int_equal(tokenizer_encode(tokenizer, bad[i], strlen(bad[i]), ids, 77, NULL, &err),
                         -1);
        assert_int_equal(err.code, ERR_INVALID);
        assert_int_equal(err.class, ERR_REJECT);
    }
    tokenizer_free(tokenizer);
}

static void test_nul_is_a_character_like_others(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = make("clip");
    uint32_t ids[8];
    size_t count;
    struct err err;
    assert_int_equal(tokenizer_encode_raw(tokenizer, "\0\001", 2, ids, 8, &count, &err), 0);
    assert_int_equal(count, 2);
    assert_int_equal(ids[0], 188);
    assert_int_equal(ids[1], 445);
    tokenizer_free(tokenizer);
}

/* One word of 64 KiB must not take quadratic time, and one byte more is too many. */
static void test_longest_texts(void **state)
{
    (void)state;
    static const char *const units[] = {"a", "\xcc\x81", "\xcd\x85\xcc\x81",
                                        "!", "ab ",      "\xe4\xb8\xad"};
    struct tokenizer *tokenizer = make("clip");
    char *text = malloc(TOKENIZER_TEXT_MAX_BYTES + 1);
    uint32_t ids[77];
    struct err err;
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t unit = strlen(units[u]), len = 0;
        for (; len + unit <= TOKENIZER_TEXT_MAX_BYTES; len += unit)
            memcpy(text + len, units[u], unit);
        clock_t start = clock();
        assert_int_equal(tokenizer_encode(tokenizer, text, len, ids, 77, NULL, &err), 0);
        assert_true(clock() - start < 2 * CLOCKS_PER_SEC);
    }
    memset(text, 'a', TOKENIZER_TEXT_MAX_BYTES + 1);
    assert_int_equal(
        tokenizer_encode(tokenizer, text, TOKENIZER_TEXT_MAX_BYTES + 1, ids, 77, NULL, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    free(text);
    tokenizer_free(tokenizer);
}

static void test_ids_of_special_tokens(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = make("clip-pad!");
    assert_int_equal(tokenizer_start_id(tokenizer), 49406);
    assert_int_equal(tokenizer_end_id(tokenizer), 49407);
    assert_int_equal(tokenizer_pad_id(tokenizer), 0);
    assert_int_equal(tokenizer_vocabulary_size(tokenizer), 49408);
    tokenizer_free(tokenizer);
}

static void test_a_missing_folder_names_the_file(void **state)
{
    (void)state;
    struct tokenizer *tokenizer;
    struct err err;
    assert_int_equal(tokenizer_create_folder(&tokenizer, GOLDEN "nowhere", &err), -1);
    assert_non_null(strstr(err.message, "nowhere/vocab.json"));
    assert_null(tokenizer);
}

struct broken {
    const char *vocab, *merges, *config, *whole;
    enum err_code code;
    const char *part; /* of the message */
};

static void write_text(const char *folder, const char *name, const char *text)
{
    char path[FILE_PATH_MAX_BYTES];
    struct err err;
    assert_int_equal(file_join(path, folder, name, &err), 0);
    remove(path);
    if (text)
        assert_int_equal(file_write(path, text, strlen(text), FILE_REPLACE, &err), 0);
}

static void test_broken_folders_are_refused(void **state)
{
    (void)state;
    static const char fine[] = "{\"a\": 0, \"b\": 1, \"ab\": 2, \"<|endoftext|>\": 3}";
    static const struct broken rows[] = {
        {fine, "a b\na c\n", NULL, NULL, ERR_FORMAT, "line 2"},
        {fine, "ab\n", NULL, NULL, ERR_FORMAT, "line 1"},
        {"{\"a\": -1}", "", NULL, NULL, ERR_FORMAT, "\"a\""},
        {"{\"a\": 4000000000}", "", NULL, NULL, ERR_FORMAT, "\"a\""},
        {"{\"\": 1}", "", NULL, NULL, ERR_FORMAT, "usable id"},
        {"[1]", "", NULL, NULL, ERR_FORMAT, "vocab.json"},
        {"{\"a\"", "", NULL, NULL, ERR_FORMAT, "vocab.json"},
        {fine, NULL, NULL, NULL, ERR_NOT_FOUND, "merges.txt"},
        {fine, "", "{\"pad_token\": \"\"}", NULL, ERR_UNSUPPORTED, "special token"},
        {fine, "", "{\"bos_token\": {\"content\": \"a\", \"lstrip\": true}}", NULL, ERR_UNSUPPORTED,
         "lstrip"},
        {NULL, NULL, NULL, "{}", ERR_FORMAT, "tokenizer.json"},
        {NULL, NULL, NULL, "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a\"]]}}",
         ERR_FORMAT, "merge 1"},
        {NULL, NULL, NULL, "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [7]}}", ERR_FORMAT,
         "merge 1"},
    };
    char folder[] = "/tmp/atelier-tokenizer-XXXXXX";
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct tokenizer *tokenizer;
        struct err err = {0};
        write_text(folder, "vocab.json", rows[i].vocab);
        write_text(folder, "merges.txt", rows[i].merges);
        write_text(folder, "tokenizer_config.json", rows[i].config);
        write_text(folder, "tokenizer.json", rows[i].whole);
        if (tokenizer_create_folder(&tokenizer, folder, &err) != -1)
            fail_msg("row %zu was accepted", i);
        assert_null(tokenizer);
        assert_contains(err.message, rows[i].part);
        assert_int_equal(err.code, rows[i].code);
        assert_int_equal(err.class, ERR_REJECT);
    }
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                        "tokenizer.json"};
    for (size_t i = 0; i < 4; i++)
        write_text(folder, names[i], NULL);
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_match_transformers),
        cmocka_unit_test(test_bytes_that_are_no_utf8_are_refused),
        cmocka_unit_test(test_nul_is_a_character_like_others),
        cmocka_unit_test(test_longest_texts),
        cmocka_unit_test(test_ids_of_special_tokens),
        cmocka_unit_test(test_a_missing_folder_names_the_file),
        cmocka_unit_test(test_broken_folders_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

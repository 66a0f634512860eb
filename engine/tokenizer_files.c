/*
 * tokenizer_files.c: makes tokenizers from a tree's files or from what the program carries.
 *
 * Which of a tree's files counts, in the order of transformers 5.23:
 *   words and merges   tokenizer.json if there is one, else vocab.json and merges.txt;
 *   special tokens     tokenizer_config.json, overruled by special_tokens_map.json, both overruled
 *                      by the token of that text in tokenizer.json; but if the configuration has an
 *                      added_tokens_decoder, by that alone.
 * A special token that a file gives as a bare string is looked for in the text as it came; one that
 * it gives as an object says so itself. Where two roles share a text, the last role decides.
 */
#include "engine/tokenizer.h"

#include "common/file.h"
#include "common/json.h"
#include "engine/clip_merges.h"
#include "engine/tokenizer_parts.h"
#include "engine/unicode.h"

#include <stdlib.h>
#include <string.h>

#define FILE_MAX_BYTES (64u << 20)
#define WORDS_MAX (1u << 20)
#define CLIP_MERGES 48894

enum role { ROLE_START, ROLE_END, ROLE_UNKNOWN, ROLE_PAD, ROLE_COUNT };

static const char *const role_keys[ROLE_COUNT] = {"bos_token", "eos_token", "unk_token",
                                                  "pad_token"};
static const char *const role_defaults[ROLE_COUNT] = {TOKENIZER_START, TOKENIZER_END, TOKENIZER_END,
                                                      TOKENIZER_END};

/* A special token as the files describe it. */
struct mark {
    char text[SPECIAL_MAX_BYTES + 1];
    bool normalized;
};

/* The documents of a tree; NULL where there is no such file. */
struct tree {
    struct json_doc *config, *map, *whole, *vocabulary;
    struct buf merges;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a tokenizer");
}

/* ---- words and merges ---- */

/* One line of merges.txt, its end cut off. */
static int add_merge_line(struct bpe *bpe, const char *line, size_t len, size_t number,
                          struct err *err)
{
    if (len > 0 && line[len - 1] == '\r')
        len--;
    const char *blank = memchr(line, ' ', len);
    if (len == 0 || (len >= 8 && memcmp(line, "#version", 8) == 0))
        return 0;
    size_t left = blank ? (size_t)(blank - line) : 0;
    if (!blank || bpe_add_merge(bpe, line, left, blank + 1, len - left - 1) != 0)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "line %zu of the merges is no pair of words whose union is a word: \"%.*s\"",
                       number, (int)(len < 80 ? len : 80), line);
    return 0;
}

static int add_merge_lines(struct bpe *bpe, const char *text, size_t len, struct err *err)
{
    const char *end = text + len;
    for (size_t number = 1; text < end; number++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t line_len = newline ? (size_t)(newline - text) : (size_t)(end - text);
        if (add_merge_line(bpe, text, line_len, number, err) != 0)
            return -1;
        text += line_len + 1;
    }
    return 0;
}

static size_t count_lines(const char *text, size_t len)
{
    size_t lines = 1;
    for (size_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    return lines;
}

static int add_words(struct bpe *bpe, const struct json *vocabulary, struct err *err)
{
    for (const struct json *word = vocabulary->child; word; word = word->next) {
        int64_t id;
        bool sound = json_int64(word, &id) && id >= 0 && id < WORDS_MAX;
        if (!sound || bpe_add_word(bpe, word->key, strlen(word->key), (uint32_t)id) != 0)
            return err_set(err, ERR_FORMAT, ERR_REJECT,
                           "the vocabulary's entry \"%.80s\" has no usable id", word->key);
    }
    return 0;
}

/* The merges of tokenizer.json: "a b" or ["a", "b"]. */
static int add_merge_values(struct bpe *bpe, const struct json *merges, struct err *err)
{
    size_t number = 1;
    for (const struct json *merge = merges->child; merge; merge = merge->next, number++) {
        const struct json *left = merge->child, *right = left ? left->next : NULL;
        bool pair = right && left->type == JSON_STRING && right->type == JSON_STRING;
        if (merge->type == JSON_STRING) {
            if (add_merge_line(bpe, merge->text, merge->text_len, number, err) != 0)
                return -1;
        } else if (!pair || bpe_add_merge(bpe, left->text, left->text_len, right->text,
                                          right->text_len) != 0) {
            return err_set(err, ERR_FORMAT, ERR_REJECT, "merge %zu is no pair of known words",
                           number);
        }
    }
    return 0;
}

/* The words that the merges imply: each byte's letter, each again at the end of a word, each merge,
 * and the two special tokens. */
static int add_clip_words(struct bpe *bpe)
{
    uint32_t id = 0;
    for (int round = 0; round < 4; round++) {
        for (int byte = 0; byte < 256; byte++) {
            char word[5 + sizeof("</w>")];
            bpe_letter((unsigned char)byte, word);
            uint32_t own = (unsigned char)byte;
            bool printable = strlen(word) == 1 || (own >= 161 && own != 173);
            if (printable != (round % 2 == 0))
                continue;
            if (round >= 2)
                strcat(word, "</w>");
            if (bpe_add_word(bpe, word, strlen(word), id++) != 0)
                return -1;
        }
    }
    const char *end = clip_merges_end;
    for (const char *line = clip_merges_begin; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        const char *blank = memchr(line, ' ', (size_t)(end - line));
        char word[BPE_WORD_MAX_BYTES];
        size_t left = (size_t)(blank - line), right = (size_t)(newline - blank - 1);
        memcpy(word, line, left);
        memcpy(word + left, blank + 1, right);
        if (bpe_add_word(bpe, word, left + right, id++) != 0)
            return -1;
        line = newline + 1;
    }
    if (bpe_add_word(bpe, TOKENIZER_START, strlen(TOKENIZER_START), id) != 0)
        return -1;
    return bpe_add_word(bpe, TOKENIZER_END, strlen(TOKENIZER_END), id + 1);
}

/* ---- special tokens ---- */

static int mark_set(struct mark *mark, const char *text, bool normalized, struct err *err)
{
    size_t len = strlen(text);
    if (len == 0 || len > SPECIAL_MAX_BYTES)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT, "special token \"%.80s\": 1 … %d bytes",
                       text, SPECIAL_MAX_BYTES);
    memcpy(mark->text, text, len + 1);
    mark->normalized = normalized;
    return 0;
}

/* Reads a special token given as a string or as an object; leaves `mark` alone for null or none. */
static int mark_read(struct mark *mark, const struct json *value, struct err *err)
{
    if (!value || value->type == JSON_NULL)
        return 0;
    if (value->type == JSON_STRING)
        return mark_set(mark, value->text, false, err);
    if (json_bool_or(json_get(value, "lstrip"), false) ||
        json_bool_or(json_get(value, "rstrip"), false) ||
        json_bool_or(json_get(value, "single_word"), false))
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "special tokens with lstrip, rstrip or single_word are not supported");
    bool special = json_bool_or(json_get(value, "special"), true);
    return mark_set(mark, json_string_or(json_get(value, "content"), ""),
                    json_bool_or(json_get(value, "normalized"), !special), err);
}

/* Adds the token, or changes the one of that text. */
static int specials_add(struct tokenizer *tokenizer, const struct mark *mark, struct err *err)
{
    struct special special = {.normalized = mark->normalized};
    size_t len = strlen(mark->text);
    for (size_t at = 0; at < len;) {
        uint32_t code = unicode_read(mark->text, len, &at);
        if (code == UINT32_MAX)
            return err_set(err, ERR_FORMAT, ERR_REJECT, "a special token is not UTF-8");
        special.codes[special.len++] = code;
    }
    special.id = bpe_find(tokenizer->bpe, mark->text, len);
    if (special.id == BPE_NONE) {
        special.id = bpe_size(tokenizer->bpe);
        if (bpe_add_word(tokenizer->bpe, mark->text, len, special.id) != 0)
            return no_memory(err);
    }
    for (size_t i = 0; i < tokenizer->specials_count; i++) {
        if (tokenizer->specials[i].id == special.id) {
            tokenizer->specials[i] = special;
            return 0;
        }
    }
    if (tokenizer->specials_count == SPECIALS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "more than %d special tokens", SPECIALS_MAX);
    tokenizer->specials[tokenizer->specials_count++] = special;
    return 0;
}

static uint32_t mark_id(const struct tokenizer *tokenizer, const struct mark *mark)
{
    return bpe_find(tokenizer->bpe, mark->text, strlen(mark->text));
}

/* The last stride: special tokens, and the words are dropped. */
static int finish(struct tokenizer *tokenizer, const struct mark roles[ROLE_COUNT], struct err *err)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (specials_add(tokenizer, &roles[role], err) != 0)
            return -1;
    tokenizer->start = mark_id(tokenizer, &roles[ROLE_START]);
    tokenizer->end = mark_id(tokenizer, &roles[ROLE_END]);
    tokenizer->pad = mark_id(tokenizer, &roles[ROLE_PAD]);
    tokenizer->size = bpe_size(tokenizer->bpe);
    bpe_finish(tokenizer->bpe, mark_id(tokenizer, &roles[ROLE_UNKNOWN]));
    return 0;
}

static int roles_read(struct mark roles[ROLE_COUNT], const struct json *from, struct err *err)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (mark_read(&roles[role], json_get(from, role_keys[role]), err) != 0)
            return -1;
    return 0;
}

/* Adds each token of an array or object, and gives roles of the same text its properties. */
static int added_read(struct tokenizer *tokenizer, struct mark roles[ROLE_COUNT],
                      const struct json *added, struct err *err)
{
    for (const struct json *value = added ? added->child : NULL; value; value = value->next) {
        struct mark mark = {0};
        if (mark_read(&mark, value, err) != 0 || specials_add(tokenizer, &mark, err) != 0)
            return -1;
        for (int role = 0; role < ROLE_COUNT; role++)
            if (strcmp(roles[role].text, mark.text) == 0)
                roles[role] = mark;
    }
    return 0;
}

static int specials_read(struct tokenizer *tokenizer, const struct tree *tree, struct err *err)
{
    struct mark roles[ROLE_COUNT] = {0};
    const struct json *config = tree->config ? json_root(tree->config) : NULL;
    const struct json *decoder = json_get(config, "added_tokens_decoder");
    for (int role = 0; role < ROLE_COUNT; role++)
        strcpy(roles[role].text, role_defaults[role]);
    if (roles_read(roles, config, err) != 0)
        return -1;
    if (decoder) {
        if (added_read(tokenizer, roles, decoder, err) != 0)
            return -1;
    } else {
        const struct json *map = tree->map ? json_root(tree->map) : NULL;
        const struct json *whole = tree->whole ? json_root(tree->whole) : NULL;
        if (roles_read(roles, map, err) != 0 ||
            added_read(tokenizer, roles, json_get(whole, "added_tokens"), err) != 0)
            return -1;
    }
    return finish(tokenizer, roles, err);
}

/* ---- files ---- */

static int read_json(struct json_doc **doc, const char *folder, const char *name, bool needed,
                     struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (file_join(path, folder, name, err) != 0)
        return -1;
    if (!needed && !file_exists(path))
        return 0;
    if (json_parse_file(doc, path, NULL, err) != 0)
        return -1;
    if (json_root(*doc)->type == JSON_OBJECT)
        return 0;
    return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: not an object", path);
}

static void tree_release(struct tree *tree)
{
    json_doc_free(tree->config);
    json_doc_free(tree->map);
    json_doc_free(tree->whole);
    json_doc_free(tree->vocabulary);
    buf_release(&tree->merges);
}

static int tree_read(struct tree *tree, const char *folder, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (read_json(&tree->config, folder, "tokenizer_config.json", false, err) != 0 ||
        read_json(&tree->map, folder, "special_tokens_map.json", false, err) != 0 ||
        read_json(&tree->whole, folder, "tokenizer.json", false, err) != 0)
        return -1;
    if (tree->whole)
        return 0;
    if (read_json(&tree->vocabulary, folder, "vocab.json", true, err) != 0 ||
        file_join(path, folder, "merges.txt", err) != 0)
        return -1;
    return file_read(&tree->merges, path, err);
}

static int tree_fill(struct tokenizer *tokenizer, const struct tree *tree, struct err *err)
{
    const struct json *model = tree->whole ? json_get(json_root(tree->whole), "model") : NULL;
    const struct json *words = tree->whole ? json_get(model, "vocab") : json_root(tree->vocabulary);
    const struct json *merges = json_get(model, "merges");
    bool sound = words && words->type == JSON_OBJECT &&
                 (!tree->whole || (merges && merges->type == JSON_ARRAY));
    if (!sound)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "tokenizer.json lacks the words and merges of a byte pair encoding");
    size_t count = tree->whole ? merges->count : count_lines(tree->merges.data, tree->merges.len);
    tokenizer->bpe = bpe_create(words->count + SPECIALS_MAX, count);
    if (!tokenizer->bpe)
        return no_memory(err);
    if (add_words(tokenizer->bpe, words, err) != 0)
        return -1;
    int added = tree->whole
                    ? add_merge_values(tokenizer->bpe, merges, err)
                    : add_merge_lines(tokenizer->bpe, tree->merges.data, tree->merges.len, err);
    return added == 0 ? specials_read(tokenizer, tree, err) : -1;
}

int tokenizer_create_folder(struct tokenizer **out, const char *folder, struct err *err)
{
    struct tree tree = {0};
    buf_init(&tree.merges, FILE_MAX_BYTES);
    struct tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));
    int result = tokenizer ? tree_read(&tree, folder, err) : no_memory(err);
    if (result == 0 && tree_fill(tokenizer, &tree, err) != 0)
        result = err_prefix(err, "%s", folder);
    tree_release(&tree);
    if (result != 0) {
        tokenizer_free(tokenizer);
        tokenizer = NULL;
    }
    *out = tokenizer;
    return result;
}

static int builtin_fill(struct tokenizer *tokenizer, const char *pad, struct err *err)
{
    struct mark roles[ROLE_COUNT] = {0};
    for (int role = 0; role < ROLE_COUNT; role++)
        if (mark_set(&roles[role], role == ROLE_PAD ? pad : role_defaults[role], false, err) != 0)
            return -1;
    tokenizer->bpe = bpe_create(2 * 256 + CLIP_MERGES + 2 + SPECIALS_MAX, CLIP_MERGES);
    if (!tokenizer->bpe || add_clip_words(tokenizer->bpe) != 0)
        return no_memory(err);
    size_t len = (size_t)(clip_merges_end - clip_merges_begin);
    if (add_merge_lines(tokenizer->bpe, clip_merges_begin, len, err) != 0)
        return -1;
    return finish(tokenizer, roles, err);
}

int tokenizer_create_builtin(struct tokenizer **out, const char *pad, struct err *err)
{
    struct tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));
    int result = tokenizer ? builtin_fill(tokenizer, pad, err) : no_memory(err);
    if (result != 0) {
        tokenizer_free(tokenizer);
        tokenizer = NULL;
    }
    *out = tokenizer;
    return result;
}

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (tokenizer && !tokenizer->added) /* else it borrows */
        bpe_free(tokenizer->bpe);
    if (tokenizer)
        free(tokenizer->added);
    free(tokenizer);
}

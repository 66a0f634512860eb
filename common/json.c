/*
 * Nodes, strings and indices come from one arena per document, in blocks that double, so that a
 * document is freed in a few calls and a parse costs few allocations. An object with more than
 * INDEX_FROM members carries its members sorted by key: look-up by bisection has no bad case that
 * an input could provoke (a hash table would), and the same order writes the canonical form.
 */
#include "common/json.h"

#include "common/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_FROM 8
#define FIRST_BLOCK_BYTES 1024
#define BLOCK_MAX_BYTES (4u << 20)

struct block {
    struct block *older;
    size_t used, size;
    _Alignas(max_align_t) char bytes[];
};

/* What a `struct json` really is: the index lies behind the public part. */
struct node {
    struct json json;
    const struct json **sorted; /* `count` members by key, or NULL */
};

struct json_doc {
    struct block *blocks;
    const struct json *root;
};

struct parser {
    struct json_doc *doc;
    const char *text;
    size_t at, len;
    size_t depth, nodes;
    struct json_limits limits;
    struct err *err;
};

static void *arena_take(struct json_doc *doc, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    struct block *block = doc->blocks;
    if (!block || block->size - block->used < size) {
        size_t want = block ? block->size * 2 : FIRST_BLOCK_BYTES;
        if (want > BLOCK_MAX_BYTES)
            want = BLOCK_MAX_BYTES;
        if (want < size)
            want = size;
        struct block *fresh = malloc(sizeof(*fresh) + want);
        if (!fresh)
            return NULL;
        *fresh = (struct block){.older = block, .size = want};
        doc->blocks = block = fresh;
    }
    void *at = block->bytes + block->used;
    block->used += size;
    return at;
}

/* Gives back the end of the latest piece. */
static void arena_trim(struct json_doc *doc, const void *piece, size_t size)
{
    struct block *block = doc->blocks;
    block->used = (size_t)((const char *)piece - block->bytes) + ((size + 7) & ~(size_t)7);
}

static int fail(struct parser *p, const char *expected)
{
    return err_set(p->err, ERR_FORMAT, ERR_REJECT, "JSON, byte %zu: %s", p->at, expected);
}

static int fail_memory(struct parser *p)
{
    return err_set(p->err, ERR_MEMORY, ERR_RETRY, "out of memory for a JSON document");
}

static void skip_space(struct parser *p)
{
    while (p->at < p->len && (p->text[p->at] == ' ' || p->text[p->at] == '\t' ||
                              p->text[p->at] == '\n' || p->text[p->at] == '\r'))
        p->at++;
}

static int peek(const struct parser *p)
{
    return p->at < p->len ? (unsigned char)p->text[p->at] : -1;
}

size_t utf8_length(const char *text, size_t len)
{
    const unsigned char *s = (const unsigned char *)text;
    if (len == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    size_t want = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || len < want)
        return 0;
    for (size_t i = 1; i < want; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return want;
}

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

static int hex4(struct parser *p, uint32_t *out)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        int c = peek(p);
        if (c >= '0' && c <= '9')
            c -= '0';
        else if (c >= 'a' && c <= 'f')
            c -= 'a' - 10;
        else if (c >= 'A' && c <= 'F')
            c -= 'A' - 10;
        else
            return fail(p, "expected four hexadecimal digits after \\u");
        value = value << 4 | (uint32_t)c;
    }
    *out = value;
    return 0;
}

/* At the 'u' of an escape. */
static int parse_unicode_escape(struct parser *p, char *out, size_t *n)
{
    uint32_t c = 0, low = 0;
    p->at++;
    if (hex4(p, &c) != 0)
        return -1;
    if (c == 0)
        return fail(p, "\\u0000 is not allowed");
    if (c >= 0xDC00 && c <= 0xDFFF)
        return fail(p, "a low surrogate without its high one");
    if (c >= 0xD800 && c <= 0xDBFF) {
        if (p->len - p->at < 2 || p->text[p->at] != '\\' || p->text[p->at + 1] != 'u')
            return fail(p, "expected the low surrogate after a high one");
        p->at += 2;
        if (hex4(p, &low) != 0)
            return -1;
        if (low < 0xDC00 || low > 0xDFFF)
            return fail(p, "expected the low surrogate after a high one");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    *n += put_utf8(out + *n, c);
    return 0;
}

/* At the character after a backslash. */
static int parse_escape(struct parser *p, char *out, size_t *n)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    int c = peek(p);
    if (c == 'u')
        return parse_unicode_escape(p, out, n);
    const char *found = c > 0 ? strchr(from, c) : NULL;
    if (!found)
        return fail(p, "an unknown escape after a backslash");
    out[(*n)++] = to[found - from];
    p->at++;
    return 0;
}

/* At the opening quote. No escape decodes to more bytes than it is written with. */
static int parse_string(struct parser *p, const char **text, size_t *text_len)
{
    if (peek(p) != '"')
        return fail(p, "expected a string in double quotes");
    const char *begin = p->text + ++p->at;
    const char *end = begin;
    while (end < p->text + p->len && *end != '"')
        end += *end == '\\' ? 2 : 1;
    if (end >= p->text + p->len)
        return fail(p, "a string without its closing quote");
    char *out = arena_take(p->doc, (size_t)(end - begin) + 1);
    if (!out)
        return fail_memory(p);
    size_t n = 0;
    while (peek(p) != '"') {
        const char *c = p->text + p->at;
        if ((unsigned char)*c < 0x20)
            return fail(p, *c ? "a control character inside a string (write it as an escape)"
                              : "a NUL byte inside a string");
        if (*c == '\\') {
            p->at++;
            if (parse_escape(p, out, &n) != 0)
                return -1;
            continue;
        }
        size_t bytes = utf8_length(c, p->len - p->at);
        if (bytes == 0)
            return fail(p, "bytes that are not UTF-8");
        memcpy(out + n, c, bytes);
        n += bytes;
        p->at += bytes;
    }
    p->at++;
    out[n] = '\0';
    arena_trim(p->doc, out, n + 1);
    *text = out;
    *text_len = n;
    return 0;
}

static size_t skip_digits(struct parser *p)
{
    size_t from = p->at;
    while (peek(p) >= '0' && peek(p) <= '9')
        p->at++;
    return p->at - from;
}

static int parse_number(struct parser *p, struct json *json)
{
    size_t from = p->at;
    if (peek(p) == '-')
        p->at++;
    bool zero = peek(p) == '0';
    size_t digits = skip_digits(p);
    if (digits == 0)
        return fail(p, "expected a value");
    if (zero && digits > 1)
        return fail(p, "a number with a leading zero");
    if (peek(p) == '.') {
        p->at++;
        if (skip_digits(p) == 0)
            return fail(p, "expected digits after the decimal point");
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        p->at++;
        if (peek(p) == '+' || peek(p) == '-')
            p->at++;
        if (skip_digits(p) == 0)
            return fail(p, "expected digits in the exponent");
    }
    json->type = JSON_NUMBER;
    json->text_len = p->at - from;
    char *copy = arena_take(p->doc, json->text_len + 1);
    if (!copy)
        return fail_memory(p);
    memcpy(copy, p->text + from, json->text_len);
    copy[json->text_len] = '\0';
    json->text = copy;
    return 0;
}

static int parse_word(struct parser *p, struct json *json)
{
    static const struct {
        const char *word;
        enum json_type type;
        bool boolean;
    } words[] = {
        {"null", JSON_NULL, false}, {"true", JSON_BOOL, true}, {"false", JSON_BOOL, false}};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        size_t n = strlen(words[i].word);
        if (p->len - p->at >= n && memcmp(p->text + p->at, words[i].word, n) == 0) {
            p->at += n;
            json->type = words[i].type;
            json->boolean = words[i].boolean;
            return 0;
        }
    }
    return fail(p, "expected a value (an object, array, string, number, true, false or null)");
}

static int by_key(const void *a, const void *b)
{
    return strcmp((*(const struct json *const *)a)->key, (*(const struct json *const *)b)->key);
}

static int fail_duplicate(struct parser *p, const char *key)
{
    return err_set(p->err, ERR_FORMAT, ERR_REJECT,
                   "JSON, byte %zu: the key \"%.100s\" appears twice", p->at, key);
}

/* Sorts the members of a large object, looks for duplicates in any. */
static int index_members(struct parser *p, struct node *object)
{
    if (object->json.count <= INDEX_FROM) {
        for (const struct json *a = object->json.child; a; a = a->next)
            for (const struct json *b = a->next; b; b = b->next)
                if (strcmp(a->key, b->key) == 0)
                    return fail_duplicate(p, a->key);
        return 0;
    }
    object->sorted = arena_take(p->doc, object->json.count * sizeof(object->sorted[0]));
    if (!object->sorted)
        return fail_memory(p);
    size_t n = 0;
    for (const struct json *member = object->json.child; member; member = member->next)
        object->sorted[n++] = member;
    qsort(object->sorted, n, sizeof(object->sorted[0]), by_key);
    for (size_t i = 1; i < n; i++)
        if (strcmp(object->sorted[i - 1]->key, object->sorted[i]->key) == 0)
            return fail_duplicate(p, object->sorted[i]->key);
    return 0;
}

static int parse_value(struct parser *p, struct json **out);

static int parse_key(struct parser *p, const char **key)
{
    size_t len;
    if (peek(p) != '"')
        return fail(p, "expected a key in double quotes");
    if (parse_string(p, key, &len) != 0)
        return -1;
    skip_space(p);
    if (peek(p) != ':')
        return fail(p, "expected ':' after a key");
    p->at++;
    skip_space(p);
    return 0;
}

/* At the opening bracket of an array or object. */
static int parse_container(struct parser *p, struct node *node)
{
    bool object = peek(p) == '{';
    int close = object ? '}' : ']';
    const struct json **link = &node->json.child;
    node->json.type = object ? JSON_OBJECT : JSON_ARRAY;
    p->at++;
    skip_space(p);
    if (peek(p) == close) {
        p->at++;
        return 0;
    }
    for (;;) {
        const char *key = NULL;
        struct json *child;
        if ((object && parse_key(p, &key) != 0) || parse_value(p, &child) != 0)
            return -1;
        child->key = key;
        *link = child;
        link = &child->next;
        node->json.count++;
        skip_space(p);
        int c = peek(p);
        if (c != ',' && c != close)
            return fail(p, object ? "expected ',' or '}'" : "expected ',' or ']'");
        p->at++;
        if (c == close)
            return object ? index_members(p, node) : 0;
        skip_space(p);
    }
}

static int parse_value(struct parser *p, struct json **out)
{
    if (++p->nodes > p->limits.nodes)
        return err_set(p->err, ERR_LIMIT, ERR_REJECT, "JSON, byte %zu: more than %zu values", p->at,
                       p->limits.nodes);
    struct node *node = arena_take(p->doc, sizeof(*node));
    if (!node)
        return fail_memory(p);
    *node = (struct node){0};
    *out = &node->json;
    int c = peek(p);
    if (c == '{' || c == '[') {
        if (++p->depth > p->limits.depth)
            return err_set(p->err, ERR_LIMIT, ERR_REJECT, "JSON, byte %zu: nested deeper than %zu",
                           p->at, p->limits.depth);
        int rc = parse_container(p, node);
        p->depth--;
        return rc;
    }
    if (c == '"') {
        node->json.type = JSON_STRING;
        return parse_string(p, &node->json.text, &node->json.text_len);
    }
    if (c == '-' || (c >= '0' && c <= '9'))
        return parse_number(p, &node->json);
    return parse_word(p, &node->json);
}

static int parse_text(struct parser *p)
{
    struct json *root;
    if (p->len > p->limits.bytes)
        return err_set(p->err, ERR_LIMIT, ERR_REJECT, "JSON of %zu bytes: more than %zu", p->len,
                       p->limits.bytes);
    skip_space(p);
    if (p->at == p->len)
        return fail(p, "expected a value, found nothing");
    if (parse_value(p, &root) != 0)
        return -1;
    skip_space(p);
    if (p->at != p->len)
        return fail(p, "expected the end of the text");
    p->doc->root = root;
    return 0;
}

int json_parse(struct json_doc **doc, const char *text, size_t len,
               const struct json_limits *limits, struct err *err)
{
    struct parser p = {.text = text, .len = len, .limits = JSON_LIMITS_INIT, .err = err};
    if (limits)
        p.limits = *limits;
    *doc = NULL;
    p.doc = calloc(1, sizeof(*p.doc));
    if (!p.doc)
        return fail_memory(&p);
    if (parse_text(&p) != 0) {
        json_doc_free(p.doc);
        return -1;
    }
    *doc = p.doc;
    return 0;
}

void json_doc_free(struct json_doc *doc)
{
    if (!doc)
        return;
    while (doc->blocks) {
        struct block *older = doc->blocks->older;
        free(doc->blocks);
        doc->blocks = older;
    }
    free(doc);
}

const struct json *json_root(const struct json_doc *doc)
{
    return doc->root;
}

int json_parse_file(struct json_doc **doc, const char *path, const struct json_limits *limits,
                    struct err *err)
{
    static const struct json_limits usual = JSON_LIMITS_INIT;
    struct buf text;
    buf_init(&text, limits ? limits->bytes : usual.bytes);
    *doc = NULL;
    int rc = file_read(&text, path, err);
    if (rc == 0 && json_parse(doc, text.data, text.len, limits, err) != 0)
        rc = err_prefix(err, "%s", path);
    buf_release(&text);
    return rc;
}

const struct json *json_get(const struct json *object, const char *key)
{
    if (!object || object->type != JSON_OBJECT)
        return NULL;
    const struct node *node = (const struct node *)object;
    if (!node->sorted) {
        for (const struct json *member = object->child; member; member = member->next)
            if (strcmp(member->key, key) == 0)
                return member;
        return NULL;
    }
    size_t low = 0, high = object->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(key, node->sorted[middle]->key);
        if (order == 0)
            return node->sorted[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

bool json_double(const struct json *value, double *out)
{
    if (!value || value->type != JSON_NUMBER)
        return false;
    double number = strtod(value->text, NULL);
    if (!isfinite(number))
        return false;
    *out = number;
    return true;
}

/* 30, 30.0 and 3e1 are the same number; past 2^53 only the plain form is exact. */
bool json_int64(const struct json *value, int64_t *out)
{
    if (!value || value->type != JSON_NUMBER)
        return false;
    if (!strpbrk(value->text, ".eE")) {
        errno = 0;
        long long number = strtoll(value->text, NULL, 10);
        if (errno != 0)
            return false;
        *out = number;
        return true;
    }
    double number;
    if (!json_double(value, &number) || number != floor(number) || fabs(number) > 0x1p53)
        return false;
    *out = (int64_t)number;
    return true;
}

int64_t json_int_or(const struct json *value, int64_t fallback)
{
    int64_t number;
    return json_int64(value, &number) ? number : fallback;
}

double json_double_or(const struct json *value, double fallback)
{
    double number;
    return json_double(value, &number) ? number : fallback;
}

bool json_bool_or(const struct json *value, bool fallback)
{
    return value && value->type == JSON_BOOL ? value->boolean : fallback;
}

const char *json_string_or(const struct json *value, const char *fallback)
{
    return value && value->type == JSON_STRING ? value->text : fallback;
}

void json_write_string(struct buf *out, const char *text, size_t len)
{
    static const char special[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
    buf_char(out, '"');
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)text[i];
        const char *found = c ? strchr(special, c) : NULL;
        size_t bytes = utf8_length(text + i, len - i);
        if (found) {
            buf_char(out, '\\');
            buf_char(out, letters[found - special]);
        } else if (c < 0x20) {
            buf_printf(out, "\\u%04x", c);
        } else if (bytes == 0) {
            buf_str(out, "\xEF\xBF\xBD");
        } else {
            buf_append(out, text + i, bytes);
        }
        i += bytes ? bytes : 1;
    }
    buf_char(out, '"');
}

void json_write_key(struct buf *out, const char *name)
{
    size_t len = strlen(name);
    char *at = buf_reserve(out, len + 3);
    if (!at)
        return;
    at[0] = '"';
    memcpy(at + 1, name, len);
    at[len + 1] = '"';
    at[len + 2] = ':';
}

void json_write_integer(struct buf *out, int64_t value)
{
    char digits[24];
    size_t at = sizeof(digits);
    uint64_t rest = value < 0 ? -(uint64_t)value : (uint64_t)value;
    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (value < 0)
        digits[--at] = '-';
    buf_append(out, digits + at, sizeof(digits) - at);
}

void json_write_double(struct buf *out, double value)
{
    char text[40];
    if (!isfinite(value)) {
        buf_str(out, "null");
        return;
    }
    if (value == floor(value) && fabs(value) < 1e15) {
        json_write_integer(out, (int64_t)value);
        return;
    }
    /* %g drops trailing zeros, so that up to 15 digits the first is the shortest already. */
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    buf_str(out, text);
}

static void write_number(struct buf *out, const struct json *value)
{
    int64_t integer;
    double number;
    if (json_int64(value, &integer))
        json_write_integer(out, integer);
    else if (strpbrk(value->text, ".eE") && json_double(value, &number))
        json_write_double(out, number);
    else
        buf_str(out, value->text);
}

static void write_object(struct buf *out, const struct json *value)
{
    const struct json *few[INDEX_FROM];
    const struct json **members = ((const struct node *)value)->sorted;
    if (!members) {
        size_t n = 0;
        for (const struct json *member = value->child; member; member = member->next)
            few[n++] = member;
        qsort(few, n, sizeof(few[0]), by_key);
        members = few;
    }
    buf_char(out, '{');
    for (size_t i = 0; i < value->count; i++) {
        if (i > 0)
            buf_char(out, ',');
        json_write_string(out, members[i]->key, strlen(members[i]->key));
        buf_char(out, ':');
        json_write_canonical(out, members[i]);
    }
    buf_char(out, '}');
}

void json_write_canonical(struct buf *out, const struct json *value)
{
    switch (value->type) {
    case JSON_NULL:
        buf_str(out, "null");
        break;
    case JSON_BOOL:
        buf_str(out, value->boolean ? "true" : "false");
        break;
    case JSON_NUMBER:
        write_number(out, value);
        break;
    case JSON_STRING:
        json_write_string(out, value->text, value->text_len);
        break;
    case JSON_ARRAY:
        buf_char(out, '[');
        for (const struct json *item = value->child; item; item = item->next) {
            json_write_canonical(out, item);
            if (item->next)
                buf_char(out, ',');
        }
        buf_char(out, ']');
        break;
    case JSON_OBJECT:
        write_object(out, value);
        break;
    }
}

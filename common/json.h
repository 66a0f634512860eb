/*
 * json.h: a strict JSON reader (RFC 8259) that makes no trust in its input, and a writer.
 *
 * The reader parses a whole text into one block of nodes that the document owns; strings are
 * decoded into the same block and NUL-terminated (an embedded \u0000 is an error). Depth, nodes and
 * bytes have limits. Duplicate keys in an object are an error that names the key. Numbers keep
 * their text, so that 64-bit integers lose nothing.
 *
 *     struct json_doc *doc;
 *     if (json_parse(&doc, text, len, NULL, &err) != 0) ...
 *     const struct json *steps = json_get(json_root(doc), "steps");
 *     json_doc_free(doc);
 */
#ifndef ATELIER_COMMON_JSON_H
#define ATELIER_COMMON_JSON_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_type type;
    bool boolean;
    const char *text;         /* string: decoded UTF-8; number: as it was written */
    size_t text_len;          /* bytes */
    const char *key;          /* the name in the enclosing object, else NULL */
    const struct json *child; /* first element or member, in the text's order */
    const struct json *next;  /* the following sibling, or NULL */
    size_t count;             /* elements or members */
};

struct json_limits {
    size_t bytes;
    size_t depth;
    size_t nodes;
};
#define JSON_LIMITS_INIT                                                                           \
    {                                                                                              \
        .bytes = 64u << 20, .depth = 64, .nodes = 4u << 20                                         \
    }

struct json_doc;

/* Parses text[0..len), which need not end in NUL. `limits` may be NULL. An error says the offset
 * and what was expected; invalid UTF-8 is an error. The document is the caller's to free. */
int json_parse(struct json_doc **doc, const char *text, size_t len,
               const struct json_limits *limits, struct err *err) must_check;
void json_doc_free(struct json_doc *doc);
const struct json *json_root(const struct json_doc *doc);

/* Reads and parses a whole file; errors name the path. */
int json_parse_file(struct json_doc **doc, const char *path, const struct json_limits *limits,
                    struct err *err) must_check;

/* A member by name (by bisection in large objects), or NULL. `object` may be NULL or of another
 * type. */
const struct json *json_get(const struct json *object, const char *key);

/* Typed reads. Return false when the value is absent, of another type or out of range. */
bool json_int64(const struct json *value, int64_t *out);
bool json_double(const struct json *value, double *out);

/* Lenient reads with a default, for configuration files that other programs wrote. */
int64_t json_int_or(const struct json *value, int64_t fallback);
double json_double_or(const struct json *value, double fallback);
bool json_bool_or(const struct json *value, bool fallback);
const char *json_string_or(const struct json *value, const char *fallback);

/* Bytes of the UTF-8 character at text[0..len), or 0 where there is none (an overlong form, a
 * surrogate, a cut character, the end). */
size_t utf8_length(const char *text, size_t len);

/* Writes `text` as a JSON string with its quotes; bytes that are no UTF-8 become U+FFFD. */
void json_write_string(struct buf *out, const char *text, size_t len);

/* `"name":`, of a name that needs no escaping; and an integer. Both without printf's cost. */
void json_write_key(struct buf *out, const char *name);
void json_write_integer(struct buf *out, int64_t value);

/* The shortest decimal that reads back as the same double. */
void json_write_double(struct buf *out, double value);

/* Writes a parsed value back in canonical form: no white space, members sorted by key. */
void json_write_canonical(struct buf *out, const struct json *value);

#endif

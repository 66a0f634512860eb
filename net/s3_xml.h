/*
 * s3_xml.h: the text forms of S3: escaping keys and reading the few XML answers. Pure.
 *
 * The reader finds elements by name in the flat documents that S3 sends; it is no XML parser
 * (RFC-conforming servers send neither comments nor CDATA here) and trusts nothing: whatever does
 * not fit is an error or absent, never read past the end.
 */
#ifndef ATELIER_NET_S3_XML_H
#define ATELIER_NET_S3_XML_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define S3_KEY_MAX_BYTES 1024

/* Appends the text with all but A-Z a-z 0-9 - . _ ~ as %XX, as Signature Version 4 wants it; in a
 * path '/' stays too. */
void s3_escape(struct buf *out, const char *text, bool is_path);

/* The first element of that name within text[0..len), its entities decoded. False where there is
 * none, it does not fit, or it holds other elements. */
bool s3_xml_text(const char *text, size_t len, const char *name, char *out, size_t out_size);

/* An error body's Code and Message; "" for what it does not have. */
void s3_xml_error(const char *text, size_t len, char *code, size_t code_size, char *message,
                  size_t message_size);

struct s3_listed {
    const char *key;
    uint64_t bytes;
};

/* Calls `see` with every object of a ListObjectsV2 answer; a non-zero result ends it and is
 * returned. `next` gets the continuation token, "" at the end. Errors: ERR_FORMAT (ERR_RETRY). */
int s3_xml_list(const char *text, size_t len,
                int (*see)(void *user, const struct s3_listed *object, struct err *err), void *user,
                char *next, size_t next_size, struct err *err) must_check;

/* Splits "s3://bucket/key". False when it is none. */
bool s3_parse_uri(const char *uri, char *bucket, size_t bucket_size, const char **key);

#endif

/*
 * fetch.h: whatever a URI names, into memory or into a file.
 *
 *     https://host/…  http://host/…   by the http client given, redirects followed
 *     s3://bucket/key                 by the object store's endpoint and credentials
 *     data:…;base64,…                 into memory only
 *     file:///…                       and relative paths, only where `base_dir` allows local files
 *
 * Any thread. Errors name the URI without its query and credentials (a presigned URL's query is a
 * secret), a data URI only as such. What the URI's owner must mend is ERR_REJECT.
 */
#ifndef ATELIER_NET_FETCH_H
#define ATELIER_NET_FETCH_H

#include "common/buf.h"
#include "common/err.h"
#include "net/http.h"
#include "net/s3.h"

#include <stdint.h>

/* All borrowed. */
struct fetch {
    struct http *http;    /* NULL: no http */
    struct s3 *s3;        /* NULL: no s3 */
    const char *base_dir; /* of relative paths; NULL: no local files */
};

/* Appends; over the buffer's maximum is ERR_LIMIT (ERR_REJECT). */
int fetch_read(const struct fetch *fetch, const char *uri, struct buf *out,
               struct err *err) must_check;

/* Writes `path`, resumably (net/download.h). `sha256` is hexadecimal, or NULL: unknown. `max_bytes`
 * 0: no limit. */
int fetch_file(const struct fetch *fetch, const char *uri, const char *path, const char *sha256,
               uint64_t max_bytes, struct err *err) must_check;

/* How errors name a URI: without user, password, query and fragment, cut to fit. */
void fetch_describe(const char *uri, char *out, size_t out_size);

#endif

/*
 * download.h: one large object into a file, in as many goes as it takes.
 *
 * What has come so far is in PATH.part, and what it is a part of in PATH.part.tag (the name and the
 * ETag), so that a later call, or a later process, goes on by Range and If-Match. PATH appears when
 * the whole file is there, flushed and, where a hash is given, checked. Without an ETag only a
 * given hash makes it safe to go on; else the file begins anew. The back-off begins anew whenever
 * bytes have come. Two callers with the same path: the second gets ERR_CONFLICT (ERR_RETRY).
 */
#ifndef ATELIER_NET_DOWNLOAD_H
#define ATELIER_NET_DOWNLOAD_H

#include "net/http.h"

struct download {
    struct http *http;
    struct http_request request; /* a GET, with at least two headers free */
    const char *path;
    const char *sha256;     /* hexadecimal; NULL: unknown */
    uint64_t max_bytes;     /* 0: no limit */
    enum err_class refused; /* of 401, 403, 404 */
};

/* Errors: as http_call, ERR_LIMIT (ERR_REJECT) over the maximum, ERR_FORMAT (ERR_REJECT) for
 * another hash, file_error's for the disk. */
int download_file(const struct download *download, struct err *err) must_check;

#endif

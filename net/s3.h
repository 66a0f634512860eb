/*
 * s3.h: an S3-compatible object store, one bucket and a prefix of it.
 *
 * Any thread may call; connections are kept alive and their number is bounded. Requests are signed
 * with Signature Version 4 and address the bucket in the path. Every call tries again by the
 * options' policy when circumstances are at fault, and gives up with ERR_RETRY. On a store that was
 * checked, wrong credentials or a missing bucket are ERR_FATAL; reading an object that is not there
 * or may not be read is ERR_REJECT. Errors name bucket and key, the HTTP status and the store's own
 * code, never a secret.
 *
 * Creating only if absent is If-None-Match: *. A store that does not know it is found out by
 * s3_check, and then asked by HEAD first: safe against repeats, not against two at the same moment;
 * which is enough for names that hold their content's hash.
 *
 *     struct s3_options options = S3_OPTIONS_INIT;
 *     options.endpoint = "http://127.0.0.1:9000";
 *     if (s3_create(&s3, &options, &err) != 0 || s3_check(s3, &err) != 0) ...
 *     if (s3_put(s3, "results/a/manifest.json", bytes, len, S3_NEW, "application/json", &err) != 0
 *         && err.code == ERR_CONFLICT) ... another was first
 *     s3_free(s3);
 */
#ifndef ATELIER_NET_S3_H
#define ATELIER_NET_S3_H

#include "common/buf.h"
#include "common/clock.h"
#include "common/err.h"
#include "net/http.h"
#include "net/s3_xml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define S3_PART_MIN_BYTES (5u << 20) /* of all parts but the last, by the service's rules */
#define S3_PARTS_MAX 10000

struct s3_options {
    const char *endpoint; /* "https://host[:port]" */
    const char *region;
    const char *bucket;
    const char *prefix; /* before every key, such as "cell/"; "" for none */
    const char *access_key;
    const char *secret_key;
    const char *session_token; /* NULL: none */
    size_t part_bytes;         /* larger objects go up in parts of this size */
    struct http_options http;
};
#define S3_OPTIONS_INIT                                                                            \
    {                                                                                              \
        .region = "us-east-1", .prefix = "", .part_bytes = 8u << 20, .http = HTTP_OPTIONS_INIT     \
    }

struct s3;

/* Copies the options; the clock is borrowed (NULL: the system's). Talks to nobody. Errors:
 * ERR_INVALID (ERR_FATAL) naming the option. */
int s3_create(struct s3 **s3, const struct s3_options *options, struct err *err) must_check;
void s3_free(struct s3 *s3);

/* Checks at start that the bucket is there and may be written, and whether creating only if absent
 * works, by two small objects under `.probe/` that are removed again. What is wrong with the
 * settings is ERR_FATAL and names endpoint, bucket and status. */
int s3_check(struct s3 *s3, struct err *err) must_check;

/* What s3_check found; true before. */
bool s3_creates_only(const struct s3 *s3);

enum s3_put_mode {
    S3_NEW,     /* an object of that name with other bytes stays and is ERR_CONFLICT (ERR_REJECT);
                   one with the same bytes is success: it may be our own, its answer lost */
    S3_REPLACE, /* takes its place */
};

int s3_put(struct s3 *s3, const char *key, const void *bytes, size_t len, enum s3_put_mode mode,
           const char *content_type, struct err *err) must_check;

/* A thing to read: in the store's own bucket under its prefix (`bucket` NULL), or anywhere that the
 * same endpoint and credentials reach. */
struct s3_object {
    const char *bucket;
    const char *key;
};

/* Appends the object's bytes; over the buffer's maximum is ERR_LIMIT (ERR_REJECT). */
int s3_get(struct s3 *s3, struct s3_object object, struct buf *out, struct err *err) must_check;

/* Into a file, resumably: see net/download.h. */
int s3_get_file(struct s3 *s3, struct s3_object object, const char *path, const char *sha256,
                uint64_t max_bytes, struct err *err) must_check;

struct s3_head {
    bool exists;
    uint64_t bytes;
    char etag[HTTP_ETAG_BYTES];
};
int s3_head(struct s3 *s3, struct s3_object object, struct s3_head *head,
            struct err *err) must_check;

/* One that is not there is fine. */
int s3_delete(struct s3 *s3, const char *key, struct err *err) must_check;

/* Calls `see` with every object whose key begins with `prefix` (both without the store's prefix),
 * in the order of keys; a non-zero result ends it and is returned. `see` may call the store. */
int s3_list(struct s3 *s3, const char *prefix,
            int (*see)(void *user, const struct s3_listed *object, struct err *err), void *user,
            struct err *err) must_check;

#endif

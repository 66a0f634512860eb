#include "net/fetch.h"

#include "common/base64.h"
#include "common/file.h"
#include "common/sha256.h"
#include "net/download.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define WHAT_BYTES 300
#define BUCKET_BYTES 256

enum scheme { SCHEME_HTTP, SCHEME_S3, SCHEME_DATA, SCHEME_FILE, SCHEME_UNKNOWN };

static bool begins_with(const char *text, const char *prefix)
{
    return strncasecmp(text, prefix, strlen(prefix)) == 0;
}

static enum scheme scheme_of(const char *uri)
{
    if (begins_with(uri, "https://") || begins_with(uri, "http://"))
        return SCHEME_HTTP;
    if (begins_with(uri, "s3://"))
        return SCHEME_S3;
    if (begins_with(uri, "data:"))
        return SCHEME_DATA;
    if (begins_with(uri, "file://") || !strstr(uri, "://"))
        return SCHEME_FILE;
    return SCHEME_UNKNOWN;
}

void fetch_describe(const char *uri, char *out, size_t out_size)
{
    if (begins_with(uri, "data:")) {
        snprintf(out, out_size, "data URI");
        return;
    }
    const char *host = strstr(uri, "://");
    if (!host || scheme_of(uri) != SCHEME_HTTP) {
        snprintf(out, out_size, "%s", uri);
        return;
    }
    host += 3;
    size_t host_len = strcspn(host, "/?#"), len = strcspn(host, "?#"), skip = 0;
    for (size_t i = 0; i < host_len; i++)
        if (host[i] == '@')
            skip = i + 1;
    snprintf(out, out_size, "%.*s%.*s", (int)(host - uri), uri, (int)(len - skip), host + skip);
}

/* The object of an s3 URI; `bucket` has BUCKET_BYTES. */
static int s3_object_of(const struct fetch *fetch, const char *uri, char *bucket,
                        struct s3_object *object, struct err *err)
{
    if (!fetch->s3)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT, "%.200s: no object store is set up here",
                       uri);
    *object = (struct s3_object){.bucket = bucket};
    if (!s3_parse_uri(uri, bucket, BUCKET_BYTES, &object->key))
        return err_set(err, ERR_INVALID, ERR_REJECT, "%.200s: must be s3://bucket/key", uri);
    return 0;
}

static int local_path(const struct fetch *fetch, const char *uri, char path[FILE_PATH_MAX_BYTES],
                      struct err *err)
{
    if (!fetch->base_dir)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT, "%.200s: local files are not read here",
                       uri);
    if (begins_with(uri, "file://"))
        return file_join(path, "", uri + 7, err);
    return file_join(path, *uri == '/' ? "" : fetch->base_dir, uri, err);
}

static int read_data(const char *uri, struct buf *out, struct err *err)
{
    const char *data = strstr(uri, ";base64,");
    if (!data)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a data URI without ;base64,");
    return base64_decode(data + 8, out, err);
}

/* A job's own URL with what it asks for: nothing of it is ours to be fatal about. */
static int read_http(const struct fetch *fetch, const char *uri, const char *what, struct buf *out,
                     struct err *err)
{
    struct http_answer answer;
    struct http_buf_sink sink;
    struct http_request request = {
        .method = "GET", .url = uri, .what = what, .sink = &sink.sink, .follow = true};
    http_buf_sink(&sink, out, what);
    if (http_call(fetch->http, &request, &answer, err) != 0)
        return -1;
    return answer.status == 200 ? 0 : http_refusal(&request, &answer, ERR_REJECT, err);
}

static int check_http(const struct fetch *fetch, const char *what, struct err *err)
{
    return fetch->http
               ? 0
               : err_set(err, ERR_UNSUPPORTED, ERR_REJECT, "%s: http is not read here", what);
}

static int unknown(const char *what, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: unknown scheme; s3://, https:// and data: are known", what);
}

int fetch_read(const struct fetch *fetch, const char *uri, struct buf *out, struct err *err)
{
    char what[WHAT_BYTES], bucket[BUCKET_BYTES], path[FILE_PATH_MAX_BYTES];
    struct s3_object object;
    fetch_describe(uri, what, sizeof(what));
    switch (scheme_of(uri)) {
    case SCHEME_HTTP:
        return check_http(fetch, what, err) != 0 ? -1 : read_http(fetch, uri, what, out, err);
    case SCHEME_S3:
        if (s3_object_of(fetch, uri, bucket, &object, err) != 0)
            return -1;
        return s3_get(fetch->s3, object, out, err);
    case SCHEME_DATA:
        return read_data(uri, out, err);
    case SCHEME_FILE:
        return local_path(fetch, uri, path, err) != 0 ? -1 : file_read(out, path, err);
    case SCHEME_UNKNOWN:
        break;
    }
    return unknown(what, err);
}

/* Through memory: what is large and local, such as a model, is better used in place. */
static int copy_bytes(const struct buf *bytes, const char *what, const char *path,
                      const char *sha256, struct err *err)
{
    char hex[SHA256_HEX_BYTES];
    sha256_hex(hex, bytes->data, bytes->len);
    if (sha256 && strcasecmp(hex, sha256) != 0)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "%s has the SHA-256 %s, not %s", what, hex,
                       sha256);
    return file_write(path, bytes->data, bytes->len, FILE_REPLACE, err);
}

int fetch_file(const struct fetch *fetch, const char *uri, const char *path, const char *sha256,
               uint64_t max_bytes, struct err *err)
{
    char what[WHAT_BYTES], bucket[BUCKET_BYTES];
    struct s3_object object;
    fetch_describe(uri, what, sizeof(what));
    switch (scheme_of(uri)) {
    case SCHEME_HTTP: {
        struct download download = {
            .http = fetch->http,
            .request = {.method = "GET", .url = uri, .what = what, .follow = true},
            .path = path,
            .sha256 = sha256,
            .max_bytes = max_bytes,
            .refused = ERR_REJECT};
        return check_http(fetch, what, err) != 0 ? -1 : download_file(&download, err);
    }
    case SCHEME_S3:
        if (s3_object_of(fetch, uri, bucket, &object, err) != 0)
            return -1;
        return s3_get_file(fetch->s3, object, path, sha256, max_bytes, err);
    case SCHEME_DATA:
    case SCHEME_FILE: {
        struct buf bytes;
        buf_init(&bytes, max_bytes && max_bytes < SIZE_MAX / 2 ? max_bytes : SIZE_MAX / 2);
        int rc = fetch_read(fetch, uri, &bytes, err);
        if (rc == 0)
            rc = copy_bytes(&bytes, what, path, sha256, err);
        buf_release(&bytes);
        return rc;
    }
    case SCHEME_UNKNOWN:
        break;
    }
    return unknown(what, err);
}

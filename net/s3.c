#include "net/s3.h"

#include "net/download.h"
#include "net/s3_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define URL_MAX_BYTES HTTP_URL_MAX_BYTES
#define WHAT_MAX_BYTES 1400
#define TEXT_MAX_BYTES (32u << 10)
#define LIST_MAX_BYTES (8u << 20)
#define TOKEN_MAX_BYTES 2048

/* ---- requests ---- */

static void put_target(struct buf *out, const struct s3 *s3, struct s3_object object, bool escaped)
{
    const char *parts[] = {object.bucket ? object.bucket : s3->options.bucket, "/",
                           object.bucket ? "" : s3->options.prefix, object.key ? object.key : ""};
    for (int i = 0; i < (object.key ? 4 : 1); i++)
        if (escaped)
            s3_escape(out, parts[i], true);
        else
            buf_str(out, parts[i]);
}

void s3_request_header(struct s3_request *request, const char *header)
{
    ASSERT(request->header_count < HTTP_HEADERS_MAX);
    request->http.headers[request->header_count++] = header;
}

void s3_request_type(struct s3_request *request, const char *content_type)
{
    snprintf(request->type, sizeof(request->type), "Content-Type: %s", content_type);
    s3_request_header(request, request->type);
}

/* Whether a part of the path is one that URLs resolve away. */
static bool has_dots(const char *key)
{
    for (const char *part = key; part; part = strchr(part, '/')) {
        part += *part == '/';
        size_t len = strcspn(part, "/");
        if ((len == 1 && part[0] == '.') || (len == 2 && part[0] == '.' && part[1] == '.'))
            return true;
    }
    return false;
}

int s3_request_init(struct s3_request *request, const struct s3 *s3, const char *method,
                    struct s3_object object, const char *query, const void *body, size_t body_bytes,
                    struct err *err)
{
    const struct s3_options *options = &s3->options;
    *request = (struct s3_request){
        .http = {
            .method = method, .body = body, .body_bytes = body_bytes, .signing = &s3->signing}};
    if (object.key && has_dots(object.key))
        return err_set(
            err, ERR_INVALID, ERR_REJECT,
            "the key %.100s has '.' or '..' between its slashes, which do not get through "
            "HTTP; store the object under another",
            object.key);
    buf_init(&request->url, URL_MAX_BYTES);
    buf_init(&request->what, WHAT_MAX_BYTES);
    buf_init(&request->token, TEXT_MAX_BYTES);
    buf_printf(&request->url, "%s/", options->endpoint);
    put_target(&request->url, s3, object, true);
    if (query)
        buf_printf(&request->url, "?%s", query);
    buf_str(&request->what, "s3://");
    put_target(&request->what, s3, object, false);
    if (options->session_token)
        buf_printf(&request->token, "x-amz-security-token: %s", options->session_token);
    if (request->url.failed || request->what.failed || request->token.failed)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "the key %.100s… is too long",
                       object.key ? object.key : "");
    request->http.url = request->url.data;
    request->http.what = request->what.data;
    char hex[SHA256_HEX_BYTES];
    sha256_hex(hex, body_bytes ? body : "", body_bytes);
    snprintf(request->hash, sizeof(request->hash), "x-amz-content-sha256: %s", hex);
    s3_request_header(request, request->hash);
    if (options->session_token)
        s3_request_header(request, request->token.data);
    return 0;
}

void s3_request_release(struct s3_request *request)
{
    buf_release(&request->url);
    buf_release(&request->what);
    buf_release(&request->token);
}

int s3_request_call(const struct s3 *s3, struct s3_request *request, enum err_class refused,
                    struct http_answer *answer, struct err *err)
{
    if (http_call(s3->http, &request->http, answer, err) != 0)
        return -1;
    if (answer->status >= 200 && answer->status < 300)
        return 0;
    return http_refusal(&request->http, answer, refused, err);
}

/* ---- opening ---- */

/* Copies a string into the store's text. Offsets, because the text moves as it grows. */
static size_t keep(struct buf *text, const char *value)
{
    size_t at = text->len;
    buf_append(text, value ? value : "", value ? strlen(value) + 1 : 1);
    return at;
}

static int check_options(const struct s3_options *options, struct err *err)
{
    const struct {
        const char *name, *value;
    } wanted[] = {{"endpoint", options->endpoint},     {"region", options->region},
                  {"bucket", options->bucket},         {"access key", options->access_key},
                  {"secret key", options->secret_key}, {"prefix", options->prefix}};
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if (!wanted[i].value || (!*wanted[i].value && i < 5))
            return err_set(err, ERR_INVALID, ERR_FATAL, "object store: no %s is given",
                           wanted[i].name);
    if (strncmp(options->endpoint, "http://", 7) != 0 &&
        strncmp(options->endpoint, "https://", 8) != 0)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "object store: the endpoint %s must begin with https:// or http://",
                       options->endpoint);
    if (options->part_bytes < S3_PART_MIN_BYTES)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "object store: parts of %zu bytes; the least is %u", options->part_bytes,
                       S3_PART_MIN_BYTES);
    return 0;
}

int s3_create(struct s3 **out, const struct s3_options *options, struct err *err)
{
    *out = NULL;
    if (check_options(options, err) != 0)
        return -1;
    struct s3 *s3 = calloc(1, sizeof(*s3));
    if (!s3)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the object store");
    const char *values[] = {options->endpoint,     options->region,     options->bucket,
                            options->prefix,       options->access_key, options->secret_key,
                            options->session_token};
    const char **places[] = {&s3->options.endpoint,     &s3->options.region,
                             &s3->options.bucket,       &s3->options.prefix,
                             &s3->options.access_key,   &s3->options.secret_key,
                             &s3->options.session_token};
    size_t at[7];
    s3->options = *options;
    atomic_init(&s3->creates_only, true);
    buf_init(&s3->text, TEXT_MAX_BYTES);
    for (int i = 0; i < 7; i++)
        at[i] = keep(&s3->text, values[i]);
    for (int i = 0; i < 7; i++)
        *places[i] = values[i] ? s3->text.data + at[i] : NULL;
    size_t len = strlen(s3->options.endpoint);
    if (len > 0 && s3->options.endpoint[len - 1] == '/')
        s3->text.data[at[0] + len - 1] = '\0';
    s3->signing =
        (struct http_signing){s3->options.region, s3->options.access_key, s3->options.secret_key};
    s3->options.http.clock = options->http.clock ? options->http.clock : clock_system();
    if (s3->text.failed)
        err_set(err, ERR_LIMIT, ERR_FATAL, "the object store's settings are too long");
    if (s3->text.failed || http_create(&s3->http, &s3->options.http, err) != 0) {
        s3_free(s3);
        return -1;
    }
    *out = s3;
    return 0;
}

void s3_free(struct s3 *s3)
{
    if (!s3)
        return;
    http_free(s3->http);
    if (s3->text.cap > 0)
        explicit_bzero(s3->text.data, s3->text.len);
    buf_release(&s3->text);
    free(s3);
}

bool s3_creates_only(const struct s3 *s3)
{
    return atomic_load(&s3->creates_only);
}

/* ---- objects ---- */

/* Whether the object has exactly these bytes: 1 or 0. */
static int has_bytes(struct s3 *s3, const char *key, const void *bytes, size_t len, struct err *err)
{
    struct s3_object object = {NULL, key};
    struct s3_head head;
    struct buf there;
    if (s3_head(s3, object, &head, err) != 0)
        return -1;
    if (!head.exists || head.bytes != len)
        return 0;
    buf_init(&there, len);
    int rc = s3_get(s3, object, &there, err);
    if (rc == 0)
        rc = there.len == len && memcmp(there.data, bytes, len) == 0;
    buf_release(&there);
    return rc;
}

/* An object of that name was there before this call, or since its first try. */
static int judge_existing(struct s3 *s3, const char *key, const void *bytes, size_t len,
                          struct err *err)
{
    int same = has_bytes(s3, key, bytes, len, err);
    if (same < 0)
        return -1;
    return same ? 0
                : err_set(err, ERR_CONFLICT, ERR_REJECT,
                          "s3://%s/%s%s is there already, with other content", s3->options.bucket,
                          s3->options.prefix, key);
}

static int put_whole(struct s3 *s3, const char *key, const void *bytes, size_t len,
                     enum s3_put_mode mode, const char *content_type, struct err *err)
{
    struct s3_request request;
    struct http_answer answer;
    int rc =
        s3_request_init(&request, s3, "PUT", (struct s3_object){NULL, key}, NULL, bytes, len, err);
    s3_request_type(&request, content_type);
    if (mode == S3_NEW && s3_creates_only(s3))
        s3_request_header(&request, "If-None-Match: *");
    if (rc == 0)
        rc = s3_request_call(s3, &request, ERR_FATAL, &answer, err);
    s3_request_release(&request);
    return rc;
}

int s3_put(struct s3 *s3, const char *key, const void *bytes, size_t len, enum s3_put_mode mode,
           const char *content_type, struct err *err)
{
    struct err own;
    bool large = len > s3->options.part_bytes;
    if (mode == S3_NEW && (large || !s3_creates_only(s3))) {
        struct s3_head head;
        if (s3_head(s3, (struct s3_object){NULL, key}, &head, err) != 0)
            return -1;
        if (head.exists)
            return judge_existing(s3, key, bytes, len, err);
    }
    int rc = large ? s3_upload(s3, key, bytes, len, mode, content_type, &own)
                   : put_whole(s3, key, bytes, len, mode, content_type, &own);
    if (rc == 0)
        return 0;
    /* libcurl sends again by itself what a dying connection may have delivered, so that any 412,
     * not only that of a second try, may be about our own object. */
    if (own.code == ERR_CONFLICT && mode == S3_NEW)
        return judge_existing(s3, key, bytes, len, err);
    return err_set(err, own.code, own.class, "%s", own.message);
}

int s3_get(struct s3 *s3, struct s3_object object, struct buf *out, struct err *err)
{
    struct s3_request request;
    struct http_buf_sink sink;
    struct http_answer answer;
    int rc = s3_request_init(&request, s3, "GET", object, NULL, NULL, 0, err);
    if (rc == 0) {
        http_buf_sink(&sink, out, request.http.what);
        request.http.sink = &sink.sink;
        rc = s3_request_call(s3, &request, ERR_REJECT, &answer, err);
    }
    s3_request_release(&request);
    return rc;
}

int s3_get_file(struct s3 *s3, struct s3_object object, const char *path, const char *sha256,
                uint64_t max_bytes, struct err *err)
{
    struct s3_request request;
    int rc = s3_request_init(&request, s3, "GET", object, NULL, NULL, 0, err);
    if (rc == 0) {
        struct download download = {.http = s3->http,
                                    .request = request.http,
                                    .path = path,
                                    .sha256 = sha256,
                                    .max_bytes = max_bytes,
                                    .refused = ERR_REJECT};
        rc = download_file(&download, err);
    }
    s3_request_release(&request);
    return rc;
}

int s3_head(struct s3 *s3, struct s3_object object, struct s3_head *head, struct err *err)
{
    struct s3_request request;
    struct http_answer answer;
    *head = (struct s3_head){0};
    int rc = s3_request_init(&request, s3, "HEAD", object, NULL, NULL, 0, err);
    if (rc == 0)
        rc = http_call(s3->http, &request.http, &answer, err);
    if (rc == 0 && answer.status == 200) {
        head->exists = true;
        head->bytes = answer.length > 0 ? (uint64_t)answer.length : 0;
        memcpy(head->etag, answer.etag, sizeof(head->etag));
    } else if (rc == 0 && answer.status != 404) {
        rc = http_refusal(&request.http, &answer, object.bucket ? ERR_REJECT : ERR_FATAL, err);
    }
    s3_request_release(&request);
    return rc;
}

int s3_delete(struct s3 *s3, const char *key, struct err *err)
{
    struct s3_request request;
    struct http_answer answer;
    int rc =
        s3_request_init(&request, s3, "DELETE", (struct s3_object){NULL, key}, NULL, NULL, 0, err);
    if (rc == 0)
        rc = http_call(s3->http, &request.http, &answer, err);
    if (rc == 0 && answer.status != 200 && answer.status != 204 &&
        !(answer.status == 404 && strcmp(answer.error_code, "NoSuchBucket") != 0))
        rc = http_refusal(&request.http, &answer, ERR_FATAL, err);
    s3_request_release(&request);
    return rc;
}

/* ---- lists ---- */

struct listing {
    size_t prefix_len; /* the store's, to be taken off */
    int (*see)(void *user, const struct s3_listed *object, struct err *err);
    void *user;
};

static int see_listed(void *user, const struct s3_listed *object, struct err *err)
{
    const struct listing *listing = user;
    struct s3_listed inner = *object;
    if (strlen(inner.key) < listing->prefix_len)
        return err_set(err, ERR_FORMAT, ERR_RETRY, "%s was listed, but not asked for", inner.key);
    inner.key += listing->prefix_len;
    return listing->see(listing->user, &inner, err);
}

/* Gets one page into `page`. The query is in the order of its keys, as signing wants it. */
static int list_page(struct s3 *s3, const char *prefix, const char *token, const char *keys_max,
                     struct buf *page, struct err *err)
{
    struct s3_request request;
    struct http_buf_sink sink;
    struct http_answer answer;
    struct buf query;
    buf_init(&query, URL_MAX_BYTES);
    if (*token) {
        buf_str(&query, "continuation-token=");
        s3_escape(&query, token, false);
        buf_char(&query, '&');
    }
    buf_printf(&query, "list-type=2&max-keys=%s&prefix=", keys_max);
    s3_escape(&query, s3->options.prefix, false);
    s3_escape(&query, prefix, false);
    if (query.failed) {
        buf_release(&query);
        return err_set(err, ERR_LIMIT, ERR_REJECT, "the prefix %.100s… is too long", prefix);
    }
    int rc = s3_request_init(&request, s3, "GET", (struct s3_object){0}, query.data, NULL, 0, err);
    if (rc == 0) {
        http_buf_sink(&sink, page, "a list of objects");
        request.http.sink = &sink.sink;
        rc = s3_request_call(s3, &request, ERR_FATAL, &answer, err);
    }
    s3_request_release(&request);
    buf_release(&query);
    return rc;
}

int s3_list(struct s3 *s3, const char *prefix,
            int (*see)(void *user, const struct s3_listed *object, struct err *err), void *user,
            struct err *err)
{
    struct listing listing = {strlen(s3->options.prefix), see, user};
    char token[TOKEN_MAX_BYTES] = "";
    struct buf page;
    int rc;
    buf_init(&page, LIST_MAX_BYTES);
    do {
        buf_clear(&page);
        rc = list_page(s3, prefix, token, "1000", &page, err);
        if (rc == 0)
            rc = s3_xml_list(page.data, page.len, see_listed, &listing, token, sizeof(token), err);
    } while (rc == 0 && *token);
    buf_release(&page);
    return rc;
}

/* ---- checking at start ---- */

static int check_bucket(struct s3 *s3, struct err *err)
{
    struct buf page;
    buf_init(&page, LIST_MAX_BYTES);
    int rc = list_page(s3, ".probe/", "", "1", &page, err);
    buf_release(&page);
    return rc;
}

/* Whether a second creation of the same name is refused: 0 or 1. */
static int probe(struct s3 *s3, struct err *err)
{
    struct http_answer answer = {0};
    char key[80];
    int rc = 0, status[2] = {0};
    snprintf(key, sizeof(key), ".probe/%d-%" PRIx64, (int)getpid(),
             (uint64_t)clock_wall_ns(s3->options.http.clock) ^ (uintptr_t)&answer);
    for (int i = 0; i < 2 && rc == 0; i++) {
        struct s3_request request;
        rc = s3_request_init(&request, s3, "PUT", (struct s3_object){NULL, key}, NULL, "12",
                             1 + (size_t)i, err);
        s3_request_header(&request, "If-None-Match: *");
        if (rc == 0)
            rc = http_call(s3->http, &request.http, &answer, err);
        status[i] = answer.status;
        if (rc == 0 && (answer.status == 401 || answer.status == 403 || answer.status == 404))
            rc = http_refusal(&request.http, &answer, ERR_FATAL, err);
        s3_request_release(&request);
    }
    if (rc == 0)
        rc = s3_delete(s3, key, err);
    if (rc == 0)
        rc = status[1] == 412;
    return rc;
}

int s3_check(struct s3 *s3, struct err *err)
{
    int rc = check_bucket(s3, err);
    if (rc == 0)
        rc = probe(s3, err);
    if (rc < 0)
        return err_prefix(err, "object store %s, bucket %s", s3->options.endpoint,
                          s3->options.bucket);
    atomic_store(&s3->creates_only, rc == 1);
    return 0;
}

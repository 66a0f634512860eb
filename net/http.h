/*
 * http.h: one HTTP exchange at a time from any thread, over kept-alive connections: libcurl's
 * adapter, and the only file that includes it.
 *
 * A `struct http` owns a bounded pool of handles; a caller beyond that waits for one. It knows how
 * to sign for S3 (Signature Version 4), and nothing else of S3.
 *
 *     struct http_answer answer;
 *     struct http_request request = {.method = "GET", .url = url, .what = url, .sink = &sink};
 *     if (http_call(http, &request, &answer, &err) != 0) ... no answer worth having
 *     else if (answer.status != 200) return http_refusal(&request, &answer, ERR_REJECT, &err);
 */
#ifndef ATELIER_NET_HTTP_H
#define ATELIER_NET_HTTP_H

#include "common/buf.h"
#include "common/clock.h"
#include "common/err.h"
#include "net/retry.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_ETAG_BYTES 160
#define HTTP_HEADERS_MAX 16
#define HTTP_URL_MAX_BYTES 8192

struct http_options {
    int connections_max;
    int connect_timeout_ms;
    int idle_timeout_ms; /* without a byte in either direction */
    const char *ca_file; /* NULL: the system's */
    /* Refuses addresses of this machine and of private networks (loopback, link-local, RFC 1918,
     * unique local): for addresses that strangers give. */
    bool public_only;
    struct retry_policy retry;
    const struct clock *clock;
};
#define HTTP_OPTIONS_INIT                                                                          \
    {                                                                                              \
        .connections_max = 8, .connect_timeout_ms = 5000, .idle_timeout_ms = 20000,                \
        .retry = RETRY_POLICY_INIT                                                                 \
    }

struct http;

/* Copies the options. The clock is borrowed. */
int http_create(struct http **http, const struct http_options *options, struct err *err) must_check;
/* No call may be under way. */
void http_free(struct http *http);

const struct http_options *http_options(const struct http *http);

/* Signature Version 4. Strings are borrowed. */
struct http_signing {
    const char *region;
    const char *access_key;
    const char *secret_key;
};

struct http_answer {
    int status;
    int tries;                  /* this one included */
    int64_t length;             /* of the body; -1: not said */
    int64_t range_begin;        /* of a 206; -1: not said */
    char etag[HTTP_ETAG_BYTES]; /* as sent, quotes included; "" for none */
    int retry_after_ms;         /* 0: not asked for */
    char error_code[64];        /* S3's, of an XML error body; "" for none */
    char error_text[200];
};

/* Where the body of a 2xx answer goes. Each try begins anew. A failure ends the call with its
 * error. */
struct http_sink {
    int (*begin)(void *user, const struct http_answer *answer, struct err *err);
    int (*write)(void *user, const void *bytes, size_t len, struct err *err);
    void *user;
};

/* All borrowed. */
struct http_request {
    const char *method; /* GET, HEAD, PUT, POST, DELETE */
    const char *url;
    const char *what;                      /* names the thing in errors; no secrets */
    const char *headers[HTTP_HEADERS_MAX]; /* "Name: value", up to the first NULL */
    const void *body;                      /* of PUT and POST */
    size_t body_bytes;
    const struct http_signing *signing; /* NULL: none */
    const struct http_sink *sink;       /* NULL: the body is dropped */
    bool follow;                        /* redirects, up to 5 */
    const atomic_bool *stop;            /* once true, the try ends within a second; or NULL */
};

/* One try. 0: an answer came whole, whatever its status. -1: ERR_RETRY where the network failed or
 * the body was cut, ERR_REJECT where the address is wrong or refused, or the sink's own error. */
int http_try(struct http *http, const struct http_request *request, int timeout_ms,
             struct http_answer *answer, struct err *err) must_check;

/* Tries until there is an answer that trying again would not change, by the retry policy. What is
 * tried again: failures of the network, 408, 429, 5xx and S3's conflicts that say so. */
int http_call(struct http *http, const struct http_request *request, struct http_answer *answer,
              struct err *err) must_check;

bool http_is_passing(const struct http_answer *answer);

/* Says what is wrong with a whole answer. 401, 403 and 404 get the class `refused`; 404 is
 * ERR_NOT_FOUND, 412 ERR_CONFLICT, what passes ERR_RETRY. Returns -1. */
int http_refusal(const struct http_request *request, const struct http_answer *answer,
                 enum err_class refused, struct err *err);

/* What is to be known of a URL before it is called. */
#define HTTP_HOST_BYTES 256
struct http_url {
    char host[HTTP_HOST_BYTES]; /* in lower case; IPv6 addresses without brackets */
    bool tls, has_user;
    bool is_private; /* the host is an address, not a name, and no public one; or "localhost" */
};

/* Errors: no http or https URL with a host (ERR_INVALID, ERR_REJECT). */
int http_url_read(struct http_url *parts, const char *url, struct err *err) must_check;

/* A sink that appends to a buffer; over its maximum is ERR_LIMIT (ERR_REJECT). */
struct http_buf_sink {
    struct buf *out;
    size_t before;
    const char *what;
    struct http_sink sink; /* give &sink to the request */
};
void http_buf_sink(struct http_buf_sink *sink, struct buf *out, const char *what);

#endif

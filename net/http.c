/*
 * Signing is libcurl's (CURLOPT_AWS_SIGV4). It signs the path and the query as they are given, so
 * whoever makes a URL escapes it and sorts the query; and it signs the headers given here, which
 * are therefore complete: x-amz-content-sha256 among them, without which S3 answers 400.
 */
#include "net/http.h"

#include "net/s3_xml.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define ERROR_BODY_MAX_BYTES (16u << 10)
#define REDIRECTS_MAX 5
#define RETRY_AFTER_MAX_S 300

struct http {
    struct http_options options;
    char *ca_file;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t returned;
    CURL **idle; /* a stack */
    int idle_count, made;
};

/* ---- the pool ---- */

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_curl(void)
{
    curl_global_init(CURL_GLOBAL_ALL);
}

int http_create(struct http **out, const struct http_options *options, struct err *err)
{
    struct http *http = calloc(1, sizeof(*http));
    *out = NULL;
    pthread_once(&once, init_curl);
    ASSERT(options->connections_max > 0 && options->clock);
    if (http) {
        http->options = *options;
        http->idle = calloc((size_t)options->connections_max, sizeof(CURL *));
        http->ca_file = options->ca_file ? strdup(options->ca_file) : NULL;
        pthread_mutex_init(&http->lock, NULL);
        pthread_cond_init(&http->returned, NULL);
    }
    if (!http || !http->idle || (options->ca_file && !http->ca_file)) {
        http_free(http);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for HTTP");
    }
    http->options.ca_file = http->ca_file;
    *out = http;
    return 0;
}

void http_free(struct http *http)
{
    if (!http)
        return;
    ASSERT(http->idle_count == http->made);
    for (int i = 0; i < http->idle_count; i++)
        curl_easy_cleanup(http->idle[i]);
    pthread_cond_destroy(&http->returned);
    pthread_mutex_destroy(&http->lock);
    free(http->idle);
    free(http->ca_file);
    free(http);
}

const struct http_options *http_options(const struct http *http)
{
    return &http->options;
}

static CURL *take_handle(struct http *http)
{
    CURL *curl = NULL;
    pthread_mutex_lock(&http->lock);
    while (http->idle_count == 0 && http->made == http->options.connections_max)
        pthread_cond_wait(&http->returned, &http->lock);
    if (http->idle_count > 0) {
        curl = http->idle[--http->idle_count];
    } else {
        curl = curl_easy_init();
        http->made += curl != NULL;
    }
    pthread_mutex_unlock(&http->lock);
    return curl;
}

static void return_handle(struct http *http, CURL *curl)
{
    curl_easy_reset(curl); /* keeps its connections */
    pthread_mutex_lock(&http->lock);
    http->idle[http->idle_count++] = curl;
    pthread_cond_signal(&http->returned);
    pthread_mutex_unlock(&http->lock);
}

/* ---- one exchange ---- */

struct exchange {
    const struct http_request *request;
    struct http_answer *answer;
    struct buf error_body;
    size_t sent;
    bool begun;           /* the sink has been */
    bool sink_failed;     /* `sink_err` says why */
    bool address_refused; /* by public_only */
    struct err sink_err;
};

/* The value of "Name: value\r\n" if that is the header's name; the line need not end in NUL. */
static bool header_value(const char *line, size_t len, const char *name, char *out, size_t out_size)
{
    size_t name_len = strlen(name);
    if (len <= name_len || strncasecmp(line, name, name_len) != 0 || line[name_len] != ':')
        return false;
    line += name_len + 1;
    len -= name_len + 1;
    while (len > 0 && (*line == ' ' || *line == '\t')) {
        line++;
        len--;
    }
    while (len > 0 && (line[len - 1] == '\r' || line[len - 1] == '\n' || line[len - 1] == ' '))
        len--;
    snprintf(out, out_size, "%.*s", (int)len, line);
    return true;
}

static size_t on_header(char *line, size_t size, size_t count, void *user)
{
    struct exchange *exchange = user;
    struct http_answer *answer = exchange->answer;
    size_t len = size * count;
    char value[HTTP_ETAG_BYTES];
    if (len > 9 && strncmp(line, "HTTP/", 5) == 0) { /* of a 100, a redirect or the answer */
        const char *space = memchr(line, ' ', len);
        int tries = answer->tries;
        *answer = (struct http_answer){.length = -1, .range_begin = -1, .tries = tries};
        answer->status = space ? atoi(space + 1) : 0;
    } else if (header_value(line, len, "etag", value, sizeof(value))) {
        memcpy(answer->etag, value, sizeof(value));
    } else if (header_value(line, len, "content-length", value, sizeof(value))) {
        answer->length = strtoll(value, NULL, 10);
    } else if (header_value(line, len, "content-range", value, sizeof(value))) {
        if (strncasecmp(value, "bytes ", 6) == 0 && value[6] >= '0' && value[6] <= '9')
            answer->range_begin = strtoll(value + 6, NULL, 10);
    } else if (header_value(line, len, "retry-after", value, sizeof(value))) {
        int seconds = atoi(value);
        seconds = seconds < 0 ? 0 : seconds > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : seconds;
        answer->retry_after_ms = seconds * 1000;
    }
    return len;
}

static bool is_success(const struct http_answer *answer)
{
    return answer->status >= 200 && answer->status < 300;
}

static bool begin_sink(struct exchange *exchange)
{
    const struct http_sink *sink = exchange->request->sink;
    if (!exchange->begun && sink) {
        exchange->begun = true;
        exchange->sink_failed = sink->begin(sink->user, exchange->answer, &exchange->sink_err) != 0;
    }
    return !exchange->sink_failed;
}

static size_t on_body(char *bytes, size_t size, size_t count, void *user)
{
    struct exchange *exchange = user;
    const struct http_sink *sink = exchange->request->sink;
    size_t len = size * count;
    if (!is_success(exchange->answer)) {
        struct buf *body = &exchange->error_body;
        size_t room = body->max_bytes - body->len;
        buf_append(body, bytes, len < room ? len : room);
        return len;
    }
    if (!sink)
        return len;
    if (!begin_sink(exchange))
        return 0;
    exchange->sink_failed = sink->write(sink->user, bytes, len, &exchange->sink_err) != 0;
    return exchange->sink_failed ? 0 : len;
}

static size_t on_send(char *out, size_t size, size_t count, void *user)
{
    struct exchange *exchange = user;
    size_t left = exchange->request->body_bytes - exchange->sent;
    size_t len = size * count < left ? size * count : left;
    if (len > 0)
        memcpy(out, (const char *)exchange->request->body + exchange->sent, len);
    exchange->sent += len;
    return len;
}

static int on_seek(void *user, curl_off_t offset, int origin)
{
    struct exchange *exchange = user;
    if (origin != SEEK_SET || offset < 0 || (size_t)offset > exchange->request->body_bytes)
        return CURL_SEEKFUNC_FAIL;
    exchange->sent = (size_t)offset;
    return CURL_SEEKFUNC_OK;
}

static bool is_private_v4(uint32_t a)
{
    return a >> 24 == 0 || a >> 24 == 10 || a >> 24 == 127 || a >> 20 == 0xAC1 ||
           a >> 16 == 0xC0A8 || a >> 16 == 0xA9FE || a >> 22 == 0x191 /* 100.64/10 */ ||
           a >> 28 >= 0xE;
}

static bool is_private(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        return is_private_v4(ntohl(v4->sin_addr.s_addr));
    }
    if (address->sa_family != AF_INET6)
        return true;
    const struct in6_addr *v6 = &((const struct sockaddr_in6 *)address)->sin6_addr;
    static const uint8_t nat64[12] = {0x00, 0x64, 0xFF, 0x9B}; /* RFC 6052 */
    if (IN6_IS_ADDR_V4MAPPED(v6) || IN6_IS_ADDR_V4COMPAT(v6) || memcmp(v6, nat64, 12) == 0) {
        uint32_t v4;
        memcpy(&v4, v6->s6_addr + 12, 4);
        return is_private_v4(ntohl(v4));
    }
    return IN6_IS_ADDR_LOOPBACK(v6) || IN6_IS_ADDR_LINKLOCAL(v6) || IN6_IS_ADDR_MULTICAST(v6) ||
           IN6_IS_ADDR_UNSPECIFIED(v6) || (v6->s6_addr[0] & 0xFE) == 0xFC;
}

static bool is_private_literal(const char *host)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1)
        return is_private((const struct sockaddr *)&v4);
    if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1)
        return is_private((const struct sockaddr *)&v6);
    return strcasecmp(host, "localhost") == 0;
}

/* After the name was resolved, so that no name can lead around it. */
static curl_socket_t on_socket(void *user, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct exchange *exchange = user;
    (void)purpose;
    if (is_private(&address->addr)) {
        exchange->address_refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static int on_progress(void *user, curl_off_t to_get, curl_off_t got, curl_off_t to_put,
                       curl_off_t put)
{
    const struct exchange *exchange = user;
    (void)to_get, (void)got, (void)to_put, (void)put;
    return atomic_load(exchange->request->stop);
}

static struct curl_slist *header_list(const struct http_request *request)
{
    struct curl_slist *list = NULL;
    for (int i = 0; i < HTTP_HEADERS_MAX && request->headers[i]; i++) {
        struct curl_slist *longer = curl_slist_append(list, request->headers[i]);
        if (!longer) {
            curl_slist_free_all(list);
            return NULL;
        }
        list = longer;
    }
    return list;
}

static void set_method(CURL *curl, struct exchange *exchange)
{
    const struct http_request *request = exchange->request;
    if (strcmp(request->method, "HEAD") == 0) {
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    } else if (strcmp(request->method, "PUT") == 0) {
        curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)request->body_bytes);
        curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_send);
        curl_easy_setopt(curl, CURLOPT_READDATA, exchange);
        curl_easy_setopt(curl, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(curl, CURLOPT_SEEKDATA, exchange);
    } else if (strcmp(request->method, "POST") == 0) {
        curl_easy_setopt(curl, CURLOPT_POST, 1L);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->body_bytes);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request->body ? request->body : "");
    } else {
        curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L);
        if (strcmp(request->method, "DELETE") == 0)
            curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, "DELETE");
    }
}

static void set_signing(CURL *curl, const struct http_signing *signing)
{
    char provider[128];
    snprintf(provider, sizeof(provider), "aws:amz:%s:s3", signing->region);
    curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, provider);
    curl_easy_setopt(curl, CURLOPT_USERNAME, signing->access_key);
    curl_easy_setopt(curl, CURLOPT_PASSWORD, signing->secret_key);
}

static void set_options(struct http *http, CURL *curl, struct exchange *exchange,
                        struct curl_slist *headers, char *reason, int timeout_ms)
{
    const struct http_options *options = &http->options;
    const struct http_request *request = exchange->request;
    long idle_s = (options->idle_timeout_ms + 999) / 1000;
    curl_easy_setopt(curl, CURLOPT_URL, request->url);
    if (!request->signing) /* libcurl from 8.14 on refuses both at once */
        curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, request->follow ? 1L : 0L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, (long)REDIRECTS_MAX);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)options->connect_timeout_ms);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, idle_s);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "atelier/" ATELIER_VERSION);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, exchange);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, exchange);
    if (options->ca_file)
        curl_easy_setopt(curl, CURLOPT_CAINFO, options->ca_file);
    if (options->public_only) {
        curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_socket);
        curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, exchange);
    }
    if (request->stop) {
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, exchange);
    }
    set_method(curl, exchange);
    if (request->signing)
        set_signing(curl, request->signing);
}

/* libcurl's codes become ours. */
static int transport_error(const struct exchange *exchange, CURLcode code, const char *reason,
                           struct err *err)
{
    const struct http_request *request = exchange->request;
    enum err_class class = ERR_RETRY;
    enum err_code kind = ERR_IO;
    if (exchange->sink_failed)
        return err_set(err, exchange->sink_err.code, exchange->sink_err.class, "%s",
                       exchange->sink_err.message);
    if (exchange->address_refused)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%s: its host is on a private network, which jobs may not name",
                       request->what);
    switch (code) {
    case CURLE_OUT_OF_MEMORY:
        kind = ERR_MEMORY;
        break;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_TOO_MANY_REDIRECTS:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
        kind = ERR_INVALID;
        class = ERR_REJECT;
        break;
    default:
        break;
    }
    return err_set(err, kind, class, "%s %s: %s", request->method, request->what,
                   *reason ? reason : curl_easy_strerror(code));
}

int http_try(struct http *http, const struct http_request *request, int timeout_ms,
             struct http_answer *answer, struct err *err)
{
    struct exchange exchange = {.request = request, .answer = answer};
    char reason[CURL_ERROR_SIZE] = "";
    int tries = answer->tries;
    CURLcode code = CURLE_OUT_OF_MEMORY;
    *answer = (struct http_answer){.length = -1, .range_begin = -1, .tries = tries};
    buf_init(&exchange.error_body, ERROR_BODY_MAX_BYTES);
    CURL *curl = take_handle(http);
    struct curl_slist *headers = header_list(request);
    if (curl && (headers || !request->headers[0])) {
        set_options(http, curl, &exchange, headers, reason, timeout_ms);
        code = curl_easy_perform(curl);
    }
    if (code == CURLE_OK && is_success(answer) && !begin_sink(&exchange))
        code = CURLE_WRITE_ERROR;
    if (code == CURLE_OK && answer->status >= 300)
        s3_xml_error(exchange.error_body.data, exchange.error_body.len, answer->error_code,
                     sizeof(answer->error_code), answer->error_text, sizeof(answer->error_text));
    if (curl)
        return_handle(http, curl);
    curl_slist_free_all(headers);
    buf_release(&exchange.error_body);
    return code == CURLE_OK ? 0 : transport_error(&exchange, code, reason, err);
}

/* ---- trying again ---- */

bool http_is_passing(const struct http_answer *answer)
{
    const char *code = answer->error_code;
    return answer->status == 408 || answer->status == 429 ||
           (answer->status >= 500 && answer->status != 501) || strcmp(code, "SlowDown") == 0 ||
           strcmp(code, "RequestTimeout") == 0 || strcmp(code, "OperationAborted") == 0 ||
           strcmp(code, "ConditionalRequestConflict") == 0;
}

int http_call(struct http *http, const struct http_request *request, struct http_answer *answer,
              struct err *err)
{
    struct err last = {0};
    struct retry retry;
    retry_begin(&retry, &http->options.retry, http->options.clock);
    answer->tries = 0;
    do {
        answer->tries++;
        if (http_try(http, request, retry_left_ms(&retry), answer, &last) == 0) {
            if (!http_is_passing(answer))
                return 0;
            http_refusal(request, answer, ERR_RETRY, &last);
        } else if (last.class != ERR_RETRY || last.code == ERR_MEMORY) {
            return err_set(err, last.code, last.class, "%s", last.message);
        }
    } while (retry_wait(&retry, answer->retry_after_ms));
    return err_set(err, last.code, last.class, "%s (tried %d times)", last.message, answer->tries);
}

int http_refusal(const struct http_request *request, const struct http_answer *answer,
                 enum err_class refused, struct err *err)
{
    enum err_code code = ERR_IO;
    enum err_class class = refused;
    if (answer->status == 404)
        code = ERR_NOT_FOUND;
    else if (answer->status == 412)
        code = ERR_CONFLICT;
    else if (http_is_passing(answer))
        class = ERR_RETRY;
    else
        code = ERR_INVALID;
    const char *name = answer->error_code, *text = answer->error_text;
    return err_set(err, code, class, "%s %s: HTTP status %d%s%s%s%s", request->method,
                   request->what, answer->status, *name ? " " : "", name, *text ? ": " : "", text);
}

/* ---- URLs ---- */

/* libcurl's parser, so that what is judged is what would be called: it makes 127.0.0.1 of 0x7f.1.
 */
static bool part_of(CURLU *url, CURLUPart which, char *out, size_t size)
{
    char *text = NULL;
    bool there = curl_url_get(url, which, &text, 0) == CURLUE_OK && strlen(text) < size;
    if (there)
        snprintf(out, size, "%s", text);
    curl_free(text);
    return there;
}

static void read_host(char host[HTTP_HOST_BYTES])
{
    size_t len = strlen(host);
    for (size_t i = 0; i < len; i++)
        host[i] = (char)tolower((unsigned char)host[i]);
    if (host[0] == '[' && host[len - 1] == ']') {
        host[len - 1] = '\0';
        memmove(host, host + 1, len - 1);
    }
}

int http_url_read(struct http_url *parts, const char *text, struct err *err)
{
    char scheme[16], user[HTTP_HOST_BYTES];
    *parts = (struct http_url){.tls = false};
    CURLU *url = curl_url();
    bool good = url && curl_url_set(url, CURLUPART_URL, text, 0) == CURLUE_OK &&
                part_of(url, CURLUPART_SCHEME, scheme, sizeof(scheme)) &&
                part_of(url, CURLUPART_HOST, parts->host, sizeof(parts->host)) &&
                (strcmp(scheme, "https") == 0 || strcmp(scheme, "http") == 0);
    if (good) {
        read_host(parts->host);
        parts->tls = strcmp(scheme, "https") == 0;
        parts->has_user = part_of(url, CURLUPART_USER, user, sizeof(user)) ||
                          part_of(url, CURLUPART_PASSWORD, user, sizeof(user));
        parts->is_private = is_private_literal(parts->host);
    }
    curl_url_cleanup(url);
    return good ? 0 : err_set(err, ERR_INVALID, ERR_REJECT, "is no http or https URL with a host");
}

/* ---- into a buffer ---- */

static int buf_begin(void *user, const struct http_answer *answer, struct err *err)
{
    struct http_buf_sink *sink = user;
    sink->out->len = sink->before;
    if (answer->length > (int64_t)(sink->out->max_bytes - sink->before))
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s is larger than %zu bytes", sink->what,
                       sink->out->max_bytes);
    return 0;
}

static int buf_write(void *user, const void *bytes, size_t len, struct err *err)
{
    struct http_buf_sink *sink = user;
    if (len > sink->out->max_bytes - sink->out->len)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s is larger than %zu bytes", sink->what,
                       sink->out->max_bytes);
    buf_append(sink->out, bytes, len);
    return sink->out->failed
               ? err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for %s", sink->what)
               : 0;
}

void http_buf_sink(struct http_buf_sink *sink, struct buf *out, const char *what)
{
    *sink = (struct http_buf_sink){out, out->len, what, {buf_begin, buf_write, sink}};
}

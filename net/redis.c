/*
 * DESIGN
 *
 * hiredis' asynchronous context over the caller's poll loop: its hooks only note whether it wants
 * to read or write. A lost connection frees the context (hiredis ends what was under way with NULL
 * replies) and the link connects again after a back-off; nothing is kept to be sent again, since
 * only the owner knows what is still true by then.
 */
#include "net/redis.h"

#include "net/redis_scripts.h"
#include "net/redis_tls.h"

#include <errno.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>

#define BACKOFF_FIRST_MS 50
#define BACKOFF_MAX_MS 2000
#define CONNECT_TIMEOUT_MS 5000
#define SILENCE_MS 20000 /* with commands under way; nothing that is sent blocks for long */

struct address {
    char host[256]; /* or the socket's path */
    char port[8];
    char user[128], password[512];
    char database[8];
    bool local, tls;
};

struct redis {
    struct redis_options options;
    struct address address;
    struct redis_tls *tls;      /* NULL: plain */
    redisAsyncContext *context; /* NULL while it waits to connect again */
    bool up, reading, writing;
    int64_t retry_ns, connecting_ns;
    int64_t heard_ns; /* the latest answer, or the first command since then */
    int backoff_ms;
    size_t pending;
    char sha[SCRIPT_COUNT][41];
};

struct waiting {
    struct redis *redis;
    redis_reply_fn *on_reply;
    void *user;
};

/* ---- addresses ---- */

static void unescape(char *text)
{
    char *out = text;
    for (; *text; text++) {
        unsigned value;
        if (text[0] == '%' && sscanf(text + 1, "%2x", &value) == 1) {
            *out++ = (char)value;
            text += 2;
        } else {
            *out++ = *text;
        }
    }
    *out = '\0';
}

static int refuse_url(struct err *err)
{
    /* The URL may hold a password: it is not repeated. */
    return err_set(err, ERR_INVALID, ERR_FATAL,
                   "redis-url is not of the form redis[s]://[user:password@]host[:port][/database] "
                   "or unix:/path");
}

static bool copy_part(char *out, size_t size, const char *text, size_t len)
{
    if (len >= size)
        return false;
    memcpy(out, text, len);
    out[len] = '\0';
    return true;
}

static int read_credentials(struct address *address, const char *text, size_t len, struct err *err)
{
    const char *colon = memchr(text, ':', len);
    size_t user = colon ? (size_t)(colon - text) : len;
    if (!copy_part(address->user, sizeof(address->user), text, user) ||
        (colon &&
         !copy_part(address->password, sizeof(address->password), colon + 1, len - user - 1)))
        return refuse_url(err);
    unescape(address->user);
    unescape(address->password);
    return 0;
}

static int read_address(struct address *address, const char *url, struct err *err)
{
    *address = (struct address){.port = "6379"};
    if (strncmp(url, "unix:", 5) == 0) {
        address->local = true;
        return copy_part(address->host, sizeof(address->host), url + 5, strlen(url + 5))
                   ? 0
                   : refuse_url(err);
    }
    address->tls = strncmp(url, "rediss://", 9) == 0;
    if (!address->tls && strncmp(url, "redis://", 8) != 0)
        return refuse_url(err);
    url += address->tls ? 9 : 8;
    const char *at = strrchr(url, '@');
    if (at && read_credentials(address, url, (size_t)(at - url), err) != 0)
        return -1;
    url = at ? at + 1 : url;
    size_t len = strcspn(url, "/");
    const char *colon = memchr(url, ':', len);
    size_t host = colon ? (size_t)(colon - url) : len;
    if (host == 0 || !copy_part(address->host, sizeof(address->host), url, host) ||
        (colon && !copy_part(address->port, sizeof(address->port), colon + 1, len - host - 1)) ||
        (url[len] == '/' && !copy_part(address->database, sizeof(address->database), url + len + 1,
                                       strlen(url + len + 1))))
        return refuse_url(err);
    return atoi(address->port) > 0 ? 0 : refuse_url(err);
}

/* ---- hiredis' hooks ---- */

static void add_read(void *user)
{
    ((struct redis *)user)->reading = true;
}

static void del_read(void *user)
{
    ((struct redis *)user)->reading = false;
}

static void add_write(void *user)
{
    ((struct redis *)user)->writing = true;
}

static void del_write(void *user)
{
    ((struct redis *)user)->writing = false;
}

static void clean_up(void *user)
{
    struct redis *redis = user;
    redis->reading = redis->writing = false;
}

static void plan_retry(struct redis *redis)
{
    redis->retry_ns =
        clock_monotonic_ns(redis->options.clock) + (int64_t)redis->backoff_ms * 1000000;
    redis->backoff_ms *= 2;
    if (redis->backoff_ms > BACKOFF_MAX_MS)
        redis->backoff_ms = BACKOFF_MAX_MS;
}

static void set_state(struct redis *redis, bool up, const char *why)
{
    bool told = redis->up != up || !up;
    const char *refused = redis_tls_problem(redis->tls);
    char text[160];
    if (!up && refused) {
        snprintf(text, sizeof(text), "the server's certificate is refused: %s", refused);
        why = text;
    }
    redis->up = up;
    if (told && redis->options.on_state)
        redis->options.on_state(redis->options.user, up, why);
}

static void send_plain(struct redis *redis, size_t count, const char **args)
{
    (void)redisAsyncCommandArgv(redis->context, NULL, NULL, (int)count, args, NULL);
}

static void on_login(redisAsyncContext *context, void *value, void *user)
{
    struct redis *redis = context->data;
    const redisReply *reply = value;
    (void)user;
    if (reply && reply->type == REDIS_REPLY_ERROR)
        set_state(redis, false, reply->str);
}

static void log_in(struct redis *redis)
{
    const struct address *address = &redis->address;
    if (address->password[0]) {
        const char *both[] = {"AUTH", address->user, address->password};
        const char *one[] = {"AUTH", address->password};
        if (address->user[0])
            (void)redisAsyncCommandArgv(redis->context, on_login, NULL, 3, both, NULL);
        else
            (void)redisAsyncCommandArgv(redis->context, on_login, NULL, 2, one, NULL);
    }
    if (address->database[0])
        send_plain(redis, 2, (const char *[]){"SELECT", address->database});
}

static void on_loaded(redisAsyncContext *context, void *value, void *user)
{
    struct redis *redis = context->data;
    const redisReply *reply = value;
    if (reply && reply->type == REDIS_REPLY_STRING && reply->len == 40)
        memcpy(redis->sha[(size_t)user], reply->str, 41);
}

static void on_connect(const redisAsyncContext *context, int status)
{
    struct redis *redis = context->data;
    if (status != REDIS_OK) {
        /* hiredis frees the context. */
        redis->context = NULL;
        plan_retry(redis);
        set_state(redis, false, context->errstr);
        return;
    }
    redis->backoff_ms = BACKOFF_FIRST_MS;
    /* A Redis that has been restarted does not know them, and one that still loads refuses them:
     * until a hash comes back, scripts travel whole. */
    memset(redis->sha, 0, sizeof(redis->sha));
    log_in(redis);
    for (size_t i = 0; i < SCRIPT_COUNT; i++)
        (void)redisAsyncCommand(redis->context, on_loaded, (void *)i, "SCRIPT LOAD %s",
                                redis_scripts[i]);
    set_state(redis, true, "connected");
}

static void on_disconnect(const redisAsyncContext *context, int status)
{
    struct redis *redis = context->data;
    redis->context = NULL;
    if (!redis->up)
        return;
    plan_retry(redis);
    set_state(redis, false, status == REDIS_OK ? "closed" : context->errstr);
}

static void not_connected(struct redis *redis, redisAsyncContext *context, const char *why)
{
    set_state(redis, false, why);
    if (context)
        redisAsyncFree(context);
    plan_retry(redis);
}

static void try_connect(struct redis *redis)
{
    const struct address *address = &redis->address;
    struct err err;
    redisAsyncContext *context = address->local
                                     ? redisAsyncConnectUnix(address->host)
                                     : redisAsyncConnect(address->host, atoi(address->port));
    if (!context || context->err) {
        not_connected(redis, context, context ? context->errstr : "out of memory");
        return;
    }
    if (redis->tls && redis_tls_begin(redis->tls, context, address->host, &err) != 0) {
        not_connected(redis, context, err.message);
        return;
    }
    redis->context = context;
    redis->connecting_ns = clock_monotonic_ns(redis->options.clock);
    context->data = redis;
    context->ev.data = redis;
    context->ev.addRead = add_read;
    context->ev.delRead = del_read;
    context->ev.addWrite = add_write;
    context->ev.delWrite = del_write;
    context->ev.cleanup = clean_up;
    redisAsyncSetConnectCallback(context, on_connect);
    redisAsyncSetDisconnectCallback(context, on_disconnect);
    redis->writing = true; /* hiredis learns of the connection by its first write */
}

/* ---- life ---- */

int redis_create(struct redis **out, const struct redis_options *options, struct err *err)
{
    struct redis *redis = calloc(1, sizeof(*redis));
    *out = NULL;
    if (!redis)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for a link to Redis");
    redis->options = *options;
    redis->backoff_ms = BACKOFF_FIRST_MS;
    if (read_address(&redis->address, options->url, err) != 0 ||
        (redis->address.tls && redis_tls_create(&redis->tls, options->ca_file, err) != 0)) {
        free(redis);
        return -1;
    }
    try_connect(redis);
    *out = redis;
    return 0;
}

void redis_free(struct redis *redis)
{
    if (!redis)
        return;
    redis->options.on_state = NULL;
    redis->up = false;
    if (redis->context)
        redisAsyncFree(redis->context);
    redis_tls_free(redis->tls);
    free(redis);
}

bool redis_connected(const struct redis *redis)
{
    return redis->up;
}

size_t redis_pending(const struct redis *redis)
{
    return redis->pending;
}

struct pollfd redis_pollfd(const struct redis *redis)
{
    struct pollfd fd = {.fd = redis->context ? redis->context->c.fd : -1};
    fd.events = (short)((redis->reading ? POLLIN : 0) | (redis->writing ? POLLOUT : 0));
    return fd;
}

int redis_timeout_ms(const struct redis *redis, int most_ms)
{
    if (redis->up)
        return most_ms;
    int64_t until =
        redis->context ? redis->connecting_ns + CONNECT_TIMEOUT_MS * 1000000ll : redis->retry_ns;
    int64_t left = (until - clock_monotonic_ns(redis->options.clock)) / 1000000 + 1;
    return left < 0 ? 0 : left < most_ms ? (int)left : most_ms;
}

/* A peer that is gone without a word, or silent: what is under way ends with NULL replies. */
static void give_up(struct redis *redis, const char *why)
{
    redisAsyncContext *context = redis->context;
    redis->context = NULL;
    redis->up = false;
    redisAsyncFree(context);
    plan_retry(redis);
    set_state(redis, false, why);
}

void redis_service(struct redis *redis, short revents)
{
    int64_t now = clock_monotonic_ns(redis->options.clock);
    if (!redis->context) {
        if (now >= redis->retry_ns)
            try_connect(redis);
        return;
    }
    if (!redis->up && now - redis->connecting_ns > CONNECT_TIMEOUT_MS * 1000000ll) {
        give_up(redis, "no answer to connecting");
        return;
    }
    if (revents & (POLLIN | POLLHUP | POLLERR)) {
        redis->heard_ns = now;
        redisAsyncHandleRead(redis->context);
    } else if (redis->up && redis->pending > 0 && now - redis->heard_ns > SILENCE_MS * 1000000ll) {
        give_up(redis, "no answer");
        return;
    }
    if (redis->context && (revents & POLLOUT))
        redisAsyncHandleWrite(redis->context);
}

/* ---- commands ---- */

static struct redis_value view(const redisReply *reply)
{
    struct redis_value value = {.text = ""};
    switch (reply->type) {
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
    case REDIS_REPLY_ERROR:
        value.type = reply->type == REDIS_REPLY_ERROR ? REDIS_ERROR : REDIS_STRING;
        value.text = reply->str;
        value.len = (size_t)reply->len;
        break;
    case REDIS_REPLY_INTEGER:
        value.type = REDIS_INTEGER;
        value.integer = reply->integer;
        break;
    case REDIS_REPLY_ARRAY:
        value.type = REDIS_ARRAY;
        value.count = reply->elements;
        value.items = reply->element;
        break;
    default:
        value.type = REDIS_NIL;
    }
    return value;
}

struct redis_value redis_item(const struct redis_value *array, size_t i)
{
    redisReply *const *items = array->items;
    if (array->type != REDIS_ARRAY || i >= array->count)
        return (struct redis_value){.type = REDIS_NIL, .text = ""};
    return view(items[i]);
}

static void on_value(redisAsyncContext *context, void *value, void *user)
{
    struct waiting waiting = *(struct waiting *)user;
    (void)context;
    free(user);
    waiting.redis->pending--;
    if (!waiting.on_reply)
        return;
    if (value) {
        struct redis_value seen = view(value);
        waiting.on_reply(waiting.user, &seen);
    } else {
        waiting.on_reply(waiting.user, NULL);
    }
}

void redis_send(struct redis *redis, redis_reply_fn *on_reply, void *user, size_t count,
                const struct redis_arg *args)
{
    const char *texts[REDIS_ARGS_MAX];
    size_t lengths[REDIS_ARGS_MAX];
    struct waiting *waiting = redis->up ? malloc(sizeof(*waiting)) : NULL;
    ASSERT(count <= REDIS_ARGS_MAX);
    for (size_t i = 0; i < count; i++) {
        texts[i] = args[i].text;
        lengths[i] = args[i].len;
    }
    if (waiting)
        *waiting = (struct waiting){redis, on_reply, user};
    if (!waiting || redisAsyncCommandArgv(redis->context, on_value, waiting, (int)count, texts,
                                          lengths) != REDIS_OK) {
        free(waiting);
        if (on_reply)
            on_reply(user, NULL);
        return;
    }
    if (redis->pending++ == 0)
        redis->heard_ns = clock_monotonic_ns(redis->options.clock);
}

void redis_eval(struct redis *redis, enum redis_script script, redis_reply_fn *on_reply, void *user,
                size_t key_count, size_t count, const struct redis_arg *args)
{
    struct redis_arg all[REDIS_ARGS_MAX];
    char keys[16];
    bool loaded = redis->sha[script][0] != '\0';
    ASSERT(count + 3 <= REDIS_ARGS_MAX);
    snprintf(keys, sizeof(keys), "%zu", key_count);
    /* Until the script's hash has come back it travels whole. */
    all[0] = redis_text(loaded ? "EVALSHA" : "EVAL");
    all[1] = redis_text(loaded ? redis->sha[script] : redis_scripts[script]);
    all[2] = redis_text(keys);
    memcpy(all + 3, args, count * sizeof(*args));
    redis_send(redis, on_reply, user, count + 3, all);
}

/* ---- waiting for one reply ---- */

struct call {
    redis_reply_fn *take;
    void *user;
    bool done, lost;
};

static void on_called(void *user, const struct redis_value *reply)
{
    struct call *call = user;
    call->done = true;
    call->lost = !reply;
    if (reply && call->take)
        call->take(call->user, reply);
}

static void serve_once(struct redis *redis, int64_t until_ns)
{
    int64_t left = (until_ns - clock_monotonic_ns(redis->options.clock)) / 1000000 + 1;
    struct pollfd fd = redis_pollfd(redis);
    int n = poll(&fd, 1, redis_timeout_ms(redis, left < 0 ? 0 : (int)left));
    redis_service(redis, n > 0 ? fd.revents : 0);
}

int redis_call(struct redis *redis, int timeout_ms, redis_reply_fn *take, void *user, size_t count,
               const struct redis_arg *args, struct err *err)
{
    const struct clock *clock = redis->options.clock;
    int64_t until = clock_monotonic_ns(clock) + (int64_t)timeout_ms * 1000000;
    struct call call = {.take = take, .user = user};
    while (!redis->up && clock_monotonic_ns(clock) < until)
        serve_once(redis, until);
    if (!redis->up)
        return err_set(err, ERR_IO, ERR_RETRY, "redis: no connection to %s:%s within %d s",
                       redis->address.host, redis->address.port, timeout_ms / 1000);
    redis_send(redis, on_called, &call, count, args);
    /* The callback has this frame's address: it is waited for, or the connection given up. */
    while (!call.done && clock_monotonic_ns(clock) < until)
        serve_once(redis, until);
    if (!call.done) {
        redisAsyncContext *context = redis->context;
        redisAsyncFree(context);
    }
    return call.lost ? err_set(err, ERR_IO, ERR_RETRY, "redis: the connection to %s:%s was lost",
                               redis->address.host, redis->address.port)
                     : 0;
}

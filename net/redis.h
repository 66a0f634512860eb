/*
 * redis.h: a connection to Redis, pipelined and never waited for: commands go out as they come,
 * replies arrive in order through callbacks. Only redis.c includes hiredis.
 *
 * A link connects by itself, and again after a loss with back-off; commands that were under way
 * then, or are sent while it is down, end with a NULL reply, and the owner decides what to send
 * again. One thread per link; it serves the link from its own poll(2) loop:
 *
 *     redis_create(&redis, &options, &err);
 *     redis_send(redis, on_reply, user, 3, (struct redis_arg[]){...});
 *     for (;;) {
 *         struct pollfd fd = redis_pollfd(redis);
 *         poll(&fd, 1, redis_timeout_ms(redis, 1000));
 *         redis_service(redis, fd.revents);
 *     }
 */
#ifndef ATELIER_NET_REDIS_H
#define ATELIER_NET_REDIS_H

#include "common/clock.h"
#include "common/err.h"

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define REDIS_ARGS_MAX 1024

struct redis;

struct redis_options {
    const char *url;     /* redis://[user:password@]host[:port][/db], rediss://, unix:/path */
    const char *ca_file; /* of authorities, for rediss://; NULL: the system's */
    const struct clock *clock;
    /* Called after each connection and each loss, from redis_service. May be NULL. */
    void (*on_state)(void *user, bool connected, const char *why);
    void *user;
};

enum redis_type { REDIS_NIL, REDIS_INTEGER, REDIS_STRING, REDIS_ARRAY, REDIS_ERROR };

/* Borrowed by a callback. */
struct redis_value {
    enum redis_type type;
    int64_t integer;
    const char *text; /* of strings and errors, NUL-terminated */
    size_t len;
    size_t count; /* of an array */
    const void *items;
};
struct redis_value redis_item(const struct redis_value *array, size_t i);

struct redis_arg {
    const char *text;
    size_t len;
};
static inline struct redis_arg redis_text(const char *text)
{
    return (struct redis_arg){text, strlen(text)};
}

/* `reply` is NULL when the connection was lost. */
typedef void redis_reply_fn(void *user, const struct redis_value *reply);

/* Begins to connect. Errors: a URL that cannot be read; TLS where the installed hiredis has none.
 */
int redis_create(struct redis **redis, const struct redis_options *options,
                 struct err *err) must_check;
void redis_free(struct redis *redis); /* callbacks under way are called with NULL */

bool redis_connected(const struct redis *redis);
size_t redis_pending(const struct redis *redis); /* commands under way */

/* Sends a command; `on_reply` may be NULL. While the link is down the callback is called with NULL
 * before this returns. */
void redis_send(struct redis *redis, redis_reply_fn *on_reply, void *user, size_t count,
                const struct redis_arg *args);

struct pollfd redis_pollfd(const struct redis *redis);
int redis_timeout_ms(const struct redis *redis, int most_ms);
void redis_service(struct redis *redis, short revents);

/* For programs that have nothing else to do: sends and waits for the reply, connecting first.
 * `take` sees the reply, an error one included. Errors: no connection within `timeout_ms`, lost. */
int redis_call(struct redis *redis, int timeout_ms, redis_reply_fn *take, void *user, size_t count,
               const struct redis_arg *args, struct err *err) must_check;

/* ---- scripts ---- */

/* A Lua script by name: "transition" for schema/redis/transition.lua, built into the program. Sent
 * as EVALSHA; loaded after every connection. */
enum redis_script {
    SCRIPT_LEAD,
    SCRIPT_STATUS,
    SCRIPT_RESTORE,
    SCRIPT_ASSIGN,
    SCRIPT_HEARTBEAT,
    SCRIPT_FORGET,
    SCRIPT_COUNT,
};

void redis_eval(struct redis *redis, enum redis_script script, redis_reply_fn *on_reply, void *user,
                size_t key_count, size_t count, const struct redis_arg *args);

#endif

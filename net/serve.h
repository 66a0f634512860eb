/*
 * serve.h: a small HTTP server for machines that ask: GET only, short answers. Only serve.c
 * includes libmicrohttpd.
 *
 * Either it has a thread of its own ("at-serve"), or its owner polls serve_fd and calls serve_run,
 * and the handler runs there.
 */
#ifndef ATELIER_NET_SERVE_H
#define ATELIER_NET_SERVE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>

struct serve;

/* Answers GET `path`: appends the body to `out`, sets `type` where it is not text/plain, returns
 * the HTTP status. */
typedef int serve_fn(void *user, const char *path, struct buf *out, const char **type);

struct serve_options {
    const char *host; /* address to listen on */
    int port;         /* 0: a free one */
    bool threaded;
    serve_fn *answer;
    void *user;
};

/* Errors: an address that cannot be listened on, named. */
int serve_create(struct serve **serve, const struct serve_options *options,
                 struct err *err) must_check;
void serve_free(struct serve *serve);

int serve_port(const struct serve *serve);

/* Of one without a thread: readable when serve_run has something to do. */
int serve_fd(const struct serve *serve);
void serve_run(struct serve *serve);

#endif

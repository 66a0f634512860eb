/* redis_tls.h: TLS beneath a link to Redis; for redis.c only. Where the installed hiredis has no
 * TLS (Debian 12's has none), redis_tls_create says so. */
#ifndef ATELIER_NET_REDIS_TLS_H
#define ATELIER_NET_REDIS_TLS_H

#include "common/err.h"

struct redisAsyncContext;
struct redis_tls;

/* What trusts the authorities in `ca_file`, or the system's where it is NULL. Errors (ERR_FATAL): a
 * file that cannot be read; no TLS in this build. */
int redis_tls_create(struct redis_tls **tls, const char *ca_file, struct err *err) must_check;
void redis_tls_free(struct redis_tls *tls);

/* Puts TLS under a connection to `host` that is being made; its certificate must be for that name
 * or address. */
int redis_tls_begin(struct redis_tls *tls, struct redisAsyncContext *context, const char *host,
                    struct err *err) must_check;

/* Why the latest connection's certificate was refused, or NULL. */
const char *redis_tls_problem(const struct redis_tls *tls);

#endif

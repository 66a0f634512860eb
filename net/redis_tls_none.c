/* In place of redis_tls.c where the installed hiredis has no TLS. */
#include "net/redis_tls.h"

#include <stddef.h>

int redis_tls_create(struct redis_tls **tls, const char *ca_file, struct err *err)
{
    (void)ca_file;
    *tls = NULL;
    return err_set(err, ERR_UNSUPPORTED, ERR_FATAL,
                   "redis-url asks for TLS, which this build's hiredis does not have; use "
                   "redis:// inside a private network, or a TLS tunnel");
}

void redis_tls_free(struct redis_tls *tls)
{
    (void)tls;
}

const char *redis_tls_problem(const struct redis_tls *tls)
{
    (void)tls;
    return NULL;
}

int redis_tls_begin(struct redis_tls *tls, struct redisAsyncContext *context, const char *host,
                    struct err *err)
{
    (void)tls;
    (void)context;
    (void)host;
    return err_set(err, ERR_UNSUPPORTED, ERR_FATAL, "no TLS");
}

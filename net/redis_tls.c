#include "net/redis_tls.h"

#include <hiredis/async.h>
#include <hiredis/hiredis_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdlib.h>

struct redis_tls {
    SSL_CTX *context;
    int problem; /* X509_V_…, of the latest connection */
};

static int refuse(struct err *err, const char *what)
{
    char why[160] = "";
    ERR_error_string_n(ERR_get_error(), why, sizeof(why));
    return err_set(err, ERR_IO, ERR_FATAL, "Redis over TLS: %s: %s", what, why);
}

/* hiredis reports a refused certificate as an error without a name. */
static int on_verified(int fine, X509_STORE_CTX *store)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct redis_tls *tls = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    if (!fine)
        tls->problem = X509_STORE_CTX_get_error(store);
    return fine;
}

int redis_tls_create(struct redis_tls **out, const char *ca_file, struct err *err)
{
    struct redis_tls *tls = calloc(1, sizeof(*tls));
    *out = NULL;
    if (!tls)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for TLS to Redis");
    tls->context = SSL_CTX_new(TLS_client_method());
    int trusted = !tls->context ? 0
                  : ca_file     ? SSL_CTX_load_verify_locations(tls->context, ca_file, NULL)
                                : SSL_CTX_set_default_verify_paths(tls->context);
    if (!trusted) {
        redis_tls_free(tls);
        return refuse(err, ca_file ? ca_file : "the system's certificate authorities");
    }
    SSL_CTX_set_app_data(tls->context, tls);
    SSL_CTX_set_verify(tls->context, SSL_VERIFY_PEER, on_verified);
    SSL_CTX_set_min_proto_version(tls->context, TLS1_2_VERSION);
    *out = tls;
    return 0;
}

void redis_tls_free(struct redis_tls *tls)
{
    if (!tls)
        return;
    SSL_CTX_free(tls->context);
    free(tls);
}

/* hiredis would check the chain, but not for whom the certificate was made. */
static int expect(SSL *ssl, const char *host)
{
    X509_VERIFY_PARAM *expected = SSL_get0_param(ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(expected, host) == 1)
        return 1;
    return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

const char *redis_tls_problem(const struct redis_tls *tls)
{
    return tls && tls->problem != X509_V_OK ? X509_verify_cert_error_string(tls->problem) : NULL;
}

int redis_tls_begin(struct redis_tls *tls, redisAsyncContext *context, const char *host,
                    struct err *err)
{
    SSL *ssl = SSL_new(tls->context);
    tls->problem = X509_V_OK;
    if (!ssl || !expect(ssl, host)) {
        SSL_free(ssl);
        return refuse(err, "no session");
    }
    if (redisInitiateSSL(&context->c, ssl) != REDIS_OK) /* owns it from here on */
        return err_set(err, ERR_IO, ERR_RETRY, "Redis over TLS: %s", context->c.errstr);
    return 0;
}

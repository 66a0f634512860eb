#include "net/webhook.h"

#include "common/base64.h"
#include "common/sha256.h"
#include "net/http.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define SECRET_PREFIX "whsec_"
#define LINE_MAX_BYTES 128
#define SIGNED_MAX_BYTES (4u << 20)

/* ---- rules ---- */

static int read_secret(struct webhook_rules *rules, const char *line, size_t len, int number,
                       struct err *err)
{
    struct webhook_secret *secret = &rules->secrets[rules->secret_count];
    const size_t prefix = sizeof(SECRET_PREFIX) - 1;
    char text[LINE_MAX_BYTES];
    struct buf bytes;
    struct err why;
    if (rules->secret_count == WEBHOOK_SECRETS_MAX)
        return err_set(err, ERR_LIMIT, ERR_FATAL, "line %d is one secret more than %d", number,
                       WEBHOOK_SECRETS_MAX);
    if (len >= sizeof(text) || len < prefix || strncmp(line, SECRET_PREFIX, prefix) != 0)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "line %d is no secret: whsec_ and base64 of %d to %d bytes", number,
                       WEBHOOK_SECRET_MIN_BYTES, WEBHOOK_SECRET_MAX_BYTES);
    snprintf(text, sizeof(text), "%.*s", (int)(len - prefix), line + prefix);
    buf_init(&bytes, LINE_MAX_BYTES);
    int rc = base64_decode(text, &bytes, &why);
    if (rc != 0)
        err_set(err, ERR_INVALID, ERR_FATAL, "line %d: %s", number, why.message);
    else if (bytes.len < WEBHOOK_SECRET_MIN_BYTES || bytes.len > WEBHOOK_SECRET_MAX_BYTES)
        rc = err_set(err, ERR_INVALID, ERR_FATAL, "line %d: the secret has %zu bytes, not %d to %d",
                     number, bytes.len, WEBHOOK_SECRET_MIN_BYTES, WEBHOOK_SECRET_MAX_BYTES);
    if (rc == 0) {
        memcpy(secret->bytes, bytes.data, bytes.len);
        secret->len = bytes.len;
        rules->secret_count++;
    }
    buf_release(&bytes);
    return rc;
}

int webhook_rules_read(struct webhook_rules *rules, const char *secrets, const char *allowed,
                       struct err *err)
{
    const char *at = secrets ? secrets : "";
    *rules = (struct webhook_rules){.allowed = allowed};
    for (int number = 1; *at; number++) {
        size_t len = strcspn(at, "\r\n");
        if (len > 0 && read_secret(rules, at, len, number, err) != 0)
            return -1;
        at += len;
        at += *at == '\r';
        at += *at == '\n';
    }
    if (secrets && rules->secret_count == 0)
        return err_set(err, ERR_INVALID, ERR_FATAL, "the file holds no secret");
    return 0;
}

static bool is_listed(const char *list, const char *host)
{
    size_t host_len = strlen(host);
    for (const char *at = list; at && *at;) {
        size_t len = strcspn(at, ",");
        if (len == host_len && strncasecmp(at, host, len) == 0)
            return true;
        at += len + (at[len] == ',');
    }
    return false;
}

bool webhook_url_allowed(const struct webhook_rules *rules, const char *url)
{
    struct http_url parts;
    struct err err;
    return http_url_read(&parts, url, &err) == 0 && is_listed(rules->allowed, parts.host);
}

int webhook_url_check(const struct webhook_rules *rules, const char *url, struct err *err)
{
    struct http_url parts;
    if (rules->secret_count == 0)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "is not offered by this cell, which has no secret to sign with; leave it "
                       "out and read <cell>.state, or have callback-secrets-file set");
    if (http_url_read(&parts, url, err) != 0)
        return -1;
    if (parts.has_user)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "must not hold a user or password; the signature says who calls");
    if (is_listed(rules->allowed, parts.host))
        return 0;
    if (!parts.tls)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "must be an https:// URL: %s is not in this cell's callback-allow",
                       parts.host);
    if (parts.is_private)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "names an address of a private network; %s is not in this cell's "
                       "callback-allow",
                       parts.host);
    return 0;
}

/* ---- signing ---- */

void webhook_id(char id[WEBHOOK_ID_BYTES], const char *body, size_t len)
{
    char hex[SHA256_HEX_BYTES];
    sha256_hex(hex, body, len);
    snprintf(id, WEBHOOK_ID_BYTES, "msg_%.32s", hex);
}

void webhook_sign(const struct webhook_rules *rules, const char *id, int64_t time_s,
                  const char *body, size_t len, struct buf *out)
{
    uint8_t digest[SHA256_BYTES];
    struct buf text;
    buf_init(&text, SIGNED_MAX_BYTES);
    buf_printf(&text, "%s.%lld.", id, (long long)time_s);
    buf_append(&text, body, len);
    for (size_t i = 0; i < rules->secret_count; i++) {
        const struct webhook_secret *secret = &rules->secrets[i];
        hmac_sha256(digest, secret->bytes, secret->len, text.data, text.len);
        buf_str(out, i ? " v1," : "v1,");
        base64_encode(digest, sizeof(digest), out);
    }
    out->failed = out->failed || text.failed;
    buf_release(&text);
}

/*
 * webhook.h: messages that their receiver can check: the Standard Webhooks specification
 * (github.com/standard-webhooks, 1.0.0), and whom such messages may be sent to.
 *
 * A message has three headers: webhook-id, the same for every repeat; webhook-timestamp, seconds
 * since 1970 of this try; webhook-signature, "v1," and in base64 the HMAC-SHA256 of
 * "<id>.<timestamp>.<body>", once for each secret and parted by blanks, so that a secret can be
 * changed while receivers know the old one or the new one.
 *
 *     if (webhook_rules_read(&rules, secrets, allowed, &err) != 0) ...
 *     if (webhook_url_check(&rules, url, &err) != 0) ... err says what is wrong with it
 *     webhook_id(id, body, len);
 *     webhook_sign(&rules, id, time_s, body, len, &signature);
 */
#ifndef ATELIER_NET_WEBHOOK_H
#define ATELIER_NET_WEBHOOK_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WEBHOOK_SECRETS_MAX 4
#define WEBHOOK_SECRET_MIN_BYTES 24 /* as the specification has it */
#define WEBHOOK_SECRET_MAX_BYTES 64
#define WEBHOOK_ID_BYTES 40 /* with the NUL */

struct webhook_secret {
    uint8_t bytes[WEBHOOK_SECRET_MAX_BYTES];
    size_t len;
};

struct webhook_rules {
    struct webhook_secret secrets[WEBHOOK_SECRETS_MAX];
    size_t secret_count;
    const char
        *allowed; /* borrowed; "host,host": may be private, and called without TLS; or NULL */
};

/* `secrets`: lines of "whsec_" and base64; NULL: none. Errors name the line and never show it. */
int webhook_rules_read(struct webhook_rules *rules, const char *secrets, const char *allowed,
                       struct err *err) must_check;

/* Whether the URL's host is one of those that are allowed by name. */
bool webhook_url_allowed(const struct webhook_rules *rules, const char *url);

/* Refuses what can never be called: no http or https URL, http or a private address where the host
 * is not allowed, a user or password in it, no secrets to sign with. What a name resolves to is
 * judged when it is called (http_options.public_only). Errors: ERR_INVALID (ERR_REJECT), made to be
 * read after the field's name. */
int webhook_url_check(const struct webhook_rules *rules, const char *url,
                      struct err *err) must_check;

/* An id that follows from the body alone, so that repeats have the same, whoever sends them.
 * Without a full stop, which parts the signed text. */
void webhook_id(char id[WEBHOOK_ID_BYTES], const char *body, size_t len);

/* Appends the signatures, one for each secret. */
void webhook_sign(const struct webhook_rules *rules, const char *id, int64_t time_s,
                  const char *body, size_t len, struct buf *out);

#endif

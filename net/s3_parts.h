/* s3_parts.h: what the files of the S3 adapter share; for s3*.c only. */
#ifndef ATELIER_NET_S3_PARTS_H
#define ATELIER_NET_S3_PARTS_H

#include "common/sha256.h"
#include "net/s3.h"

#include <stdatomic.h>

struct s3 {
    struct s3_options options; /* strings are in `text` */
    struct buf text;
    struct http *http;
    struct http_signing signing;
    atomic_bool creates_only;
};

/* A signed request and the texts that it borrows. */
struct s3_request {
    struct http_request http;
    struct buf url, what;
    int header_count;
    char hash[SHA256_HEX_BYTES + 32];
    struct buf token;
    char type[160];
};

/* Makes a request for an object, or for its bucket where the key is NULL. `query` is escaped and in
 * the order of its keys, or NULL. Release it in any case. */
int s3_request_init(struct s3_request *request, const struct s3 *s3, const char *method,
                    struct s3_object object, const char *query, const void *body, size_t body_bytes,
                    struct err *err) must_check;
void s3_request_release(struct s3_request *request);

void s3_request_header(struct s3_request *request, const char *header);
void s3_request_type(struct s3_request *request, const char *content_type);

/* Calls; any status but 2xx is an error, 401, 403 and 404 of the class `refused`. */
int s3_request_call(const struct s3 *s3, struct s3_request *request, enum err_class refused,
                    struct http_answer *answer, struct err *err) must_check;

/* Puts an object in parts. */
int s3_upload(struct s3 *s3, const char *key, const void *bytes, size_t len, enum s3_put_mode mode,
              const char *content_type, struct err *err) must_check;

#endif

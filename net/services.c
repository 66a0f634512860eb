#include "net/services.h"

#include "net/s3.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int service_s3(const struct service_options *services, const struct clock *clock,
               struct s3_options *out, struct err *err)
{
    *out = (struct s3_options)S3_OPTIONS_INIT;
    out->endpoint = services->s3_endpoint;
    out->region = services->s3_region;
    out->bucket = services->s3_bucket;
    out->prefix = services->s3_prefix;
    out->access_key = getenv("AWS_ACCESS_KEY_ID");
    out->secret_key = getenv("AWS_SECRET_ACCESS_KEY");
    out->session_token = getenv("AWS_SESSION_TOKEN");
    out->http.ca_file = services->s3_ca_file;
    out->http.clock = clock;
    if (out->access_key && out->secret_key)
        return 0;
    return err_set(err, ERR_INVALID, ERR_FATAL,
                   "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be in the environment");
}

int service_topic(const struct service_options *services, const char *topic,
                  char out[TOPIC_NAME_BYTES], struct err *err)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    const char *cell = services->cell;
    if (cell[0] == '\0' || cell[strspn(cell, allowed)] != '\0' ||
        strlen(cell) + strlen(topic) + 2 > TOPIC_NAME_BYTES)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "cell: '%.80s' is no name of 1 to 100 letters, digits, '.', '_' and '-'",
                       cell);
    snprintf(out, TOPIC_NAME_BYTES, "%s.%s", cell, topic);
    return 0;
}

/*
 * services.h: the options by which every program finds a cell's services.
 *
 *     struct my_options { struct service_options services; … };
 *     static const struct conf_row rows[] = {SERVICE_ROWS(struct my_options, services), …};
 */
#ifndef ATELIER_NET_SERVICES_H
#define ATELIER_NET_SERVICES_H

#include "common/conf.h"
#include "common/err.h"
#include "schema/topics.h"

struct service_options {
    const char *cell;
    const char *brokers, *kafka_properties;
    const char *redis_url, *redis_ca_file;
    const char *s3_endpoint, *s3_bucket, *s3_prefix, *s3_region, *s3_ca_file;
};

#define SERVICE_AT(type, member, field)                                                            \
    (offsetof(type, member) + offsetof(struct service_options, field))

#define SERVICE_ROW(type, member, key, field, value, fallback, help)                               \
    {                                                                                              \
        key, CONF_STRING, SERVICE_AT(type, member, field), value, fallback, 0, 0, NULL, help       \
    }

/* Kafka and Redis, which every program of the fleet speaks to. */
#define SERVICE_ROWS(type, member)                                                                 \
    SERVICE_ROW(type, member, "cell", cell, "NAME", "atelier",                                     \
                "the fleet: the prefix of its topics; it has a Redis and a bucket of its own"),    \
        SERVICE_ROW(type, member, "kafka-brokers", brokers, "HOST:PORT,…", "127.0.0.1:9092",       \
                    "where to find Apache Kafka"),                                                 \
        SERVICE_ROW(type, member, "kafka-properties", kafka_properties, "KEY=VALUE;…", NULL,       \
                    "librdkafka's own properties, TLS and SASL among them; VALUE may be @FILE"),   \
        SERVICE_ROW(type, member, "redis-url", redis_url, "URL", "redis://127.0.0.1:6379",         \
                    "redis[s]://[user:password@]host[:port][/database] or unix:/path; where it "   \
                    "holds a password, use redis-url-file"),                                       \
        SERVICE_ROW(type, member, "redis-ca-file", redis_ca_file, "FILE", NULL,                    \
                    "certificate authorities of a rediss:// URL; default: the system's"),          \
    {                                                                                              \
        "redis-url-file", CONF_FILE, SERVICE_AT(type, member, redis_url), "FILE", NULL, 0, 0,      \
            NULL, "a file that holds redis-url, which may hold a password"                         \
    }

/* Object storage; the keys come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
 */
#define SERVICE_S3_ROWS(type, member)                                                              \
    SERVICE_ROW(type, member, "s3-endpoint", s3_endpoint, "URL", "http://127.0.0.1:9000",          \
                "S3-compatible object storage; credentials come from AWS_ACCESS_KEY_ID and "       \
                "AWS_SECRET_ACCESS_KEY"),                                                          \
        SERVICE_ROW(type, member, "s3-bucket", s3_bucket, "NAME", "atelier",                       \
                    "the bucket of results and checkpoints"),                                      \
        SERVICE_ROW(type, member, "s3-prefix", s3_prefix, "PREFIX", "",                            \
                    "before every object's name in the bucket, ending in '/'"),                    \
        SERVICE_ROW(type, member, "s3-region", s3_region, "NAME", "us-east-1", "signed with"),     \
        SERVICE_ROW(type, member, "s3-ca-file", s3_ca_file, "FILE", NULL,                          \
                    "certificate authorities of an https endpoint; default: the system's")

struct clock;
struct s3_options;

/* The object store's options, credentials from the environment; strings are borrowed from both.
 * Errors: no credentials (ERR_FATAL). */
int service_s3(const struct service_options *services, const struct clock *clock,
               struct s3_options *out, struct err *err) must_check;

/* "<cell>.<topic>". */
int service_topic(const struct service_options *services, const char *topic,
                  char out[TOPIC_NAME_BYTES], struct err *err) must_check;

#endif

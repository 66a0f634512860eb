/*
 * fleet.h: what the commands that speak to a cell have in common: options, connections, hashes of
 * Redis, control records, waiting. Only with ATELIER_FLEET.
 *
 * A connection is opened when it is first asked for; fleet_end closes them all. Errors say which
 * service is meant and what to do.
 *
 *     struct fleet fleet;
 *     int status;
 *     if (!fleet_begin(&fleet, &status_table, argc, argv, &status))
 *         return status;
 *     if (fleet_hash(&fleet, REDIS_JOB, id, &hash, &err) != 0)
 *         return fleet_end(&fleet, fleet_fail(&fleet, &err));
 *     ...
 *     return fleet_end(&fleet, EXIT_ALL_DONE);
 */
#ifndef ATELIER_CLI_FLEET_H
#define ATELIER_CLI_FLEET_H

#include "cli/command.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/conf.h"
#include "common/ledger.h"
#include "net/kafka.h"
#include "net/redis.h"
#include "net/services.h"
#include "schema/job.h"
#include "schema/state.h"

#include <stdbool.h>
#include <stdint.h>

#define FLEET_REDIS_TIMEOUT_MS 5000
#define FLEET_EFFECT_MS 10000 /* how long a command looks for its effect */

/* All that any of them takes; each has a table of its own over it. */
struct fleet_options {
    struct service_options services;
    const char *word; /* JOB, FILE or WORKER */
    const char *batch;
    const char *out;
    int64_t within_s;
    bool json, wait, no_wait, dlq, dry_run;
};

#define FLEET_AT(member) offsetof(struct fleet_options, member)
#define FLEET_JSON_ROW                                                                             \
    {                                                                                              \
        "json", CONF_FLAG, FLEET_AT(json), NULL, NULL, 0, 0, NULL,                                 \
            "what there is to say as JSON, one object a line"                                      \
    }
#define FLEET_BATCH_ROW(help)                                                                      \
    {                                                                                              \
        "batch", CONF_STRING, FLEET_AT(batch), "NAME", NULL, 0, 0, NULL, help                      \
    }
#define FLEET_NO_WAIT_ROW                                                                          \
    {                                                                                              \
        "no-wait", CONF_FLAG, FLEET_AT(no_wait), NULL, NULL, 0, 0, NULL,                           \
            "send the order and do not look for its effect, for which 10 s are given"              \
    }

struct fleet {
    const struct conf_table *table;
    struct fleet_options options;
    const struct clock *clock;
    struct redis *redis;
    struct kafka_producer *producer;
    char redis_trouble[200]; /* why the latest connection failed or was refused */
};

/* Reads the options. False when the command is over already; `status` says how. */
bool fleet_begin(struct fleet *fleet, const struct conf_table *table, int argc, char **argv,
                 int *status);
int fleet_end(struct fleet *fleet, int status); /* returns `status` */

/* Says what went wrong on standard error; returns the exit status for it. */
int fleet_fail(const struct fleet *fleet, const struct err *err);
int fleet_usage(const struct fleet *fleet, const char *message); /* EXIT_USAGE */

/* Exactly one of a job (or another word) and --batch; else says so and is false. */
bool fleet_one_of(const struct fleet *fleet, const char *word_name);

bool fleet_interrupted(void); /* by SIGINT or SIGTERM, watched from fleet_begin on */
void fleet_sleep_ms(int ms);  /* less when interrupted */

/* ---- Redis ---- */

#define FLEET_FIELDS_MAX 64

/* A hash as it was read. */
struct hash {
    size_t count; /* 0: there is none */
    const char *names[FLEET_FIELDS_MAX], *values[FLEET_FIELDS_MAX];
    struct buf text; /* of both */
};
void hash_init(struct hash *hash);
void hash_release(struct hash *hash);
const char *hash_get(const struct hash *hash, const char *name); /* "" where it is not there */
uint64_t hash_number(const struct hash *hash, const char *name);

/* Writes the members as JSON, each after a comma; numbers as numbers. */
void hash_write(const struct hash *hash, struct buf *out);
void hash_write_object(const struct hash *hash, struct buf *out); /* the whole as one object */

/* Sends a command and waits for the reply; one that is an error is an error here. */
int fleet_redis(struct fleet *fleet, redis_reply_fn *take, void *user, size_t count,
                const struct redis_arg *args, struct err *err) must_check;
int fleet_hash(struct fleet *fleet, const char *prefix, const char *name, struct hash *hash,
               struct err *err) must_check;

/* Opens the link for callers that send many commands at once. */
int fleet_redis_open(struct fleet *fleet, struct err *err) must_check;
/* Serves the link until nothing is under way. */
int fleet_redis_drain(struct fleet *fleet, struct err *err) must_check;

/* ---- Kafka ---- */

struct kafka_options fleet_kafka(const struct fleet *fleet);
int fleet_topic(const struct fleet *fleet, const char *topic, char out[TOPIC_NAME_BYTES],
                struct err *err) must_check;

/* Opens the producer and sends one record; fleet_deliver waits until all are safe. */
int fleet_send(struct fleet *fleet, const struct kafka_record *record, struct err *err) must_check;
int fleet_deliver(struct fleet *fleet, struct err *err) must_check;

/* A record of the control topic: {"action": action, key: value}. */
int fleet_order(struct fleet *fleet, const char *action, const char *key, const char *value,
                struct err *err) must_check;

/* Reads a topic from its start to its end as it is now. A non-zero result of `take` ends it and is
 * returned. */
int fleet_read_topic(struct fleet *fleet, const char *topic,
                     int (*take)(void *user, const struct kafka_message *message, struct err *err),
                     void *user, struct err *err) must_check;

/* ---- waiting for jobs: fleet_follow.c ---- */

/* The header's value as text, or NULL. */
const char *fleet_header(const struct kafka_message *message, const char *name, char *out,
                         size_t size);

struct followed {
    char *id;
    uint64_t line; /* of the jobs file */
    enum { FOLLOW_UNKNOWN, FOLLOW_LIVE, FOLLOW_ENDED } is;
};

/* Jobs that were sent, until each of them has ended or was rejected. */
struct follow {
    struct fleet *fleet;
    struct ledger *ledger; /* card: place in `jobs` + 1 */
    struct followed *jobs;
    size_t count, cap;
    uint64_t ended[STATE_COUNT], rejected, live;
    int64_t since_ms; /* dead letters from before are none of ours */
};

int follow_add(struct follow *follow, const char *id, uint64_t line, struct err *err) must_check;
void follow_release(struct follow *follow);

/* Waits for all; the exit status. */
int follow_wait(struct follow *follow, const char *name);

/* ---- dead letters: fleet_letters.c ---- */

/* Sends those of the options' word, or all, again; counts them. 0: they are taken up, or nobody
 * asked; -1; else the exit status that says otherwise. */
int letters_redrive(struct fleet *fleet, uint64_t *sent, struct err *err) must_check;

#endif

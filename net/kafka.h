/*
 * kafka.h: Apache Kafka as Atelier uses it: a reader of whole topics, a member of a group that
 * elects, a producer with and without transactions. Only kafka.c includes librdkafka, whose own
 * properties pass through.
 *
 * Every object is used by one thread at a time; librdkafka's own threads do the network. A Kafka
 * that is away is waited for: readers are silent, producers retry. What a caller sees as an error:
 *   ERR_FATAL, ERR_CONFLICT   fenced: another leader has taken over; this process must stop leading
 *   ERR_FATAL                 a broker that refuses (authentication, an unknown property, …)
 *   ERR_RETRY                 the transaction was aborted; the batch may be produced again
 */
#ifndef ATELIER_NET_KAFKA_H
#define ATELIER_NET_KAFKA_H

#include "common/err.h"
#include "common/log.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KAFKA_PARTITIONS_MAX 256 /* of one topic */
#define KAFKA_HEADERS_MAX 32     /* more are dropped on reading */
#define KAFKA_MESSAGE_MAX_BYTES (4u << 20)

struct kafka_options {
    const char *brokers;    /* "host:port,host:port" */
    const char *client_id;  /* shown in the broker's logs */
    const char *properties; /* librdkafka's, "key=value" parted by newlines or ';'; may be NULL */
    const struct log *log;  /* what librdkafka says, at its own level; may be NULL */
};

struct kafka_header {
    const char *name;
    const void *value; /* NULL is allowed */
    size_t len;
};

/* ---- topics ---- */

struct kafka_topic {
    const char *name;
    int partitions;
    const char *config; /* "cleanup.policy=compact;…" or NULL */
};

/* Creates what is missing; a topic that is there stays as it is. Waits up to `timeout_ms` for the
 * brokers. Errors name broker or topic. */
int kafka_topics_ensure(const struct kafka_options *options, const struct kafka_topic *topics,
                        size_t count, int timeout_ms, struct err *err) must_check;

/* ---- reading ---- */

struct kafka_message {
    const char *key; /* NULL: none */
    size_t key_len;
    const char *value; /* NULL: a tombstone */
    size_t value_len;
    int partition;
    int64_t offset;
    int64_t time_ms; /* of the record, since 1970 */
    const struct kafka_header *headers;
    size_t header_count;
};

struct kafka_reader;

struct kafka_reader_options {
    const char *topic;
    const char *group;   /* whose committed offsets to begin after; NULL: from the start */
    bool committed_only; /* leave aborted transactions out */
    size_t queue_bytes;  /* read ahead, at most; 0: librdkafka's */
};

/* Reads all partitions of a topic. */
int kafka_reader_create(struct kafka_reader **reader, const struct kafka_options *options,
                        const struct kafka_reader_options *which, struct err *err) must_check;
void kafka_reader_free(struct kafka_reader *reader);

/* The next message, valid until the next call: 1; none within `timeout_ms`: 0; -1: ERR_FATAL. */
int kafka_reader_next(struct kafka_reader *reader, struct kafka_message *message, int timeout_ms,
                      struct err *err) must_check;

/* Becomes readable when messages may be waiting; the reader drains it. */
int kafka_reader_fd(const struct kafka_reader *reader);

/* Stops and goes on fetching; what was read ahead is fetched again. */
void kafka_reader_pause(struct kafka_reader *reader);
void kafka_reader_resume(struct kafka_reader *reader);

/* Asks where the topic ends now. Records of transactions that are still open count as not there. */
int kafka_reader_find_end(struct kafka_reader *reader, struct err *err) must_check;

/* Whether everything was read that the topic held when the reader was created or, later, when its
 * end was asked for. */
bool kafka_reader_caught_up(const struct kafka_reader *reader);

/* Records between what was read and the topic's end, as far as known; summed over partitions. */
int64_t kafka_reader_lag(struct kafka_reader *reader);

/* ---- election ---- */

struct kafka_member;

/* Joins `group` for a topic of one partition: whoever holds it leads. */
int kafka_member_create(struct kafka_member **member, const struct kafka_options *options,
                        const char *group, const char *topic, int session_timeout_ms,
                        struct err *err) must_check;

/* Leaves the group at once, so that the next member need not wait for the session to end. */
void kafka_member_free(struct kafka_member *member);

/* Serves the group for up to `timeout_ms`; must be called every few seconds. Says whether this
 * member holds the partition. */
bool kafka_member_poll(struct kafka_member *member, int timeout_ms);

/* ---- producing ---- */

struct kafka_producer;

struct kafka_record {
    const char *topic;
    const char *key;
    size_t key_len;
    const char *value; /* NULL: a tombstone */
    size_t value_len;
    const struct kafka_header *headers;
    size_t header_count;
};

/* `transactional_id` may be NULL. With one, opening fences every earlier producer of that id. */
int kafka_producer_create(struct kafka_producer **producer, const struct kafka_options *options,
                          const char *transactional_id, struct err *err) must_check;
void kafka_producer_free(struct kafka_producer *producer);

/* Hands a record to the producer, which copies it. Waits while its queue is full. */
int kafka_produce(struct kafka_producer *producer, const struct kafka_record *record,
                  struct err *err) must_check;

/* Waits until everything handed over is delivered; the first failure is the error. Without
 * transactions. */
int kafka_flush(struct kafka_producer *producer, int timeout_ms, struct err *err) must_check;

/* Records delivered so far, without transactions; serves callbacks. */
uint64_t kafka_delivered(struct kafka_producer *producer);

/* The offset after the last message of a partition that is done with; -1: none yet. */
struct kafka_offsets {
    const char *topic;
    const char *group;
    int64_t next[KAFKA_PARTITIONS_MAX];
};

int kafka_begin(struct kafka_producer *producer, struct err *err) must_check;

/* Adds consumed offsets to the transaction. */
int kafka_send_offsets(struct kafka_producer *producer, const struct kafka_offsets *offsets,
                       struct err *err) must_check;

/* Gives the transaction up, after another call's ERR_RETRY. */
int kafka_abort(struct kafka_producer *producer, struct err *err) must_check;

/* Commits, waiting for as long as it takes while the error is one that passes. On ERR_RETRY the
 * transaction is aborted: produce again. */
int kafka_commit(struct kafka_producer *producer, struct err *err) must_check;

/* From another thread: what waits for a Kafka that does not answer ends within some 20 s, its
 * transaction undecided. */
void kafka_leave(struct kafka_producer *producer);

#endif

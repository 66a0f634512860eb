/*
 * journal.h: the durable half of the leader: Kafka transactions on a thread of their own
 * ("at-journal"), so that the main loop never waits 20 to 60 ms for one.
 *
 * The main loop adds records and consumed offsets to the open batch; while one batch is being
 * committed, the next one grows. What must wait until a record is safe (an acknowledgement, a
 * status) is noted with it and comes back from journal_next once its batch is committed, in order.
 *
 *     journal_put(journal, TOPIC, key, value, ...);
 *     journal_after(journal, &note);
 *     journal_kick(journal);
 *     while (journal_next(journal, &note)) ...
 *
 * A failed batch is produced again as it was. Being fenced, or any error that does not pass, ends
 * the journal: journal_failed says why, and nothing is committed from then on.
 */
#ifndef ATELIER_COORDINATOR_JOURNAL_H
#define ATELIER_COORDINATOR_JOURNAL_H

#include "common/err.h"
#include "net/kafka.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JOURNAL_SOURCES 4              /* topics whose offsets are committed with the records */
#define JOURNAL_BATCH_BYTES (8u << 20) /* from here on journal_is_full */

struct journal;

/* What to do after a commit; the journal copies the strings and only carries the rest. */
struct journal_note {
    int what;         /* the caller's */
    const char *id;   /* of a job; or NULL */
    const char *text; /* or NULL */
    uint32_t slot, worker;
    uint64_t number;
    int attempt;
};

/* `topics[i]` is what journal_offset's source i means, all read under `group`. The producer becomes
 * the journal's. */
int journal_create(struct journal **journal, struct kafka_producer *producer, const char *group,
                   const char *const *topics, size_t topic_count, struct err *err) must_check;

/* Waits for the batch that is being committed; what is still open is dropped. */
void journal_free(struct journal *journal);

/* Adds a record to the open batch; everything is copied. A NULL value is a tombstone. */
void journal_put(struct journal *journal, const char *topic, const char *key, const void *value,
                 size_t value_len);
void journal_put_record(struct journal *journal, const struct kafka_record *record);

/* Everything of this partition before `next` is done with once the open batch is committed. */
void journal_offset(struct journal *journal, size_t source, int partition, int64_t next);

void journal_after(struct journal *journal, const struct journal_note *note);

/* Hands the open batch over if the thread is free and there is something in it. */
void journal_kick(struct journal *journal);

/* Whether the open batch should not grow further for now. */
bool journal_is_full(const struct journal *journal);

/* The next note of a committed batch; its strings live until the next call. Also hands over the
 * open batch. */
bool journal_next(struct journal *journal, struct journal_note *note);

/* Becomes readable when a batch was committed or the journal has failed. */
int journal_fd(const struct journal *journal);

/* True once it is over; `err` gets the reason. */
bool journal_failed(struct journal *journal, struct err *err);

struct journal_stats {
    uint64_t records, bytes, batches;
    double commit_s; /* the latest */
};
struct journal_stats journal_stats(struct journal *journal);

#endif

/*
 * senders.h: the threads that make callbacks ("at-callback"), so that no receiver, however slow,
 * keeps the leader's loop waiting; between them and the loop stands a table (owed.h) under a lock.
 *
 * The loop adds what is owed while it follows the journal and while it leads; the threads run only
 * while it leads. What they have settled comes back by senders_next, for the loop to journal.
 *
 *     senders_create(&senders, &options, &err);
 *     senders_add(senders, &what, true); senders_forget(senders, id); ...     following
 *     senders_start(senders, &err);                                           leading
 *     while (senders_next(senders, &settled)) ... journal, then senders_forget(senders, settled.id)
 *     senders_free(senders);
 *
 * Everything here is called by one thread, the loop's.
 */
#ifndef ATELIER_COORDINATOR_SENDERS_H
#define ATELIER_COORDINATOR_SENDERS_H

#include "common/buf.h"
#include "common/clock.h"
#include "common/err.h"
#include "coordinator/owed.h"
#include "net/webhook.h"

#include <stdbool.h>
#include <stdint.h>

struct senders;

struct senders_options {
    const struct webhook_rules *rules; /* borrowed */
    const char *ca_file;               /* NULL: the system's */
    int64_t timeout_s, give_up_s;
    uint64_t bytes_max;
    const struct clock *clock;
};

/* Copies the options. */
int senders_create(struct senders **senders, const struct senders_options *options,
                   struct err *err) must_check;

/* Breaks off what is under way, which takes a second at most: it will be made again. */
void senders_free(struct senders *senders);

/* Starts the threads. Without a secret there are none, and what is owed waits. */
int senders_start(struct senders *senders, struct err *err) must_check;

/* Copies `what`. What is not committed yet is not called before senders_commit. */
int senders_add(struct senders *senders, const struct owed *what, bool committed,
                struct err *err) must_check;
void senders_commit(struct senders *senders, const char *id);

/* The next one that is settled, delivered or given up, each once; NULL: none. Valid until
 * senders_forget. */
const struct owed *senders_next(struct senders *senders);
void senders_forget(struct senders *senders, const char *id); /* no matter if unknown */

struct senders_stats {
    uint64_t delivered, retried, given_up; /* in this term */
    size_t waiting;
};
struct senders_stats senders_stats(struct senders *senders);

/* How it is with a job's callback, as members of a JSON object, each with a comma before it; false
 * and nothing where none waits. */
bool senders_explain(struct senders *senders, const char *job, struct buf *out);

#endif

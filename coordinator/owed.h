/*
 * owed.h: the callbacks that are still to be made: which one next, and when to try again. A pure
 * table: no thread, no clock, no network.
 *
 * Callbacks of one receiver (scheme, host and port) stand in one line. A receiver that fails is
 * left alone for a while, all of it, and then tried with one callback, so that a long line behind
 * one that is down costs one try a while; once it answers, several are made at once. The one that
 * failed goes to the end of the line, so that it cannot hold up the others.
 *
 *     struct owed *owed = owed_add(table, &what, false);
 *     owed_commit(table, owed);
 *     while ((owed = owed_take(table, now))) ... call, then
 *         if (owed_answer(table, owed, &answer, now) != OWED_WAITS) ... owed_free(table, owed);
 *
 * What is settled has left its line and is the caller's to free. Not safe for threads.
 */
#ifndef ATELIER_COORDINATOR_OWED_H
#define ATELIER_COORDINATOR_OWED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OWED_RECEIVERS_MAX 65536 /* further ones share the last one's line */
#define OWED_AT_ONCE 4           /* of one receiver */
#define OWED_PROBLEM_BYTES 200

enum owed_fate { OWED_WAITS, OWED_DELIVERED, OWED_GIVEN_UP };

struct owed {
    /* ---- what: owned, for as long as the callback ---- */
    const char *id;  /* webhook-id */
    const char *job; /* its id */
    const char *url;
    const char *body;
    size_t body_len;
    int64_t ended_ns; /* wall clock: when the job ended */

    /* ---- how it goes ---- */
    int tries;
    char problem[OWED_PROBLEM_BYTES]; /* of the latest try, or why it was given up */
    enum owed_fate fate;

    /* ---- the table's ---- */
    bool committed, taken;
    uint32_t receiver;
    size_t bytes;
    struct owed *next_in_line, *next_of_hash;
};

struct owed_table;

/* Limits of waiting. */
struct owed_options {
    int64_t give_up_ns; /* after the job's end, if the receiver still fails */
    size_t bytes_max;   /* of what waits; see owed_crowded */
    uint64_t random;    /* any: where jitter begins */
};

/* NULL: out of memory. */
struct owed_table *owed_create(const struct owed_options *options);
void owed_destroy(struct owed_table *table); /* and all in it */

/* Copies `what`'s upper part. Until it is committed it is not taken. The one that is there when the
 * id is known; NULL: out of memory. */
struct owed *owed_add(struct owed_table *table, const struct owed *what, bool committed);
void owed_commit(struct owed_table *table, struct owed *owed);

struct owed *owed_find(const struct owed_table *table, const char *id);
/* By the job's id; looks through all of them. */
const struct owed *owed_find_job(const struct owed_table *table, const char *job);

/* The next one that may be tried now, or NULL. It stays in the table. What was given up on the way,
 * since its receiver fails and its time is over, waits in owed_expired. */
struct owed *owed_take(struct owed_table *table, int64_t now_ns, int64_t wall_ns);

/* When owed_take may have one, INT64_MAX for not before something else happens. */
int64_t owed_due_ns(const struct owed_table *table);

struct owed_answer {
    int status;          /* HTTP; 0: there was no answer */
    bool refused;        /* no answer, nor will there ever be one */
    int asked_ms;        /* Retry-After; 0: none */
    const char *problem; /* in words; borrowed */
};

/* What becomes of one that was taken. Anything but OWED_WAITS has left its line. */
enum owed_fate owed_answer(struct owed_table *table, struct owed *owed,
                           const struct owed_answer *answer, int64_t now_ns, int64_t wall_ns);

/* One that was given up by owed_take, each once; then NULL. */
struct owed *owed_expired(struct owed_table *table);

/* Over its bytes: gives up the first in the longest line, and returns it; else NULL. */
struct owed *owed_crowded(struct owed_table *table);

void owed_free(struct owed_table *table, struct owed *owed); /* whatever state it is in */

size_t owed_count(const struct owed_table *table);

#endif

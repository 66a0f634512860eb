/*
 * state.h: the journal's record of a job: the value of <cell>.state under the job's id. The latest
 * one of an id is the job's state; the topic is compacted. A live job's record holds its request, a
 * terminal one says how it ended. JSON, one object; docs/contracts.md shows every field.
 *
 * The writer borrows everything; what the reader gives lives as long as its `doc`.
 */
#ifndef ATELIER_SCHEMA_STATE_H
#define ATELIER_SCHEMA_STATE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATE_VERSION 1
#define STATE_MAX_BYTES (1u << 20)

enum state_kind {
    STATE_QUEUED,
    STATE_RETRYING, /* queued again: attempts or crashes are not zero */
    STATE_SUCCEEDED,
    STATE_FAILED, /* the job's own fault */
    STATE_DEAD,   /* attempts or crashes exhausted */
    STATE_CANCELLED,
    STATE_EXPIRED, /* its deadline passed */
    STATE_COUNT,
};

const char *state_name(enum state_kind kind); /* "queued" … */
bool state_is_terminal(enum state_kind kind);

struct json;
struct json_doc;

struct state {
    enum state_kind kind;
    const char *id;
    const char *batch;              /* or NULL */
    const char *tenant;             /* "default" */
    uint64_t content;               /* of the request: job.content */
    uint64_t epoch;                 /* of the leader that wrote this */
    int attempts, crashes, returns; /* crashes and returns do not count against max_attempts */
    int64_t accepted_ns;            /* wall clock */
    const char *request; /* canonical JSON; NULL in a record of success, whose manifest has it */
    const char *traceparent; /* W3C trace context, or NULL */

    /* ---- a live job ---- */
    int64_t not_before_ns;  /* of the next attempt; JOB_TIME_NONE */
    const char *checkpoint; /* blob that the next attempt begins from, or NULL */
    bool cancelling;        /* a worker has it and is to drop it: it is not drawn again */

    /* ---- a terminal one ---- */
    int64_t finished_ns;
    const char *worker, *device_class; /* or NULL */
    const char *manifest;              /* object key, of a success */
    const char *files;                 /* JSON array as in the manifest, of a success */
    const char *error;                 /* one sentence, or NULL */
    double seconds;                    /* from assignment to publication */
    double price;                      /* in the policy's money; negative: unknown */

    /* ---- of the reader ---- */
    struct json_doc *doc;
    const struct json *request_json;
};

void state_write(const struct state *state, struct buf *out);

/* Errors: ERR_FORMAT. The state is the caller's to release. */
int state_read(struct state *state, const char *text, size_t len, struct err *err) must_check;
void state_release(struct state *state);

#endif

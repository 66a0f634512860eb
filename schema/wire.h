/*
 * wire.h: what coordinator and workers say to each other through Redis: JSON, one object a message.
 *
 *   q:<worker>   to the worker    job, cancel, ack, drain, sweep
 *   reports      to the leader    beat, done, failed, returned
 *
 * A job's attempt of one leader's term is named by (id, epoch, attempt). A worker repeats `done`,
 * `failed` and `returned` until they are acknowledged, so a report is handled as often as it comes
 * and counts once. Writers borrow; what a reader gives lives as long as its `doc`.
 */
#ifndef ATELIER_SCHEMA_WIRE_H
#define ATELIER_SCHEMA_WIRE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_MAX_BYTES (1u << 20)
#define WIRE_MODELS_MAX 16
#define WIRE_ADAPTERS_MAX 32

struct json;
struct json_doc;

/* ---- to a worker ---- */

enum order_type {
    ORDER_JOB,    /* draw it */
    ORDER_CANCEL, /* drop it, within a step */
    ORDER_ACK,    /* the reports of these jobs are safe in the journal */
    ORDER_DRAIN,  /* take nothing new, hand back what does not end in time, exit */
    ORDER_SWEEP,  /* remove what a job that has ended left in the store, or one checkpoint of it */
    ORDER_COUNT,
};

/* A job that a worker has, from the order to the acknowledgement. */
struct wire_job {
    const char *id;
    uint64_t epoch;
    int attempt;
};

struct order {
    enum order_type type;
    const char *id; /* of ORDER_JOB and ORDER_CANCEL */
    uint64_t epoch;
    int attempt;

    /* ---- of ORDER_JOB ---- */
    const char *request; /* canonical JSON */
    int64_t accepted_ns;
    double predicted_s;       /* compute seconds; negative: unknown */
    double price;             /* predicted, in the policy's money; negative: unknown */
    const char *traceparent;  /* or NULL */
    const char *checkpoint;   /* blob to begin from (ORDER_SWEEP: to remove), or NULL */
    const char *device_class; /* as the coordinator calls the worker's */

    /* ---- of ORDER_ACK ---- */
    const struct wire_job *jobs; /* of the writer */
    size_t job_count;
    const struct json *jobs_json; /* of the reader; see wire_next_job */

    struct json_doc *doc; /* of the reader */
    const struct json *request_json;
};

void order_write(const struct order *order, struct buf *out);
int order_read(struct order *order, const char *text, size_t len, struct err *err) must_check;
void order_release(struct order *order);

/* ---- to the leader ---- */

enum report_type {
    REPORT_BEAT,     /* the worker lives; what it is and what it has */
    REPORT_DONE,     /* the manifest is in the store */
    REPORT_FAILED,   /* not drawn, for the reason given */
    REPORT_RETURNED, /* handed back: draining, or refused for want of room */
    REPORT_COUNT,
};

/* What a worker is; in every beat, so that a new leader need not ask. */
struct report_worker {
    const char *boot;         /* differs after a restart: what it had before is lost */
    const char *device_class; /* "g8i", "a10", … */
    const char *processor, *backend, *isa, *engine_version;
    const char *precisions; /* that it takes jobs in, beside "auto": "bf16" or "f32,bf16" */
    int pictures_max;       /* in flight at once */
    uint64_t memory_bytes;  /* the engine's budget */
    bool confidential;      /* may take confidential jobs */
    bool draining;
    const char *resident[WIRE_MODELS_MAX]; /* models in memory */
    size_t resident_count;
    const char *adapters[WIRE_ADAPTERS_MAX]; /* adapters in memory, of any of them */
    size_t adapter_count;
    uint64_t cache_bytes, cache_max_bytes; /* of models on disk; 0: no cache */
    double step_s;                         /* the latest step; 0: none yet */
};

struct report {
    enum report_type type;
    const char *worker; /* its name */

    /* ---- beat; of the others, device_class ---- */
    struct report_worker is;
    const struct wire_job *jobs; /* of the writer */
    size_t job_count;
    const struct json *jobs_json; /* of the reader; see wire_next_job */

    /* ---- the others ---- */
    const char *id;
    uint64_t epoch;
    int attempt;
    const char *model;
    int width, height, steps, images; /* as drawn */
    double compute_s, total_s, load_s;
    const char *manifest;          /* object key */
    const char *files;             /* JSON array */
    const struct json *files_json; /* of the reader */
    bool adopted;                  /* done: another attempt's manifest stands */
    const char *error;             /* failed: one sentence */
    bool retry;                    /* failed: the same request may succeed later or elsewhere */
    bool cancelled;                /* failed: as ordered */
    const char *checkpoint;        /* returned: the blob, or NULL */

    struct json_doc *doc;
};

void report_write(const struct report *report, struct buf *out);
int report_read(struct report *report, const char *text, size_t len, struct err *err) must_check;
void report_release(struct report *report);

/* The jobs of a beat or an acknowledgement that was read, in turn: begin with `at` NULL; false
 * after the last. */
bool wire_next_job(const struct json *jobs, const struct json **at, struct wire_job *job);

#endif

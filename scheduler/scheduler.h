/*
 * scheduler.h: who draws what next: a state, events in, actions out. No I/O, no thread, no clock of
 * its own, and no allocation after creation, so that the coordinator, the embedded runner and the
 * simulator drive the same code and a test can own time.
 *
 * The caller numbers its jobs by slots: a slot is below `jobs_max` and free again once an action or
 * its own event has ended the job. What is promised:
 * - a job starts neither before `not_before_ns` nor after `deadline_ns`;
 * - a better class goes first; tenants share work-seconds by weight within `fairness_s`; urgent
 *   deadlines go first within a class and tenant;
 * - otherwise a worker keeps to the model and size it has, so that a model is loaded once for many
 *   jobs;
 * - but no job is overtaken by more than `overtake_max` jobs that became ready after it, whatever
 *   their class, as long as a worker that can take it has room now and then.
 *
 *     scheduler_create(&scheduler, &options, &err);
 *     scheduler_step(scheduler, &event, &actions);
 *     for (size_t i = 0; i < actions.count; i++) ... actions.items[i] ...
 *     scheduler_free(scheduler);
 *
 * One thread at a time.
 */
#ifndef ATELIER_SCHEDULER_SCHEDULER_H
#define ATELIER_SCHEDULER_SCHEDULER_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCHEDULER_ACTIONS_MAX 256 /* of one step */
#define SCHEDULER_TIME_NONE INT64_MIN

enum job_class { CLASS_INTERACTIVE, CLASS_NORMAL, CLASS_BULK, CLASS_COUNT };

struct scheduler;

struct scheduler_options {
    uint32_t jobs_max; /* queued and running together: the window */
    size_t bytes_max;  /* of their requests */
    uint32_t workers_max;
    uint32_t tenants_max;
    uint32_t overtake_max; /* the starvation bound */
    int64_t urgent_ns;     /* a deadline that is nearer than this, less the job's work, is urgent */
    double fairness_s;     /* work-seconds that a tenant may be ahead for the sake of a model */
    int64_t retry_first_ns; /* wait before the second attempt; doubles */
    int64_t retry_max_ns;
};
#define SCHEDULER_OPTIONS_INIT                                                                     \
    {                                                                                              \
        .jobs_max = 4096, .bytes_max = 64u << 20, .workers_max = 1, .tenants_max = 256,            \
        .overtake_max = 1024, .urgent_ns = 600000000000, .fairness_s = 600,                        \
        .retry_first_ns = 1000000000, .retry_max_ns = 60000000000                                  \
    }

struct scheduler_job {
    uint32_t model; /* the caller's number of it */
    int width, height;
    int pictures;  /* room it takes on a worker */
    double work_s; /* predicted */
    enum job_class class;
    uint32_t tenant;                    /* below tenants_max */
    int64_t not_before_ns, deadline_ns; /* or SCHEDULER_TIME_NONE */
    int attempts_max;
    size_t bytes;
    uint64_t memory_bytes; /* that a worker must have */
    uint32_t needs;        /* bits that a worker must offer: tier, precision, confidentiality */
};

struct scheduler_worker {
    int pictures_max; /* in flight at once; a larger job still goes to an idle worker */
    uint64_t memory_bytes;
    uint32_t offers;
};

enum outcome {
    OUTCOME_DONE,   /* succeeded, failed for good, or expired on the worker */
    OUTCOME_RETRY,  /* circumstances failed: again, later, up to attempts_max */
    OUTCOME_RETURN, /* handed back: again at once, and not counted */
};

enum event_type {
    EVENT_TICK,        /* time has passed */
    EVENT_SUBMIT,      /* slot, job */
    EVENT_CANCEL,      /* slot: leaves the queue; a running one is only forgotten at EVENT_FINISH */
    EVENT_FINISH,      /* slot, outcome */
    EVENT_WORKER,      /* worker, with what it is: joined or changed */
    EVENT_WORKER_GONE, /* worker: its jobs are ready again */
    EVENT_WEIGHT,      /* tenant, weight */
    EVENT_PAUSE,       /* nothing more is assigned ... */
    EVENT_RESUME,      /* ... until then */
};

struct scheduler_event {
    enum event_type type;
    int64_t now_ns; /* wall clock; a step back counts as no time */
    uint32_t slot, worker, tenant;
    struct scheduler_job job;
    struct scheduler_worker worker_is;
    enum outcome outcome;
    double weight;
};

enum action_type {
    ACTION_ASSIGN,  /* slot to worker: begin it */
    ACTION_EXPIRE,  /* slot: its deadline passed while it waited; the slot is free */
    ACTION_GIVE_UP, /* slot: attempts exhausted; the slot is free */
};

struct scheduler_action {
    enum action_type type;
    uint32_t slot, worker;
    int attempt;       /* of an assignment, from 1 */
    bool change_model; /* the worker was given another model before this one */
};

struct scheduler_actions {
    const struct scheduler_action *items; /* until the next step */
    size_t count;
    bool more;       /* step again with EVENT_TICK */
    int64_t wake_ns; /* when something happens by itself; SCHEDULER_TIME_NONE: never */
};

enum waiting {
    WAITING_NOT, /* not queued */
    WAITING_RUNNING,
    WAITING_TIME,   /* for not_before, or for its next attempt */
    WAITING_WORKER, /* no known worker can take it */
    WAITING_TURN,   /* others are first, or every worker is full */
};

int scheduler_create(struct scheduler **scheduler, const struct scheduler_options *options,
                     struct err *err) must_check;
void scheduler_free(struct scheduler *scheduler);

/* Slots out of range, taken or free against the event's meaning are bugs of the caller: ASSERT. */
void scheduler_step(struct scheduler *scheduler, const struct scheduler_event *event,
                    struct scheduler_actions *actions);

/* Whether one more job of `bytes` may be submitted now. A job always fits an empty window. */
bool scheduler_has_room(const struct scheduler *scheduler, size_t bytes);

struct scheduler_count {
    uint32_t ready, delayed, running;
    double work_s; /* predicted, of the jobs that wait */
};
struct scheduler_count scheduler_count(const struct scheduler *scheduler);

/* Why a job waits; `ahead`, which may be NULL, gets how many jobs became ready before it. */
enum waiting scheduler_why(const struct scheduler *scheduler, uint32_t slot, uint32_t *ahead);

#endif

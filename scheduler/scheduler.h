/*
 * scheduler.h: who draws what next, and where: a state, events in, actions out. No I/O, no thread,
 * no clock of its own, and no allocation after creation, so that the coordinator, the embedded
 * runner and the simulator drive the same code and a test can own time.
 *
 * The caller numbers its jobs by slots: a slot is below `jobs_max` and free again once an action or
 * its own event has ended the job. Workers, tenants, models, device classes and profiles are its
 * numbers too. What is promised:
 * - a job starts neither before `not_before_ns` nor after `deadline_ns`, and only on a class of its
 *   route; away from the first class of it that has a worker only when that is cheaper than to
 *   wait;
 * - a better priority goes first; tenants share work-seconds by weight within `fairness_s`; urgent
 *   deadlines go first within a priority and tenant;
 * - otherwise a worker keeps to the models and sizes it has, so that a model is loaded once for
 *   many jobs;
 * - but no job is overtaken by more than `overtake_max` jobs that became ready after it and have
 *   the same home (the first class of the route with a worker), or that visit there from another
 *   home: whatever their priority, as long as a worker there that can take it has room now and then
 *   and its tenant is within its quota.
 *
 *     scheduler_create(&scheduler, &options, &err);
 *     scheduler_step(scheduler, &event, &actions);
 *     for (size_t i = 0; i < actions.count; i++) ... actions.items[i] ...
 *     scheduler_free(scheduler);
 *
 * One thread at a time. Questions that people ask are in scheduler/explain.h.
 */
#ifndef ATELIER_SCHEDULER_SCHEDULER_H
#define ATELIER_SCHEDULER_SCHEDULER_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCHEDULER_ACTIONS_MAX 256     /* of one step */
#define SCHEDULER_WORKER_JOBS_MAX 128 /* in flight on one worker, adopted ones included */
#define SCHEDULER_CLASSES_MAX 16
#define SCHEDULER_RESIDENT_MAX 16
#define SCHEDULER_TIME_NONE INT64_MIN

enum job_class { CLASS_INTERACTIVE, CLASS_NORMAL, CLASS_BULK, CLASS_COUNT };

struct scheduler;

struct scheduler_options {
    uint32_t jobs_max; /* queued and running together: the window */
    size_t bytes_max;  /* of their requests */
    uint32_t workers_max;
    uint32_t tenants_max;
    uint32_t classes_max;  /* device classes, at most SCHEDULER_CLASSES_MAX */
    uint32_t profiles_max; /* at most 65535 */
    uint32_t overtake_max; /* the starvation bound */
    int64_t urgent_ns;     /* a deadline that is nearer than this, less the job's work, is urgent */
    double fairness_s;     /* work-seconds that a tenant may be ahead for the sake of a model */
    int64_t retry_first_ns; /* wait before the second attempt; doubles */
    int64_t retry_max_ns;
    double retry_jitter;      /* 0 … 1: the part of a wait that is drawn from slot and attempt */
    int crashes_max;          /* a job that has taken as many workers with it is given up */
    double waiting_per_hour;  /* what an hour of a job's waiting is worth, in the workers' money */
    double lateness_per_hour; /* what an hour past its deadline is worth */
    double target_wait_s;     /* scheduler_pools: in which the work at hand should be done */
};
#define SCHEDULER_OPTIONS_INIT                                                                     \
    {                                                                                              \
        .jobs_max = 4096, .bytes_max = 64u << 20, .workers_max = 1, .tenants_max = 256,            \
        .classes_max = SCHEDULER_CLASSES_MAX, .profiles_max = 4096, .overtake_max = 1024,          \
        .urgent_ns = 600000000000, .fairness_s = 600, .retry_first_ns = 1000000000,                \
        .retry_max_ns = 60000000000, .retry_jitter = 0.5, .crashes_max = 3, .waiting_per_hour = 1, \
        .lateness_per_hour = 10, .target_wait_s = 300                                              \
    }

/* What many jobs share: where they may run and what that takes. Jobs of one profile should differ
 * little in it; round `memory_bytes`, so that few values differ between profiles. */
struct scheduler_profile {
    uint8_t route[SCHEDULER_CLASSES_MAX];  /* classes that are allowed, the preferred one first */
    uint8_t route_count;                   /* at least 1 */
    uint32_t needs;                        /* bits that a worker must offer */
    uint64_t memory_bytes;                 /* that a worker must have */
    float seconds[SCHEDULER_CLASSES_MAX];  /* by class, predicted, of one picture */
    float switch_s[SCHEDULER_CLASSES_MAX]; /* by class, to load the model */
};

struct scheduler_job {
    uint32_t model; /* the caller's number of it */
    int width, height;
    int pictures;     /* room it takes on a worker */
    uint32_t profile; /* registered before */
    double effort;    /* times the profile's seconds; 0 counts as 1 */
    enum job_class class;
    uint32_t tenant;                    /* below tenants_max */
    int64_t not_before_ns, deadline_ns; /* or SCHEDULER_TIME_NONE */
    int attempts_max;
    size_t bytes;
    bool alone; /* shares a worker with no other job; a job that has crashed is alone by itself */
    bool held;  /* as after EVENT_HOLD */
    /* Of a job with a past: assignments so far, and how many of these ended with the worker's
     * crash or were handed back, which do not count against attempts_max. */
    int attempts, crashes, returns;
};

struct scheduler_worker {
    uint32_t device_class; /* below classes_max */
    int pictures_max;      /* in flight at once; a larger job still goes to an idle worker */
    uint64_t memory_bytes;
    uint32_t offers;
    float price_per_hour;
    bool draining;                             /* takes nothing new */
    uint32_t resident[SCHEDULER_RESIDENT_MAX]; /* models that need no loading */
    uint32_t resident_count;
};

enum outcome {
    OUTCOME_DONE,   /* succeeded, failed for good, or expired on the worker */
    OUTCOME_RETRY,  /* circumstances failed: again, later, up to attempts_max */
    OUTCOME_RETURN, /* handed back: again at once, and not counted */
};

enum event_type {
    EVENT_TICK,        /* time has passed */
    EVENT_SUBMIT,      /* slot, job */
    EVENT_ADOPT,       /* slot, worker, attempt: a job that waits turns out to run there already */
    EVENT_CANCEL,      /* slot: leaves the queue; a running one is only forgotten at EVENT_FINISH */
    EVENT_HOLD,        /* slot: does not start, or not again, ... */
    EVENT_RELEASE,     /* ... until then */
    EVENT_FINISH,      /* slot, outcome */
    EVENT_WORKER,      /* worker, with what it is: joined or changed */
    EVENT_WORKER_GONE, /* worker: a crash; its jobs are ready again, and have one crash more */
    EVENT_WORKER_LEFT, /* worker: in good order; its jobs are ready again, and it does not count */
    EVENT_PROFILE, /* number, profile: added or changed. Where the route, the needs or the memory
                      change, its ready jobs join the end of their new line */
    EVENT_TENANT,  /* tenant, weight, running_max */
    EVENT_PAUSE,   /* nothing more is assigned ... */
    EVENT_RESUME,  /* ... until then */
};

struct scheduler_event {
    enum event_type type;
    int64_t now_ns; /* wall clock; a step back counts as no time */
    uint32_t slot, worker, tenant, number;
    int attempt;
    struct scheduler_job job;
    struct scheduler_worker worker_is;
    struct scheduler_profile profile;
    enum outcome outcome;
    double weight;
    uint32_t running_max; /* jobs of a tenant; 0: no limit */
};

enum action_type {
    ACTION_ASSIGN,  /* slot to worker: begin it */
    ACTION_EXPIRE,  /* slot: its deadline passed while it waited; the slot is free */
    ACTION_GIVE_UP, /* slot: for the reason; the slot is free */
};

enum give_up {
    GIVE_UP_ATTEMPTS, /* attempts exhausted */
    GIVE_UP_CRASHES,  /* it was on too many workers that crashed */
};

struct scheduler_action {
    enum action_type type;
    uint32_t slot, worker;
    int attempt;         /* of an assignment: from 1, never the same twice */
    bool change_model;   /* the worker was given another model before and has not this one */
    bool alone;          /* of an assignment */
    enum give_up reason; /* of giving up */
};

struct scheduler_actions {
    const struct scheduler_action *items; /* until the next step */
    size_t count;
    bool more;       /* step again with EVENT_TICK */
    int64_t wake_ns; /* when something happens by itself; SCHEDULER_TIME_NONE: never */
};

int scheduler_create(struct scheduler **scheduler, const struct scheduler_options *options,
                     struct err *err) must_check;
void scheduler_free(struct scheduler *scheduler);

/* Numbers out of range, slots taken or free against the event's meaning and profiles that are not
 * registered are bugs of the caller: ASSERT. Costs little whatever waits, but for three rare
 * things, which cost time in proportion to the jobs that are ready: the first worker of a class,
 * its last one's leaving, and a profile's new route. */
void scheduler_step(struct scheduler *scheduler, const struct scheduler_event *event,
                    struct scheduler_actions *actions);

/* Whether one more job of `bytes` may be submitted now. A job always fits an empty window. */
bool scheduler_has_room(const struct scheduler *scheduler, size_t bytes);

struct scheduler_count {
    uint32_t ready;   /* could start now, if there were room */
    uint32_t delayed; /* wait for not_before or for their next attempt */
    uint32_t held, running;
    double work_s; /* predicted, of the jobs that wait, on the class that each prefers */
};
struct scheduler_count scheduler_count(const struct scheduler *scheduler);

/* Bytes that were allocated at creation; pages of it that no job has used yet stay untouched. */
size_t scheduler_memory_bytes(const struct scheduler *scheduler);

#endif

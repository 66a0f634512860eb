/*
 * explain.h: what people and autoscalers ask of the scheduler: why a job waits or runs where it
 * does, when it may start and what it will cost, and what each pool of workers has to do.
 *
 * Nothing here changes the scheduler. Same thread as scheduler_step.
 *
 *     scheduler_explain(scheduler, slot, &explanation);
 *     struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
 *     scheduler_pools(scheduler, pools);
 */
#ifndef ATELIER_SCHEDULER_EXPLAIN_H
#define ATELIER_SCHEDULER_EXPLAIN_H

#include "scheduler/scheduler.h"

#define SCHEDULER_CLASS_NONE UINT32_MAX
#define SCHEDULER_WORKER_NONE UINT32_MAX

enum waiting {
    WAITING_NOT, /* not known: never submitted, or ended */
    WAITING_RUNNING,
    WAITING_TIME,       /* for not_before, or for its next attempt */
    WAITING_HELD,       /* EVENT_HOLD */
    WAITING_PAUSED,     /* EVENT_PAUSE */
    WAITING_QUOTA,      /* its tenant runs as many jobs as it may */
    WAITING_WORKER,     /* no known worker can take it */
    WAITING_CLASS_BUSY, /* the workers of its class are full, and no other is cheaper than to wait
                         */
    WAITING_ROOM,       /* a worker is being emptied for it */
    WAITING_TURN,       /* others are first */
};

/* Why a job is on the class it is on. */
enum placement {
    PLACEMENT_NONE,      /* not placed */
    PLACEMENT_PREFERRED, /* the first of its route */
    PLACEMENT_OVERFLOW,  /* cheaper than to wait for a better one */
    PLACEMENT_NO_WORKER, /* no worker of a better one could take it */
    PLACEMENT_ADOPTED,   /* it was there before this scheduler was */
};

struct scheduler_explanation {
    enum waiting why;
    uint32_t ahead;     /* ready jobs of the same home that became ready before it */
    uint32_t preferred; /* the first class of its route */
    uint32_t home;   /* the first of its route with a worker that can take it; or the preferred */
    uint32_t worker; /* that runs it or is being emptied for it; SCHEDULER_WORKER_NONE */
    uint32_t class;  /* of that worker; SCHEDULER_CLASS_NONE */
    double start_s;  /* expected, from now; 0: runs; -1: nobody knows */
    double seconds[SCHEDULER_CLASSES_MAX]; /* predicted, by class; 0 off its route */
    double price;                          /* predicted: where it runs, else at home */
    int attempt, crashes;
    bool alone;
    /* Of a placed job: why there, and what was compared at that moment. */
    enum placement placement;
    double cost_here;    /* of drawing it there, loading and lateness included */
    double cost_waiting; /* of the best better class, its wait included; 0: there was none */
    double wait_s;       /* that was expected at home */
};

/* `slot` is below jobs_max. */
void scheduler_explain(const struct scheduler *scheduler, uint32_t slot,
                       struct scheduler_explanation *explanation);

const char *waiting_name(enum waiting why);           /* "class_busy" */
const char *placement_name(enum placement placement); /* "overflow" */

struct scheduler_pool {
    uint32_t workers;      /* live and not draining */
    uint32_t idle;         /* of these, with nothing in flight */
    uint32_t open;         /* of these, with room */
    uint32_t draining;     /* besides */
    uint32_t queued;       /* ready jobs that prefer it, though it may have no worker */
    uint32_t running;      /* jobs on its workers */
    double queued_s;       /* predicted work of the queued */
    double running_s;      /* predicted work of the running, whole */
    double wait_s;         /* that a new job at home here expects, of the lowest priority */
    double price_per_hour; /* mean of its workers; 0: none */
    uint32_t wanted;       /* workers that would do queued and running work in target_wait_s */
};

/* Fills in one per class, classes_max of them. */
void scheduler_pools(const struct scheduler *scheduler, struct scheduler_pool pools[]);

#endif

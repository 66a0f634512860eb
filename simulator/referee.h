/*
 * referee.h: what the scheduler promises, checked from outside by a book of its own:
 *
 * - a job is assigned only while it waits: never twice at once, never after its end, and at the end
 *   of the run none is lost;
 * - not before its time, not after its deadline, only on a class of its policy's route, to a worker
 *   that is there, has the memory and offers what it needs, and has room;
 * - within its tenant's quota, and alone where it must be;
 * - no job is overtaken by more than `overtake_max` younger ones of its home. This is followed for
 *   REFEREE_WATCHED jobs at a time, in turn, so that it costs little.
 *
 * The first breach is an error that says what, of which job and when.
 */
#ifndef ATELIER_SIMULATOR_REFEREE_H
#define ATELIER_SIMULATOR_REFEREE_H

#include "scheduler/policy.h"
#include "scheduler/scheduler.h"
#include "simulator/load.h"

#define REFEREE_WATCHED 64

struct referee;

struct referee_options {
    const struct policy *policy;
    const struct load *load;
    uint32_t workers_max, overtake_max;
};

int referee_create(struct referee **referee, const struct referee_options *options,
                   struct err *err) must_check;
void referee_free(struct referee *referee);

/* A worker is there, with what it is, or no longer. What it had is waiting again at `now_ns`. */
void referee_worker(struct referee *referee, uint32_t worker, const struct scheduler_worker *is);
void referee_worker_gone(struct referee *referee, uint32_t worker, int64_t now_ns);

/* A job waits from now on: it has come, or comes back from a worker that is still there. */
int referee_waits(struct referee *referee, uint32_t job, int64_t now_ns, bool comes_back,
                  struct err *err) must_check;

/* It was given to a worker. `promised` asks the scheduler whether a job waits for room that is
 * being made for it: no turn is taken from that. */
int referee_assigned(struct referee *referee, uint32_t job, uint32_t worker, bool alone,
                     int64_t now_ns, bool (*promised)(void *user, uint32_t job), void *user,
                     struct err *err) must_check;

/* It has ended, wherever it was; or it never began: it was refused. */
int referee_ended(struct referee *referee, uint32_t job, int64_t now_ns,
                  struct err *err) must_check;

/* At the end: every job has ended but `left`, which wait or have not come. `checks` becomes the
 * number of assignments that were judged. */
int referee_finish(struct referee *referee, uint32_t left, int64_t now_ns, uint64_t *checks,
                   struct err *err) must_check;

#endif

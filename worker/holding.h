/*
 * holding.h: what a task holds for as long as it is drawn: its models, adapters and ControlNets in
 * memory; and what it is drawn from: pictures and words. The result is a `struct draw`, which a
 * session is made of, or with an outline (engine.h) only checked.
 *
 * For the thread that acquires models (models.h); holding_let_go for any.
 */
#ifndef ATELIER_WORKER_HOLDING_H
#define ATELIER_WORKER_HOLDING_H

#include "worker/pipeline.h"

/* The files that a job names, while it is prepared; zeroed: none. */
struct inputs {
    struct image init, mask, hints[JOB_CONTROLNETS_MAX];
    struct inversion *inversions[JOB_EMBEDDINGS_MAX];
};

/* Acquires what task->job names, for the task's model. On failure, too, it is the caller's to let
 * go. Errors as models_acquire, models_acquire_adapter and models_acquire_control say. */
int holding_take(const struct pipeline_options *options, struct task *task,
                 struct err *err) must_check;
void holding_let_go(const struct pipeline_options *options, struct task *task);

/* Reads the textual inversions: those that the job names have to fit the model; those found in its
 * prompts are left out if not. */
int holding_read_words(const struct pipeline_options *options, struct task *task,
                       struct inputs *inputs, struct err *err) must_check;

/* With an init image the picture has its size; a job that says otherwise is told so. */
int holding_settle_size(struct job *job, const struct image *init, struct err *err) must_check;

void holding_release_inputs(struct inputs *inputs);

/* The request of the picture `index`. Borrows from the task, which holds what it names, and from
 * the inputs. */
struct draw holding_draw(const struct task *task, const struct inputs *inputs, int index);

#endif

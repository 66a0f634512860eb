/* pipeline_parts.h: what the stages share; for pipeline*.c only. */
#ifndef ATELIER_WORKER_PIPELINE_PARTS_H
#define ATELIER_WORKER_PIPELINE_PARTS_H

#include "worker/bounded_queue.h"
#include "worker/pipeline.h"
#include "worker/stage_dump.h"

#include <pthread.h>

/* One picture of a task. One stage has it at a time. */
struct picture {
    struct task *task;
    int index;
    struct session *session; /* until decoded */
    struct image image;      /* from then on */
    double compute_s;
    bool published; /* an earlier attempt stored it */
    bool dumping;
    struct stage_dump dump;
};

#define STAGES_MAX 4

struct pipeline {
    struct pipeline_options options;
    bool decodes_apart; /* the engine decodes beside steps */
    pthread_t threads[STAGES_MAX];
    int thread_count;
    struct bounded_queue tasks;    /* struct task, before prepare */
    struct bounded_queue prepared; /* struct picture */
    struct bounded_queue stepped;  /* struct picture; used where they are decoded apart */
    struct bounded_queue drawn;    /* struct picture */
    struct bounded_queue done;     /* struct task */
    pthread_mutex_t lock;          /* of what follows, and of task->failed and task->err */
    bool stopping, handing_back;
    struct pipeline_progress progress;
};

/* ---- pipeline_saved.c: what a hand-back keeps ---- */

/* Adds the picture's session, or the files that are stored already, to task->saved. What cannot be
 * saved is drawn again. The session's caller has the picture, the files' is at-publish. */
void saved_add_session(struct pipeline *pipeline, struct picture *picture);
void saved_add_files(struct pipeline *pipeline, struct task *task);

/* Takes the picture's part up: its session, or its file in task->files and `published`. False where
 * there is none. Errors: the state is of another model or damaged. */
int saved_take(struct picture *picture, bool *found, struct err *err) must_check;

/* ---- pipeline_decode.c: what leaves a batch ---- */

/* Makes the pixels and passes the picture on; an error is the task's. */
void picture_decode(struct pipeline *pipeline, struct picture *picture);

/* Passes a lost picture on, its session saved where the task is handed back. */
void picture_drop(struct pipeline *pipeline, struct picture *picture);

/* To at-publish, without its session. */
void picture_pass_on(struct pipeline *pipeline, struct picture *picture);

/* ---- the stages; each closes the queue behind it when the one before it is empty ---- */

void *prepare_main(void *pipeline);
void *compute_main(void *pipeline);
void *decode_main(void *pipeline);
void *publish_main(void *pipeline);

/* Takes over the manifest that another attempt has made. pipeline_publish.c */
int pipeline_adopt(const struct pipeline *pipeline, struct task *task, struct err *err) must_check;

/* The task is through, whatever became of it. */
void task_give_back(struct pipeline *pipeline, struct task *task);

/* Notes the first error of a task. */
void task_fail(struct pipeline *pipeline, struct task *task, const struct err *err);

/* Whether the rest of the task's work is in vain; a pipeline that stops makes it so. */
bool task_is_lost(struct pipeline *pipeline, struct task *task);

/* Smoothes what is measured again and again. */
void rate_learn(double *rate, double measured);

double seconds_since(const struct pipeline *pipeline, int64_t begin_ns);

#endif

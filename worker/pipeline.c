#include "worker/pipeline.h"

#include "worker/pipeline_parts.h"

#include <stdlib.h>

#define DRAWN_MAX 8   /* decoded pictures that wait for publishing: 100 MB of the largest size */
#define SMOOTHING 0.2 /* weight of the latest measurement in a learned rate */

double seconds_since(const struct pipeline *pipeline, int64_t begin_ns)
{
    return (double)(clock_monotonic_ns(pipeline->options.clock) - begin_ns) * 1e-9;
}

void rate_learn(double *rate, double measured)
{
    *rate = *rate == 0 ? measured : *rate + SMOOTHING * (measured - *rate);
}

void task_fail(struct pipeline *pipeline, struct task *task, const struct err *err)
{
    pthread_mutex_lock(&pipeline->lock);
    if (!task->failed) {
        task->failed = true;
        task->err = *err;
    }
    pthread_mutex_unlock(&pipeline->lock);
}

bool task_is_lost(struct pipeline *pipeline, struct task *task)
{
    struct err err;
    pthread_mutex_lock(&pipeline->lock);
    bool stopping = pipeline->stopping, failed = task->failed;
    pthread_mutex_unlock(&pipeline->lock);
    if (stopping && !failed) {
        err_set(&err, ERR_CANCELLED, ERR_RETRY, "interrupted");
        task_fail(pipeline, task, &err);
    }
    return stopping || failed;
}

void task_give_back(struct pipeline *pipeline, struct task *task)
{
    bool open = bounded_queue_put(&pipeline->done, task);
    ASSERT(open);
    if (pipeline->options.wake)
        pipeline->options.wake(pipeline->options.user);
}

void task_release(struct task *task)
{
    free(task->files);
    task->files = NULL;
    buf_release(&task->saved);
    job_release(&task->job);
}

struct stage_thread {
    void *(*run)(void *pipeline);
    const char *name;
    struct bounded_queue *behind; /* which it closes in the end */
};

/* In the order of a picture's way. Returns how many. */
static int stages_of(struct pipeline *pipeline, struct stage_thread stages[STAGES_MAX])
{
    int count = 0;
    stages[count++] = (struct stage_thread){prepare_main, "at-prepare", &pipeline->prepared};
    if (pipeline->decodes_apart) {
        stages[count++] = (struct stage_thread){compute_main, "at-compute", &pipeline->stepped};
        stages[count++] = (struct stage_thread){decode_main, "at-decode", &pipeline->drawn};
    } else {
        stages[count++] = (struct stage_thread){compute_main, "at-compute", &pipeline->drawn};
    }
    stages[count++] = (struct stage_thread){publish_main, "at-publish", NULL};
    return count;
}

static int start_threads(struct pipeline *pipeline, struct err *err)
{
    struct stage_thread stages[STAGES_MAX];
    int count = stages_of(pipeline, stages);
    for (int i = 0; i < count; i++) {
        if (pthread_create(&pipeline->threads[i], NULL, stages[i].run, pipeline) != 0)
            return err_set(err, ERR_MEMORY, ERR_FATAL, "cannot start the thread %s",
                           stages[i].name);
        pthread_setname_np(pipeline->threads[i], stages[i].name);
        pipeline->thread_count++;
    }
    return 0;
}

static int open_queues(struct pipeline *pipeline, struct err *err)
{
    const struct pipeline_options *options = &pipeline->options;
    /* As many prepared as the batch holds: they wait with conditioning and noise, not pixels. */
    return bounded_queue_init(&pipeline->tasks, (size_t)options->tasks_max, err) != 0 ||
                   bounded_queue_init(&pipeline->prepared, (size_t)options->batch_max, err) != 0 ||
                   bounded_queue_init(&pipeline->stepped, (size_t)options->batch_max, err) != 0 ||
                   bounded_queue_init(&pipeline->drawn, DRAWN_MAX, err) != 0 ||
                   bounded_queue_init(&pipeline->done, (size_t)options->tasks_max, err) != 0
               ? -1
               : 0;
}

int pipeline_create(struct pipeline **out, const struct pipeline_options *options, struct err *err)
{
    struct pipeline *pipeline = calloc(1, sizeof(*pipeline));
    *out = NULL;
    if (!pipeline)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the pipeline");
    ASSERT(options->batch_max >= 1 && options->batch_max <= ENGINE_SESSIONS_MAX);
    pipeline->options = *options;
    pipeline->decodes_apart = engine_info(options->engine)->overlaps;
    pthread_mutex_init(&pipeline->lock, NULL);
    if (open_queues(pipeline, err) != 0 || start_threads(pipeline, err) != 0) {
        pipeline_free(pipeline);
        return -1;
    }
    *out = pipeline;
    return 0;
}

static void close_if_open(struct bounded_queue *queue)
{
    if (queue && queue->items)
        bounded_queue_close(queue);
}

void pipeline_free(struct pipeline *pipeline)
{
    struct stage_thread stages[STAGES_MAX];
    if (!pipeline)
        return;
    pipeline_stop(pipeline);
    close_if_open(&pipeline->tasks);
    for (int i = pipeline->thread_count, count = stages_of(pipeline, stages); i < count; i++)
        close_if_open(stages[i].behind); /* which nobody else will */
    for (int i = 0; i < pipeline->thread_count; i++)
        pthread_join(pipeline->threads[i], NULL);
    bounded_queue_release(&pipeline->tasks);
    bounded_queue_release(&pipeline->prepared);
    bounded_queue_release(&pipeline->stepped);
    bounded_queue_release(&pipeline->drawn);
    bounded_queue_release(&pipeline->done);
    pthread_mutex_destroy(&pipeline->lock);
    free(pipeline);
}

void pipeline_put(struct pipeline *pipeline, struct task *task)
{
    task->failed = task->adopted = task->handed_back = false;
    task->stage = TASK_WAITING;
    task->step = task->steps = 0;
    task->load_s = 0;
    task->pictures = NULL;
    task->held = task->refiner = NULL;
    task->times = (struct manifest_times){0};
    bool open = bounded_queue_put(&pipeline->tasks, task);
    ASSERT(open);
}

struct task *pipeline_take(struct pipeline *pipeline, int timeout_ms)
{
    return bounded_queue_take_within(&pipeline->done, timeout_ms);
}

void pipeline_stop(struct pipeline *pipeline)
{
    pthread_mutex_lock(&pipeline->lock);
    pipeline->stopping = true;
    pthread_mutex_unlock(&pipeline->lock);
}

void pipeline_hand_back(struct pipeline *pipeline)
{
    pthread_mutex_lock(&pipeline->lock);
    pipeline->stopping = pipeline->handing_back = true;
    pthread_mutex_unlock(&pipeline->lock);
}

void pipeline_cancel(struct pipeline *pipeline, struct task *task)
{
    struct err err;
    err_set(&err, ERR_CANCELLED, ERR_RETRY, "cancelled");
    task_fail(pipeline, task, &err);
}

struct task_progress pipeline_task_progress(struct pipeline *pipeline, const struct task *task)
{
    pthread_mutex_lock(&pipeline->lock);
    struct task_progress progress = {task->stage, task->step, task->steps};
    pthread_mutex_unlock(&pipeline->lock);
    return progress;
}

struct pipeline_progress pipeline_progress(struct pipeline *pipeline)
{
    pthread_mutex_lock(&pipeline->lock);
    struct pipeline_progress progress = pipeline->progress;
    pthread_mutex_unlock(&pipeline->lock);
    return progress;
}

#include "worker/pipeline.h"

#include "worker/pipeline_parts.h"

#include <stdlib.h>

#define DRAWN_MAX 8 /* decoded pictures that wait for publishing: 100 MB of the largest size */

double seconds_since(const struct pipeline *pipeline, int64_t begin_ns)
{
    return (double)(clock_monotonic_ns(pipeline->options.clock) - begin_ns) * 1e-9;
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
    bool open = queue_put(&pipeline->done, task);
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

static int start_thread(struct pipeline *pipeline, void *(*run)(void *), const char *name,
                        struct err *err)
{
    pthread_t *thread = &pipeline->threads[pipeline->thread_count];
    if (pthread_create(thread, NULL, run, pipeline) != 0)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "cannot start the thread %s", name);
    pthread_setname_np(*thread, name);
    pipeline->thread_count++;
    return 0;
}

int pipeline_create(struct pipeline **out, const struct pipeline_options *options, struct err *err)
{
    struct pipeline *pipeline = calloc(1, sizeof(*pipeline));
    *out = NULL;
    if (!pipeline)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the pipeline");
    ASSERT(options->batch_max >= 1 && options->batch_max <= ENGINE_SESSIONS_MAX);
    pipeline->options = *options;
    pthread_mutex_init(&pipeline->lock, NULL);
    /* As many prepared as the batch holds: they wait with conditioning and noise, not pixels. */
    if (queue_init(&pipeline->tasks, (size_t)options->tasks_max, err) != 0 ||
        queue_init(&pipeline->prepared, (size_t)options->batch_max, err) != 0 ||
        queue_init(&pipeline->drawn, DRAWN_MAX, err) != 0 ||
        queue_init(&pipeline->done, (size_t)options->tasks_max, err) != 0 ||
        start_thread(pipeline, prepare_main, "at-prepare", err) != 0 ||
        start_thread(pipeline, compute_main, "at-compute", err) != 0 ||
        start_thread(pipeline, publish_main, "at-publish", err) != 0) {
        pipeline_free(pipeline);
        return -1;
    }
    *out = pipeline;
    return 0;
}

void pipeline_free(struct pipeline *pipeline)
{
    if (!pipeline)
        return;
    pipeline_stop(pipeline);
    /* Each stage closes the next one's queue when its own is empty; without all threads, here. */
    if (pipeline->tasks.items)
        queue_close(&pipeline->tasks);
    if (pipeline->thread_count < 3 && pipeline->prepared.items)
        queue_close(&pipeline->prepared);
    for (int i = 0; i < pipeline->thread_count; i++)
        pthread_join(pipeline->threads[i], NULL);
    queue_release(&pipeline->tasks);
    queue_release(&pipeline->prepared);
    queue_release(&pipeline->drawn);
    queue_release(&pipeline->done);
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
    bool open = queue_put(&pipeline->tasks, task);
    ASSERT(open);
}

struct task *pipeline_take(struct pipeline *pipeline, int timeout_ms)
{
    return queue_take_within(&pipeline->done, timeout_ms);
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

/*
 * The second stage: continuous batching. Pictures of one model and size step together; one that is
 * done leaves, the next one joins at the following step. A picture of another shape at the head of
 * the queue waits until the batch has drained: the scheduler has seen to it that this is rare. One
 * that goes on with its refiner, or in another size, leaves, too, and waits for that shape's turn;
 * until it has come nothing is taken from the queue, so that nobody waits for ever.
 */
#include "worker/pipeline_parts.h"

#include <string.h>

struct batch {
    struct picture *pictures[ENGINE_SESSIONS_MAX];
    int count;
    int max;              /* lowered when memory does not hold more of this shape */
    struct picture *held; /* taken from the queue, and not of this shape */
    struct picture *later[ENGINE_SESSIONS_MAX]; /* begun, and waiting for another shape's turn */
    int later_count;
    bool ended; /* the queue is closed and empty */
};

static void leave(struct batch *batch, int i)
{
    batch->count--;
    memmove(&batch->pictures[i], &batch->pictures[i + 1],
            (size_t)(batch->count - i) * sizeof(batch->pictures[0]));
}

/* What pictures that step together share. */
struct shape {
    const struct model *model;
    int width, height;
};

static struct shape shape_of(const struct picture *picture)
{
    const struct session *session = picture->session;
    return (struct shape){session_model(session), session_width(session), session_height(session)};
}

static bool has_shape(const struct picture *picture, const struct shape *shape)
{
    struct shape own = shape_of(picture);
    return own.model == shape->model && own.width == shape->width && own.height == shape->height;
}

static bool same_shape(const struct picture *a, const struct picture *b)
{
    struct shape shape = shape_of(a);
    return has_shape(b, &shape);
}

/* Whether one more of the shape is worth it, and the memory plan holds it. */
static bool fits(const struct pipeline *pipeline, const struct batch *batch,
                 const struct picture *picture)
{
    struct session *sessions[ENGINE_SESSIONS_MAX];
    size_t bytes;
    struct err err;
    double pixels = (double)session_width(picture->session) * session_height(picture->session);
    double most = pipeline->options.batch_pixels;
    if (most > 0 && pixels * (batch->count + 1) > most)
        return false;
    for (int i = 0; i < batch->count; i++)
        sessions[i] = batch->pictures[i]->session;
    sessions[batch->count] = picture->session;
    return engine_plan(sessions, batch->count + 1, &bytes, &err) == 0;
}

/* The first that waits and is of the batch's shape joins it. False when there is none. */
static bool admit_later(const struct pipeline *pipeline, struct batch *batch)
{
    for (int i = 0; i < batch->later_count; i++) {
        struct picture *picture = batch->later[i];
        if (batch->count > 0 &&
            (!same_shape(batch->pictures[0], picture) || !fits(pipeline, batch, picture)))
            continue;
        batch->later_count--;
        memmove(&batch->later[i], &batch->later[i + 1],
                (size_t)(batch->later_count - i) * sizeof(batch->later[0]));
        batch->pictures[batch->count++] = picture;
        return true;
    }
    return false;
}

static void admit(struct pipeline *pipeline, struct batch *batch)
{
    if (batch->count == 0)
        batch->max = pipeline->options.batch_max;
    while (batch->count < batch->max && admit_later(pipeline, batch))
        continue;
    while (batch->count < batch->max && batch->later_count == 0) {
        if (!batch->held)
            batch->held = batch->count == 0 ? bounded_queue_take(&pipeline->prepared)
                                            : bounded_queue_take_within(&pipeline->prepared, 0);
        struct picture *picture = batch->held;
        if (!picture) {
            batch->ended = batch->count == 0;
            return;
        }
        if (task_is_lost(pipeline, picture->task) || !picture->session) {
            picture_pass_on(pipeline, picture);
            batch->held = NULL;
            continue;
        }
        if (batch->count > 0 && !same_shape(batch->pictures[0], picture))
            return;
        if (batch->count > 0 && !fits(pipeline, batch, picture)) {
            batch->max = batch->count;
            return;
        }
        batch->pictures[batch->count++] = picture;
        batch->held = NULL;
    }
}

static void note_step(struct pipeline *pipeline, const struct batch *batch,
                      const struct shape *shape, double seconds)
{
    const struct session *first = batch->pictures[0]->session;
    struct pipeline_progress *progress = &pipeline->progress;
    double pixels = (double)shape->width * shape->height;
    pthread_mutex_lock(&pipeline->lock);
    progress->steps_done += (uint64_t)batch->count;
    progress->active = batch->count;
    progress->steps = session_steps_total(first);
    progress->step = progress->steps - session_steps_left(first);
    progress->width = shape->width;
    progress->height = shape->height;
    progress->step_s = seconds;
    rate_learn(&progress->rate, seconds / batch->count / pixels);
    for (int i = 0; i < batch->count; i++) {
        const struct session *session = batch->pictures[i]->session;
        struct task *task = batch->pictures[i]->task;
        task->stage = TASK_RUNNING;
        task->steps = session_steps_total(session);
        task->step = task->steps - session_steps_left(session);
    }
    pthread_mutex_unlock(&pipeline->lock);
}

/* Drops what is lost of those that wait. */
static void settle_later(struct pipeline *pipeline, struct batch *batch)
{
    int kept = 0;
    for (int i = 0; i < batch->later_count; i++) {
        struct picture *picture = batch->later[i];
        if (task_is_lost(pipeline, picture->task))
            picture_drop(pipeline, picture);
        else
            batch->later[kept++] = picture;
    }
    batch->later_count = kept;
}

/* Nothing is left to do here. */
static void finish(struct pipeline *pipeline, struct picture *picture)
{
    if (!pipeline->decodes_apart) {
        picture_decode(pipeline, picture);
        return;
    }
    bool open = bounded_queue_put(&pipeline->stepped, picture);
    ASSERT(open);
}

/* What has no steps left goes to be decoded, what is lost is dropped, and what does not go on in
 * the shape that has just stepped is put by. */
static void settle(struct pipeline *pipeline, struct batch *batch, const struct shape *shape)
{
    for (int i = 0; i < batch->count;) {
        struct picture *picture = batch->pictures[i];
        bool lost = task_is_lost(pipeline, picture->task);
        bool done = session_steps_left(picture->session) == 0;
        if (!lost && !done && has_shape(picture, shape)) {
            i++;
            continue;
        }
        leave(batch, i);
        if (lost)
            picture_drop(pipeline, picture);
        else if (done)
            finish(pipeline, picture);
        else
            batch->later[batch->later_count++] = picture;
    }
    settle_later(pipeline, batch);
}

/* A batch that the memory does not hold after all is halved; one picture alone fails its task. */
static void step_failed(struct pipeline *pipeline, struct batch *batch, const struct err *err)
{
    if (err->code == ERR_MEMORY && batch->count > 1) {
        struct err back;
        batch->max = batch->count / 2;
        err_set(&back, ERR_MEMORY, ERR_RETRY, "%s", err->message);
        for (int i = batch->max; i < batch->count; i++)
            task_fail(pipeline, batch->pictures[i]->task, &back);
        return;
    }
    for (int i = 0; i < batch->count; i++)
        task_fail(pipeline, batch->pictures[i]->task, err);
}

static void step(struct pipeline *pipeline, struct batch *batch, const struct shape *shape)
{
    struct session *sessions[ENGINE_SESSIONS_MAX];
    struct err err;
    int64_t begin = clock_monotonic_ns(pipeline->options.clock);
    for (int i = 0; i < batch->count; i++)
        sessions[i] = batch->pictures[i]->session;
    if (engine_step(session_model(sessions[0]), sessions, batch->count, &err) != 0) {
        step_failed(pipeline, batch, &err);
        return;
    }
    double seconds = seconds_since(pipeline, begin);
    for (int i = 0; i < batch->count; i++)
        batch->pictures[i]->compute_s += seconds / batch->count;
    note_step(pipeline, batch, shape, seconds);
}

void *compute_main(void *user)
{
    struct pipeline *pipeline = user;
    struct batch batch = {0};
    while (!batch.ended) {
        admit(pipeline, &batch);
        if (batch.count == 0)
            continue;
        struct shape shape = shape_of(batch.pictures[0]);
        settle(pipeline, &batch, &shape); /* some have no steps to begin with */
        if (batch.count == 0)
            continue;
        step(pipeline, &batch, &shape);
        settle(pipeline, &batch, &shape);
    }
    bounded_queue_close(pipeline->decodes_apart ? &pipeline->stepped : &pipeline->drawn);
    return NULL;
}

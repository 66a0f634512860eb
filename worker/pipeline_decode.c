/*
 * From latents to pixels: by at-compute between its steps, or, where the engine decodes beside
 * steps, in a stage of its own.
 */
#include "worker/pipeline_parts.h"

static void note_decoding(struct pipeline *pipeline, const struct session *session, double seconds)
{
    double pixels = (double)session_width(session) * session_height(session);
    pthread_mutex_lock(&pipeline->lock);
    rate_learn(&pipeline->progress.decode_rate, seconds / pixels);
    pthread_mutex_unlock(&pipeline->lock);
}

static bool handing_back(struct pipeline *pipeline)
{
    pthread_mutex_lock(&pipeline->lock);
    bool back = pipeline->handing_back;
    pthread_mutex_unlock(&pipeline->lock);
    return back;
}

void picture_pass_on(struct pipeline *pipeline, struct picture *picture)
{
    session_free(picture->session);
    picture->session = NULL;
    bool open = bounded_queue_put(&pipeline->drawn, picture);
    ASSERT(open);
}

void picture_drop(struct pipeline *pipeline, struct picture *picture)
{
    if (handing_back(pipeline))
        saved_add_session(pipeline, picture);
    picture_pass_on(pipeline, picture);
}

void picture_decode(struct pipeline *pipeline, struct picture *picture)
{
    struct err err;
    int64_t begin = clock_monotonic_ns(pipeline->options.clock);
    if (session_decode(picture->session, &picture->image, &err) != 0)
        task_fail(pipeline, picture->task, &err);
    double seconds = seconds_since(pipeline, begin);
    picture->compute_s += seconds;
    note_decoding(pipeline, picture->session, seconds);
    picture_pass_on(pipeline, picture);
}

void *decode_main(void *user)
{
    struct pipeline *pipeline = user;
    struct picture *picture;
    while ((picture = bounded_queue_take(&pipeline->stepped)) != NULL) {
        if (task_is_lost(pipeline, picture->task))
            picture_drop(pipeline, picture);
        else
            picture_decode(pipeline, picture);
    }
    bounded_queue_close(&pipeline->drawn);
    return NULL;
}

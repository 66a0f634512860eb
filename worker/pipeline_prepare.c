/* The first stage: everything that a picture needs before its first step. */
#include "engine/canny.h"
#include "worker/holding.h"
#include "worker/input.h"
#include "worker/pipeline_parts.h"
#include "worker/support.h"

#include <stdlib.h>

static void see_stage(void *user, const struct stage *stage)
{
    struct picture *picture = user;
    stage_dump_add(&picture->dump, stage->name, stage->data, stage->dims, stage->rank);
}

/* Unloads something for the task's sake. Models that others use are waited for, but not by a task
 * that holds two itself. */
static bool make_room(const struct pipeline *pipeline, const struct task *task)
{
    struct models *models = pipeline->options.models;
    return task->refiner ? models_drop_idle(models) : models_make_room(models, task->model);
}

/* Whether one picture of this size fits at all, with nothing idle beside it; a job that never will
 * is not tried again. */
static int check_size(const struct pipeline *pipeline, const struct task *task, int width,
                      int height, struct err *err)
{
    size_t bytes;
    int rc;
    do {
        rc = model_plan(task->held, width, height, 1, &bytes, err);
    } while (rc != 0 && err->code == ERR_MEMORY && make_room(pipeline, task));
    if (rc != 0 && err->code == ERR_MEMORY) {
        err->class = ERR_REJECT;
        return err_prefix(err, "%d×%d does not fit", width, height);
    }
    return rc;
}

static int check_memory(const struct pipeline *pipeline, const struct task *task, struct err *err)
{
    const struct job *job = &task->job;
    int width, height;
    job_final_size(job, &width, &height);
    if (check_size(pipeline, task, job->width, job->height, err) != 0)
        return -1;
    if (!job_has_hires(job) || check_size(pipeline, task, width, height, err) == 0)
        return 0;
    return err_prefix(err, "hires");
}

static int read_input(const struct pipeline *pipeline, const char *uri, struct image *image,
                      struct err *err)
{
    const struct pipeline_options *options = &pipeline->options;
    struct buf bytes;
    if (!options->read_input)
        return input_image(image, uri, options->base_dir, err);
    buf_init(&bytes, INPUT_MAX_BYTES);
    int rc = options->read_input(options->user, uri, &bytes, err);
    if (rc == 0)
        rc = input_decode(image, uri, &bytes, err);
    buf_release(&bytes);
    return rc;
}

/* Where an earlier attempt may have been all but done. */
static int find_done(const struct pipeline *pipeline, struct task *task, struct err *err)
{
    bool done = false;
    if (task->attempt < 2)
        return 0;
    if (store_is_done(pipeline->options.store, task->job.id, &done, err) != 0)
        return -1;
    return done ? pipeline_adopt(pipeline, task, err) : 0;
}

/* The picture that guides, made of the one that the job names. */
static int read_hint(const struct pipeline *pipeline, const struct job_controlnet *c,
                     struct image *hint, struct err *err)
{
    double low = c->low_threshold < 0 ? CANNY_LOW : c->low_threshold;
    double high = c->high_threshold < 0 ? CANNY_HIGH : c->high_threshold;
    if (read_input(pipeline, c->image, hint, err) != 0)
        return -1;
    return c->preprocess ? canny_apply(hint, low, high, err) : 0;
}

static int read_inputs(const struct pipeline *pipeline, const struct job *job,
                       struct inputs *inputs, struct err *err)
{
    if (job->init_image && read_input(pipeline, job->init_image, &inputs->init, err) != 0)
        return err_prefix(err, "init_image");
    if (job->mask && read_input(pipeline, job->mask, &inputs->mask, err) != 0)
        return err_prefix(err, "mask");
    for (size_t i = 0; i < job->controlnet_count; i++)
        if (read_hint(pipeline, &job->controlnets[i], &inputs->hints[i], err) != 0)
            return err_prefix(err, "controlnets[%zu].image", i);
    return 0;
}

static int prepare_task(struct pipeline *pipeline, struct task *task, struct inputs *inputs,
                        struct err *err)
{
    const struct pipeline_options *options = &pipeline->options;
    struct job *job = &task->job;
    if (find_done(pipeline, task, err) != 0)
        return -1;
    if (task->adopted)
        return 0;
    if (holding_take(options, task, err) != 0)
        return -1;
    task->load_s = seconds_since(pipeline, task->started_mono_ns);
    task->started_mono_ns = clock_monotonic_ns(options->clock); /* loading is not the job's time */
    if (holding_read_words(options, task, inputs, err) != 0 ||
        read_inputs(pipeline, job, inputs, err) != 0 ||
        holding_settle_size(job, &inputs->init, err) != 0)
        return -1;
    support_fill(job, model_info(task->held));
    if (check_memory(pipeline, task, err) != 0)
        return -1;
    return store_begin(options->store, job->id, err);
}

static int prepare_picture(struct pipeline *pipeline, struct picture *picture,
                           const struct inputs *inputs, struct err *err)
{
    struct task *task = picture->task;
    struct draw draw = holding_draw(task, inputs, picture->index);
    struct stage_observer observer = {see_stage, picture};
    if (pipeline->options.dump_dir) {
        picture->dumping = true;
        stage_dump_init(&picture->dump);
    }
    bool found = false;
    if (saved_take(picture, &found, err) == 0 && found)
        return 0; /* one that cannot be taken up begins anew */
    int rc;
    do {
        rc = session_create(&picture->session, task->held, &draw,
                            picture->dumping ? &observer : NULL, err);
    } while (rc != 0 && err->code == ERR_MEMORY && make_room(pipeline, task));
    return rc;
}

/* Every picture of a task passes every stage, a lost one with empty hands. */
static void prepare_pictures(struct pipeline *pipeline, struct task *task,
                             const struct inputs *inputs)
{
    int count = task->job.images;
    struct err err;
    for (int i = 0; i < count; i++) {
        struct picture *picture = &task->pictures[i];
        int64_t begin = clock_monotonic_ns(pipeline->options.clock);
        *picture = (struct picture){.task = task, .index = i};
        if (!task_is_lost(pipeline, task) && !task->adopted &&
            prepare_picture(pipeline, picture, inputs, &err) != 0)
            task_fail(pipeline, task, &err);
        task->times.prepare_s += seconds_since(pipeline, begin);
        bool open = bounded_queue_put(&pipeline->prepared, picture);
        ASSERT(open);
    }
}

void *prepare_main(void *user)
{
    struct pipeline *pipeline = user;
    struct task *task;
    while ((task = bounded_queue_take(&pipeline->tasks)) != NULL) {
        struct inputs inputs = {0};
        struct err err;
        task->started_wall_ns = clock_wall_ns(pipeline->options.clock);
        task->started_mono_ns = clock_monotonic_ns(pipeline->options.clock);
        task->pictures_left = task->job.images;
        task->pictures = calloc((size_t)task->job.images, sizeof(*task->pictures));
        if (!task->files)
            task->files = calloc((size_t)task->job.images, sizeof(*task->files));
        if (!task->pictures || !task->files) {
            free(task->pictures);
            err_set(&err, ERR_MEMORY, ERR_RETRY, "out of memory for a job");
            task_fail(pipeline, task, &err);
            task_give_back(pipeline, task);
            continue;
        }
        if (!task_is_lost(pipeline, task) && prepare_task(pipeline, task, &inputs, &err) != 0)
            task_fail(pipeline, task, &err);
        task->times.prepare_s = seconds_since(pipeline, task->started_mono_ns);
        prepare_pictures(pipeline, task, &inputs);
        holding_release_inputs(&inputs);
    }
    bounded_queue_close(&pipeline->prepared);
    return NULL;
}

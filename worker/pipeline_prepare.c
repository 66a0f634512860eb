/* The first stage: everything that a picture needs before its first step. */
#include "engine/canny.h"
#include "worker/input.h"
#include "worker/pipeline_parts.h"
#include "worker/support.h"

#include <stdlib.h>

static void see_stage(void *user, const struct stage *stage)
{
    struct picture *picture = user;
    tensor_file_add(&picture->dump, stage->name, stage->data, stage->dims, stage->rank);
}

/* With an init image the picture has its size; a job that says otherwise is told so. */
static int settle_size(struct job *job, const struct image *init, struct err *err)
{
    if (!init->rgb)
        return 0;
    if ((job->width != 0 && job->width != init->width) ||
        (job->height != 0 && job->height != init->height))
        return err_set(
            err, ERR_INVALID, ERR_REJECT,
            "init_image is %d×%d, but the job asks for %d×%d; leave width and height out "
            "or resize the picture",
            init->width, init->height, job->width, job->height);
    job->width = init->width;
    job->height = init->height;
    return 0;
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

static int hold_adapters(const struct pipeline *pipeline, struct task *task, struct err *err)
{
    for (size_t i = 0; i < task->job.lora_count; i++) {
        if (models_acquire_adapter(pipeline->options.models, task->model, task->job.loras[i].name,
                                   &task->adapters[i], err) != 0)
            return -1;
        task->adapter_count++;
    }
    return 0;
}

static int hold_controls(const struct pipeline *pipeline, struct task *task, struct err *err)
{
    for (size_t i = 0; i < task->job.controlnet_count; i++) {
        if (models_acquire_control(pipeline->options.models, task->model,
                                   task->job.controlnets[i].name, &task->controls[i], err) != 0)
            return -1;
        task->control_count++;
    }
    return 0;
}

static int hold_models(const struct pipeline *pipeline, struct task *task, struct err *err)
{
    const struct pipeline_options *options = &pipeline->options;
    const char *refiner = task->job.refiner.model;
    if (models_acquire(options->models, task->model, -1, &task->held, err) != 0 ||
        hold_adapters(pipeline, task, err) != 0 || hold_controls(pipeline, task, err) != 0)
        return -1;
    if (!refiner)
        return 0;
    task->refiner_number = catalogue_find(options->catalogue, refiner);
    if (task->refiner_number < 0)
        return err_set(err, ERR_NOT_FOUND, ERR_RETRY, "refiner: there is no model %s here",
                       refiner);
    if (models_acquire(options->models, task->refiner_number, task->model, &task->refiner, err) !=
        0)
        return err_prefix(err, "refiner");
    return 0;
}

/* The files that a job names, while it is prepared. */
struct inputs {
    struct image init, mask, hints[JOB_CONTROLNETS_MAX];
    struct inversion *inversions[JOB_EMBEDDINGS_MAX];
};

static void inputs_release(struct inputs *inputs)
{
    image_release(&inputs->init);
    image_release(&inputs->mask);
    for (size_t i = 0; i < JOB_CONTROLNETS_MAX; i++)
        image_release(&inputs->hints[i]);
    for (size_t i = 0; i < JOB_EMBEDDINGS_MAX; i++)
        engine_unload_inversion(inputs->inversions[i]);
}

/* Those that a job names have to fit the model; those found in its prompts are left out if not. */
static int load_inversions(const struct pipeline *pipeline, struct task *task,
                           struct inputs *inputs, struct err *err)
{
    const struct catalogue *catalogue = pipeline->options.catalogue;
    struct job *job = &task->job;
    bool named = job->embedding_count > 0;
    char path[FILE_PATH_MAX_BYTES];
    size_t kept = 0;
    catalogue_find_words(catalogue, job);
    for (size_t i = 0; i < job->embedding_count; i++) {
        const char *name = job->embeddings[i];
        int rc = catalogue_adapter(catalogue, "embeddings", name, path, err);
        if (rc != 0)
            err->class = ERR_RETRY; /* another worker may have it */
        if (rc == 0)
            rc = engine_load_inversion(&inputs->inversions[kept], task->held, path, err);
        if (rc != 0 && named)
            return err_prefix(err, "embeddings: \"%.80s\"", name);
        if (rc == 0)
            job->embeddings[kept++] = name;
    }
    job->embedding_count = kept;
    return 0;
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
    if (hold_models(pipeline, task, err) != 0)
        return -1;
    task->load_s = seconds_since(pipeline, task->started_mono_ns);
    task->started_mono_ns = clock_monotonic_ns(options->clock); /* loading is not the job's time */
    if (load_inversions(pipeline, task, inputs, err) != 0 ||
        read_inputs(pipeline, job, inputs, err) != 0 || settle_size(job, &inputs->init, err) != 0)
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
    struct draw draw = support_draw(&task->job, picture->index);
    struct stage_observer observer = {see_stage, picture};
    draw.init_image = inputs->init.rgb ? &inputs->init : NULL;
    draw.mask = inputs->mask.rgb ? &inputs->mask : NULL;
    draw.refiner = task->refiner;
    for (size_t i = 0; i < task->job.embedding_count; i++)
        draw.inversions[draw.inversion_count++] = (struct draw_inversion){
            .inversion = inputs->inversions[i], .name = task->job.embeddings[i]};
    for (size_t i = 0; i < task->adapter_count; i++)
        draw.adapters[draw.adapter_count++] =
            (struct draw_adapter){.adapter = task->adapters[i], .scale = task->job.loras[i].scale};
    for (size_t i = 0; i < task->control_count; i++) {
        const struct job_controlnet *c = &task->job.controlnets[i];
        draw.controls[draw.control_count++] = (struct draw_control){.control = task->controls[i],
                                                                    .image = &inputs->hints[i],
                                                                    .scale = c->scale,
                                                                    .start = c->start,
                                                                    .end = c->end,
                                                                    .guess_mode = c->guess_mode};
    }
    if (pipeline->options.dump_dir) {
        picture->dumping = true;
        tensor_file_init(&picture->dump);
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
        bool open = queue_put(&pipeline->prepared, picture);
        ASSERT(open);
    }
}

void *prepare_main(void *user)
{
    struct pipeline *pipeline = user;
    struct task *task;
    while ((task = queue_take(&pipeline->tasks)) != NULL) {
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
        inputs_release(&inputs);
    }
    queue_close(&pipeline->prepared);
    return NULL;
}

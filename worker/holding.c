#include "worker/holding.h"

#include "worker/support.h"

static int hold_adapters(const struct pipeline_options *options, struct task *task, struct err *err)
{
    for (size_t i = 0; i < task->job.lora_count; i++) {
        if (models_acquire_adapter(options->models, task->model, task->job.loras[i].name,
                                   &task->adapters[i], err) != 0)
            return -1;
        task->adapter_count++;
    }
    return 0;
}

static int hold_controls(const struct pipeline_options *options, struct task *task, struct err *err)
{
    for (size_t i = 0; i < task->job.controlnet_count; i++) {
        if (models_acquire_control(options->models, task->model, task->job.controlnets[i].name,
                                   &task->controls[i], err) != 0)
            return -1;
        task->control_count++;
    }
    return 0;
}

int holding_take(const struct pipeline_options *options, struct task *task, struct err *err)
{
    const char *refiner = task->job.refiner.model;
    if (models_acquire(options->models, task->model, -1, &task->held, err) != 0 ||
        hold_adapters(options, task, err) != 0 || hold_controls(options, task, err) != 0)
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

void holding_let_go(const struct pipeline_options *options, struct task *task)
{
    for (size_t i = 0; i < task->adapter_count; i++)
        models_release_adapter(options->models, task->model, task->adapters[i]);
    task->adapter_count = 0;
    for (size_t i = 0; i < task->control_count; i++)
        models_release_control(options->models, task->model, task->controls[i]);
    task->control_count = 0;
    if (task->refiner)
        models_release(options->models, task->refiner_number);
    if (task->held)
        models_release(options->models, task->model);
    task->held = task->refiner = NULL;
}

int holding_read_words(const struct pipeline_options *options, struct task *task,
                       struct inputs *inputs, struct err *err)
{
    const struct catalogue *catalogue = options->catalogue;
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

int holding_settle_size(struct job *job, const struct image *init, struct err *err)
{
    if (!init->rgb)
        return 0;
    if ((job->width != 0 && job->width != init->width) ||
        (job->height != 0 && job->height != init->height))
        return err_set(
            err, ERR_INVALID, ERR_REJECT,
            "init_image: is %d×%d, but the job asks for %d×%d; leave width and height out "
            "or resize the picture",
            init->width, init->height, job->width, job->height);
    job->width = init->width;
    job->height = init->height;
    return 0;
}

void holding_release_inputs(struct inputs *inputs)
{
    image_release(&inputs->init);
    image_release(&inputs->mask);
    for (size_t i = 0; i < JOB_CONTROLNETS_MAX; i++)
        image_release(&inputs->hints[i]);
    for (size_t i = 0; i < JOB_EMBEDDINGS_MAX; i++)
        engine_unload_inversion(inputs->inversions[i]);
}

struct draw holding_draw(const struct task *task, const struct inputs *inputs, int index)
{
    struct draw draw = support_draw(&task->job, index);
    draw.init_image = inputs->init.rgb ? &inputs->init : NULL;
    draw.mask = inputs->mask.rgb ? &inputs->mask : NULL;
    draw.refiner = task->refiner;
    for (size_t i = 0; i < task->job.embedding_count; i++)
        draw.inversions[draw.inversion_count++] = (struct draw_inversion){
            .inversion = inputs->inversions[i], .name = task->job.embeddings[i]};
    for (size_t i = 0; i < task->adapter_count; i++)
        draw.adapters[draw.adapter_count++] =
            (struct draw_adapter){.adapter = task->adapters[i], .scale = task->job.loras[i].scale};
    for (size_t i = 0; i < task->control_count; i++)
        draw.controls[draw.control_count++] =
            support_control(&task->job.controlnets[i], task->controls[i], &inputs->hints[i]);
    return draw;
}

#include "cli/dry_check.h"

#include "common/sha256.h"
#include "worker/holding.h"
#include "worker/input.h"
#include "worker/support.h"

#include <string.h>

int dry_check_open(struct dry_check *check, struct runner *runner, struct err *err)
{
    struct engine_options wanted = ENGINE_OPTIONS_INIT;
    wanted.backend = "outline";
    check->runner = runner;
    if (engine_create(&check->engine, &wanted, err) != 0 ||
        models_create(&check->models, check->engine, &runner->catalogue, err) != 0)
        return -1;
    check->options = (struct pipeline_options){
        .models = check->models, .catalogue = &runner->catalogue, .base_dir = runner->base_dir};
    return 0;
}

void dry_check_release(struct dry_check *check)
{
    models_free(check->models);
    engine_free(check->engine);
}

/* ---- pictures ---- */

/* Decodes the picture for its size, unless that is known. */
static int measure(struct dry_check *check, const char *uri, struct image *size, struct err *err)
{
    uint64_t name = sha256_u64(uri, strlen(uri));
    struct dry_picture *known = &check->known[name % DRY_PICTURES_KNOWN];
    if (known->width == 0 || known->name != name) {
        struct image image;
        if (input_image(&image, uri, check->runner->base_dir, err) != 0)
            return -1;
        *known = (struct dry_picture){name, image.width, image.height};
        image_release(&image);
    }
    *size = (struct image){.width = known->width, .height = known->height, .rgb = &check->nothing};
    return 0;
}

static int measure_inputs(struct dry_check *check, const struct job *job, struct inputs *inputs,
                          struct err *err)
{
    if (job->init_image && measure(check, job->init_image, &inputs->init, err) != 0)
        return err_prefix(err, "init_image");
    if (job->mask && measure(check, job->mask, &inputs->mask, err) != 0)
        return err_prefix(err, "mask");
    for (size_t i = 0; i < job->controlnet_count; i++)
        if (measure(check, job->controlnets[i].image, &inputs->hints[i], err) != 0)
            return err_prefix(err, "controlnets[%zu].image", i);
    return 0;
}

/* Their pixels are not theirs to free. */
static void forget_pictures(struct inputs *inputs)
{
    inputs->init.rgb = inputs->mask.rgb = NULL;
    for (size_t i = 0; i < JOB_CONTROLNETS_MAX; i++)
        inputs->hints[i].rgb = NULL;
}

/* ---- jobs ---- */

static int check_deadline(const struct dry_check *check, const struct job *job, struct err *err)
{
    if (job->deadline_ns == JOB_TIME_NONE || job->deadline_ns > clock_wall_ns(check->runner->clock))
        return 0;
    return err_set(err, ERR_INVALID, ERR_REJECT,
                   "deadline: has passed: the job would expire before it could start");
}

static int check_task(struct dry_check *check, struct task *task, struct inputs *inputs,
                      struct err *err)
{
    if (holding_take(&check->options, task, err) != 0 ||
        holding_read_words(&check->options, task, inputs, err) != 0 ||
        measure_inputs(check, &task->job, inputs, err) != 0 ||
        holding_settle_size(&task->job, &inputs->init, err) != 0)
        return -1;
    support_fill(&task->job, model_info(task->held));
    struct draw draw = holding_draw(task, inputs, 0);
    return session_check(task->held, &draw, err);
}

int dry_check_task(struct dry_check *check, struct task *task, struct err *err)
{
    struct inputs inputs = {0};
    int rc = check_deadline(check, &task->job, err);
    if (rc == 0)
        rc = check_task(check, task, &inputs, err);
    forget_pictures(&inputs);
    holding_release_inputs(&inputs);
    holding_let_go(&check->options, task);
    if (rc == 0 || err->class == ERR_FATAL)
        return rc;
    job_problem_add_error(&check->runner->problems, err);
    return 1;
}

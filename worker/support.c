#include "worker/support.h"

#include <stdio.h>
#include <string.h>

static const char *const precision_names[] = {
    [PRECISION_AUTO] = "auto",
    [PRECISION_F32] = "f32",
    [PRECISION_BF16] = "bf16",
    [PRECISION_F16] = "f16",
};

const char *support_precision_name(enum precision precision)
{
    return precision_names[precision];
}

int support_precision_by_name(const char *name)
{
    for (int i = PRECISION_AUTO; i <= PRECISION_F16; i++)
        if (strcmp(precision_names[i], name) == 0)
            return i;
    return -1;
}

void support_check(const struct job *job, const struct engine_info *engine,
                   struct job_problems *problems)
{
    const char *computes = support_precision_name(engine->precision);
    if (strcmp(job->precision, "auto") != 0 && strcmp(job->precision, computes) != 0)
        job_problem_add(problems, "precision", job->precision,
                        "this run computes in %s; leave it out, or run with --precision %s",
                        computes, job->precision);
}

/* An entry that is no object has no name; its problem is noted already. */
static void check_file(const struct catalogue *catalogue, const char *folder, const char *name,
                       const char *field, struct job_problems *problems)
{
    char path[FILE_PATH_MAX_BYTES];
    struct err err;
    if (name && catalogue_adapter(catalogue, folder, name, path, &err) != 0)
        job_problem_add(problems, field, name, "%s", err.message);
}

void support_check_models(const struct job *job, const struct catalogue *catalogue,
                          struct job_problems *problems)
{
    char hint[512], field[64];
    for (size_t i = 0; i < job->lora_count; i++) {
        snprintf(field, sizeof(field), "loras[%zu].name", i);
        check_file(catalogue, "loras", job->loras[i].name, field, problems);
    }
    for (size_t i = 0; i < job->controlnet_count; i++) {
        snprintf(field, sizeof(field), "controlnets[%zu].name", i);
        check_file(catalogue, "controlnets", job->controlnets[i].name, field, problems);
    }
    for (size_t i = 0; i < job->embedding_count; i++) {
        snprintf(field, sizeof(field), "embeddings[%zu]", i);
        check_file(catalogue, "embeddings", job->embeddings[i], field, problems);
    }
    if (!job->refiner.model || catalogue_find(catalogue, job->refiner.model) >= 0)
        return;
    catalogue_hint(catalogue, job->refiner.model, hint, sizeof(hint));
    job_problem_add(problems, "refiner.model", job->refiner.model,
                    "there is no such model in %.160s%s", catalogue->dir, hint);
}

static void check_local(const char *field, const char *uri, struct job_problems *problems)
{
    if (uri && (strncmp(uri, "s3://", 5) == 0 || strncmp(uri, "https://", 8) == 0))
        job_problem_add(problems, field, uri, "atelier run reads only local files and data URIs");
}

void support_check_local(const struct job *job, struct job_problems *problems)
{
    char field[64];
    if (job->max_price >= 0)
        job_problem_add(problems, "max_price", NULL,
                        "one machine has no prices; leave it out, or submit the job to a fleet");
    if (job->callback)
        job_problem_add(problems, "callback", job->callback,
                        "is called by a fleet, not by atelier run; leave it out");
    if (job->confidential)
        job_problem_add(problems, "confidential", "true",
                        "needs a fleet with a confidential pool; atelier run has none");
    check_local("init_image", job->init_image, problems);
    check_local("mask", job->mask, problems);
    for (size_t i = 0; i < job->controlnet_count; i++) {
        snprintf(field, sizeof(field), "controlnets[%zu].image", i);
        check_local(field, job->controlnets[i].image, problems);
    }
}

static struct draw_hires hires_of(const struct job *job)
{
    struct draw_hires hires = {.strength = job->hires.strength, .steps = job->hires.steps};
    job_final_size(job, &hires.width, &hires.height);
    hires.enlargement = (enum enlargement)enlargement_by_name(job->hires.upscaler);
    return hires;
}

struct draw_control support_control(const struct job_controlnet *from, struct control *control,
                                    const struct image *hint)
{
    return (struct draw_control){.control = control,
                                 .image = hint,
                                 .scale = from->scale,
                                 .start = from->start,
                                 .end = from->end,
                                 .guess_mode = from->guess_mode,
                                 .mode = from->mode};
}

struct draw support_draw(const struct job *job, int index)
{
    struct draw draw = DRAW_INIT;
    draw.prompt = job->prompt;
    draw.negative_prompt = job->negative_prompt;
    draw.dialect = (enum dialect)dialect_by_name(job->dialect);
    draw.width = job->width;
    draw.height = job->height;
    draw.steps = job->steps;
    draw.guidance_scale = job->guidance_scale;
    if (job->guidance_rescale > 0)
        draw.guidance_rescale = job->guidance_rescale;
    memcpy(draw.guidance_interval, job->guidance_interval, sizeof(draw.guidance_interval));
    if (job->freeu.b1 > 0)
        draw.freeu = (struct freeu){
            .b1 = job->freeu.b1, .b2 = job->freeu.b2, .s1 = job->freeu.s1, .s2 = job->freeu.s2};
    draw.sampler = job->sampler ? (enum sampler)sampler_by_name(job->sampler) : SAMPLER_MODEL;
    draw.schedule = job->schedule ? (enum schedule)schedule_by_name(job->schedule) : SCHEDULE_MODEL;
    draw.eta = job->eta;
    draw.rng = (enum rng_kind)rng_by_name(job->rng);
    draw.seed = (uint64_t)job->seed + (uint64_t)index;
    draw.clip_skip = job->clip_skip;
    memcpy(draw.original_size, job->original_size, sizeof(draw.original_size));
    memcpy(draw.target_size, job->target_size, sizeof(draw.target_size));
    memcpy(draw.crop, job->crop, sizeof(draw.crop));
    draw.aesthetic_score = job->aesthetic_score;
    draw.negative_aesthetic_score = job->negative_aesthetic_score;
    draw.switch_at = job->refiner.switch_at;
    draw.image_guidance_scale = job->image_guidance_scale;
    if (job_has_hires(job))
        draw.hires = hires_of(job);
    if (job->init_image)
        draw.strength = job->strength;
    return draw;
}

void support_fill(struct job *job, const struct model_info *info)
{
    if (job->width == 0)
        job->width = info->width;
    if (job->height == 0)
        job->height = info->height;
    if (job->steps == 0)
        job->steps = info->steps;
    if (job_has_hires(job) && job->hires.steps == 0)
        job->hires.steps = job->steps;
    if (job->guidance_scale < 0)
        job->guidance_scale = info->guidance_scale;
    if (!job->sampler)
        job->sampler = sampler_name(info->sampler);
}

/* Longer names first: "A100" begins with "A10". */
const char *support_device_class(const struct engine_info *info)
{
    static const char *const cards[][2] = {{"H100", "h100"}, {"H200", "h200"}, {"A100", "a100"},
                                           {"A10", "a10"},   {"L40", "l40"},   {"L4", "l4"}};
    if (strcmp(info->backend, "cuda") != 0)
        return "g8i";
    for (size_t i = 0; i < sizeof(cards) / sizeof(cards[0]); i++)
        if (strstr(info->processor, cards[i][0]))
            return cards[i][1];
    return NULL;
}

int support_device_count(const char *device)
{
    bool all = strcmp(device, "auto") == 0 || strcmp(device, "cuda") == 0;
    int cards = all ? engine_cards() : 0;
    return cards > 1 ? cards : 1;
}

const char *support_device_name(int card, char name[SUPPORT_DEVICE_BYTES])
{
    snprintf(name, SUPPORT_DEVICE_BYTES, "cuda:%d", card);
    return name;
}

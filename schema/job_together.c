/* What the fields of a request, each good by itself, say together. */
#include "schema/job.h"

#include "common/json.h"
#include "common/sampling.h"
#include "schema/job_table.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_STRENGTH 0.8
#define DEFAULT_STRENGTH_MASKED 1

static void check_controlnet(const struct job_controlnet *c, size_t i,
                             struct job_problems *problems)
{
    char field[48];
    bool given = c->low_threshold >= 0 || c->high_threshold >= 0;
    if (c->start > c->end) {
        snprintf(field, sizeof(field), "controlnets[%zu].start", i);
        job_problem_add(problems, field, NULL, "is after its end");
    }
    snprintf(field, sizeof(field), "controlnets[%zu].low_threshold", i);
    if (given && !c->preprocess)
        job_problem_add(problems, field, NULL, "and high_threshold need \"preprocess\": \"canny\"");
}

/* What its program takes out of a prompt; here it would be words that spoil the picture. */
static void check_network_words(const char *field, const char *text, struct job_problems *problems)
{
    static const char *const WORDS[] = {"<lora:", "<lyco:", "<hypernet:"};
    for (size_t i = 0; text && i < sizeof(WORDS) / sizeof(WORDS[0]); i++)
        if (strstr(text, WORDS[i]))
            job_problem_add(problems, field, NULL,
                            "%s…> is not read in a prompt; take it out and name adapters by "
                            "\"loras\": [{\"name\": \"…\", \"scale\": 1}]",
                            WORDS[i]);
}

/* A size that is not given is the model's, and checked when that is known. */
static void check_hires(const struct job *job, struct job_problems *problems)
{
    const struct job_hires *hires = &job->hires;
    int width, height;
    if (!json_get(job->root, "hires"))
        return;
    if ((hires->scale > 0) == (hires->width > 0 || hires->height > 0) ||
        (hires->width > 0) != (hires->height > 0))
        job_problem_add(problems, "hires", NULL, "needs either scale or both width and height");
    job_final_size(job, &width, &height);
    if (width > JOB_SIZE_MAX || height > JOB_SIZE_MAX)
        job_problem_add(problems, "hires.scale", NULL,
                        "makes a picture of %d×%d; at most %d×%d can be drawn", width, height,
                        JOB_SIZE_MAX, JOB_SIZE_MAX);
    if (width < job->width || height < job->height)
        job_problem_add(problems, "hires", NULL, "is smaller than the job's %d×%d", job->width,
                        job->height);
}

void job_check_sampling(const struct job *job, struct job_problems *problems)
{
    int sampler = job->sampler ? sampler_by_name(job->sampler) : -1;
    int schedule = job->schedule ? schedule_by_name(job->schedule) : SCHEDULE_MODEL;
    char names[SAMPLER_SCHEDULES_MAX_BYTES];
    if (sampler < 0) /* the model's own: only the engine knows it */
        return;
    if (!sampler_has_schedule((enum sampler)sampler, (enum schedule)schedule))
        job_problem_add(problems, "schedule", job->schedule,
                        "the sampler %s has none such: it has %s", job->sampler,
                        sampler_schedules((enum sampler)sampler, names));
    if (job->eta > 0 && !sampler_has_eta((enum sampler)sampler))
        job_problem_add(problems, "eta", NULL, "is for the samplers ddim and tcd only, not for %s",
                        job->sampler);
}

void job_check_together(struct job *job, struct job_problems *problems)
{
    char value[48];
    if (job->seed >= 0 && job->seed > INT64_MAX - (job->images - 1)) {
        snprintf(value, sizeof(value), "%lld", (long long)job->seed);
        job_problem_add(problems, "seed", value,
                        "seed + images - 1 must not pass 9223372036854775807 (2^63-1)");
    }
    job_check_sampling(job, problems);
    if (job->output.prefix)
        job_problem_add(problems, "output.prefix", job->output.prefix,
                        "is not supported by this version; leave it out");
    if (!job->init_image && json_get(job->root, "strength"))
        job_problem_add(problems, "strength", NULL, "needs init_image");
    if (!job->init_image && job->mask)
        job_problem_add(problems, "mask", NULL, "needs init_image");
    if (job->deadline_ns != JOB_TIME_NONE && job->not_before_ns != JOB_TIME_NONE &&
        job->deadline_ns < job->not_before_ns)
        job_problem_add(problems, "deadline", NULL, "is earlier than not_before");
    for (size_t i = 0; i < job->controlnet_count; i++)
        check_controlnet(&job->controlnets[i], i, problems);
    if (job->dialect && strcmp(job->dialect, "a1111") == 0) {
        check_network_words("prompt", job->prompt, problems);
        check_network_words("negative_prompt", job->negative_prompt, problems);
    }
    check_hires(job, problems);
    if (job->init_image && job->strength < 0)
        job->strength = job->mask ? DEFAULT_STRENGTH_MASKED : DEFAULT_STRENGTH;
}

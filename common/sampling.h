/*
 * sampling.h: samplers and schedules by name, and which goes with which: what the job contract and
 * the engine both have to know. How they compute is engine/sampler.h's.
 */
#ifndef ATELIER_COMMON_SAMPLING_H
#define ATELIER_COMMON_SAMPLING_H

#include <stdbool.h>

enum sampler {
    SAMPLER_MODEL, /* whatever the model's own scheduler file says */
    SAMPLER_DDIM,
    SAMPLER_EULER,
    SAMPLER_EULER_A,
    SAMPLER_HEUN,
    SAMPLER_LMS,
    SAMPLER_DPM2,
    SAMPLER_DPM2_A,
    SAMPLER_DPMPP_2S_A,
    SAMPLER_DPMPP_2S, /* what dpm++ sde is without its noise */
    SAMPLER_DPMPP_2M,
    SAMPLER_DPMPP_SDE,
    SAMPLER_DPMPP_2M_SDE,
    SAMPLER_DPMPP_3M_SDE,
    SAMPLER_PNDM,
    SAMPLER_UNIPC,
    SAMPLER_DDPM,
    SAMPLER_LCM,
    SAMPLER_TCD,
    SAMPLER_COUNT,
};

/* How the noise levels are spread. SCHEDULE_NORMAL, like SCHEDULE_MODEL, asks for nothing over what
 * the model's file says. */
enum schedule {
    SCHEDULE_MODEL,
    SCHEDULE_NORMAL,
    SCHEDULE_KARRAS,
    SCHEDULE_EXPONENTIAL,
    SCHEDULE_SGM_UNIFORM, /* timestep_spacing "trailing" */
    SCHEDULE_SIMPLE,      /* every so many training steps, from the last one on */
    SCHEDULE_AYS,         /* Align Your Steps */
    SCHEDULE_BETA,
    SCHEDULE_COUNT,
};

/* All names of a job's field, ended by NULL; "plms", pndm by another name, is the last sampler. */
extern const char *const sampler_names[];
extern const char *const schedule_names[];

/* Names as in a job ("dpm++ 2m"): the enumerator, or -1 / NULL for an unknown one. SAMPLER_MODEL
 * and SCHEDULE_MODEL have none. */
int sampler_by_name(const char *name);
const char *sampler_name(enum sampler sampler);
int schedule_by_name(const char *name);
const char *schedule_name(enum schedule schedule);

/* Whether the sampler takes eta. */
bool sampler_has_eta(enum sampler sampler);

/* Whether the sampler has that schedule: all have normal; ddim, pndm and ddpm take timesteps
 * evenly, lcm and tcd those of their distillation, as in diffusers. */
bool sampler_has_schedule(enum sampler sampler, enum schedule schedule);

/* Writes the names of the sampler's schedules to `out`, "normal, karras"; returns `out`. */
#define SAMPLER_SCHEDULES_MAX_BYTES 96
char *sampler_schedules(enum sampler sampler, char out[SAMPLER_SCHEDULES_MAX_BYTES]);

#endif

/*
 * sampler.h: the numerical solvers of the reverse diffusion process, as diffusers 0.42 has them.
 *
 * A sampler plan is made once per session from the model's scheduler configuration, the sampler, the
 * schedule and the number of steps: timesteps and sigmas. The state is one picture's: history of
 * model outputs, position, lower-order counters. Everything is f32 latents and double coefficients
 * on the host; a latent is C × H × W values, and no function allocates.
 *
 *     sampler_plan_make(&plan, &config, SAMPLER_EULER, SCHEDULE_KARRAS, 30, &err);
 *     sampler_scale_noise(&plan, latents, n);
 *     while (state.index < plan.calls) {
 *         sampler_scale_input(&plan, &state, latents, model_input, n);
 *         ... model_output = unet(model_input, plan.timesteps[state.index]) ...
 *         sampler_step(&plan, &state, model_output, latents, n, rng, eta);
 *     }
 *
 * Source: the scheduler classes of diffusers 0.42.1, whose names stand beside each entry below.
 */
#ifndef ATELIER_ENGINE_SAMPLER_H
#define ATELIER_ENGINE_SAMPLER_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>

#define SAMPLER_CALLS_MAX 1024 /* model calls of one session */
#define SAMPLER_HISTORY 4      /* kept tensors, the size of the latents each */
#define SAMPLER_TRAIN_STEPS_MAX 1000

enum sampler {
    SAMPLER_MODEL, /* whatever the model's own scheduler file says */
    SAMPLER_DDIM,
    SAMPLER_EULER,
    SAMPLER_EULER_A,
    SAMPLER_HEUN,
    SAMPLER_LMS,
    SAMPLER_DPMPP_2M,
    SAMPLER_PNDM,
    SAMPLER_UNIPC,
    SAMPLER_COUNT,
};

enum schedule { SCHEDULE_MODEL, SCHEDULE_NORMAL, SCHEDULE_KARRAS, SCHEDULE_COUNT };

/* Names as in a job ("dpm++ 2m"), or -1 / NULL for an unknown one. */
int sampler_by_name(const char *name);
const char *sampler_name(enum sampler sampler);
int schedule_by_name(const char *name);
const char *schedule_name(enum schedule schedule);

enum prediction { PREDICTION_EPSILON, PREDICTION_V };
enum spacing { SPACING_UNSET, SPACING_LEADING, SPACING_TRAILING, SPACING_LINSPACE };
enum betas { BETAS_LINEAR, BETAS_SCALED_LINEAR, BETAS_SQUARED_COS };

/* scheduler_config.json, as far as samplers read it. A field that the file does not have is unset
 * (`from_config` keeps what the file says and drops the defaults of the old class). */
struct sampler_config {
    enum sampler own;       /* `_class_name` */
    enum schedule own_schedule; /* use_karras_sigmas in the file */
    enum betas betas;
    double beta_start, beta_end;
    int train_steps;
    enum prediction prediction;
    enum spacing spacing;   /* SPACING_UNSET: the class's own default */
    int steps_offset;
    bool set_alpha_to_one, set_alpha_to_one_given;
    bool clip_sample, clip_sample_given;
    double clip_sample_range;
    bool skip_prk_steps;
    bool rescale_betas_zero_snr;
    int solver_order;       /* 0: unset */
    int lower_order_final;  /* -1: unset */
    bool final_sigmas_zero; /* final_sigmas_type: "zero" (default) or "sigma_min" */
    int final_sigmas_given;
    bool predict_x0_given, predict_x0;
    bool solver_type_midpoint; /* dpm++ */
    bool solver_bh1;           /* unipc: "bh1" */
    bool euler_at_final;
    bool thresholding;
};
#endif

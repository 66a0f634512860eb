/*
 * sampler.h: the numerical solvers of the reverse diffusion process, as diffusers 0.42 has them.
 *
 * A plan is made once per picture from the model's scheduler configuration and the request: it
 * holds every model call's timestep and noise level. The state is the picture's place in it; how
 * many outputs are kept, and which order comes next, follows from the place. Both are plain values;
 * together with SAMPLER_HISTORY tensors the size of the latents, which the caller
 * owns, they are everything there is to save. Latents are f32 on the host, coefficients double, and
 * no function here allocates.
 *
 *     sampler_plan_make(&plan, &config, &request, &err);
 *     sampler_begin(&plan, &state);
 *     sampler_noise(&plan, latents, noise, image_latents_or_NULL, n);
 *     while (sampler_calls_left(&plan, &state) > 0) {
 *         sampler_scale_input(&plan, &state, latents, input, n);
 *         ... output = unet(input, sampler_timestep(&plan, &state)), guidance applied ...
 *         if (sampler_draws(&plan, &state))
 *             rng_normal(&rng, noise, n);
 *         sampler_step(&plan, &state, output, latents, history, noise, n);
 *     }
 *
 * One model call is one step here; heun, dpm2, dpm2_a, dpm++ 2s a and pndm call the model more
 * often than the request's `steps` says. Source: the scheduler classes of diffusers 0.42.1, which
 * the table in sampler.c names, made with from_config from the model's own scheduler file.
 * diffusers has no "dpm++ 2s a": that is Crowson's sample_dpmpp_2s_ancestral (k-diffusion), reading
 * the file as euler_a does. Where the file asks for a DPM solver's other algorithm_type than the
 * name says, the name wins.
 */
#ifndef ATELIER_ENGINE_SAMPLER_H
#define ATELIER_ENGINE_SAMPLER_H

#include "common/err.h"
#include "common/json.h"
#include "common/sampling.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAMPLER_STEPS_MAX 500
#define SAMPLER_CALLS_MAX 1024 /* of the model, for one picture */
#define SAMPLER_HISTORY 6      /* kept tensors, the size of the latents each */
#define SAMPLER_TRAIN_STEPS_MAX 1000
#define SAMPLER_CLASS_MAX_BYTES 64

enum prediction { PREDICTION_EPSILON, PREDICTION_V, PREDICTION_SAMPLE };
enum spacing { SPACING_UNSET, SPACING_LEADING, SPACING_TRAILING, SPACING_LINSPACE };
enum betas { BETAS_UNSET, BETAS_LINEAR, BETAS_SCALED_LINEAR, BETAS_SQUARED_COS };
enum solver { SOLVER_UNSET, SOLVER_MIDPOINT, SOLVER_HEUN, SOLVER_LOGRHO, SOLVER_BH1, SOLVER_BH2 };
enum algorithm { ALGORITHM_ODE, ALGORITHM_SDE, ALGORITHM_OTHER }; /* [sde-]dpmsolver++ */
enum choice { CHOICE_UNSET, CHOICE_NO, CHOICE_YES };

/* scheduler_config.json, as far as the samplers read it. What the file does not say stays unset and
 * is then the default of the class that is used, not of the class that wrote the file. */
struct sampler_config {
    enum sampler own; /* `_class_name`; SAMPLER_MODEL: a class that is not supported */
    char own_class[SAMPLER_CLASS_MAX_BYTES];
    enum betas betas;
    double beta_start, beta_end; /* 0: unset */
    int train_steps;
    enum prediction prediction;
    enum spacing spacing;
    int steps_offset;
    int solver_order; /* 0: unset */
    enum solver solver;
    double clip_sample_range; /* 0: unset */
    double lambda_min_clipped;
    double timestep_scaling;      /* of lcm; 0: unset */
    int original_inference_steps; /* of lcm and tcd; 0: unset */
    enum algorithm algorithm;
    enum schedule schedule; /* use_…_sigmas; SCHEDULE_MODEL: none of them */
    bool rescale_betas_zero_snr;
    bool final_sigma_min; /* final_sigmas_type "sigma_min" */
    bool euler_at_final;
    bool large_variance; /* variance_type "fixed_large", of ddpm */
    enum choice set_alpha_to_one, clip_sample, skip_prk_steps, lower_order_final;
};

/* As a scheduler file says it: "v_prediction". */
const char *prediction_name(enum prediction prediction);

/* Reads a parsed scheduler file. Errors (ERR_REJECT) name the setting: ERR_FORMAT for a value that
 * makes no sense, ERR_UNSUPPORTED for one that no sampler here honours. */
int sampler_config_read(struct sampler_config *config, const struct json *json,
                        struct err *err) must_check;

/* What the published scheduler files of SD1 (SAMPLER_PNDM, epsilon) and SD2 (SAMPLER_DDIM, v) say,
 * for single-file checkpoints, which have none. */
struct sampler_config sampler_config_default(enum sampler own, enum prediction prediction);

struct sampler_request {
    enum sampler sampler;
    enum schedule schedule;
    int steps;       /* 1 … SAMPLER_STEPS_MAX */
    double eta;      /* ddim and tcd: 0 … 1 */
    bool sdxl;       /* ays has a table for SD1 and SD2 and another for the SDXL family */
    bool from_image; /* the first steps are left out, as `strength` says */
    double strength; /* with from_image, 0 … 1 */
};

struct sampler_plan {
    enum sampler sampler; /* never SAMPLER_MODEL */
    int32_t steps;
    int32_t calls; /* entries of `timesteps` */
    int32_t begin; /* the first that is used */
    int32_t solver_order;
    bool sdxl;
    double eta;
    float init_scale;  /* of the start noise */
    float final_alpha; /* the alpha product after the last step */
    struct sampler_config config;
    float timesteps[SAMPLER_CALLS_MAX];    /* as the model sees them, some are fractional */
    float sigmas[SAMPLER_CALLS_MAX + 1];   /* noise to signal; not for those of sampler_alpha.c */
    float alphas[SAMPLER_TRAIN_STEPS_MAX]; /* cumulative product, by training step */
};

/* Errors (ERR_REJECT): ERR_INVALID with the field's name in it, ERR_UNSUPPORTED for a model whose
 * scheduler file asks of this sampler what it does not do. */
int sampler_plan_make(struct sampler_plan *plan, const struct sampler_config *config,
                      const struct sampler_request *request, struct err *err) must_check;

/* Where a schedule that two models share is parted, `at` being the first one's part of the training
 * steps, 0 … 1: the call that the first model does not make any more, and the one that the second
 * model, with a plan of its own, begins with. sampler_share.c */
int sampler_share_end(const struct sampler_plan *plan, double at);
int sampler_share_begin(const struct sampler_plan *plan, double at);

struct sampler_state {
    int32_t index; /* the next call, among all of the plan's */
};

void sampler_begin(const struct sampler_plan *plan, struct sampler_state *state);

/* Whether a state that came from outside is one that a run of this plan can have had. */
bool sampler_state_is_valid(const struct sampler_plan *plan, const struct sampler_state *state);

/* How often a step of the request calls the model, all but its last: 1 or 2. */
int sampler_calls_per_step(const struct sampler_plan *plan);

int sampler_calls_total(const struct sampler_plan *plan);
int sampler_calls_left(const struct sampler_plan *plan, const struct sampler_state *state);
float sampler_timestep(const struct sampler_plan *plan, const struct sampler_state *state);

/* How much noise the next call's latents have, to a signal of 1. */
double sampler_sigma(const struct sampler_plan *plan, const struct sampler_state *state);

/* The latents that the first call starts from: unit `noise`, scaled, or `image` (borrowed, may be
 * NULL) with as much noise as the first timestep has. `latents` may be either of them. */
void sampler_noise(const struct sampler_plan *plan, float *latents, const float *noise,
                   const float *image, size_t n);

/* `image` with as much of `noise` as the next call's latents have, after a step; the call is not
 * past the last. `latents` may be either of them. */
void sampler_renoise(const struct sampler_plan *plan, const struct sampler_state *state,
                     float *latents, const float *noise, const float *image, size_t n);

/* The model's input for the next call. `input` may be `latents`. */
void sampler_scale_input(const struct sampler_plan *plan, const struct sampler_state *state,
                         const float *latents, float *input, size_t n);

/* Whether the next step takes fresh unit noise, drawn after the model call. */
bool sampler_draws(const struct sampler_plan *plan, const struct sampler_state *state);

/* Takes one step: moves `latents` and `state` by the model's `output`. `history` is SAMPLER_HISTORY
 * × n floats that only these functions touch, of any content at the beginning; `noise` may be NULL
 * unless sampler_draws says so of this step. */
void sampler_step(const struct sampler_plan *plan, struct sampler_state *state, const float *output,
                  float *latents, float *history, const float *noise, size_t n);

#endif

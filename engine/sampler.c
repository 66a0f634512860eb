#include "engine/sampler.h"

#include "engine/sampler_parts.h"

#include <stdio.h>
#include <string.h>

/* ---- one table of them ---- */

static int kept_all(const struct sampler_plan *plan, int call)
{
    (void)plan;
    return call;
}

static int kept_by_heun(const struct sampler_plan *plan, int call)
{
    (void)plan;
    return (call + 1) / 2;
}

static bool draws_always(const struct sampler_plan *plan, int index)
{
    (void)plan;
    (void)index;
    return true;
}

static bool draws_with_eta(const struct sampler_plan *plan, int index)
{
    (void)index;
    return plan->eta > 0;
}

static bool draws_at_second_calls(const struct sampler_plan *plan, int index)
{
    (void)plan;
    return index % 2 == 1;
}

static bool draws_above_0(const struct sampler_plan *plan, int index)
{
    return plan->timesteps[index] > 0;
}

static bool draws_but_last(const struct sampler_plan *plan, int index)
{
    return index < plan->calls - 1;
}

static bool draws_by_tcd(const struct sampler_plan *plan, int index)
{
    return plan->eta > 0 && draws_but_last(plan, index);
}

static const struct sampler_kind kinds[SAMPLER_COUNT] = {
    [SAMPLER_DDIM] = {.class_name = "DDIMScheduler",
                      .spacing = SPACING_LEADING,
                      .zero_snr = ZERO_SNR_EXACT,
                      .predicts_sample = true,
                      .set_alpha_to_one = true,
                      .clip_sample = CHOICE_YES,
                      .make = schedule_make_alpha,
                      .step = step_ddim,
                      .draws = draws_with_eta},
    [SAMPLER_EULER] = {.class_name = "EulerDiscreteScheduler",
                       .spacing = SPACING_LINSPACE,
                       .zero_snr = ZERO_SNR_TINY,
                       .scales_noise = true,
                       .predicts_sample = true,
                       .make = schedule_make_sigma,
                       .step = step_euler},
    [SAMPLER_EULER_A] = {.class_name = "EulerAncestralDiscreteScheduler",
                         .spacing = SPACING_LINSPACE,
                         .zero_snr = ZERO_SNR_TINY,
                         .scales_noise = true,
                         .make = schedule_make_sigma,
                         .step = step_euler_a,
                         .draws = draws_always},
    [SAMPLER_HEUN] = {.class_name = "HeunDiscreteScheduler",
                      .order = 2,
                      .spacing = SPACING_LINSPACE,
                      .scales_noise = true,
                      .clip_sample = CHOICE_NO,
                      .beta_start = 0.00085,
                      .beta_end = 0.012,
                      .make = schedule_make_heun,
                      .step = step_heun,
                      .kept = kept_by_heun},
    [SAMPLER_LMS] = {.class_name = "LMSDiscreteScheduler",
                     .spacing = SPACING_LINSPACE,
                     .scales_noise = true,
                     .predicts_sample = true,
                     .make = schedule_make_sigma,
                     .step = step_lms,
                     .kept = kept_all},
    [SAMPLER_DPM2] = {.class_name = "KDPM2DiscreteScheduler",
                      .order = 2,
                      .spacing = SPACING_LINSPACE,
                      .scales_noise = true,
                      .beta_start = 0.00085,
                      .beta_end = 0.012,
                      .make = schedule_make_dpm2,
                      .step = step_dpm2},
    [SAMPLER_DPM2_A] = {.class_name = "KDPM2AncestralDiscreteScheduler",
                        .order = 2,
                        .spacing = SPACING_LINSPACE,
                        .scales_noise = true,
                        .beta_start = 0.00085,
                        .beta_end = 0.012,
                        .make = schedule_make_dpm2,
                        .step = step_dpm2_a,
                        .draws = draws_at_second_calls},
    [SAMPLER_DPMPP_2S_A] = {.order = 2,
                            .spacing = SPACING_LINSPACE,
                            .zero_snr = ZERO_SNR_TINY,
                            .scales_noise = true,
                            .make = schedule_make_dpm2,
                            .step = step_dpm_2s_a,
                            .draws = draws_at_second_calls},
    [SAMPLER_DPMPP_2S] = {.class_name = "DPMSolverSinglestepScheduler",
                          .has_algorithm = true,
                          .spacing = SPACING_LINSPACE,
                          .keeps_spacing = true,
                          .clips_lambda = true,
                          .predicts_sample = true,
                          .make = schedule_make_lambda,
                          .step = step_dpm_single,
                          .kept = kept_all},
    [SAMPLER_DPMPP_2M] = {.class_name = "DPMSolverMultistepScheduler",
                          .has_algorithm = true,
                          .spacing = SPACING_LINSPACE,
                          .zero_snr = ZERO_SNR_TINY,
                          .clips_lambda = true,
                          .predicts_sample = true,
                          .make = schedule_make_lambda,
                          .step = step_dpm,
                          .kept = kept_all},
    [SAMPLER_DPMPP_SDE] = {.class_name = "DPMSolverSinglestepScheduler",
                           .has_algorithm = true,
                           .algorithm = ALGORITHM_SDE,
                           .spacing = SPACING_LINSPACE,
                           .keeps_spacing = true,
                           .clips_lambda = true,
                           .predicts_sample = true,
                           .make = schedule_make_lambda,
                           .step = step_dpm_single,
                           .kept = kept_all,
                           .draws = draws_always},
    [SAMPLER_DPMPP_2M_SDE] = {.class_name = "DPMSolverMultistepScheduler",
                              .has_algorithm = true,
                              .algorithm = ALGORITHM_SDE,
                              .spacing = SPACING_LINSPACE,
                              .zero_snr = ZERO_SNR_TINY,
                              .clips_lambda = true,
                              .predicts_sample = true,
                              .make = schedule_make_lambda,
                              .step = step_dpm,
                              .kept = kept_all,
                              .draws = draws_always},
    [SAMPLER_DPMPP_3M_SDE] = {.class_name = "DPMSolverMultistepScheduler",
                              .has_algorithm = true,
                              .algorithm = ALGORITHM_SDE,
                              .solver_order = 3,
                              .spacing = SPACING_LINSPACE,
                              .zero_snr = ZERO_SNR_TINY,
                              .clips_lambda = true,
                              .predicts_sample = true,
                              .make = schedule_make_lambda,
                              .step = step_dpm,
                              .kept = kept_all,
                              .draws = draws_always},
    [SAMPLER_PNDM] = {.class_name = "PNDMScheduler",
                      .spacing = SPACING_LEADING,
                      .make = schedule_make_pndm,
                      .step = step_pndm,
                      .kept = kept_by_pndm},
    [SAMPLER_UNIPC] = {.class_name = "UniPCMultistepScheduler",
                       .spacing = SPACING_LINSPACE,
                       .zero_snr = ZERO_SNR_TINY,
                       .predicts_sample = true,
                       .make = schedule_make_lambda,
                       .step = step_unipc,
                       .kept = kept_all},
    [SAMPLER_DDPM] = {.class_name = "DDPMScheduler",
                      .spacing = SPACING_LEADING,
                      .zero_snr = ZERO_SNR_EXACT,
                      .predicts_sample = true,
                      .clip_sample = CHOICE_YES,
                      .make = schedule_make_alpha,
                      .step = step_ddpm,
                      .draws = draws_above_0},
    [SAMPLER_LCM] = {.class_name = "LCMScheduler",
                     .zero_snr = ZERO_SNR_EXACT,
                     .predicts_sample = true,
                     .clip_sample = CHOICE_NO,
                     .betas = BETAS_SCALED_LINEAR,
                     .beta_start = 0.00085,
                     .beta_end = 0.012,
                     .make = schedule_make_distilled,
                     .step = step_lcm,
                     .draws = draws_but_last},
    [SAMPLER_TCD] = {.class_name = "TCDScheduler",
                     .zero_snr = ZERO_SNR_EXACT,
                     .predicts_sample = true,
                     .betas = BETAS_SCALED_LINEAR,
                     .beta_start = 0.00085,
                     .beta_end = 0.012,
                     .make = schedule_make_distilled,
                     .step = step_tcd,
                     .draws = draws_by_tcd},
};

const struct sampler_kind *sampler_kind(enum sampler sampler)
{
    ASSERT(sampler > SAMPLER_MODEL && sampler < SAMPLER_COUNT);
    return &kinds[sampler];
}

/* ---- plans ---- */

static int check_request(const struct sampler_request *request, int train_steps, struct err *err)
{
    if (request->steps < 1 || request->steps > SAMPLER_STEPS_MAX || request->steps > train_steps)
        return err_set(err, ERR_INVALID, ERR_REJECT, "steps: %d is not in 1 … %d", request->steps,
                       SAMPLER_STEPS_MAX < train_steps ? SAMPLER_STEPS_MAX : train_steps);
    if (!(request->eta >= 0 && request->eta <= 1))
        return err_set(err, ERR_INVALID, ERR_REJECT, "eta: %g is not in 0 … 1", request->eta);
    if (request->from_image && !(request->strength >= 0 && request->strength <= 1))
        return err_set(err, ERR_INVALID, ERR_REJECT, "strength: %g is not in 0 … 1",
                       request->strength);
    return 0;
}

static int pick(enum sampler *sampler, const struct sampler_config *config,
                const struct sampler_request *request, struct err *err)
{
    bool own = request->sampler == SAMPLER_MODEL;
    *sampler = own ? config->own : request->sampler;
    if (*sampler == SAMPLER_MODEL)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "sampler: the model's own, %s%s, is not supported; name another",
                       config->own_class,
                       config->algorithm == ALGORITHM_OTHER ? " with its algorithm_type" : "");
    const struct sampler_kind *kind = sampler_kind(*sampler);
    if (config->prediction == PREDICTION_SAMPLE && !kind->predicts_sample)
        return err_set(
            err, ERR_UNSUPPORTED, ERR_REJECT,
            "sampler: %s does not do the model's prediction_type \"sample\"; ddim, euler "
            "and dpm++ 2m do",
            sampler_name(*sampler));
    if (request->eta > 0 && !sampler_has_eta(*sampler))
        return err_set(err, ERR_INVALID, ERR_REJECT, "eta: %s takes none; ddim and tcd do",
                       sampler_name(*sampler));
    char names[SAMPLER_SCHEDULES_MAX_BYTES];
    if (!sampler_has_schedule(*sampler, request->schedule))
        return err_set(err, ERR_INVALID, ERR_REJECT, "schedule: %s%s has no %s; it has %s",
                       sampler_name(*sampler), own ? ", the model's own sampler," : "",
                       schedule_name(request->schedule), sampler_schedules(*sampler, names));
    return 0;
}

/* The schedule that the request leaves standing of what the file says. */
static enum schedule schedule_for(enum sampler sampler, enum schedule file, enum schedule wanted)
{
    if (wanted != SCHEDULE_MODEL && wanted != SCHEDULE_NORMAL)
        return wanted;
    return file != SCHEDULE_MODEL && sampler_has_schedule(sampler, file) ? file : SCHEDULE_NORMAL;
}

/* The configuration with the class's defaults where the file is silent. */
static struct sampler_config config_complete(const struct sampler_config *config,
                                             enum sampler sampler, enum schedule schedule)
{
    const struct sampler_kind *kind = sampler_kind(sampler);
    struct sampler_config full = *config;
    if (full.betas == BETAS_UNSET)
        full.betas = kind->betas == BETAS_UNSET ? BETAS_LINEAR : kind->betas;
    if (full.beta_start == 0)
        full.beta_start = kind->beta_start > 0 ? kind->beta_start : 0.0001;
    if (full.beta_end == 0)
        full.beta_end = kind->beta_end > 0 ? kind->beta_end : 0.02;
    if (full.clip_sample == CHOICE_UNSET || kind->clip_sample == CHOICE_UNSET)
        full.clip_sample = kind->clip_sample;
    if (full.clip_sample_range == 0)
        full.clip_sample_range = 1;
    if (full.timestep_scaling == 0)
        full.timestep_scaling = 10;
    if (full.original_inference_steps == 0)
        full.original_inference_steps = 50;
    full.schedule = schedule_for(sampler, full.schedule, schedule);
    if (full.schedule == SCHEDULE_SGM_UNIFORM)
        full.spacing = SPACING_TRAILING;
    if (full.spacing == SPACING_UNSET || kind->keeps_spacing)
        full.spacing = kind->spacing;
    return full;
}

static int solver_order(const struct sampler_kind *kind, const struct sampler_config *config)
{
    if (kind->solver_order > 0)
        return kind->solver_order;
    return config->solver_order > 0 ? config->solver_order : 2;
}

int sampler_plan_make(struct sampler_plan *plan, const struct sampler_config *config,
                      const struct sampler_request *request, struct err *err)
{
    enum sampler sampler;
    if (check_request(request, config->train_steps, err) != 0 ||
        pick(&sampler, config, request, err) != 0)
        return -1;
    const struct sampler_kind *kind = sampler_kind(sampler);
    *plan = (struct sampler_plan){.sampler = sampler,
                                  .steps = request->steps,
                                  .solver_order = solver_order(kind, config),
                                  .sdxl = request->sdxl,
                                  .eta = request->eta,
                                  .init_scale = 1};
    plan->config = config_complete(config, sampler, request->schedule);
    schedule_alphas(plan->alphas, &plan->config, kind->zero_snr);
    plan->final_alpha =
        choose(config->set_alpha_to_one, kind->set_alpha_to_one) ? 1 : plan->alphas[0];
    if (kind->make(plan, plan->config.spacing, err) != 0)
        return -1;
    if (request->from_image) {
        int kept = (int)(plan->steps * request->strength);
        plan->begin = (plan->steps - kept) * (kind->order ? kind->order : 1);
    }
    if (plan->begin >= plan->calls)
        return err_set(err, ERR_INVALID, ERR_REJECT, "strength: %g of %d steps is none",
                       request->strength, plan->steps);
    return 0;
}

/* ---- states ---- */

void sampler_begin(const struct sampler_plan *plan, struct sampler_state *state)
{
    *state = (struct sampler_state){.index = plan->begin};
}

bool sampler_state_is_valid(const struct sampler_plan *plan, const struct sampler_state *state)
{
    return state->index >= plan->begin && state->index <= plan->calls;
}

int sampler_calls_per_step(const struct sampler_plan *plan)
{
    return sampler_kind(plan->sampler)->order == 2 ? 2 : 1;
}

int sampler_calls_total(const struct sampler_plan *plan)
{
    return plan->calls - plan->begin;
}

int sampler_calls_left(const struct sampler_plan *plan, const struct sampler_state *state)
{
    return plan->calls - state->index;
}

float sampler_timestep(const struct sampler_plan *plan, const struct sampler_state *state)
{
    ASSERT(state->index < plan->calls);
    return plan->timesteps[state->index];
}

/* ---- tensors ---- */

void sum_terms(float *out, const struct term *terms, int count, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (int t = 0; t < count; t++)
            sum += terms[t].weight * terms[t].tensor[i];
        out[i] = (float)sum;
    }
}

float *step_slot(const struct step *step, int slot)
{
    return step->history + (size_t)slot * step->n;
}

float *step_output(const struct step *step, int i)
{
    ASSERT(i < step->kept && i < SAMPLER_OUTPUTS);
    return step_slot(step, (step->kept - 1 - i) % SAMPLER_OUTPUTS);
}

float *step_keep(struct step *step)
{
    step->kept++;
    return step_output(step, 0);
}

double sampler_sigma(const struct sampler_plan *plan, const struct sampler_state *state)
{
    const struct sampler_kind *kind = sampler_kind(plan->sampler);
    int index = state->index;

    ASSERT(index < plan->calls);
    if (kind->scales_noise || kind->make == schedule_make_lambda)
        return plan->sigmas[index];
    return schedule_sigma((float)plan_alpha(plan, (int)plan->timesteps[index]));
}

static void add_noise(const struct sampler_plan *plan, int index, float *latents,
                      const float *noise, const float *image, size_t n)
{
    const struct sampler_kind *kind = sampler_kind(plan->sampler);
    double signal, spread;
    /* Within a step of two calls the noise is that of its end. */
    if (kind->order == 2 && index % 2 == 1)
        index++;
    if (kind->scales_noise) {
        signal = 1;
        spread = plan->sigmas[index];
    } else if (kind->make == schedule_make_lambda) {
        double sigma = plan->sigmas[index];
        signal = 1 / sqrt(sigma * sigma + 1);
        spread = sigma * signal;
    } else {
        double alpha = plan_alpha(plan, (int)plan->timesteps[index]);
        signal = sqrt(alpha);
        spread = sqrt(1 - alpha);
    }
    sum_terms(latents, (struct term[]){{signal, image}, {spread, noise}}, 2, n);
}

void sampler_noise(const struct sampler_plan *plan, float *latents, const float *noise,
                   const float *image, size_t n)
{
    if (image)
        add_noise(plan, plan->begin, latents, noise, image, n);
    else
        sum_terms(latents, &(struct term){plan->init_scale, noise}, 1, n);
}

void sampler_renoise(const struct sampler_plan *plan, const struct sampler_state *state,
                     float *latents, const float *noise, const float *image, size_t n)
{
    ASSERT(state->index < plan->calls);
    add_noise(plan, state->index, latents, noise, image, n);
}

void sampler_scale_input(const struct sampler_plan *plan, const struct sampler_state *state,
                         const float *latents, float *input, size_t n)
{
    double sigma = sampler_kind(plan->sampler)->scales_noise ? plan->sigmas[state->index] : 0;
    sum_terms(input, &(struct term){1 / sqrt(sigma * sigma + 1), latents}, 1, n);
}

bool sampler_draws(const struct sampler_plan *plan, const struct sampler_state *state)
{
    ASSERT(state->index < plan->calls);
    const struct sampler_kind *kind = sampler_kind(plan->sampler);
    return kind->draws && kind->draws(plan, state->index);
}

void sampler_step(const struct sampler_plan *plan, struct sampler_state *state, const float *output,
                  float *latents, float *history, const float *noise, size_t n)
{
    ASSERT(state->index < plan->calls);
    ASSERT(noise || !sampler_draws(plan, state));
    const struct sampler_kind *kind = sampler_kind(plan->sampler);
    int call = state->index - plan->begin, kept = kind->kept ? kind->kept(plan, call) : 0;
    struct step step = {plan, state->index, call, kept, output, noise, latents, history, n};
    kind->step(&step);
    state->index++;
}

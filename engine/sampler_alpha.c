/*
 * sampler_alpha.c: ddim, ddpm, lcm, tcd and pndm, which know a noise level by its training step's
 * alpha product.
 *
 * x is the latent, m the model's output; x = sqrt(alpha) × picture + sqrt(1 - alpha) × noise.
 * Sources: Song et al., "Denoising Diffusion Implicit Models", 2020, (12) and (16); Ho et al.,
 * "Denoising Diffusion Probabilistic Models", 2020, (7); Luo et al., "Latent Consistency Models",
 * 2023, algorithm 3 and (9); Zheng et al., "Trajectory Consistency Distillation", 2024, algorithm
 * 4; Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, (9) to (13).
 */
#include "engine/sampler_parts.h"

/* Past the end of the schedule lies the final alpha; a timestep of -1 is, as in the reference, the
 * last one when it is the present and past the end when it is the next. */
double plan_alpha(const struct sampler_plan *plan, int timestep)
{
    int n = plan->config.train_steps;
    return plan->alphas[timestep < 0 ? n - 1 : timestep < n ? timestep : n - 1];
}

static double next_alpha(const struct sampler_plan *plan, int timestep)
{
    return timestep < 0 ? plan->final_alpha : plan_alpha(plan, timestep);
}

/* ---- pictures ---- */

/* A tensor as a sum of the model's output and the latents. */
struct mix {
    double of_output, of_x;
};

static struct mix mix_picture(const struct sampler_plan *plan, double signal, double spread)
{
    switch (plan->config.prediction) {
    case PREDICTION_V:
        return (struct mix){-spread, signal};
    case PREDICTION_SAMPLE:
        return (struct mix){1, 0};
    default:
        return (struct mix){-spread / signal, 1 / signal};
    }
}

static struct mix mix_noise(const struct sampler_plan *plan, double signal, double spread)
{
    switch (plan->config.prediction) {
    case PREDICTION_V:
        return (struct mix){signal, spread};
    case PREDICTION_SAMPLE:
        return (struct mix){-signal / spread, 1 / spread};
    default:
        return (struct mix){1, 0};
    }
}

/* Writes the predicted picture, clipped if the configuration says so, to the scratch slot. */
static float *write_picture(const struct step *step, double alpha)
{
    const struct sampler_config *config = &step->plan->config;
    struct mix mix = mix_picture(step->plan, sqrt(alpha), sqrt(1 - alpha));
    struct term terms[] = {{mix.of_x, step->latents}, {mix.of_output, step->output}};
    float *picture = step_slot(step, SLOT_SCRATCH);
    sum_terms(picture, terms, 2, step->n);
    double range = config->clip_sample_range;
    for (size_t i = 0; config->clip_sample == CHOICE_YES && i < step->n; i++)
        picture[i] = (float)fmin(fmax(picture[i], -range), range);
    return picture;
}

/* latents = signal × the predicted picture + noise × the predicted noise + fresh × new noise */
static void write_next(struct step *step, double alpha, double signal, double noise, double fresh)
{
    struct mix mix = mix_noise(step->plan, sqrt(alpha), sqrt(1 - alpha));
    struct term terms[] = {{signal, write_picture(step, alpha)},
                           {noise * mix.of_output, step->output},
                           {noise * mix.of_x, step->latents},
                           {fresh, step->noise}};
    sum_terms(step->latents, terms, fresh > 0 ? 4 : 3, step->n);
}

/* ---- ddim ---- */

void step_ddim(struct step *step)
{
    const struct sampler_plan *plan = step->plan;
    int t = (int)plan->timesteps[step->index];
    double alpha = plan_alpha(plan, t);
    double next = next_alpha(plan, t - plan->config.train_steps / plan->steps);
    double deviation = plan->eta * sqrt((1 - next) / (1 - alpha) * (1 - alpha / next));
    double direction = sqrt(fmax(1 - next - deviation * deviation, 0));
    write_next(step, alpha, sqrt(next), direction, deviation);
}

/* ---- ddpm ---- */

/* Samples the posterior of the next latent, given this one and the picture. Its variance is rounded
 * where torch rounds it: what two alpha products differ by is small. */
void step_ddpm(struct step *step)
{
    const struct sampler_plan *plan = step->plan;
    bool is_last = step->index == plan->calls - 1;
    int t = (int)plan->timesteps[step->index];
    int to = is_last ? -1 : (int)plan->timesteps[step->index + 1];
    float alpha = (float)plan_alpha(plan, t), next = to < 0 ? 1 : (float)plan_alpha(plan, to);
    float kept = alpha / next, beta = 1 - kept;
    double spread = 1.0 - alpha, spread_next = 1.0 - next;
    double variance = plan->config.large_variance ? beta : fmax(spread_next / spread * beta, 1e-20);
    struct term terms[] = {{sqrt(next) * beta / spread, write_picture(step, alpha)},
                           {sqrt(kept) * spread_next / spread, step->latents},
                           {sqrt(variance), step->noise}};
    sum_terms(step->latents, terms, t > 0 ? 3 : 2, step->n);
}

/* ---- distilled models ---- */

#define LCM_SIGMA_DATA 0.5

/* Goes to the picture, mixed with the latent as the distillation had it, and back up by noise. */
void step_lcm(struct step *step)
{
    const struct sampler_plan *plan = step->plan;
    bool is_last = step->index == plan->calls - 1;
    double t = plan->timesteps[step->index], scaled = t * plan->config.timestep_scaling;
    double data = LCM_SIGMA_DATA * LCM_SIGMA_DATA, whole = scaled * scaled + data;
    double of_x = data / whole, of_picture = scaled / sqrt(whole);
    double next = is_last ? 1 : plan_alpha(plan, (int)plan->timesteps[step->index + 1]);
    struct term terms[] = {{sqrt(next) * of_picture, write_picture(step, plan_alpha(plan, (int)t))},
                           {sqrt(next) * of_x, step->latents},
                           {sqrt(1 - next), step->noise}};
    sum_terms(step->latents, terms, is_last ? 2 : 3, step->n);
}

/* Goes down to the share 1 - eta of the next timestep and from there up by noise to that. The last
 * step ends at timestep 0. */
void step_tcd(struct step *step)
{
    const struct sampler_plan *plan = step->plan;
    bool is_last = step->index == plan->calls - 1;
    int to = is_last ? 0 : (int)plan->timesteps[step->index + 1];
    double alpha = plan_alpha(plan, (int)plan->timesteps[step->index]);
    double low = plan_alpha(plan, (int)((float)(1 - plan->eta) * (float)to));
    double next = plan_alpha(plan, to), up = sqrt(next / low);
    write_next(step, alpha, up * sqrt(low), up * sqrt(1 - low),
               plan->eta > 0 && !is_last ? sqrt(1 - next / low) : 0);
}

/* ---- pndm ---- */

#define WARM_UP_CALLS 12

/* Moves `x` from timestep t to next by the outputs terms[0..count), whose last entry is free. */
static void transfer(const struct step *step, const float *x, int t, int next, struct term *terms,
                     int count)
{
    const struct sampler_plan *plan = step->plan;
    double alpha = plan_alpha(plan, t), alpha_next = next_alpha(plan, next);
    double spread = 1 - alpha, spread_next = 1 - alpha_next;
    double divisor = alpha * sqrt(spread_next) + sqrt(alpha * spread * alpha_next);
    double move = -(alpha_next - alpha) / divisor;
    bool is_v = plan->config.prediction == PREDICTION_V;
    double of_output = is_v ? sqrt(alpha) : 1, of_x = is_v ? sqrt(spread) : 0;
    for (int i = 0; i < count; i++)
        terms[i].weight *= move * of_output;
    terms[count] = (struct term){sqrt(alpha_next / alpha) + move * of_x, x};
    sum_terms(step->latents, terms, count + 1, step->n);
}

static void keep_output(struct step *step)
{
    sum_terms(step_keep(step), &(struct term){1, step->output}, 1, step->n);
}

static void keep_sample(const struct step *step)
{
    sum_terms(step_slot(step, SLOT_SAMPLE), &(struct term){1, step->latents}, 1, step->n);
}

/* Runge-Kutta: four calls make one step, each of which starts from the sample before the first. */
static void step_warm_up(struct step *step, int call)
{
    static const double shares[] = {1 / 6.0, 1 / 3.0, 1 / 3.0, 1 / 6.0};
    const struct sampler_plan *plan = step->plan;
    int half = plan->config.train_steps / plan->steps / 2;
    int t = (int)plan->timesteps[call / 4 * 4];
    int next = (int)plan->timesteps[step->index] - (call % 2 ? 0 : half);
    float *sum = step_slot(step, SLOT_SCRATCH);
    if (call % 4 == 0) {
        keep_output(step);
        keep_sample(step);
    }
    bool first = call % 4 == 0, last = call % 4 == 3;
    struct term add[] = {{shares[call % 4], step->output},
                         {first ? 0 : 1, first ? step->output : sum}};
    sum_terms(sum, add, 2, step->n);
    struct term terms[2] = {{1, last ? sum : step->output}};
    transfer(step, step_slot(step, SLOT_SAMPLE), t, next, terms, 1);
}

/* Linear multistep of up to four outputs. The second call repeats the first step with the mean of
 * both outputs. */
static void step_multistep(struct step *step, int call)
{
    static const double weights[4][4] = {{1},
                                         {3 / 2.0, -1 / 2.0},
                                         {23 / 12.0, -16 / 12.0, 5 / 12.0},
                                         {55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0}};
    const struct sampler_plan *plan = step->plan;
    int stride = plan->config.train_steps / plan->steps;
    int t = (int)plan->timesteps[step->index];
    struct term terms[5];
    if (call == 1) {
        terms[0] = (struct term){0.5, step->output};
        terms[1] = (struct term){0.5, step_output(step, 0)};
        transfer(step, step_slot(step, SLOT_SAMPLE), t + stride, t, terms, 2);
        return;
    }
    if (call == 0)
        keep_sample(step);
    keep_output(step);
    int count = step->kept < 4 ? step->kept : 4;
    for (int i = 0; i < count; i++)
        terms[i] = (struct term){weights[count - 1][i], step_output(step, i)};
    transfer(step, step->latents, t, t - stride, terms, count);
}

static bool warms_up(const struct sampler_plan *plan)
{
    return !choose(plan->config.skip_prk_steps, false);
}

int kept_by_pndm(const struct sampler_plan *plan, int call)
{
    if (!warms_up(plan))
        return call < 2 ? call : call - 1;
    return call < WARM_UP_CALLS ? (call + 3) / 4 : call - WARM_UP_CALLS + 3;
}

void step_pndm(struct step *step)
{
    if (warms_up(step->plan) && step->call < WARM_UP_CALLS)
        step_warm_up(step, step->call);
    else
        step_multistep(step, step->call);
}

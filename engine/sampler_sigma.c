/*
 * sampler_sigma.c: euler, euler_a, heun, lms, dpm2, dpm2_a and dpm++ 2s a, solvers of dx/dsigma =
 * d.
 *
 * x is the picture plus sigma times noise; d = (x - picture) / sigma, which is the model's output
 * itself if it predicts noise. Source: Karras et al., "Elucidating the Design Space of
 * Diffusion-Based Generative Models", 2022, algorithms 1 and 2; Crowson, k-diffusion, for the
 * ancestral, the linear multistep and the dpm solvers; Lu et al., "DPM-Solver", 2022, algorithm 1
 * for dpm2 and "DPM-Solver++", 2022, algorithm 1 for dpm++ 2s a.
 *
 * The sums are in f32 and in the reference's order: with zero terminal signal x starts at thousands
 * of sigmas, of which rounding leaves as much as the picture's fourth digit, and the same rounding
 * leaves the same picture.
 */
#include "engine/sampler_parts.h"

#include <string.h>

/* Writes the picture that the model's output says, clipped if the configuration says so. */
static void write_picture(const struct step *step, float sigma, float *out)
{
    const struct sampler_config *config = &step->plan->config;
    float variance = sigma * sigma + 1, of_output = -sigma, divisor = 1;
    if (config->prediction == PREDICTION_V) {
        of_output = -sigma / sqrtf(variance);
        divisor = variance;
    } else if (config->prediction == PREDICTION_SAMPLE) {
        of_output = 1;
        divisor = INFINITY;
    }
    bool clips = config->clip_sample == CHOICE_YES;
    float range = (float)config->clip_sample_range;
    for (size_t i = 0; i < step->n; i++) {
        float picture = step->output[i] * of_output + step->latents[i] / divisor;
        out[i] = clips ? fminf(fmaxf(picture, -range), range) : picture;
    }
}

/* Writes d into `out`. */
static void write_derivative(const struct step *step, float sigma, float *out)
{
    write_picture(step, sigma, out);
    for (size_t i = 0; i < step->n; i++)
        out[i] = (step->latents[i] - out[i]) / sigma;
}

/* latents = x + d × move */
static void advance(const struct step *step, const float *x, const float *d, float move)
{
    for (size_t i = 0; i < step->n; i++)
        step->latents[i] = x[i] + d[i] * move;
}

void step_euler(struct step *step)
{
    const float *sigmas = step->plan->sigmas + step->index;
    float *d = step_slot(step, SLOT_SCRATCH);
    write_derivative(step, sigmas[0], d);
    advance(step, step->latents, d, sigmas[1] - sigmas[0]);
}

/* Steps further down than asked and makes up for it with fresh noise. */
void step_euler_a(struct step *step)
{
    const float *sigmas = step->plan->sigmas + step->index;
    struct ancestral to = ancestral_split(step->plan, sigmas[0], sigmas[1]);
    float *d = step_slot(step, SLOT_SCRATCH);
    write_derivative(step, sigmas[0], d);
    advance(step, step->latents, d, to.down - sigmas[0]);
    advance(step, step->latents, step->noise, to.up);
}

/* Even calls go on with d; odd ones go back and take the mean of both ends' d. */
void step_heun(struct step *step)
{
    const float *sigmas = step->plan->sigmas + step->index;
    float *d = step_slot(step, SLOT_SCRATCH), *sample = step_slot(step, SLOT_SAMPLE);
    if (step->call % 2 == 0) {
        write_derivative(step, sigmas[0], step_keep(step));
        memcpy(sample, step->latents, step->n * sizeof(float));
        advance(step, sample, step_output(step, 0), sigmas[1] - sigmas[0]);
        return;
    }
    const float *first = step_output(step, 0);
    write_derivative(step, sigmas[0], d);
    for (size_t i = 0; i < step->n; i++)
        d[i] = (first[i] + d[i]) / 2;
    advance(step, sample, d, sigmas[0] - sigmas[-1]);
}

/* The first half of a step over two calls: goes with d to the middle, or at the last to the end. */
static void step_to_middle(struct step *step)
{
    const float *sigmas = step->plan->sigmas + step->index;
    float *d = step_slot(step, SLOT_SCRATCH), *sample = step_slot(step, SLOT_SAMPLE);
    write_derivative(step, sigmas[0], d);
    memcpy(sample, step->latents, step->n * sizeof(float));
    advance(step, sample, d, sigmas[1] - sigmas[0]);
}

/* Even calls go to the middle; odd ones go back and take the whole step with the middle's d. */
void step_dpm2(struct step *step)
{
    if (step->call % 2 == 0) {
        step_to_middle(step);
        return;
    }
    const float *sigmas = step->plan->sigmas + step->index;
    float *d = step_slot(step, SLOT_SCRATCH);
    write_derivative(step, sigmas[0], d);
    advance(step, step_slot(step, SLOT_SAMPLE), d, sigmas[1] - sigmas[-1]);
}

void step_dpm2_a(struct step *step)
{
    if (step->call % 2 == 0) {
        step_to_middle(step);
        return;
    }
    const float *sigmas = step->plan->sigmas + step->index;
    struct ancestral to = ancestral_split(step->plan, sigmas[-1], sigmas[1]);
    float *d = step_slot(step, SLOT_SCRATCH);
    write_derivative(step, sigmas[0], d);
    advance(step, step_slot(step, SLOT_SAMPLE), d, to.down - sigmas[-1]);
    advance(step, step->latents, step->noise, to.up);
}

/* The same, but the whole step keeps the middle's picture instead of its d. */
void step_dpm_2s_a(struct step *step)
{
    if (step->call % 2 == 0) {
        step_to_middle(step);
        return;
    }
    const float *sigmas = step->plan->sigmas + step->index;
    struct ancestral to = ancestral_split(step->plan, sigmas[-1], sigmas[1]);
    float *picture = step_slot(step, SLOT_SCRATCH);
    write_picture(step, sigmas[0], picture);
    double keep = (double)to.down / sigmas[-1];
    struct term terms[] = {
        {keep, step_slot(step, SLOT_SAMPLE)}, {1 - keep, picture}, {to.up, step->noise}};
    sum_terms(step->latents, terms, 3, step->n);
}

/* The integral, from sigmas[0] to sigmas[1], of the polynomial that is 1 at sigmas[-which] and 0 at
 * the other of the last `order` sigmas: degree 3 at most, so three Gauss points are exact. */
static double multistep_weight(const float *sigmas, int order, int which)
{
    static const double points[] = {-0.774596669241483377, 0, 0.774596669241483377};
    static const double weights[] = {5 / 9.0, 8 / 9.0, 5 / 9.0};
    double half = ((double)sigmas[1] - sigmas[0]) / 2;
    double middle = ((double)sigmas[1] + sigmas[0]) / 2, integral = 0;
    for (int p = 0; p < 3; p++) {
        double product = weights[p];
        for (int k = 0; k < order; k++)
            if (k != which)
                product *= (middle + half * points[p] - sigmas[-k]) /
                           ((double)sigmas[-which] - sigmas[-k]);
        integral += product;
    }
    return integral * half;
}

void step_lms(struct step *step)
{
    int index = step->index;
    const float *sigmas = step->plan->sigmas + index;
    write_derivative(step, sigmas[0], step_keep(step));
    /* An image to image run has the order of its place in the schedule before it has as many
     * outputs; the reference then leaves the missing ones out. */
    int order = index + 1 < SAMPLER_OUTPUTS ? index + 1 : SAMPLER_OUTPUTS;
    int count = step->kept < order ? step->kept : order;
    struct term terms[SAMPLER_OUTPUTS];
    for (int i = 0; i < count; i++)
        terms[i] = (struct term){multistep_weight(sigmas, order, i), step_output(step, i)};
    float *sum = step_slot(step, SLOT_SCRATCH);
    sum_terms(sum, terms, count, step->n);
    advance(step, step->latents, sum, 1);
}

/*
 * sampler_sigma.c: euler, euler_a, heun and lms, solvers of dx/dsigma = d.
 *
 * x is the picture plus sigma times noise; d = (x - picture) / sigma, which is the model's output
 * itself if it predicts noise. Source: Karras et al., "Elucidating the Design Space of
 * Diffusion-Based Generative Models", 2022, algorithms 1 and 2; Crowson, k-diffusion, for the
 * ancestral and the linear multistep solver.
 *
 * The sums are in f32 and in the reference's order: with zero terminal signal x starts at thousands
 * of sigmas, of which rounding leaves as much as the picture's fourth digit, and the same rounding
 * leaves the same picture.
 */
#include "engine/sampler_parts.h"

#include <string.h>

/* Writes d into `out`, the picture in it clipped if the configuration says so. */
static void write_derivative(const struct step *step, float sigma, float *out)
{
    const struct sampler_config *config = &step->plan->config;
    bool is_v = config->prediction == PREDICTION_V, clips = config->clip_sample == CHOICE_YES;
    float variance = sigma * sigma + 1, range = (float)config->clip_sample_range;
    float of_output = is_v ? -sigma / sqrtf(variance) : -sigma, divisor = is_v ? variance : 1;
    for (size_t i = 0; i < step->n; i++) {
        float x = step->latents[i];
        float picture = step->output[i] * of_output + x / divisor;
        if (clips)
            picture = fminf(fmaxf(picture, -range), range);
        out[i] = (x - picture) / sigma;
    }
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
    float from = sigmas[0] * sigmas[0], to = sigmas[1] * sigmas[1];
    float up = sqrtf(fmaxf(to * (from - to) / from, 0));
    float down = sqrtf(fmaxf(to - up * up, 0));
    float *d = step_slot(step, SLOT_SCRATCH);
    write_derivative(step, sigmas[0], d);
    advance(step, step->latents, d, down - sigmas[0]);
    advance(step, step->latents, step->noise, up);
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

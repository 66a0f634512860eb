/*
 * sampler_spread.c: curves that noise levels fall along, whatever the model's timesteps are.
 */
#include "engine/sampler_parts.h"

#define KARRAS_RHO 7.0
#define BETA_SHAPE 0.6
#define AYS_STEPS 10

double linspace(double start, double stop, int count, int i)
{
    if (count > 1 && i == count - 1)
        return stop;
    return count > 1 ? start + i * ((stop - start) / (count - 1)) : start;
}

/* Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, (5). */
static double karras(double largest, double smallest, double share)
{
    double from = pow(largest, 1 / KARRAS_RHO), to = pow(smallest, 1 / KARRAS_RHO);
    return pow(from + share * (to - from), KARRAS_RHO);
}

/* ---- the beta distribution ---- */

/* The x whose beta distribution, both shapes BETA_SHAPE, has weight p <= 1/2 below it.
 *
 * With a the shape and u = x^a, the incomplete beta integral is u times the sum of
 * (1-a)(2-a)…(n-a) / n! × x^n / (a+n), whose terms are positive. It is convex in u and at least
 * u/a: Newton's steps in u from u = a × the wanted value on fall monotonically towards the root. x
 * stays below 0.59, so that the series converges by that factor. */
static double beta_quantile_low(double p)
{
    const double a = BETA_SHAPE, whole = tgamma(a) * tgamma(a) / tgamma(2 * a);
    double u = p * whole * a;
    for (int round = 0; round < 60 && u > 0; round++) {
        double x = pow(u, 1 / a), power = 1, sum = 0;
        for (int n = 0; power > 1e-18; n++) {
            sum += power / (a + n);
            power *= x * (n + 1 - a) / (n + 1);
        }
        double slope = pow(1 - x, a - 1) / a, next = u - (u * sum - p * whole) / slope;
        if (!(next < u))
            break;
        u = next;
    }
    return pow(u, 1 / a);
}

static double beta_quantile(double p)
{
    return p <= 0.5 ? beta_quantile_low(p) : 1 - beta_quantile_low(1 - p);
}

double spread_sigma(enum schedule schedule, double largest, double smallest, int count, int i)
{
    double share = linspace(0, 1, count, i);
    if (schedule == SCHEDULE_KARRAS)
        return karras(largest, smallest, share);
    /* Lee et al., "Beta Sampling is All You Need", 2024. */
    if (schedule == SCHEDULE_BETA)
        return smallest + beta_quantile(1 - share) * (largest - smallest);
    ASSERT(schedule == SCHEDULE_EXPONENTIAL);
    return exp(linspace(log(largest), log(smallest), count, i));
}

/* ---- Align Your Steps ---- */

/* Sabour et al., "Align Your Steps", 2024: the published timesteps for SD1.5, used for SD2 too, and
 * for SDXL. Other counts lie between them, as the authors advise: linearly in the logarithm of
 * sigma, where the table ends with the smallest sigma of training. */
double spread_ays(bool sdxl, const float *train, int count, int i)
{
    static const int tables[2][AYS_STEPS + 1] = {
        {999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0},
        {999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0},
    };
    const int *table = tables[sdxl];
    double place = linspace(0, AYS_STEPS, count + 1, i);
    int before = (int)place;
    double share = place - before;
    if (share == 0)
        return train[table[before]];
    return exp((1 - share) * log(train[table[before]]) + share * log(train[table[before + 1]]));
}

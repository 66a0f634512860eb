/*
 * dice.h: random numbers that follow from what they are about, not from what was drawn before: so
 * that two policies meet the same crashes and the same slow pictures (common random numbers).
 */
#ifndef ATELIER_SIMULATOR_DICE_H
#define ATELIER_SIMULATOR_DICE_H

#include "common/mix.h"

#include <math.h>
#include <stdint.h>

enum dice { DICE_TIME, DICE_FAIL, DICE_CRASH, DICE_RECLAIM, DICE_LOAD };

/* Above 0 and below 1. */
static inline double dice_uniform(uint64_t seed, enum dice what, uint64_t whose, uint64_t nth)
{
    uint64_t x = mix64(mix64(mix64(seed + (uint64_t)what) ^ whose) ^ nth);
    return ((double)(x >> 11) + 0.5) / (double)(1ull << 53);
}

/* Of mean 1 / rate. */
static inline double dice_exponential(double rate, double uniform)
{
    return -log(uniform) / rate;
}

/* Of mean 1; `sigma` is of the logarithm. By Box and Muller. */
static inline double dice_lognormal(double sigma, double u, double v)
{
    double normal = sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
    return exp(sigma * normal - sigma * sigma / 2);
}

#endif

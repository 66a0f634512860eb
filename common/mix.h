/*
 * mix.h: a number whose bits have nothing visible to do with the argument's, for jitter and for
 * playing at dice. Not for secrets.
 *
 * Source: SplitMix64 of Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
 * OOPSLA 2014.
 */
#ifndef ATELIER_COMMON_MIX_H
#define ATELIER_COMMON_MIX_H

#include <stdint.h>

#define MIX_STEP 0x9E3779B97F4A7C15u /* mix64 of 0, MIX_STEP, 2·MIX_STEP … is the generator */

static inline uint64_t mix64(uint64_t x)
{
    x += MIX_STEP;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

#endif

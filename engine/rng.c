/*
 * rng.c: torch's CPU stream.
 *
 * torch has two ways to draw normal values. From 16 on it fills the tensor with uniform floats of
 * 24 bits and transforms blocks of 16 in place, the first eight of a block paired with the last
 * eight; if the size is no multiple of 16, the last 16 values are drawn anew, overlapping the block
 * before. Below 16 it draws pairs of doubles of 53 bits and keeps the unused half of a pair for the
 * next such call, however much is drawn the other way in between.
 */
#include "engine/rng.h"

#include "common/err.h"

#include <math.h>

#define TWIST_SHIFT 397
#define BLOCK 16

static const double two_pi = 6.283185307179586476925286766559;

void rng_seed(struct rng *rng, enum rng_kind kind, uint64_t seed)
{
    ASSERT(kind < RNG_KIND_COUNT);
    *rng = (struct rng){.kind = kind, .next = RNG_WORDS};
    rng->words[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < RNG_WORDS; i++) {
        uint32_t previous = rng->words[i - 1];
        rng->words[i] = 1812433253u * (previous ^ (previous >> 30)) + i;
    }
}

bool rng_is_valid(const struct rng *rng)
{
    return rng->kind < RNG_KIND_COUNT && rng->next <= RNG_WORDS && rng->has_spare <= 1 &&
           rng->zero == 0 && (rng->has_spare ? isfinite(rng->spare) : rng->spare == 0);
}

static void words_twist(uint32_t *words)
{
    for (int i = 0; i < RNG_WORDS; i++) {
        uint32_t joined = (words[i] & 0x80000000u) | (words[(i + 1) % RNG_WORDS] & 0x7fffffffu);
        uint32_t mixed = (joined >> 1) ^ ((joined & 1) ? 0x9908b0dfu : 0);
        words[i] = words[(i + TWIST_SHIFT) % RNG_WORDS] ^ mixed;
    }
}

static uint32_t draw_32(struct rng *rng)
{
    if (rng->next == RNG_WORDS) {
        words_twist(rng->words);
        rng->next = 0;
    }
    uint32_t word = rng->words[rng->next++];
    word ^= word >> 11;
    word ^= (word << 7) & 0x9d2c5680u;
    word ^= (word << 15) & 0xefc60000u;
    return word ^ (word >> 18);
}

static uint64_t draw_64(struct rng *rng)
{
    uint64_t high = draw_32(rng);
    return high << 32 | draw_32(rng);
}

/* [0, 1) in steps of 2^-24. */
static float uniform_float(struct rng *rng)
{
    return (float)(draw_32(rng) & 0xffffffu) * 0x1p-24f;
}

/* [0, 1) in steps of 2^-53. */
static double uniform_double(struct rng *rng)
{
    return (double)(draw_64(rng) & 0x1fffffffffffffu) * 0x1p-53;
}

/* Box and Muller's transform of values[i] with values[i + 8], rounded to float where torch is. */
static void block_to_normal(float values[BLOCK])
{
    for (int i = 0; i < BLOCK / 2; i++) {
        float radius = sqrtf(-2.0f * (float)log(1.0 - values[i]));
        float angle = (float)two_pi * values[i + BLOCK / 2];
        values[i] = radius * (float)cos(angle);
        values[i + BLOCK / 2] = radius * (float)sin(angle);
    }
}

static void normal_many(struct rng *rng, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = uniform_float(rng);
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK)
        block_to_normal(out + i);
    if (n % BLOCK == 0)
        return;
    float *last = out + n - BLOCK;
    for (size_t i = 0; i < BLOCK; i++)
        last[i] = uniform_float(rng);
    block_to_normal(last);
}

static double normal_one(struct rng *rng)
{
    if (rng->has_spare) {
        double spare = rng->spare;
        rng->has_spare = 0;
        rng->spare = 0;
        return spare;
    }
    double angle = two_pi * uniform_double(rng);
    double radius = sqrt(-2.0 * log1p(-uniform_double(rng)));
    rng->has_spare = 1;
    rng->spare = radius * sin(angle);
    return radius * cos(angle);
}

void rng_normal(struct rng *rng, float *out, size_t n)
{
    if (n >= BLOCK) {
        normal_many(rng, out, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = (float)normal_one(rng);
}

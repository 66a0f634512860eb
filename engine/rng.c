/*
 * rng.c: torch's CPU stream and A1111's.
 *
 * On the CPU torch has two ways to draw normal values. From 16 on it fills the tensor with uniform
 * floats of 24 bits and transforms blocks of 16 in place, the first eight of a block paired with
 * the last eight; if the size is no multiple of 16, the last 16 values are drawn anew, overlapping
 * the block before. Below 16 it draws pairs of doubles of 53 bits and keeps the unused half of a
 * pair for the next such call, however much is drawn the other way in between.
 */
#include "engine/rng.h"

#include "common/err.h"

#include <math.h>
#include <string.h>

#define TWIST_SHIFT 397
#define BLOCK 16

#define PHILOX_ROUNDS 10
#define PHILOX_STATE 3 /* words that are in use */

static const double two_pi = 6.283185307179586476925286766559;

void rng_seed(struct rng *rng, enum rng_kind kind, uint64_t seed)
{
    ASSERT(kind < RNG_KIND_COUNT);
    if (kind == RNG_PHILOX) {
        *rng = (struct rng){.kind = kind, .words = {(uint32_t)seed, (uint32_t)(seed >> 32)}};
        return;
    }
    *rng = (struct rng){.kind = kind, .next = RNG_WORDS};
    rng->words[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < RNG_WORDS; i++) {
        uint32_t previous = rng->words[i - 1];
        rng->words[i] = 1812433253u * (previous ^ (previous >> 30)) + i;
    }
}

int rng_by_name(const char *name)
{
    return strcmp(name, "torch") == 0 ? RNG_TORCH : strcmp(name, "philox") == 0 ? RNG_PHILOX : -1;
}

static bool philox_is_valid(const struct rng *rng)
{
    for (int i = PHILOX_STATE; i < RNG_WORDS; i++)
        if (rng->words[i] != 0)
            return false;
    return rng->next == 0 && rng->has_spare == 0;
}

bool rng_is_valid(const struct rng *rng)
{
    if (rng->kind == RNG_PHILOX && !philox_is_valid(rng))
        return false;
    return rng->kind < RNG_KIND_COUNT && rng->next <= RNG_WORDS && rng->has_spare <= 1 &&
           rng->zero == 0 && (rng->has_spare ? isfinite(rng->spare) : rng->spare == 0);
}

/* ---- torch ---- */

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

static void normal_torch(struct rng *rng, float *out, size_t n)
{
    if (n >= BLOCK) {
        normal_many(rng, out, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = (float)normal_one(rng);
}

/* ---- philox ---- */

/* Replaces the counter by its random image under the key. */
static void philox_4x32(uint32_t counter[4], uint32_t key_low, uint32_t key_high)
{
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t a = 0xd2511f53ull * counter[0], b = 0xcd9e8d57ull * counter[2];
        counter[0] = (uint32_t)(b >> 32) ^ counter[1] ^ key_low;
        counter[1] = (uint32_t)b;
        counter[2] = (uint32_t)(a >> 32) ^ counter[3] ^ key_high;
        counter[3] = (uint32_t)a;
        key_low += 0x9e3779b9u;
        key_high += 0xbb67ae85u;
    }
}

/* Box and Muller's sine of the first two words; the others are left. Both uniforms are in the
 * middle of their step of 2^-32. A1111's file rounds 2 pi to a float, which moves a value by 2e-7
 * at most; the values that it shows, a GPU's, have the whole circle, and so have these. */
static void normal_philox(struct rng *rng, float *out, size_t n)
{
    uint32_t call = rng->words[2]++;
    for (size_t i = 0; i < n; i++) {
        uint32_t words[4] = {call, 0, (uint32_t)i, 0};
        philox_4x32(words, rng->words[0], rng->words[1]);
        double radius = sqrt(-2 * log((words[0] + 0.5) * 0x1p-32));
        out[i] = (float)(radius * sin((words[1] + 0.5) * 0x1p-32 * two_pi));
    }
}

void rng_normal(struct rng *rng, float *out, size_t n)
{
    if (rng->kind == RNG_PHILOX)
        normal_philox(rng, out, n);
    else
        normal_torch(rng, out, n);
}

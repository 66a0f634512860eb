/*
 * rng.h: the random streams that pictures are drawn from.
 *
 * A stream is a plain value: copying the struct forks it, its bytes are its whole state. Every
 * picture has its own, seeded by the job, so that what else is computed changes no picture.
 *
 *     struct rng rng;
 *     rng_seed(&rng, RNG_TORCH, seed);
 *     rng_normal(&rng, noise, 4 * height * width);
 *
 * RNG_TORCH draws what torch's CPU generator draws: MT19937 seeded with the low 32 bits of the
 * seed. The numbers of one call depend on how many the call asks for (see rng.c), so a caller asks
 * for a tensor at a time, as torch does. Logarithm, sine and cosine are computed in double and
 * rounded, where torch uses vector approximations: the values agree to about one unit in the last
 * place, and are the same on every machine.
 *
 * Source of the generator: Matsumoto and Nishimura, "Mersenne Twister", 1998.
 */
#ifndef ATELIER_ENGINE_RNG_H
#define ATELIER_ENGINE_RNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RNG_WORDS 624

enum rng_kind { RNG_TORCH, RNG_KIND_COUNT };

struct rng {
    uint32_t kind; /* enum rng_kind */
    uint32_t next; /* of words; RNG_WORDS: all are used up */
    uint32_t words[RNG_WORDS];
    uint32_t has_spare; /* 0 or 1 */
    uint32_t zero;      /* keeps the bytes free of padding */
    double spare;       /* the second half of a pair drawn one by one */
};

void rng_seed(struct rng *rng, enum rng_kind kind, uint64_t seed);

/* Fills out[0..n) with standard normal values: what torch.randn(n) returns next. */
void rng_normal(struct rng *rng, float *out, size_t n);

/* Whether a state that came from outside is one that this code can have written. */
bool rng_is_valid(const struct rng *rng);

#endif

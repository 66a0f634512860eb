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
 * RNG_PHILOX draws what A1111 calls the "NV" source: torch.randn on a GPU, as modules/rng_philox.py
 * of AUTOMATIC1111/stable-diffusion-webui publishes it. Value i of call k is a function of the seed
 * (64 bits), k and i alone.
 *
 * Sources of the generators: Matsumoto and Nishimura, "Mersenne Twister", 1998; Salmon et al.,
 * "Parallel Random Numbers: As Easy as 1, 2, 3", 2011 (Philox 4x32-10).
 */
#ifndef ATELIER_ENGINE_RNG_H
#define ATELIER_ENGINE_RNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RNG_WORDS 624

enum rng_kind { RNG_TORCH, RNG_PHILOX, RNG_KIND_COUNT };

struct rng {
    uint32_t kind;             /* enum rng_kind */
    uint32_t next;             /* of words; RNG_WORDS: all are used up; 0 in philox */
    uint32_t words[RNG_WORDS]; /* in philox the seed's low and high half and the calls made */
    uint32_t has_spare;        /* 0 or 1 */
    uint32_t zero;             /* keeps the bytes free of padding */
    double spare;              /* the second half of a pair drawn one by one */
};

void rng_seed(struct rng *rng, enum rng_kind kind, uint64_t seed);

/* A job's name of a stream, "torch" or "philox": the enumerator, or -1. */
int rng_by_name(const char *name);

/* Fills out[0..n) with standard normal values: what torch.randn(n) returns next. */
void rng_normal(struct rng *rng, float *out, size_t n);

/* Whether a state that came from outside is one that this code can have written. */
bool rng_is_valid(const struct rng *rng);

#endif

/*
 * freeu.h: FreeU, as diffusers computes it: in the first two blocks of the UNet's way up the first
 * half of the channels is amplified, and of what skips the way down the lowest frequencies are
 * damped.
 *
 * Source: Si et al. 2023, "FreeU: Free Lunch in Diffusion U-Net"; diffusers' apply_freeu and
 * fourier_filter. The filter's threshold of 1 means the frequencies 0 and -1 of each axis, so that
 * it is x + (scale - 1) · the part of x at these four, which needs no Fourier transform.
 */
#ifndef ATELIER_ENGINE_FREEU_H
#define ATELIER_ENGINE_FREEU_H

#include <math.h>
#include <stdbool.h>

struct freeu {
    double b1, b2; /* of the channels, in the first and second block */
    double s1, s2; /* of the skip's low frequencies; all 0: no FreeU */
};

static inline bool freeu_is_on(const struct freeu *f)
{
    return f->b1 > 0;
}

/* The real and imaginary parts of the four waves at a pixel; those that an axis of one pixel does
 * not have are 0. */
#define FREEU_WAVES 7

static inline void freeu_waves(double waves[FREEU_WAVES], int y, int height, int x, int width)
{
    double down = 6.283185307179586 * y / height, across = 6.283185307179586 * x / width;
    double rows = height > 1, columns = width > 1;

    waves[0] = 1;
    waves[1] = rows * cos(down);
    waves[2] = rows * sin(down);
    waves[3] = columns * cos(across);
    waves[4] = columns * sin(across);
    waves[5] = rows * columns * cos(down + across);
    waves[6] = rows * columns * sin(down + across);
}

#endif

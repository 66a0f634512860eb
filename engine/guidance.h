/*
 * guidance.h: which samples a picture adds to a pass, and what becomes of the network's outputs.
 *
 * Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance"; Liu et al. 2022,
 * "Compositional Visual Generation with Composable Diffusion Models", for parts joined by AND;
 * Brooks et al. 2023, "InstructPix2Pix", for guidance by text and picture; Lin et al. 2023, "Common
 * Diffusion Noise Schedules and Sample Steps Are Flawed", for the rescaling; Kynkäänniemi et al.
 * 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality".
 */
#ifndef ATELIER_ENGINE_GUIDANCE_H
#define ATELIER_ENGINE_GUIDANCE_H

#include "engine/conditioning.h"

struct guidance {
    double scale;
    double image_scale; /* of a network that follows instructions */
    double rescale; /* 0: not at all … 1: to the standard deviation of the first part's output */
    double low, high; /* sigmas between which a text guides: low < sigma <= high */
};

/* Whether a row has to be computed at a noise level: without guidance the negative prompt has not.
 */
bool guidance_asks(const struct guidance *guidance, const struct conditioning *conditioning,
                   int row, double sigma);

/* Makes one output of those of all rows that were asked for, `n` values each, in place of the
 * first. */
void guidance_combine(const struct guidance *guidance, const struct conditioning *conditioning,
                      double sigma, float *outputs, size_t n);

#endif

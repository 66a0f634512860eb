/*
 * guidance.h: which samples a picture adds to a pass, and what becomes of the network's outputs.
 *
 * Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance"; Liu et al. 2022,
 * "Compositional Visual Generation with Composable Diffusion Models", for parts joined by AND;
 * Brooks et al. 2023, "InstructPix2Pix", for guidance by text and picture.
 */
#ifndef ATELIER_ENGINE_GUIDANCE_H
#define ATELIER_ENGINE_GUIDANCE_H

#include "engine/conditioning.h"

struct guidance {
    double scale;
    double image_scale; /* of a network that follows instructions */
};

/* Makes one output of those of all rows, `n` values each, in place of the first. */
void guidance_combine(const struct guidance *guidance, const struct conditioning *conditioning,
                      float *outputs, size_t n);

#endif

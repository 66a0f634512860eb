/*
 * enlarge.h: latents in another size, as torch.nn.functional.interpolate makes them with `size` and
 * align_corners false: what "hires fix" does between its two passes.
 */
#ifndef ATELIER_ENGINE_ENLARGE_H
#define ATELIER_ENGINE_ENLARGE_H

#include "common/err.h"

#define ENLARGE_SIZE_MAX 2048 /* latent pixels, each way */

enum enlargement {
    ENLARGE_BILINEAR,
    ENLARGE_NEAREST,       /* torch's "nearest", which rounds places down */
    ENLARGE_NEAREST_EXACT, /* whose pixels' middles are nearest */
    ENLARGE_BICUBIC,
    ENLARGE_COUNT,
};

/* Names as in a job: "latent", "latent-nearest", …; -1 for an unknown one. */
int enlargement_by_name(const char *name);

/* from: planes × from_h × from_w, to: planes × to_h × to_w; sizes from 1 to ENLARGE_SIZE_MAX. */
void latents_enlarge(enum enlargement kind, const float *from, int from_h, int from_w, float *to,
                     int to_h, int to_w, int planes);

#endif

/*
 * defaults.h: what a request leaves to the model, and a single file leaves to whoever reads it:
 * scheduler, prediction, size, steps, guidance.
 */
#ifndef ATELIER_ENGINE_DEFAULTS_H
#define ATELIER_ENGINE_DEFAULTS_H

#include "engine/checkpoint.h"
#include "engine/sampler.h"
#include "engine/unet.h"

/* The folder's scheduler file, or what its family was published with. `prediction`: "epsilon" or
 * "v_prediction" over what is found; NULL: as found. Errors (ERR_REJECT) name the file. */
int defaults_scheduler(struct sampler_config *config, struct checkpoint *checkpoint,
                       const char *prediction, struct err *err) must_check;

struct defaults {
    int sample_w, sample_h; /* latent pixels */
    int steps;
    double guidance_scale;
    bool zero_negative; /* an absent negative prompt is zeros, not "" */
};

/* What diffusers' pipeline of this model takes where nothing is said. */
struct defaults defaults_read(struct checkpoint *checkpoint, const struct sampler_config *scheduler,
                              int in_channels, int vae_factor);

#endif

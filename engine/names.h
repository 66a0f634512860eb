/*
 * names.h: where a single LDM file keeps a tensor that diffusers calls by another name.
 *
 * Source: the module trees of CompVis latent-diffusion and of diffusers.
 */
#ifndef ATELIER_ENGINE_NAMES_H
#define ATELIER_ENGINE_NAMES_H

#include "engine/checkpoint.h"

/* What the numbering of an LDM file depends on. */
struct ldm_layout {
    int layers; /* resnets of one level on the way down: 2 */
    int vae_levels;
    /* Whether the up block has attention, which moves its upsampler from .1 to .2. */
    bool up_attention[16];
};

/* Writes the full LDM name (prefix included) of `name`, or returns false where there is none. */
bool ldm_name(const struct ldm_layout *layout, enum component component, const char *name,
              char out[CHECKPOINT_NAME_MAX_BYTES]);

/* The older diffusers or transformers spelling of `name`, or false. */
bool legacy_name(enum component component, const char *name, char out[CHECKPOINT_NAME_MAX_BYTES]);

#endif

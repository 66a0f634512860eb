/*
 * names.h: where a single LDM file keeps a tensor that diffusers calls by another name.
 *
 * Source: the module trees of CompVis latent-diffusion and of diffusers.
 */
#ifndef ATELIER_ENGINE_NAMES_H
#define ATELIER_ENGINE_NAMES_H

#include "engine/checkpoint.h"

/* What the naming and numbering of an LDM file depends on. */
struct ldm_layout {
    const char *text[COMPONENT_COUNT]; /* what a text encoder's names begin with; NULL: not there */
    bool open_clip[COMPONENT_COUNT];   /* it has OpenCLIP's names, not transformers' */
    const char *unet;                  /* what the UNet's or the ControlNet's names begin with */
    int hint_layers;                   /* convolutions of a ControlNet's hint */
    int layers;                        /* resnets of one level on the way down: 2 */
    int vae_levels;
    /* Whether the up block has attention, which moves its upsampler from .1 to .2. */
    bool up_attention[16];
};

/* Where a tensor lies. */
struct ldm_place {
    char name[CHECKPOINT_NAME_MAX_BYTES]; /* in full */
    int third; /* of its rows: OpenCLIP keeps query, key and value in one; -1: all of it */
    bool transposed;
};

/* False where an LDM file has no such tensor. */
bool ldm_find(const struct ldm_layout *layout, enum component component, const char *name,
              struct ldm_place *place);

/* The older diffusers or transformers spelling of `name`, or false. */
bool legacy_name(enum component component, const char *name, char out[CHECKPOINT_NAME_MAX_BYTES]);

#endif

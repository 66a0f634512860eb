/*
 * controlnet.h: a copy of a UNet's first half that sees a picture, the hint, and adds to what the
 * UNet's own half leaves for its way up.
 *
 * Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models";
 * diffusers' ControlNetModel, whose names and configuration it reads.
 */
#ifndef ATELIER_ENGINE_CONTROLNET_H
#define ATELIER_ENGINE_CONTROLNET_H

#include "engine/unet.h"

#define CONTROLNET_HINT_MAX 16 /* convolutions between the hint's first and last */

struct controlnet {
    struct unet_encoder encoder;
    struct conv hint_in, hint[CONTROLNET_HINT_MAX], hint_out; /* 3 → … → c0 */
    int hint_count;
    int factor;                          /* pixels per latent, each way */
    bool bgr;                            /* it reads the hint's channels backwards */
    struct linear zeros[UNET_SKIPS_MAX]; /* c × c, one per skip */
    int zero_count;
    struct linear mid_zero;
    struct parameters parameters;
};

/* Binds a file's weights for a model's UNet; on failure, too, controlnet_release is due. Errors
 * (ERR_REJECT) name the file and the tensor or the field; of another family's both shapes. */
int controlnet_bind(struct controlnet *net, const struct unet_config *model,
                    struct checkpoint *checkpoint, struct backend *backend,
                    struct err *err) must_check;
void controlnet_release(struct controlnet *net);

/* hint: 1 × h·factor × w·factor × 3, 0 … 1; y: 1 × h × w × c0. The same at every step. */
void controlnet_embed(struct pass *pass, const struct controlnet *net, const struct tensor *hint,
                      struct tensor *y);

/* What is added to one sample: its hint's embedding, and by how much. */
struct controlnet_sample {
    const struct tensor *embedding; /* controlnet_embed's */
    float scale;
    bool guess; /* the deeper the stronger, from a tenth on: as if there were no prompt */
};

/* Adds to samples [first, first + n) of `middle`, `input` being of those n. */
void controlnet_apply(struct pass *pass, const struct controlnet *net,
                      const struct unet_input *input, const struct controlnet_sample *samples,
                      struct unet_middle *middle, int first);

#endif

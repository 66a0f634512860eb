/*
 * controlnet.h: a copy of a UNet's first half that sees a picture, the hint, and adds to what the
 * UNet's own half leaves for its way up.
 *
 * Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models";
 * diffusers' ControlNetModel, whose names and configuration it reads.
 */
#ifndef ATELIER_ENGINE_CONTROLNET_H
#define ATELIER_ENGINE_CONTROLNET_H

#include "engine/controlnet_union.h"
#include "engine/unet.h"

#define CONTROLNET_HINT_MAX 16 /* convolutions between the hint's first and last */

struct controlnet {
    struct unet_encoder encoder;
    struct conv hint_in, hint[CONTROLNET_HINT_MAX], hint_out; /* 3 → … → c0 */
    int hint_count;
    int factor; /* pixels per latent, each way */
    bool bgr;   /* it reads the hint's channels backwards */
    bool pools; /* it adds each map's mean to all of its pixels, and to no negative prompt's */
    struct linear zeros[UNET_SKIPS_MAX]; /* c × c, one per skip */
    int zero_count;
    struct linear mid_zero;
    struct controlnet_union kinds; /* of hints that it tells apart */
    struct parameters parameters;
};

/* Binds a file's weights for a model's UNet; on failure, too, controlnet_release is due. Errors
 * (ERR_REJECT) name the file and the tensor or the field; of another family's both shapes. */
int controlnet_bind(struct controlnet *net, const struct unet_config *model,
                    struct checkpoint *checkpoint, struct backend *backend,
                    struct err *err) must_check;
void controlnet_release(struct controlnet *net);

/* hint: 1 × h·factor × w·factor × 3, 0 … 1; y: 1 × h × w × c0. The same at every step. Of a union
 * controlnet_union_move is to follow. */
void controlnet_embed(struct pass *pass, const struct controlnet *net, const struct tensor *hint,
                      struct tensor *y);

#define CONTROLNET_HINTS_MAX 8 /* that one pass of a union sees */

/* What one sample's pass sees, its hints, and how much of what it makes of them is added. */
struct controlnet_sample {
    struct {
        const struct tensor *embedding; /* 1 × h × w × c0 */
        float scale;
    } hints[CONTROLNET_HINTS_MAX];
    int hint_count;
    uint32_t modes; /* a bit for each, of a union */
    float scale;
    bool guess; /* the deeper the stronger, from a tenth on: as if there were no prompt; one that
                   pools is as strong everywhere */
};

/* Adds to samples [first, first + n) of `middle`, `input` being of those n. */
void controlnet_apply(struct pass *pass, const struct controlnet *net,
                      const struct unet_input *input, const struct controlnet_sample *samples,
                      struct unet_middle *middle, int first);

#endif

/*
 * t2i_adapter.h: a small network that turns a picture into feature maps, which a UNet's levels add
 * to theirs on the way down. The maps do not depend on the step.
 *
 * Source: Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for
 * Text-to-Image Diffusion Models"; diffusers' T2IAdapter (full, light and full_xl), whose names it
 * reads, and the original ones.
 */
#ifndef ATELIER_ENGINE_T2I_ADAPTER_H
#define ATELIER_ENGINE_T2I_ADAPTER_H

#include "engine/unet.h"

#define T2I_BLOCKS_MAX (UNET_LEVELS_MAX + 1)
#define T2I_RESNETS_MAX 8

/* x + second(relu(first(x))) */
struct t2i_resnet {
    struct conv first;    /* c × c × 3 × 3 */
    struct linear second; /* c × c; second.in is 0 in a light adapter */
    struct conv third;    /* the same of 3 × 3, in a light one */
};

struct t2i_block {
    bool shrinks;      /* to half its size, by averages of 2 × 2 */
    struct linear in;  /* in.in is 0 where widths are alike */
    struct linear out; /* of a light one */
    struct t2i_resnet resnets[T2I_RESNETS_MAX];
    int resnet_count, width;
    int shift; /* its map is the latents' size, halved so often */
};

struct t2i_adapter {
    int channels;        /* of its hint: 3, or 1 for a gray one */
    int factor;          /* pixels of the hint, each way, become channels */
    struct conv conv_in; /* conv_in.in is 0 in a light one */
    struct t2i_block blocks[T2I_BLOCKS_MAX];
    int block_count;
    struct parameters parameters;
};

/* Whether the file holds one. */
bool t2i_adapter_is(struct checkpoint *checkpoint);

/* Binds a file's weights for a model's UNet; on failure, too, t2i_adapter_release is due. Errors
 * (ERR_REJECT) name the file and the tensor, of another family's with both shapes. */
int t2i_adapter_bind(struct t2i_adapter *adapter, const struct unet_config *model, int vae_factor,
                     struct checkpoint *checkpoint, struct backend *backend,
                     struct err *err) must_check;
void t2i_adapter_release(struct t2i_adapter *adapter);

/* Maps of a hint, planes of channels × height × width: maps[i] is 1 × h × w × blocks[i].width.
 * Rectifying and averaging, which no other network does, are done on the host in between. */
void t2i_adapter_forward(struct pass *pass, const struct t2i_adapter *adapter, const float *planes,
                         int height, int width, struct tensor maps[T2I_BLOCKS_MAX]);

#endif

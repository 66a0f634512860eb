/*
 * unet.h: the denoising network of latent diffusion, SD1.x and SD2.x.
 *
 * Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models";
 * diffusers' UNet2DConditionModel, whose names and configuration it reads.
 */
#ifndef ATELIER_ENGINE_UNET_H
#define ATELIER_ENGINE_UNET_H

#include "engine/blocks.h"

#define UNET_WIDTH_MAX 8192
#define UNET_LEVELS_MAX 6
#define UNET_LAYERS_MAX 4 /* resnets of one level on the way down */
#define UNET_DEPTH_MAX 12 /* transformer blocks after one resnet */
#define UNET_SKIPS_MAX (UNET_LEVELS_MAX * (UNET_LAYERS_MAX + 1) + 1)

struct unet_config {
    int in_channels, out_channels;
    int levels;
    int channels[UNET_LEVELS_MAX];
    int layers[UNET_LEVELS_MAX]; /* resnets on the way down; one more on the way up */
    int depth[UNET_LEVELS_MAX];  /* transformer blocks per attention; 0: none at this level */
    int heads[UNET_LEVELS_MAX];
    int mid_depth;
    int context; /* width of the text embedding */
    int groups;
    float eps;
    bool flip_sin_to_cos;
    int freq_shift;
};

struct transformer_block {
    struct norm norm1;
    struct linear qkv;  /* 3c × c */
    struct linear out1; /* c × c */
    struct norm norm2;
    struct linear q;    /* c × c */
    struct linear kv;   /* 2c × context */
    struct linear out2; /* c × c */
    struct norm norm3;
    struct linear geglu; /* 8c × c */
    struct linear ff;    /* c × 4c */
};

struct transformer {
    struct norm norm;      /* [c] in groups */
    struct linear proj_in; /* c × c */
    struct transformer_block blocks[UNET_DEPTH_MAX];
    int depth, heads;
    struct linear proj_out; /* c × c */
};

struct unet_level {
    struct resnet resnets[UNET_LAYERS_MAX + 1];
    struct transformer attentions[UNET_LAYERS_MAX + 1];
    struct conv resample; /* to the next level; resample.in is 0 at the last */
};

struct unet {
    struct unet_config config;
    struct linear time1, time2; /* 4·c0 × c0, 4·c0 × 4·c0 */
    struct conv conv_in;
    struct unet_level down[UNET_LEVELS_MAX];
    struct resnet mid[2];
    struct transformer mid_attention;
    struct unet_level up[UNET_LEVELS_MAX]; /* in the order of computing: deepest first */
    struct norm norm_out;
    struct conv conv_out;
    struct parameters parameters;
};

/* From config.json, or from the shapes of a single file. Errors name the file and the field. */
int unet_config_read(struct unet_config *config, struct checkpoint *checkpoint,
                     struct err *err) must_check;

/* Binds all weights; on failure, too, unet_release is due. */
int unet_bind(struct unet *unet, const struct unet_config *config, struct checkpoint *checkpoint,
              struct backend *backend, struct err *err) must_check;
void unet_release(struct unet *unet);

/* latents: n × h × w × in_channels. timesteps: [n], on the host; fractions count.
 * text: n × 1 × tokens × context. y: n × h × w × out_channels. */
void unet_forward(struct pass *pass, const struct unet *unet, const struct tensor *latents,
                  const double *timesteps, const struct tensor *text, struct tensor *y);

#endif

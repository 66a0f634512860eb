/*
 * unet.h: the denoising network of latent diffusion, SD1.x, SD2.x and SDXL.
 *
 * Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models";
 * Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image
 * Synthesis"; diffusers' UNet2DConditionModel, whose names and configuration it reads.
 */
#ifndef ATELIER_ENGINE_UNET_H
#define ATELIER_ENGINE_UNET_H

#include "engine/blocks.h"

#define UNET_WIDTH_MAX 8192
#define UNET_LEVELS_MAX 6
#define UNET_LAYERS_MAX 4 /* resnets of one level on the way down */
#define UNET_DEPTH_MAX 12 /* transformer blocks after one resnet */
#define UNET_IDS_MAX 6    /* numbers that SDXL is told about a picture */
#define UNET_SKIPS_MAX (UNET_LEVELS_MAX * (UNET_LAYERS_MAX + 1) + 1)

struct unet_config {
    int in_channels, out_channels;
    int levels;
    int channels[UNET_LEVELS_MAX];
    int layers[UNET_LEVELS_MAX]; /* resnets on the way down; one more on the way up */
    int heads[UNET_LEVELS_MAX];
    int down_depth[UNET_LEVELS_MAX][UNET_LAYERS_MAX]; /* transformer blocks after each resnet */
    int up_depth[UNET_LEVELS_MAX][UNET_LAYERS_MAX + 1];
    int mid_depth;
    int embedding;      /* width of the time's embedding, 4·c0 as published */
    int context;        /* width of the text embedding */
    int pooled;         /* width of the pooled text that is added to the time; 0: none is */
    int ids, id_width;  /* so many numbers go with it, each as so many sinusoids */
    int guidance_width; /* sinusoids of the guidance scale, of a network distilled from it; or 0 */
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
    struct linear time1, time2;   /* embedding × c0, embedding × embedding */
    struct linear guidance;       /* c0 × guidance_width */
    struct linear added1, added2; /* embedding × (pooled + ids·id_width), embedding × embedding */
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

/* What a pass reads. Numbers are on the host; planning reads none of them. */
struct unet_input {
    const struct tensor *latents; /* n × h × w × in_channels */
    const double *timesteps;      /* [n]; fractions count */
    const struct tensor *text;    /* n × 1 × tokens × context */
    const struct tensor *pooled;  /* n × 1 × 1 × pooled, f32; NULL where pooled is 0 */
    const float *ids;             /* n × ids */
    const double *guidance;       /* [n], scales; with a guidance_width */
};

/* y: n × h × w × out_channels. */
void unet_forward(struct pass *pass, const struct unet *unet, const struct unet_input *input,
                  struct tensor *y);

#endif

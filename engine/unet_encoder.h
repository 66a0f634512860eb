/*
 * unet_encoder.h: the first half of a UNet: what the time becomes, the way down and the middle. A
 * ControlNet is a copy of it.
 *
 * Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models";
 * Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image
 * Synthesis"; diffusers' UNet2DConditionModel, whose names and configuration it reads.
 */
#ifndef ATELIER_ENGINE_UNET_ENCODER_H
#define ATELIER_ENGINE_UNET_ENCODER_H

#include "engine/blocks.h"
#include "engine/freeu.h"
#include "engine/transformer.h"

#define UNET_WIDTH_MAX 8192
#define UNET_LEVELS_MAX 6
#define UNET_LAYERS_MAX 4                    /* resnets of one level on the way down */
#define UNET_DEPTH_MAX TRANSFORMER_DEPTH_MAX /* transformer blocks after one resnet */
#define UNET_IDS_MAX 6                       /* numbers that SDXL is told about a picture */
#define UNET_SKIPS_MAX (UNET_LEVELS_MAX * (UNET_LAYERS_MAX + 1) + 1)

struct unet_config {
    int in_channels, out_channels;
    int levels;
    int channels[UNET_LEVELS_MAX];
    int layers[UNET_LEVELS_MAX]; /* resnets on the way down; one more on the way up */
    int heads[UNET_LEVELS_MAX];
    int down_depth[UNET_LEVELS_MAX][UNET_LAYERS_MAX]; /* transformer blocks after each resnet */
    int up_depth[UNET_LEVELS_MAX][UNET_LAYERS_MAX + 1];
    int mid_depth;      /* 0: the middle is one resnet, as in some ControlNets */
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

struct unet_level {
    struct resnet resnets[UNET_LAYERS_MAX + 1];
    struct transformer attentions[UNET_LAYERS_MAX + 1];
    struct conv resample; /* to the next level; resample.in is 0 at the last */
};

struct unet_encoder {
    struct unet_config config;
    struct linear time1, time2;   /* embedding × c0, embedding × embedding */
    struct linear guidance;       /* c0 × guidance_width */
    struct linear added1, added2; /* embedding × (pooled + ids·id_width), embedding × embedding */
    struct conv conv_in;
    struct unet_level down[UNET_LEVELS_MAX];
    struct resnet mid[2];
    struct transformer mid_attention;
};

/* Binds it under diffusers' names; the binder's parameters own what it makes. */
void unet_encoder_bind(struct binder *binder, struct unet_encoder *encoder,
                       const struct unet_config *config);

/* cos and sin of t at geometric rates from 1 to 1/10000, or sin first; the last of an odd width is
 * left as it is. */
void unet_sinusoids(const struct unet_config *config, double t, float *values, int width);

/* Resnet `j` of a block of level `i` with, where `depth` is not 0, the attention after it. */
void unet_layer_bind(struct binder *binder, struct unet_level *level, const struct unet_config *u,
                     int i, int j, int in, int depth, const char *block);

/* A map that one sample's level adds to its own, where it ends: before it shrinks if it has
 * attention, behind that if not. The level after the last is the middle. */
struct unet_feature {
    int sample, level;
    const struct tensor *x; /* 1 × h × w × c */
    float scale;
};

/* What a pass reads. Numbers are on the host; planning reads none of them. */
struct unet_input {
    const struct tensor *latents;        /* n × h × w × in_channels */
    const double *timesteps;             /* [n]; fractions count */
    const struct tensor *text;           /* n × 1 × tokens × context */
    const struct tensor *pooled;         /* n × 1 × 1 × pooled, f32; NULL where pooled is 0 */
    const float *ids;                    /* n × ids */
    const double *guidance;              /* [n], scales; with a guidance_width */
    const struct freeu *freeu;           /* [n]; NULL: no sample has it */
    const struct unet_feature *features; /* optional */
    int feature_count;
    const struct tensor *told; /* optional: n × 1 × 1 × embedding, f32, added to the time's */
};

/* What the way down leaves for the way up; the tensors are its own. */
struct skips {
    struct tensor items[UNET_SKIPS_MAX];
    int count;
};

/* What every resnet adds: n × 1 × 1 × embedding, f32, after its SiLU. */
struct tensor unet_time_forward(struct pass *pass, const struct unet_encoder *encoder,
                                const struct unet_input *input);

/* From conv_in's output, which the skips take, to the middle's. */
struct tensor unet_encoder_forward(struct pass *pass, const struct unet_encoder *encoder,
                                   const struct unet_input *input, struct tensor x,
                                   const struct tensor *time, struct skips *skips);

#endif

/*
 * vae.h: the autoencoder between pixels and latents.
 *
 * Pixels are RGB in -1 … 1, latents unscaled (the caller scales them with vae_scale).
 * Source: Rombach et al. 2022; diffusers' AutoencoderKL.
 */
#ifndef ATELIER_ENGINE_VAE_H
#define ATELIER_ENGINE_VAE_H

#include "engine/blocks.h"

#define VAE_LEVELS_MAX 6
#define VAE_LAYERS_MAX 4
#define VAE_CHANNELS_MAX 4 /* of latents */

struct vae_config {
    int latent_channels;
    int levels;
    int channels[VAE_LEVELS_MAX];
    int layers; /* resnets per level in the encoder; one more in the decoder */
    int groups;
    int sample_size; /* pixels that it was trained on: the side of a tile */
    bool mid_attention;
    bool wide; /* activations beyond f16's range */
    bool quant_conv, post_quant_conv;
    double scaling_factor;
    float mean[VAE_CHANNELS_MAX], std[VAE_CHANNELS_MAX]; /* of unscaled latents, by channel */
};

struct vae_attention {
    struct norm norm;
    struct linear qkv; /* 3c × c */
    struct linear out; /* c × c */
};

struct vae_level {
    struct resnet resnets[VAE_LAYERS_MAX + 1];
    struct conv resample; /* resample.in is 0 at the last level */
};

struct vae_half {
    struct linear quant; /* 1×1 around the latents; quant.in is 0 without one */
    struct conv conv_in;
    struct vae_level levels[VAE_LEVELS_MAX]; /* in the order of computing */
    struct resnet mid[2];
    struct vae_attention attention;
    struct norm norm_out;
    struct conv conv_out;
};

struct vae {
    struct vae_config config;
    struct vae_half decoder, encoder;
    struct parameters parameters;
};

/* From config.json, or from the shapes of a single file. */
int vae_config_read(struct vae_config *config, struct checkpoint *checkpoint,
                    struct err *err) must_check;

/* Binds all weights; on failure, too, vae_release is due. */
int vae_bind(struct vae *vae, const struct vae_config *config, struct checkpoint *checkpoint,
             struct backend *backend, struct err *err) must_check;
void vae_release(struct vae *vae);

/* Pixels per latent, each way. */
int vae_factor(const struct vae_config *config);

/* Latents in planes of so many pixels, between what the VAE makes and what the UNet draws. `to` may
 * be `from`. */
void vae_scale(const struct vae_config *config, float *to, const float *from, size_t pixels);
void vae_unscale(const struct vae_config *config, float *to, const float *from, size_t pixels);

/* latents: n × h × w × latent_channels. y: n × fh × fw × 3. */
void vae_decode(struct pass *pass, const struct vae *vae, const struct tensor *latents,
                struct tensor *y);

/* pixels: n × fh × fw × 3. y: n × h × w × 2·latent_channels: mean, then log variance. */
void vae_encode(struct pass *pass, const struct vae *vae, const struct tensor *pixels,
                struct tensor *y);

#endif

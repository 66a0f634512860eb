/*
 * unet.h: the denoising network of latent diffusion, SD1.x, SD2.x and SDXL. Its first half is
 * unet_encoder.h's; between the halves others may add to what the first one leaves.
 */
#ifndef ATELIER_ENGINE_UNET_H
#define ATELIER_ENGINE_UNET_H

#include "engine/unet_encoder.h"

struct unet {
    struct unet_config config;
    struct unet_encoder encoder;
    struct unet_level up[UNET_LEVELS_MAX]; /* in the order of computing: deepest first */
    struct norm norm_out;
    struct conv conv_out;
    struct parameters parameters;
};

/* From config.json, or from the shapes of a single file. Errors name the file and the field. */
int unet_config_read(struct unet_config *config, struct checkpoint *checkpoint,
                     struct err *err) must_check;

/* Of a ControlNet's file for a model: the model's, but numbers of layers, their depths and heads
 * are the file's own. Errors name the file and the field. */
int unet_config_copy(struct unet_config *config, const struct unet_config *model,
                     struct checkpoint *checkpoint, struct err *err) must_check;

/* Binds all weights; on failure, too, unet_release is due. */
int unet_bind(struct unet *unet, const struct unet_config *config, struct checkpoint *checkpoint,
              struct backend *backend, struct err *err) must_check;
void unet_release(struct unet *unet);

/* A picture on its way, between the halves. */
struct unet_middle {
    struct tensor time, x; /* x: what the middle block made */
    struct skips skips;
};

struct unet_middle unet_encode(struct pass *pass, const struct unet *unet,
                               const struct unet_input *input);

/* y: n × h × w × out_channels. `middle` is used up. */
void unet_decode(struct pass *pass, const struct unet *unet, const struct unet_input *input,
                 struct unet_middle *middle, struct tensor *y);

#endif

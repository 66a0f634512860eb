/*
 * decode.h: latents to planes of pixels, whole where memory allows and in overlapping tiles where
 * not.
 *
 * Tiles have the geometry of diffusers' AutoencoderKL.enable_tiling: tiles as large as the VAE was
 * trained on, a quarter of overlap, linear blending. Group norms then see a tile instead of the
 * picture, so that a tiled picture differs a little from a whole one; the seams are below what
 * blending hides.
 */
#ifndef ATELIER_ENGINE_DECODE_H
#define ATELIER_ENGINE_DECODE_H

#include "engine/runtime.h"

/* Whether latents of this size can be decoded in the engine's budget, whole or in tiles, and the
 * plan of the whole or of one tile. Errors as work_plan_find. The lock is held. */
int decode_plan(struct model *model, int height, int width, struct work_plan *plan,
                struct err *err) must_check;

/* latents: LATENT_CHANNELS × height × width, unscaled. planes: 3 × f·height × f·width in -1 … 1,
 * written whole. The lock is held. */
int decode_latents(struct model *model, const float *latents, int height, int width, float *planes,
                   struct err *err) must_check;

#endif

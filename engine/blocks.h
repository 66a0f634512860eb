/*
 * blocks.h: what the UNet and the VAE are both made of.
 *
 * A block that takes `struct tensor *x` and returns a tensor leaves x alone; the caller drops both.
 */
#ifndef ATELIER_ENGINE_BLOCKS_H
#define ATELIER_ENGINE_BLOCKS_H

#include "engine/bind.h"

struct resnet {
    struct norm norm1;      /* [in] */
    struct conv conv1;      /* out × in × 3 × 3 */
    struct linear time;     /* out × embedding; time.in is 0 without one (VAE) */
    struct norm norm2;      /* [out] */
    struct conv conv2;      /* out × out × 3 × 3 */
    struct linear shortcut; /* out × in; shortcut.in is 0 where in = out */
};

struct resnet_shape {
    int in, out;
    int embedding; /* width of the time embedding, 0: none */
    int groups;
    float eps;
};

void resnet_bind(struct binder *binder, struct resnet *resnet, const struct resnet_shape *shape,
                 const char *prefix);

/* silu_time: n × 1 × 1 × embedding, f32, after its SiLU; NULL without one. */
struct tensor resnet_forward(struct pass *pass, const struct resnet *resnet, const struct tensor *x,
                             const struct tensor *silu_time);

/* resnet_forward, then x is dropped and becomes the result. */
void resnet_apply(struct pass *pass, const struct resnet *resnet, struct tensor *x,
                  const struct tensor *silu_time);

/* x becomes conv(nearest(x)) of the given size. */
void upsample_apply(struct pass *pass, const struct conv *conv, struct tensor *x, int height,
                    int width);

#endif

/*
 * transformer.h: the transformer of a UNet's level: blocks of attention of the pixels to one
 * another, attention to the text and a gated feed-forward layer, between two projections.
 *
 * Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".
 */
#ifndef ATELIER_ENGINE_TRANSFORMER_H
#define ATELIER_ENGINE_TRANSFORMER_H

#include "engine/bind.h"

#define TRANSFORMER_DEPTH_MAX 12

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
    struct transformer_block blocks[TRANSFORMER_DEPTH_MAX];
    int depth, heads;
    struct linear proj_out; /* c × c */
};

struct transformer_shape {
    int channels, context; /* of the pixels and of the text */
    int depth, heads, groups;
};

void transformer_bind(struct binder *binder, struct transformer *transformer,
                      const struct transformer_shape *shape, const char *prefix);

/* x becomes x + proj_out(blocks(proj_in(norm(x)))). `text`: n × 1 × tokens × context. */
void transformer_apply(struct pass *pass, const struct transformer *transformer,
                       const struct tensor *text, struct tensor *x);

#endif

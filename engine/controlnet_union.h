/*
 * controlnet_union.h: what a ControlNet-Union has beside a ControlNet. It reads hints of several
 * kinds, its modes, and several hints at once: a small transformer moves each hint's embedding by
 * what it makes of the embedding's mean and the hint's mode, the network is told with the time
 * which modes there are, and goes over their sum once.
 *
 * Source: diffusers' ControlNetUnionModel, whose names it reads, after xinsir's ControlNetPlus. Its
 * transformer hands samples to torch's MultiheadAttention where that expects a sequence, so what
 * attends to each other are the samples of a batch. Those of one picture are alike, latents and
 * hints, and attention among equals returns their value. So queries and keys count for nothing, no
 * hint sees another one or the latents, and all of it is the same at every step.
 */
#ifndef ATELIER_ENGINE_CONTROLNET_UNION_H
#define ATELIER_ENGINE_CONTROLNET_UNION_H

#include "engine/unet_encoder.h"

#define CONTROLNET_MODES_MAX 32
#define CONTROLNET_UNION_BLOCKS_MAX 8

struct union_block {
    struct norm norm1;
    struct linear value, out; /* c × c */
    struct norm norm2;
    struct linear fc1, fc2; /* 4c × c, c × 4c */
};

struct controlnet_union {
    int modes;              /* 0: the network is a plain one, without what follows */
    int mode_width;         /* sinusoids that say whether a mode is there */
    struct embedding tasks; /* modes × c */
    struct union_block blocks[CONTROLNET_UNION_BLOCKS_MAX];
    int block_count;
    struct linear project;      /* c × c */
    struct linear told1, told2; /* embedding × (modes·mode_width), embedding × embedding */
};

/* Whether the file is of such a network. */
bool controlnet_union_is(struct checkpoint *checkpoint);

/* Leaves `u` empty where it is not. The binder's parameters own what it makes. */
void controlnet_union_bind(struct binder *binder, struct controlnet_union *u,
                           const struct unet_config *config);

/* y, a hint's embedding, 1 × h × w × c, is moved by what its mode says of it. `scale` is the hint's
 * where it is one of several, else 1. */
void controlnet_union_move(struct pass *pass, const struct controlnet_union *u, int mode,
                           float scale, struct tensor *y);

/* One sample's modes, a bit for each, as the numbers that tell them: 1 × 1 × 1 × told1.in, f32. */
void controlnet_union_spell(struct pass *pass, const struct controlnet_union *u,
                            const struct unet_config *config, uint32_t modes, struct tensor *y);

/* What is added to the time, n × 1 × 1 × embedding, f32, of so many samples' numbers; the caller
 * drops it. */
struct tensor controlnet_union_tell(struct pass *pass, const struct controlnet_union *u,
                                    const struct tensor *x);

#endif

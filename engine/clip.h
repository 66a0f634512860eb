/*
 * clip.h: the CLIP text encoder, token ids in, one vector per token out.
 *
 * Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
 * Supervision"; transformers' CLIPTextModel.
 */
#ifndef ATELIER_ENGINE_CLIP_H
#define ATELIER_ENGINE_CLIP_H

#include "engine/bind.h"

#define CLIP_LAYERS_MAX 48

struct clip_config {
    int vocabulary, positions;
    int hidden, intermediate;
    int layers, heads;
    enum activation act;
    float eps;
    int eos; /* token whose vector is the pooled one; 2: the largest id's, as transformers has it */
};

struct clip_layer {
    struct norm norm1; /* [hidden] */
    struct linear qkv; /* 3·hidden × hidden */
    struct linear out; /* hidden × hidden */
    struct norm norm2;
    struct linear fc1; /* intermediate × hidden */
    struct linear fc2; /* hidden × intermediate */
};

struct clip {
    struct clip_config config;
    struct embedding tokens;    /* vocabulary × hidden */
    struct embedding positions; /* positions × hidden */
    struct clip_layer layers[CLIP_LAYERS_MAX];
    struct norm final_norm;
    struct parameters parameters;
};

/* From config.json, or from the shapes of a single file. Errors name the file and the field. */
int clip_config_read(struct clip_config *config, struct checkpoint *checkpoint,
                     struct err *err) must_check;

/* Binds all weights; on failure, too, clip_release is due. */
int clip_bind(struct clip *clip, const struct clip_config *config, struct checkpoint *checkpoint,
              struct backend *backend, struct err *err) must_check;
void clip_release(struct clip *clip);

/* ids: n × tokens. y: n × 1 × tokens × hidden, f32: the hidden state `skip` layers before the last,
 * after the final norm. 0 <= skip <= layers. */
void clip_forward(struct pass *pass, const struct clip *clip, const int *ids, int skip,
                  struct tensor *y);

/* The token whose final vector stands for the whole prompt. */
int clip_pooled_position(const struct clip_config *config, const int *ids, int tokens);

#endif

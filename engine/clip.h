/*
 * clip.h: the CLIP text encoder, token ids in, one vector per token out.
 *
 * Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
 * Supervision"; transformers' CLIPTextModel and CLIPTextModelWithProjection.
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
    int projection; /* width of the pooled vector; 0: none, it is as wide as the others */
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
    struct linear projection; /* projection × hidden; projection.in is 0 without one */
    struct parameters parameters;
};

/* From config.json, or from the shapes of a single file. Errors name the file and the field. */
int clip_config_read(struct clip_config *config, struct checkpoint *checkpoint,
                     enum component component, struct err *err) must_check;

/* Binds all weights; on failure, too, clip_release is due. */
int clip_bind(struct clip *clip, const struct clip_config *config, struct checkpoint *checkpoint,
              enum component component, struct backend *backend, struct err *err) must_check;
void clip_release(struct clip *clip);

/* A token that the table does not have: where it stands, and its vector with the position's. */
struct clip_row {
    int at;
    const float *values; /* [hidden], on the host */
};

/* What is read of an encoding. */
struct clip_reading {
    const struct clip_row
        *rows; /* with n = 1; their ids count for nothing but must be in the table */
    int row_count;
    int skip;      /* the hidden state so many layers before the last, 0 … layers */
    bool raw;      /* before the final norm, not after it */
    int pooled_at; /* the token of `pooled` */
};

/* ids: n × tokens. y: n × 1 × tokens × hidden, f32. pooled: NULL, or, with n = 1, 1 × 1 × 1 ×
 * clip_pooled_width, f32: a token's vector after the last layer and the final norm, projected. */
void clip_forward(struct pass *pass, const struct clip *clip, const int *ids,
                  const struct clip_reading *reading, struct tensor *y, struct tensor *pooled);

int clip_pooled_width(const struct clip_config *config);

/* The token whose final vector stands for the whole prompt. */
int clip_pooled_position(const struct clip_config *config, const int *ids, int tokens);

#endif

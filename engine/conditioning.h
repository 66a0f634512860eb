/*
 * conditioning.h: what the UNet is told about a picture besides its latents and the time.
 *
 * A picture has one row per sample that it adds to a pass: its prompt alone, or with guidance the
 * negative prompt and then the prompt; where a picture guides, too, the prompt, then the negative
 * prompt with the picture and without. A row is the prompt's embedding, token by token, and for
 * SDXL the pooled text and the numbers that describe the picture. Everything is on the host, and
 * plain values: it is saved with the session.
 */
#ifndef ATELIER_ENGINE_CONDITIONING_H
#define ATELIER_ENGINE_CONDITIONING_H

#include "engine/unet.h"

#define CONDITIONING_ROWS_MAX 3

struct conditioning {
    int rows, tokens;
    int width;        /* of a token's embedding */
    int pooled_width; /* 0: the network takes no pooled text and no numbers */
    int id_count;
    float *text;   /* rows × tokens × width, then pooled; owned */
    float *pooled; /* rows × pooled_width */
    float ids[CONDITIONING_ROWS_MAX][UNET_IDS_MAX];
    double guidance_scale; /* that a distilled network is told */
};

/* Room for the rows, all zero. -1 when there is no memory. */
int conditioning_init(struct conditioning *c, const struct unet_config *unet, int rows,
                      int tokens) must_check;
void conditioning_release(struct conditioning *c);

/* Values at `text`, pooled ones included. */
size_t conditioning_count(const struct conditioning *c);

void conditioning_copy_row(const struct conditioning *c, int to, int from);

float *conditioning_text(const struct conditioning *c, int row);
float *conditioning_pooled(const struct conditioning *c, int row);

#endif

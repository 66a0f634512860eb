#include "engine/unet.h"

#include <stdio.h>

/* ---- binding ---- */

/* Channels of the skip that resnet `j` of level `i` takes: the way down, read backwards. */
static int skip_channels(const struct unet_config *u, int i, int j)
{
    return u->channels[j < u->layers[i] || i == 0 ? i : i - 1];
}

static void bind_up(struct binder *b, struct unet *unet, const struct unet_config *u)
{
    char block[48];

    for (int k = 0; k < u->levels; k++) {
        int i = u->levels - 1 - k;
        int c = u->channels[i], before = u->channels[k == 0 ? i : i + 1];
        snprintf(block, sizeof(block), "up_blocks.%d", k);
        for (int j = 0; j <= u->layers[i]; j++)
            unet_layer_bind(b, &unet->up[k], u, i, j,
                            (j == 0 ? before : c) + skip_channels(u, i, j), u->up_depth[i][j],
                            block);
        if (i > 0)
            bind_conv(b, &unet->up[k].resample, c, c, 1, "%s.upsamplers.0.conv", block);
    }
}

int unet_bind(struct unet *unet, const struct unet_config *u, struct checkpoint *checkpoint,
              struct backend *backend, struct err *err)
{
    struct binder b = bind_begin(checkpoint, COMPONENT_UNET, &unet->parameters, backend, err);
    int c0 = u->channels[0];

    unet->config = *u;
    unet_encoder_bind(&b, &unet->encoder, u);
    bind_up(&b, unet, u);
    bind_norm(&b, &unet->norm_out, c0, u->groups, u->eps, "conv_norm_out");
    bind_conv(&b, &unet->conv_out, c0, u->out_channels, 1, "conv_out");
    return b.failed ? -1 : 0;
}

void unet_release(struct unet *unet)
{
    parameters_release(&unet->parameters);
}

/* ---- forward ---- */

/* x becomes [x, last skip]; both are dropped. */
static void skip_pop(struct pass *pass, struct skips *skips, struct tensor *x)
{
    struct tensor *skip = &skips->items[--skips->count];
    struct tensor y = pass_tensor(pass, x->n, x->h, x->w, x->c + skip->c);

    op_concat(pass, x, skip, &y);
    pass_drop(pass, skip);
    pass_drop(pass, x);
    *x = y;
}

/* What FreeU does before block `k` of the way up joins x and a skip, sample by sample. */
static void freeu_apply(struct pass *pass, const struct freeu *freeu, int k, struct tensor *x,
                        struct tensor *skip)
{
    for (int i = 0; freeu != NULL && k < 2 && i < x->n && !pass->planning && !pass->failed; i++) {
        struct tensor channels = tensor_samples(x, i, 1), low = tensor_samples(skip, i, 1);
        if (!freeu_is_on(&freeu[i]))
            continue;
        channels = tensor_columns(&channels, 0, x->c / 2);
        op_add(pass, &channels, (float)((k == 0 ? freeu[i].b1 : freeu[i].b2) - 1), &channels);
        op_damp(pass, &low, (float)(k == 0 ? freeu[i].s1 : freeu[i].s2));
    }
}

static void up_forward(struct pass *pass, const struct unet *unet, struct tensor *x,
                       const struct tensor *time, const struct unet_input *in, struct skips *skips)
{
    const struct unet_config *u = &unet->config;

    for (int k = 0; k < u->levels; k++) {
        int i = u->levels - 1 - k;
        for (int j = 0; j <= u->layers[i]; j++) {
            freeu_apply(pass, in->freeu, k, x, &skips->items[skips->count - 1]);
            skip_pop(pass, skips, x);
            resnet_apply(pass, &unet->up[k].resnets[j], x, time);
            if (u->up_depth[i][j] > 0)
                transformer_apply(pass, &unet->up[k].attentions[j], in->text, x);
        }
        if (i > 0) {
            const struct tensor *next = &skips->items[skips->count - 1];
            upsample_apply(pass, &unet->up[k].resample, x, next->h, next->w);
        }
    }
}

struct unet_middle unet_encode(struct pass *pass, const struct unet *unet,
                               const struct unet_input *in)
{
    const struct unet_encoder *encoder = &unet->encoder;
    const struct tensor *latents = in->latents;
    struct unet_middle m = {.time = unet_time_forward(pass, encoder, in)};
    struct tensor x = pass_tensor(pass, latents->n, latents->h, latents->w, encoder->conv_in.out);

    op_conv2d(pass, &(struct conv2d){.conv = &encoder->conv_in, .x = latents, .y = &x});
    m.x = unet_encoder_forward(pass, encoder, in, x, &m.time, &m.skips);
    return m;
}

void unet_decode(struct pass *pass, const struct unet *unet, const struct unet_input *in,
                 struct unet_middle *m, struct tensor *y)
{
    struct affine pre;

    up_forward(pass, unet, &m->x, &m->time, in, &m->skips);
    pre = op_group_norm(pass, &m->x, &unet->norm_out, true);
    op_conv2d(pass, &(struct conv2d){.conv = &unet->conv_out, .x = &m->x, .y = y, .pre = &pre});
    affine_drop(pass, &pre);
    pass_drop(pass, &m->x);
    pass_drop(pass, &m->time);
}

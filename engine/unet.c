#include "engine/unet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const QKV[] = {"to_q", "to_k", "to_v"};

/* ---- binding ---- */

static void bind_transformer_block(struct binder *b, struct transformer_block *t, int c,
                                   int context, const char *at)
{
    bind_norm(b, &t->norm1, c, 1, 1e-5f, "%s.norm1", at);
    bind_stack(b, &t->qkv, c, c, 3, QKV, BIND_NO_BIAS, "%s.attn1", at);
    bind_linear(b, &t->out1, c, c, BIND_BIAS, "%s.attn1.to_out.0", at);
    bind_norm(b, &t->norm2, c, 1, 1e-5f, "%s.norm2", at);
    bind_linear(b, &t->q, c, c, BIND_NO_BIAS, "%s.attn2.to_q", at);
    bind_stack(b, &t->kv, context, c, 2, QKV + 1, BIND_NO_BIAS, "%s.attn2", at);
    bind_linear(b, &t->out2, c, c, BIND_BIAS, "%s.attn2.to_out.0", at);
    bind_norm(b, &t->norm3, c, 1, 1e-5f, "%s.norm3", at);
    bind_geglu(b, &t->geglu, c, 8 * c, "%s.ff.net.0.proj", at);
    bind_linear(b, &t->ff, 4 * c, c, BIND_BIAS, "%s.ff.net.2", at);
}

static void bind_transformer(struct binder *b, struct transformer *t, const struct unet_config *u,
                             int c, int depth, int heads, const char *at)
{
    char block[96];

    t->depth = depth;
    t->heads = heads;
    bind_norm(b, &t->norm, c, u->groups, 1e-6f, "%s.norm", at);
    bind_linear(b, &t->proj_in, c, c, BIND_BIAS, "%s.proj_in", at);
    for (int i = 0; i < depth; i++) {
        snprintf(block, sizeof(block), "%s.transformer_blocks.%d", at, i);
        bind_transformer_block(b, &t->blocks[i], c, u->context, block);
    }
    bind_linear(b, &t->proj_out, c, c, BIND_BIAS, "%s.proj_out", at);
}

/* Resnet `j` of a block with, where the level has it, the attention after it. */
static void bind_layer(struct binder *b, struct unet_level *level, const struct unet_config *u,
                       int i, int j, int in, int depth, const char *block)
{
    struct resnet_shape shape = {.in = in,
                                 .out = u->channels[i],
                                 .embedding = u->embedding,
                                 .groups = u->groups,
                                 .eps = u->eps};
    char at[80];

    snprintf(at, sizeof(at), "%s.resnets.%d", block, j);
    resnet_bind(b, &level->resnets[j], &shape, at);
    snprintf(at, sizeof(at), "%s.attentions.%d", block, j);
    if (depth > 0)
        bind_transformer(b, &level->attentions[j], u, u->channels[i], depth, u->heads[i], at);
}

static void bind_down(struct binder *b, struct unet *unet, const struct unet_config *u)
{
    char block[48];

    for (int i = 0; i < u->levels; i++) {
        int in = u->channels[i > 0 ? i - 1 : 0];
        snprintf(block, sizeof(block), "down_blocks.%d", i);
        for (int j = 0; j < u->layers[i]; j++)
            bind_layer(b, &unet->down[i], u, i, j, j == 0 ? in : u->channels[i],
                       u->down_depth[i][j], block);
        if (i + 1 < u->levels)
            bind_conv(b, &unet->down[i].resample, u->channels[i], u->channels[i], 2,
                      "%s.downsamplers.0.conv", block);
    }
}

static void bind_mid(struct binder *b, struct unet *unet, const struct unet_config *u)
{
    int last = u->levels - 1, c = u->channels[last];
    struct resnet_shape shape = {
        .in = c, .out = c, .embedding = u->embedding, .groups = u->groups, .eps = u->eps};

    resnet_bind(b, &unet->mid[0], &shape, "mid_block.resnets.0");
    bind_transformer(b, &unet->mid_attention, u, c, u->mid_depth, u->heads[last],
                     "mid_block.attentions.0");
    resnet_bind(b, &unet->mid[1], &shape, "mid_block.resnets.1");
}

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
            bind_layer(b, &unet->up[k], u, i, j, (j == 0 ? before : c) + skip_channels(u, i, j),
                       u->up_depth[i][j], block);
        if (i > 0)
            bind_conv(b, &unet->up[k].resample, c, c, 1, "%s.upsamplers.0.conv", block);
    }
}

/* What becomes the embedding that every resnet adds. */
static void bind_time(struct binder *b, struct unet *unet, const struct unet_config *u)
{
    int c0 = u->channels[0], wide = u->embedding, added = u->pooled + u->ids * u->id_width;

    b->exact = true;
    bind_linear(b, &unet->time1, c0, wide, BIND_BIAS, "time_embedding.linear_1");
    bind_linear(b, &unet->time2, wide, wide, BIND_BIAS, "time_embedding.linear_2");
    if (u->guidance_width > 0)
        bind_linear(b, &unet->guidance, u->guidance_width, c0, BIND_NO_BIAS,
                    "time_embedding.cond_proj");
    if (u->pooled > 0) {
        bind_linear(b, &unet->added1, added, wide, BIND_BIAS, "add_embedding.linear_1");
        bind_linear(b, &unet->added2, wide, wide, BIND_BIAS, "add_embedding.linear_2");
    }
    b->exact = false;
}

int unet_bind(struct unet *unet, const struct unet_config *u, struct checkpoint *checkpoint,
              struct backend *backend, struct err *err)
{
    struct binder b = bind_begin(checkpoint, COMPONENT_UNET, &unet->parameters, backend, err);
    int c0 = u->channels[0];

    unet->config = *u;
    bind_time(&b, unet, u);
    bind_conv(&b, &unet->conv_in, u->in_channels, c0, 1, "conv_in");
    bind_down(&b, unet, u);
    bind_mid(&b, unet, u);
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

/* cos and sin of t at geometric rates from 1 to 1/10000, or sin first. */
static void sinusoids(const struct unet_config *u, double t, float *values, int width)
{
    int half = width / 2, cos_at = u->flip_sin_to_cos ? 0 : half;

    for (int i = 0; i < half; i++) {
        float rate = expf(-logf(10000.0f) * (float)i / (float)(half - u->freq_shift));
        float angle = (float)t * rate;
        values[cos_at + i] = cosf(angle);
        values[half - cos_at + i] = sinf(angle);
    }
}

/* The same of a guidance scale, sin first. The angles reach thousands, where an f32 rate's last bit
 * shows: each is rounded where Luo et al. 2023, "Latent Consistency Models", round theirs. */
static void guidance_sinusoids(double scale, float *values, int width)
{
    int half = width / 2;
    float w = (float)(scale - 1) * 1000, step = (float)log(10000) / (float)(half - 1);

    for (int i = 0; i < half; i++) {
        float angle = w * (float)exp((float)i * -step);
        values[i] = (float)sin(angle);
        values[half + i] = (float)cos(angle);
    }
}

/* Row `i` of n × 1 × 1 × c. */
static struct tensor row_of(const struct tensor *t, int i)
{
    struct tensor row = *t;

    row.n = 1;
    row.data = (char *)t->data + (size_t)i * (size_t)t->ld * dtype_bytes(t->dtype);
    return row;
}

/* y = the sinusoids of the timesteps, with those of the guidance scale on top. */
static void time_input(struct pass *pass, const struct unet *unet, const struct unet_input *in,
                       struct tensor *y)
{
    int width = unet->config.guidance_width;
    struct tensor guidance = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, width > 0 ? width : 1);
    float values[UNET_WIDTH_MAX];

    for (int i = 0; i < y->n && !pass->planning && !pass->failed; i++) {
        struct tensor row = row_of(y, i);
        sinusoids(&unet->config, in->timesteps[i], values, y->c);
        op_upload(pass, &row, values);
        row = row_of(&guidance, i);
        if (width > 0) {
            memset(values, 0, (size_t)width * sizeof(float)); /* an odd one ends in 0 */
            guidance_sinusoids(in->guidance[i], values, width);
            op_upload(pass, &row, values);
        }
    }
    if (width > 0)
        op_matmul(pass, &(struct matmul){
                            .linear = &unet->guidance, .x = &guidance, .y = y, .residual = y});
    pass_drop(pass, &guidance);
}

/* y += linear2(silu(linear1([pooled text, sinusoids of each number]))) */
static void added_forward(struct pass *pass, const struct unet *unet, const struct unet_input *in,
                          struct tensor *y)
{
    const struct unet_config *u = &unet->config;
    struct tensor ids = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, u->ids * u->id_width);
    struct tensor x = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, u->pooled + ids.c);
    struct tensor hidden = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, y->c);
    float values[UNET_WIDTH_MAX];

    for (int i = 0; i < y->n && !pass->planning && !pass->failed; i++) {
        struct tensor row = row_of(&ids, i);
        for (int j = 0; j < u->ids; j++)
            sinusoids(u, in->ids[i * u->ids + j], values + j * u->id_width, u->id_width);
        op_upload(pass, &row, values);
    }
    op_concat(pass, in->pooled, &ids, &x);
    op_matmul(pass,
              &(struct matmul){.linear = &unet->added1, .x = &x, .y = &hidden, .act = ACT_SILU});
    op_matmul(pass, &(struct matmul){.linear = &unet->added2, .x = &hidden, .y = y, .residual = y});
    pass_drop(pass, &hidden);
    pass_drop(pass, &x);
    pass_drop(pass, &ids);
}

/* Vaswani et al. 2017, as Ho et al. 2020 scale it: silu(linear2(silu(linear1(sinusoids))) + what
 * SDXL adds). */
static struct tensor time_forward(struct pass *pass, const struct unet *unet,
                                  const struct unet_input *in)
{
    bool adds = unet->config.pooled > 0;
    int n = in->latents->n;
    struct tensor x = pass_tensor_of(pass, DTYPE_F32, n, 1, 1, unet->time1.in);
    struct tensor hidden = pass_tensor_of(pass, DTYPE_F32, n, 1, 1, unet->time1.out);
    struct tensor y = pass_tensor_of(pass, DTYPE_F32, n, 1, 1, unet->time2.out);

    time_input(pass, unet, in, &x);
    op_matmul(pass,
              &(struct matmul){.linear = &unet->time1, .x = &x, .y = &hidden, .act = ACT_SILU});
    op_matmul(pass, &(struct matmul){.linear = &unet->time2,
                                     .x = &hidden,
                                     .y = &y,
                                     .act = adds ? ACT_NONE : ACT_SILU});
    if (adds) {
        added_forward(pass, unet, in, &y);
        op_silu(pass, &y, &y);
    }
    pass_drop(pass, &hidden);
    pass_drop(pass, &x);
    return y;
}

/* x += out1(self-attention(norm1(x))) */
static void self_attention(struct pass *pass, const struct transformer_block *t, int heads,
                           struct tensor *x, struct tensor *h)
{
    struct tensor qkv = pass_tensor(pass, x->n, x->h, x->w, 3 * x->c);
    struct tensor q = tensor_columns(&qkv, 0, x->c), k = tensor_columns(&qkv, x->c, x->c);
    struct tensor v = tensor_columns(&qkv, 2 * x->c, x->c);
    float scale = 1 / sqrtf((float)(x->c / heads));

    op_layer_norm(pass, x, &t->norm1, h);
    op_matmul(pass, &(struct matmul){.linear = &t->qkv, .x = h, .y = &qkv});
    op_attention(pass, &(struct attention){
                           .q = &q, .k = &k, .v = &v, .y = h, .heads = heads, .scale = scale});
    op_matmul(pass, &(struct matmul){.linear = &t->out1, .x = h, .y = x, .residual = x});
    pass_drop(pass, &qkv);
}

/* x += out2(attention of norm2(x) to the text) */
static void cross_attention(struct pass *pass, const struct transformer_block *t, int heads,
                            const struct tensor *text, struct tensor *x, struct tensor *h)
{
    struct tensor q = pass_tensor(pass, x->n, x->h, x->w, x->c);
    struct tensor kv = pass_tensor(pass, text->n, text->h, text->w, 2 * x->c);
    struct tensor k = tensor_columns(&kv, 0, x->c), v = tensor_columns(&kv, x->c, x->c);
    float scale = 1 / sqrtf((float)(x->c / heads));

    op_layer_norm(pass, x, &t->norm2, h);
    op_matmul(pass, &(struct matmul){.linear = &t->q, .x = h, .y = &q});
    op_matmul(pass, &(struct matmul){.linear = &t->kv, .x = text, .y = &kv});
    op_attention(pass, &(struct attention){
                           .q = &q, .k = &k, .v = &v, .y = h, .heads = heads, .scale = scale});
    op_matmul(pass, &(struct matmul){.linear = &t->out2, .x = h, .y = x, .residual = x});
    pass_drop(pass, &kv);
    pass_drop(pass, &q);
}

/* x += ff(geglu(norm3(x))) */
static void feed_forward(struct pass *pass, const struct transformer_block *t, struct tensor *x,
                         struct tensor *h)
{
    struct tensor wide = pass_tensor(pass, x->n, x->h, x->w, 4 * x->c);

    op_layer_norm(pass, x, &t->norm3, h);
    op_matmul(pass, &(struct matmul){.linear = &t->geglu, .x = h, .y = &wide, .act = ACT_GEGLU});
    op_matmul(pass, &(struct matmul){.linear = &t->ff, .x = &wide, .y = x, .residual = x});
    pass_drop(pass, &wide);
}

/* x becomes x + proj_out(blocks(proj_in(norm(x)))). */
static void transformer_apply(struct pass *pass, const struct transformer *t,
                              const struct tensor *text, struct tensor *x)
{
    struct tensor h = pass_tensor(pass, x->n, x->h, x->w, x->c);
    struct tensor normed = pass_tensor(pass, x->n, x->h, x->w, x->c);
    struct affine pre = op_group_norm(pass, x, &t->norm, false);

    op_matmul(pass, &(struct matmul){.linear = &t->proj_in, .x = x, .y = &h, .pre = &pre});
    affine_drop(pass, &pre);
    for (int i = 0; i < t->depth; i++) {
        self_attention(pass, &t->blocks[i], t->heads, &h, &normed);
        cross_attention(pass, &t->blocks[i], t->heads, text, &h, &normed);
        feed_forward(pass, &t->blocks[i], &h, &normed);
    }
    op_matmul(pass, &(struct matmul){.linear = &t->proj_out, .x = &h, .y = &normed, .residual = x});
    pass_drop(pass, &h);
    pass_drop(pass, x);
    *x = normed;
}

struct skips {
    struct tensor items[UNET_SKIPS_MAX];
    int count;
};

static void skip_push(struct skips *skips, const struct tensor *x)
{
    ASSERT(skips->count < UNET_SKIPS_MAX);
    skips->items[skips->count++] = *x;
}

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

/* The way down; every x that is pushed belongs to the skips. Returns the deepest. */
static struct tensor down_forward(struct pass *pass, const struct unet *unet, struct tensor x,
                                  const struct tensor *time, const struct tensor *text,
                                  struct skips *skips)
{
    const struct unet_config *u = &unet->config;

    skip_push(skips, &x);
    for (int i = 0; i < u->levels; i++) {
        const struct unet_level *level = &unet->down[i];
        for (int j = 0; j < u->layers[i]; j++) {
            x = resnet_forward(pass, &level->resnets[j], &x, time);
            if (u->down_depth[i][j] > 0)
                transformer_apply(pass, &level->attentions[j], text, &x);
            skip_push(skips, &x);
        }
        if (i + 1 < u->levels) {
            struct tensor y = pass_tensor(pass, x.n, (x.h + 1) / 2, (x.w + 1) / 2, x.c);
            op_conv2d(pass, &(struct conv2d){.conv = &level->resample, .x = &x, .y = &y});
            x = y;
            skip_push(skips, &x);
        }
    }
    return x;
}

static void up_forward(struct pass *pass, const struct unet *unet, struct tensor *x,
                       const struct tensor *time, const struct tensor *text, struct skips *skips)
{
    const struct unet_config *u = &unet->config;

    for (int k = 0; k < u->levels; k++) {
        int i = u->levels - 1 - k;
        for (int j = 0; j <= u->layers[i]; j++) {
            skip_pop(pass, skips, x);
            resnet_apply(pass, &unet->up[k].resnets[j], x, time);
            if (u->up_depth[i][j] > 0)
                transformer_apply(pass, &unet->up[k].attentions[j], text, x);
        }
        if (i > 0) {
            const struct tensor *next = &skips->items[skips->count - 1];
            upsample_apply(pass, &unet->up[k].resample, x, next->h, next->w);
        }
    }
}

void unet_forward(struct pass *pass, const struct unet *unet, const struct unet_input *in,
                  struct tensor *y)
{
    const struct tensor *latents = in->latents, *text = in->text;
    struct skips skips = {.count = 0};
    struct tensor time = time_forward(pass, unet, in);
    struct tensor x = pass_tensor(pass, latents->n, latents->h, latents->w, unet->conv_in.out);
    struct affine pre;

    op_conv2d(pass, &(struct conv2d){.conv = &unet->conv_in, .x = latents, .y = &x});
    x = down_forward(pass, unet, x, &time, text, &skips);
    x = resnet_forward(pass, &unet->mid[0], &x, &time);
    transformer_apply(pass, &unet->mid_attention, text, &x);
    resnet_apply(pass, &unet->mid[1], &x, &time);
    up_forward(pass, unet, &x, &time, text, &skips);
    pre = op_group_norm(pass, &x, &unet->norm_out, true);
    op_conv2d(pass, &(struct conv2d){.conv = &unet->conv_out, .x = &x, .y = y, .pre = &pre});
    affine_drop(pass, &pre);
    pass_drop(pass, &x);
    pass_drop(pass, &time);
}

#include "engine/unet_encoder.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- binding ---- */

static void bind_attention(struct binder *b, struct transformer *t, const struct unet_config *u,
                           int level, int depth, const char *at)
{
    struct transformer_shape shape = {.channels = u->channels[level],
                                      .context = u->context,
                                      .depth = depth,
                                      .heads = u->heads[level],
                                      .groups = u->groups};

    transformer_bind(b, t, &shape, at);
}

void unet_layer_bind(struct binder *b, struct unet_level *level, const struct unet_config *u, int i,
                     int j, int in, int depth, const char *block)
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
        bind_attention(b, &level->attentions[j], u, i, depth, at);
}

static void bind_down(struct binder *b, struct unet_encoder *encoder, const struct unet_config *u)
{
    char block[48];

    for (int i = 0; i < u->levels; i++) {
        int in = u->channels[i > 0 ? i - 1 : 0];
        snprintf(block, sizeof(block), "down_blocks.%d", i);
        for (int j = 0; j < u->layers[i]; j++)
            unet_layer_bind(b, &encoder->down[i], u, i, j, j == 0 ? in : u->channels[i],
                            u->down_depth[i][j], block);
        if (i + 1 < u->levels)
            bind_conv(b, &encoder->down[i].resample, u->channels[i], u->channels[i], 2,
                      "%s.downsamplers.0.conv", block);
    }
}

static void bind_mid(struct binder *b, struct unet_encoder *encoder, const struct unet_config *u)
{
    int last = u->levels - 1, c = u->channels[last];
    struct resnet_shape shape = {
        .in = c, .out = c, .embedding = u->embedding, .groups = u->groups, .eps = u->eps};

    resnet_bind(b, &encoder->mid[0], &shape, "mid_block.resnets.0");
    if (u->mid_depth == 0)
        return;
    bind_attention(b, &encoder->mid_attention, u, last, u->mid_depth, "mid_block.attentions.0");
    resnet_bind(b, &encoder->mid[1], &shape, "mid_block.resnets.1");
}

/* What becomes the embedding that every resnet adds. */
static void bind_time(struct binder *b, struct unet_encoder *encoder, const struct unet_config *u)
{
    int c0 = u->channels[0], wide = u->embedding, added = u->pooled + u->ids * u->id_width;

    b->exact = true;
    bind_linear(b, &encoder->time1, c0, wide, BIND_BIAS, "time_embedding.linear_1");
    bind_linear(b, &encoder->time2, wide, wide, BIND_BIAS, "time_embedding.linear_2");
    if (u->guidance_width > 0)
        bind_linear(b, &encoder->guidance, u->guidance_width, c0, BIND_NO_BIAS,
                    "time_embedding.cond_proj");
    if (u->pooled > 0) {
        bind_linear(b, &encoder->added1, added, wide, BIND_BIAS, "add_embedding.linear_1");
        bind_linear(b, &encoder->added2, wide, wide, BIND_BIAS, "add_embedding.linear_2");
    }
    b->exact = false;
}

void unet_encoder_bind(struct binder *b, struct unet_encoder *encoder, const struct unet_config *u)
{
    encoder->config = *u;
    bind_time(b, encoder, u);
    bind_conv(b, &encoder->conv_in, u->in_channels, u->channels[0], 1, "conv_in");
    bind_down(b, encoder, u);
    bind_mid(b, encoder, u);
}

/* ---- forward ---- */

void unet_sinusoids(const struct unet_config *u, double t, float *values, int width)
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
static void time_input(struct pass *pass, const struct unet_encoder *encoder,
                       const struct unet_input *in, struct tensor *y)
{
    int width = encoder->config.guidance_width;
    struct tensor guidance = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, width > 0 ? width : 1);
    float values[UNET_WIDTH_MAX];

    for (int i = 0; i < y->n && !pass->planning && !pass->failed; i++) {
        struct tensor row = row_of(y, i);
        unet_sinusoids(&encoder->config, in->timesteps[i], values, y->c);
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
                            .linear = &encoder->guidance, .x = &guidance, .y = y, .residual = y});
    pass_drop(pass, &guidance);
}

/* y += linear2(silu(linear1([pooled text, sinusoids of each number]))) */
static void added_forward(struct pass *pass, const struct unet_encoder *encoder,
                          const struct unet_input *in, struct tensor *y)
{
    const struct unet_config *u = &encoder->config;
    struct tensor ids = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, u->ids * u->id_width);
    struct tensor x = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, u->pooled + ids.c);
    struct tensor hidden = pass_tensor_of(pass, DTYPE_F32, y->n, 1, 1, y->c);
    float values[UNET_WIDTH_MAX];

    for (int i = 0; i < y->n && !pass->planning && !pass->failed; i++) {
        struct tensor row = row_of(&ids, i);
        for (int j = 0; j < u->ids; j++)
            unet_sinusoids(u, in->ids[i * u->ids + j], values + j * u->id_width, u->id_width);
        op_upload(pass, &row, values);
    }
    op_concat(pass, in->pooled, &ids, &x);
    op_matmul(pass,
              &(struct matmul){.linear = &encoder->added1, .x = &x, .y = &hidden, .act = ACT_SILU});
    op_matmul(pass,
              &(struct matmul){.linear = &encoder->added2, .x = &hidden, .y = y, .residual = y});
    pass_drop(pass, &hidden);
    pass_drop(pass, &x);
    pass_drop(pass, &ids);
}

/* Vaswani et al. 2017, as Ho et al. 2020 scale it: silu(linear2(silu(linear1(sinusoids))) + what
 * SDXL and a ControlNet-Union add). */
struct tensor unet_time_forward(struct pass *pass, const struct unet_encoder *encoder,
                                const struct unet_input *in)
{
    bool pooled = encoder->config.pooled > 0, adds = pooled || in->told != NULL;
    int n = in->latents->n;
    struct tensor x = pass_tensor_of(pass, DTYPE_F32, n, 1, 1, encoder->time1.in);
    struct tensor hidden = pass_tensor_of(pass, DTYPE_F32, n, 1, 1, encoder->time1.out);
    struct tensor y = pass_tensor_of(pass, DTYPE_F32, n, 1, 1, encoder->time2.out);

    time_input(pass, encoder, in, &x);
    op_matmul(pass,
              &(struct matmul){.linear = &encoder->time1, .x = &x, .y = &hidden, .act = ACT_SILU});
    op_matmul(pass, &(struct matmul){.linear = &encoder->time2,
                                     .x = &hidden,
                                     .y = &y,
                                     .act = adds ? ACT_NONE : ACT_SILU});
    if (in->told != NULL)
        op_add(pass, in->told, 1, &y);
    if (pooled)
        added_forward(pass, encoder, in, &y);
    if (adds)
        op_silu(pass, &y, &y);
    pass_drop(pass, &hidden);
    pass_drop(pass, &x);
    return y;
}

static void skip_push(struct skips *skips, const struct tensor *x)
{
    ASSERT(skips->count < UNET_SKIPS_MAX);
    skips->items[skips->count++] = *x;
}

static void add_features(struct pass *pass, const struct unet_input *in, int level,
                         struct tensor *x)
{
    for (int i = 0; i < in->feature_count; i++) {
        const struct unet_feature *f = &in->features[i];
        struct tensor sample = tensor_samples(x, f->sample, 1);
        if (f->level == level)
            op_add(pass, f->x, f->scale, &sample);
    }
}

/* x becomes the next level's, which is half as large. */
static struct tensor shrink(struct pass *pass, const struct conv *conv, const struct tensor *x)
{
    struct tensor y = pass_tensor(pass, x->n, (x->h + 1) / 2, (x->w + 1) / 2, x->c);

    op_conv2d(pass, &(struct conv2d){.conv = conv, .x = x, .y = &y});
    return y;
}

/* The way down; every x that is pushed belongs to the skips. Returns the deepest. */
static struct tensor down_forward(struct pass *pass, const struct unet_encoder *encoder,
                                  const struct unet_input *in, struct tensor x,
                                  const struct tensor *time, struct skips *skips)
{
    const struct unet_config *u = &encoder->config;

    skip_push(skips, &x);
    for (int i = 0; i < u->levels; i++) {
        const struct unet_level *level = &encoder->down[i];
        int last = u->layers[i] - 1;
        bool attends = u->down_depth[i][last] > 0, shrinks = i + 1 < u->levels;
        for (int j = 0; j <= last; j++) {
            x = resnet_forward(pass, &level->resnets[j], &x, time);
            if (u->down_depth[i][j] > 0)
                transformer_apply(pass, &level->attentions[j], in->text, &x);
            if (j == last && (attends || !shrinks))
                add_features(pass, in, i, &x);
            skip_push(skips, &x);
        }
        if (shrinks) {
            x = shrink(pass, &level->resample, &x);
            if (!attends)
                add_features(pass, in, i, &x);
            skip_push(skips, &x);
        }
    }
    return x;
}

struct tensor unet_encoder_forward(struct pass *pass, const struct unet_encoder *encoder,
                                   const struct unet_input *in, struct tensor x,
                                   const struct tensor *time, struct skips *skips)
{
    x = down_forward(pass, encoder, in, x, time, skips);
    x = resnet_forward(pass, &encoder->mid[0], &x, time);
    if (encoder->config.mid_depth > 0) {
        transformer_apply(pass, &encoder->mid_attention, in->text, &x);
        resnet_apply(pass, &encoder->mid[1], &x, time);
    }
    add_features(pass, in, encoder->config.levels, &x);
    return x;
}

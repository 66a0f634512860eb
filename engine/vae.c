#include "engine/vae.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define VAE_EPS 1e-6f

static const char *const QKV[] = {"to_q", "to_k", "to_v"};

/* ---- configuration ---- */

static void config_from_shapes(struct vae_config *v, struct checkpoint *c)
{
    const enum component vae = COMPONENT_VAE;
    bool xl = checkpoint_has(c, COMPONENT_TEXT_2);

    *v = (struct vae_config){.groups = 32,
                             .sample_size = xl ? 1024 : 512,
                             .mid_attention = true,
                             .quant_conv = true,
                             .post_quant_conv = true,
                             .scaling_factor = xl ? 0.13025 : 0.18215};
    while (v->layers <= VAE_LAYERS_MAX &&
           bind_dim(c, vae, 0, "encoder.down_blocks.0.resnets.%d.conv1.weight", v->layers) > 0)
        v->layers++;
    v->latent_channels = bind_dim(c, vae, 1, "decoder.conv_in.weight");
    for (int i = 0; i < VAE_LEVELS_MAX; i++) {
        int width = bind_dim(c, vae, 0, "encoder.down_blocks.%d.resnets.0.conv1.weight", i);
        if (width == 0)
            break;
        v->channels[i] = width;
        v->levels = i + 1;
    }
}

static void config_from_json(struct vae_config *v, const struct json *json)
{
    const struct json *channels = json_get(json, "block_out_channels");
    const struct json *width = channels != NULL ? channels->child : NULL;

    *v = (struct vae_config){
        .latent_channels = (int)json_int_or(json_get(json, "latent_channels"), 4),
        .layers = (int)json_int_or(json_get(json, "layers_per_block"), 1),
        .groups = (int)json_int_or(json_get(json, "norm_num_groups"), 32),
        .sample_size = (int)json_int_or(json_get(json, "sample_size"), 512),
        .mid_attention = json_bool_or(json_get(json, "mid_block_add_attention"), true),
        .quant_conv = json_bool_or(json_get(json, "use_quant_conv"), true),
        .post_quant_conv = json_bool_or(json_get(json, "use_post_quant_conv"), true),
        .scaling_factor = json_double_or(json_get(json, "scaling_factor"), 0.18215),
    };
    for (; width != NULL && v->levels < VAE_LEVELS_MAX; width = width->next)
        v->channels[v->levels++] = (int)json_int_or(width, 0);
}

/* Only SDXL's pipelines read what the latents' mean and deviation are. */
static void read_statistics(struct vae_config *v, const struct json *json, enum family family)
{
    const struct json *mean = json_get(json, "latents_mean"), *std = json_get(json, "latents_std");
    bool normalized = (family == FAMILY_SDXL || family == FAMILY_SDXL_REFINER) && mean != NULL &&
                      std != NULL && mean->count == VAE_CHANNELS_MAX &&
                      std->count == VAE_CHANNELS_MAX;

    mean = normalized ? mean->child : NULL;
    std = normalized ? std->child : NULL;
    for (int i = 0; i < VAE_CHANNELS_MAX; i++) {
        v->mean[i] = (float)json_double_or(mean, json_double_or(json_get(json, "shift_factor"), 0));
        v->std[i] = (float)json_double_or(std, 1);
        mean = mean != NULL ? mean->next : NULL;
        std = std != NULL ? std->next : NULL;
    }
}

/* As diffusers' pipelines of SDXL do: its VAE leaves f16's range, unless a file says that this one
 * was trained not to. */
static bool is_wide(const struct json *json, enum family family)
{
    return (family == FAMILY_SDXL || family == FAMILY_SDXL_REFINER) &&
           json_bool_or(json_get(json, "force_upcast"), true);
}

int vae_config_read(struct vae_config *v, struct checkpoint *checkpoint, struct err *err)
{
    const struct json *json = checkpoint_config(checkpoint, COMPONENT_VAE);
    bool usable;

    if (json == NULL)
        config_from_shapes(v, checkpoint);
    else
        config_from_json(v, json);
    read_statistics(v, json, checkpoint_family(checkpoint));
    v->wide = is_wide(json, checkpoint_family(checkpoint));
    if (v->sample_size < 256)
        v->sample_size = 256; /* smaller tiles would be mostly overlap */
    usable = v->levels > 0 && v->latent_channels > 0 && v->groups > 0 && v->layers > 0 &&
             v->layers <= VAE_LAYERS_MAX;
    for (int i = 0; i < v->levels; i++)
        usable = usable && v->channels[i] > 0 && v->channels[i] % v->groups == 0;
    if (!usable || v->latent_channels != VAE_CHANNELS_MAX)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%s: its VAE is of a kind that this version does not draw with "
                       "(latent_channels %d, block_out_channels of %d levels, norm_num_groups %d)",
                       checkpoint_file(checkpoint, COMPONENT_VAE), v->latent_channels, v->levels,
                       v->groups);
    return 0;
}

int vae_factor(const struct vae_config *config)
{
    return 1 << (config->levels - 1);
}

void vae_scale(const struct vae_config *v, float *to, const float *from, size_t pixels)
{
    float scale = (float)v->scaling_factor;

    for (size_t i = 0; i < (size_t)v->latent_channels * pixels; i++)
        to[i] = (from[i] - v->mean[i / pixels]) * scale / v->std[i / pixels];
}

void vae_unscale(const struct vae_config *v, float *to, const float *from, size_t pixels)
{
    float scale = (float)v->scaling_factor;

    for (size_t i = 0; i < (size_t)v->latent_channels * pixels; i++)
        to[i] = from[i] * v->std[i / pixels] / scale + v->mean[i / pixels];
}

/* ---- binding ---- */

static struct resnet_shape shape_of(const struct vae_config *v, int in, int out)
{
    return (struct resnet_shape){.in = in, .out = out, .groups = v->groups, .eps = VAE_EPS};
}

static void bind_level(struct binder *b, struct vae_level *level, const struct vae_config *v,
                       int resnets, int in, int out, const char *at)
{
    char name[80];

    for (int j = 0; j < resnets; j++) {
        struct resnet_shape shape = shape_of(v, j == 0 ? in : out, out);
        snprintf(name, sizeof(name), "%s.resnets.%d", at, j);
        resnet_bind(b, &level->resnets[j], &shape, name);
    }
}

static void bind_mid(struct binder *b, struct vae_half *half, const struct vae_config *v,
                     const char *side)
{
    int c = v->channels[v->levels - 1];
    struct resnet_shape shape = shape_of(v, c, c);
    char name[80];

    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "%s.mid_block.resnets.%d", side, i);
        resnet_bind(b, &half->mid[i], &shape, name);
    }
    if (!v->mid_attention)
        return;
    snprintf(name, sizeof(name), "%s.mid_block.attentions.0", side);
    bind_norm(b, &half->attention.norm, c, v->groups, VAE_EPS, "%s.group_norm", name);
    bind_stack(b, &half->attention.qkv, c, c, 3, QKV, BIND_BIAS, "%s", name);
    bind_linear(b, &half->attention.out, c, c, BIND_BIAS, "%s.to_out.0", name);
}

static void bind_decoder(struct binder *b, struct vae_half *d, const struct vae_config *v)
{
    int last = v->levels - 1, z = v->latent_channels;
    char at[48];

    b->exact = true;
    if (v->post_quant_conv)
        bind_linear(b, &d->quant, z, z, BIND_BIAS, "post_quant_conv");
    b->exact = false;
    bind_conv(b, &d->conv_in, z, v->channels[last], 1, "decoder.conv_in");
    bind_mid(b, d, v, "decoder");
    for (int k = 0; k < v->levels; k++) {
        int out = v->channels[last - k], in = v->channels[k == 0 ? last : last - k + 1];
        snprintf(at, sizeof(at), "decoder.up_blocks.%d", k);
        bind_level(b, &d->levels[k], v, v->layers + 1, in, out, at);
        if (k < last)
            bind_conv(b, &d->levels[k].resample, out, out, 1, "%s.upsamplers.0.conv", at);
    }
    bind_norm(b, &d->norm_out, v->channels[0], v->groups, VAE_EPS, "decoder.conv_norm_out");
    bind_conv(b, &d->conv_out, v->channels[0], 3, 1, "decoder.conv_out");
}

static void bind_encoder(struct binder *b, struct vae_half *e, const struct vae_config *v)
{
    int last = v->levels - 1, z = 2 * v->latent_channels;
    char at[48];

    bind_conv(b, &e->conv_in, 3, v->channels[0], 1, "encoder.conv_in");
    for (int k = 0; k < v->levels; k++) {
        int out = v->channels[k], in = v->channels[k == 0 ? 0 : k - 1];
        snprintf(at, sizeof(at), "encoder.down_blocks.%d", k);
        bind_level(b, &e->levels[k], v, v->layers, in, out, at);
        if (k < last)
            bind_conv(b, &e->levels[k].resample, out, out, 2, "%s.downsamplers.0.conv", at);
    }
    bind_mid(b, e, v, "encoder");
    bind_norm(b, &e->norm_out, v->channels[last], v->groups, VAE_EPS, "encoder.conv_norm_out");
    bind_conv(b, &e->conv_out, v->channels[last], z, 1, "encoder.conv_out");
    b->exact = true;
    if (v->quant_conv)
        bind_linear(b, &e->quant, z, z, BIND_BIAS, "quant_conv");
}

int vae_bind(struct vae *vae, const struct vae_config *config, struct checkpoint *checkpoint,
             struct backend *backend, struct err *err)
{
    struct binder b = bind_begin(checkpoint, COMPONENT_VAE, &vae->parameters, backend, err);

    b.wide = config->wide;
    vae->config = *config;
    bind_decoder(&b, &vae->decoder, config);
    bind_encoder(&b, &vae->encoder, config);
    return b.failed ? -1 : 0;
}

void vae_release(struct vae *vae)
{
    parameters_release(&vae->parameters);
}

/* ---- forward ---- */

/* x becomes x + out(attention(norm(x))), one head as wide as x. */
static void attention_apply(struct pass *pass, const struct vae_attention *a, struct tensor *x)
{
    struct tensor qkv = pass_tensor(pass, x->n, x->h, x->w, 3 * x->c);
    struct tensor h = pass_tensor(pass, x->n, x->h, x->w, x->c);
    struct tensor q = tensor_columns(&qkv, 0, x->c), k = tensor_columns(&qkv, x->c, x->c);
    struct tensor v = tensor_columns(&qkv, 2 * x->c, x->c);
    struct affine pre = op_group_norm(pass, x, &a->norm, false);

    op_matmul(pass, &(struct matmul){.linear = &a->qkv, .x = x, .y = &qkv, .pre = &pre});
    op_attention(
        pass, &(struct attention){
                  .q = &q, .k = &k, .v = &v, .y = &h, .heads = 1, .scale = 1 / sqrtf((float)x->c)});
    op_matmul(pass, &(struct matmul){.linear = &a->out, .x = &h, .y = x, .residual = x});
    affine_drop(pass, &pre);
    pass_drop(pass, &h);
    pass_drop(pass, &qkv);
}

static void mid_apply(struct pass *pass, const struct vae_half *half, bool attention,
                      struct tensor *x)
{
    resnet_apply(pass, &half->mid[0], x, NULL);
    if (attention)
        attention_apply(pass, &half->attention, x);
    resnet_apply(pass, &half->mid[1], x, NULL);
}

/* y = conv_out(silu(norm_out(x))) */
static void head_forward(struct pass *pass, const struct vae_half *half, const struct tensor *x,
                         struct tensor *y)
{
    struct affine pre = op_group_norm(pass, x, &half->norm_out, true);

    op_conv2d(pass, &(struct conv2d){.conv = &half->conv_out, .x = x, .y = y, .pre = &pre});
    affine_drop(pass, &pre);
}

void vae_decode(struct pass *pass, const struct vae *vae, const struct tensor *latents,
                struct tensor *y)
{
    const struct vae_config *v = &vae->config;
    const struct vae_half *d = &vae->decoder;
    struct tensor z =
        pass_tensor_of(pass, DTYPE_F32, latents->n, latents->h, latents->w, latents->c);
    struct tensor x = pass_tensor(pass, z.n, z.h, z.w, d->conv_in.out);

    if (d->quant.in > 0)
        op_matmul(pass, &(struct matmul){.linear = &d->quant, .x = latents, .y = &z});
    op_conv2d(pass,
              &(struct conv2d){.conv = &d->conv_in, .x = d->quant.in > 0 ? &z : latents, .y = &x});
    pass_drop(pass, &z);
    mid_apply(pass, d, v->mid_attention, &x);
    for (int k = 0; k < v->levels; k++) {
        for (int j = 0; j <= v->layers; j++)
            resnet_apply(pass, &d->levels[k].resnets[j], &x, NULL);
        if (k + 1 < v->levels)
            upsample_apply(pass, &d->levels[k].resample, &x, 2 * x.h, 2 * x.w);
    }
    head_forward(pass, d, &x, y);
    pass_drop(pass, &x);
}

void vae_encode(struct pass *pass, const struct vae *vae, const struct tensor *pixels,
                struct tensor *y)
{
    const struct vae_config *v = &vae->config;
    const struct vae_half *e = &vae->encoder;
    struct tensor x = pass_tensor(pass, pixels->n, pixels->h, pixels->w, e->conv_in.out);
    struct tensor z = pass_tensor_of(pass, DTYPE_F32, y->n, y->h, y->w, y->c);

    op_conv2d(pass, &(struct conv2d){.conv = &e->conv_in, .x = pixels, .y = &x});
    for (int k = 0; k < v->levels; k++) {
        for (int j = 0; j < v->layers; j++)
            resnet_apply(pass, &e->levels[k].resnets[j], &x, NULL);
        if (k + 1 < v->levels) {
            struct tensor half = pass_tensor(pass, x.n, x.h / 2, x.w / 2, x.c);
            op_conv2d(pass, &(struct conv2d){.conv = &e->levels[k].resample,
                                             .x = &x,
                                             .y = &half,
                                             .pad_end_only = true});
            pass_drop(pass, &x);
            x = half;
        }
    }
    mid_apply(pass, e, v->mid_attention, &x);
    head_forward(pass, e, &x, e->quant.in > 0 ? &z : y);
    if (e->quant.in > 0)
        op_matmul(pass, &(struct matmul){.linear = &e->quant, .x = &z, .y = y});
    pass_drop(pass, &z);
    pass_drop(pass, &x);
}

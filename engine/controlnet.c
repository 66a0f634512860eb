#include "engine/controlnet.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- binding ---- */

static int wrong_family(struct err *err, const char *file, const char *name,
                        const struct stored_tensor *t, int channels, int context)
{
    return err_set(err, ERR_FORMAT, ERR_REJECT,
                   "%s: tensor '%s' has the shape [%lld, %lld], the model needs [%d, %d]; it "
                   "belongs to a model of another family",
                   file, name, (long long)t->dims[0], (long long)t->dims[1], channels, context);
}

/* The first attention to the text tells families apart; many other layers are alike in all. */
static int check_family(const struct unet_config *u, struct checkpoint *c, struct err *err)
{
    char name[CHECKPOINT_NAME_MAX_BYTES], stored[CHECKPOINT_NAME_MAX_BYTES];

    for (int i = 0; i < u->levels; i++) {
        snprintf(name, sizeof(name),
                 "down_blocks.%d.attentions.0.transformer_blocks.0.attn2.to_k.weight", i);
        const struct stored_tensor *t = checkpoint_find(c, COMPONENT_UNET, name);
        if (t == NULL)
            continue;
        if (t->rank == 2 && t->dims[0] == u->channels[i] && t->dims[1] == u->context)
            return 0;
        checkpoint_stored_name(c, COMPONENT_UNET, name, stored);
        return wrong_family(err, checkpoint_file(c, COMPONENT_UNET), stored, t, u->channels[i],
                            u->context);
    }
    return 0;
}

static int refuse(struct checkpoint *c, struct err *err, const char *field, const char *value)
{
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: its configuration has %s = %s, which this version does not draw with",
                   checkpoint_file(c, COMPONENT_UNET), field, value);
}

/* An original file does not say it; ComfyUI (comfy/controlnet.py) goes by the name that the only
 * published network of this kind, and what was made of it, bear. */
static bool is_shuffle(const char *path)
{
    static const char *const ENDS[] = {"_shuffle", "_shuffle_fp16"};
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t len = dot != NULL ? (size_t)(dot - name) : strlen(name);

    for (size_t i = 0; i < sizeof(ENDS) / sizeof(ENDS[0]); i++) {
        size_t end = strlen(ENDS[i]);
        if (len >= end && strncmp(name + len - end, ENDS[i], end) == 0)
            return true;
    }
    return false;
}

static int read_fields(struct controlnet *net, struct checkpoint *c, struct err *err)
{
    const struct json *json = checkpoint_config(c, COMPONENT_UNET);
    const char *order =
        json_string_or(json_get(json, "controlnet_conditioning_channel_order"), "rgb");

    if (strcmp(order, "rgb") != 0 && strcmp(order, "bgr") != 0)
        return refuse(c, err, "controlnet_conditioning_channel_order", order);
    net->pools =
        json_bool_or(json_get(json, "global_pool_conditions"), is_shuffle(checkpoint_path(c)));
    net->bgr = strcmp(order, "bgr") == 0;
    return 0;
}

static void bind_hint(struct binder *b, struct controlnet *net, struct checkpoint *c, int c0)
{
    static const char AT[] = "controlnet_cond_embedding";
    int width = bind_dim(c, COMPONENT_UNET, 0, "%s.conv_in.weight", AT);

    bind_conv(b, &net->hint_in, 3, width, 1, "%s.conv_in", AT);
    net->factor = 1;
    for (int i = 0; i < CONTROLNET_HINT_MAX; i++) {
        int out = bind_dim(c, COMPONENT_UNET, 0, "%s.blocks.%d.weight", AT, i);
        if (out == 0)
            break;
        bind_conv(b, &net->hint[i], width, out, 1 + i % 2, "%s.blocks.%d", AT, i);
        net->factor *= 1 + i % 2;
        net->hint_count = i + 1;
        width = out;
    }
    bind_conv(b, &net->hint_out, width, c0, 1, "%s.conv_out", AT);
}

static void bind_zero(struct binder *b, struct controlnet *net, int channels)
{
    int i = net->zero_count++;

    bind_linear(b, &net->zeros[i], channels, channels, BIND_BIAS, "controlnet_down_blocks.%d", i);
}

/* One for each skip, in the order of the way down. */
static void bind_zeros(struct binder *b, struct controlnet *net, const struct unet_config *u)
{
    int deepest = u->channels[u->levels - 1];

    bind_zero(b, net, u->channels[0]);
    for (int i = 0; i < u->levels; i++)
        for (int j = 0; j < u->layers[i] + (i + 1 < u->levels); j++)
            bind_zero(b, net, u->channels[i]);
    bind_linear(b, &net->mid_zero, deepest, deepest, BIND_BIAS, "controlnet_mid_block");
}

static void see_unused(void *user, const char *name)
{
    const char **first = user;

    *first = *first != NULL ? *first : name;
}

/* A tensor that nobody asked for means another computation than this one. */
static int check_whole(struct checkpoint *c, struct err *err)
{
    const char *unused = NULL;

    checkpoint_unused(c, see_unused, &unused);
    if (unused == NULL)
        return 0;
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: tensor '%s' belongs to no ControlNet of this model's family; plain "
                   "ControlNets and ControlNet-Unions are read, no -XS, -LLLite or Control-LoRA",
                   checkpoint_file(c, COMPONENT_UNET), unused);
}

int controlnet_bind(struct controlnet *net, const struct unet_config *model, struct checkpoint *c,
                    struct backend *backend, struct err *err)
{
    struct unet_config config;
    struct binder b = bind_begin(c, COMPONENT_UNET, &net->parameters, backend, err);

    if (check_family(model, c, err) != 0 || unet_config_copy(&config, model, c, err) != 0 ||
        read_fields(net, c, err) != 0)
        return -1;
    unet_encoder_bind(&b, &net->encoder, &config);
    bind_hint(&b, net, c, config.channels[0]);
    bind_zeros(&b, net, &config);
    controlnet_union_bind(&b, &net->kinds, &config);
    return b.failed ? -1 : check_whole(c, err);
}

void controlnet_release(struct controlnet *net)
{
    parameters_release(&net->parameters);
}

/* ---- forward ---- */

/* x becomes conv(x). */
static void conv_apply(struct pass *pass, const struct conv *conv, struct tensor *x)
{
    int s = conv->stride;
    struct tensor y = pass_tensor(pass, x->n, (x->h + s - 1) / s, (x->w + s - 1) / s, conv->out);

    op_conv2d(pass, &(struct conv2d){.conv = conv, .x = x, .y = &y});
    pass_drop(pass, x);
    *x = y;
}

void controlnet_embed(struct pass *pass, const struct controlnet *net, const struct tensor *hint,
                      struct tensor *y)
{
    struct tensor x = pass_tensor(pass, hint->n, hint->h, hint->w, net->hint_in.out);

    op_conv2d(pass, &(struct conv2d){.conv = &net->hint_in, .x = hint, .y = &x});
    op_silu(pass, &x, &x);
    for (int i = 0; i < net->hint_count; i++) {
        conv_apply(pass, &net->hint[i], &x);
        op_silu(pass, &x, &x);
    }
    op_conv2d(pass, &(struct conv2d){.conv = &net->hint_out, .x = &x, .y = y});
    pass_drop(pass, &x);
}

/* What the network adds before its i-th skip is scaled by in guess mode, as diffusers has it: from
 * 0.1 to 1 at equal ratios. */
static float guess_scale(const struct controlnet *net, int i)
{
    return net->pools ? 1 : (float)pow(10, (double)i / net->zero_count - 1);
}

/* x becomes the mean of its pixels, in f32. */
static void pool(struct pass *pass, struct tensor *x)
{
    struct tensor mean = pass_tensor_of(pass, DTYPE_F32, x->n, 1, 1, x->c);

    op_mean(pass, x, &mean);
    pass_drop(pass, x);
    *x = mean;
}

/* to += scale · zero(x), sample by sample, of the i-th skip or the middle; x is dropped. Where maps
 * are pooled, so is x: as the layer is linear, its outputs' mean is the output of their mean. */
static void add_residual(struct pass *pass, const struct controlnet *net, int i, struct tensor *x,
                         const struct controlnet_sample *samples, struct tensor *to)
{
    const struct linear *zero = i < net->zero_count ? &net->zeros[i] : &net->mid_zero;
    struct tensor y;

    if (net->pools)
        pool(pass, x);
    y = pass_tensor_of(pass, x->dtype, x->n, x->h, x->w, x->c);
    op_matmul(pass, &(struct matmul){.linear = zero, .x = x, .y = &y});
    for (int k = 0; k < x->n; k++) {
        struct tensor from = tensor_samples(&y, k, 1), sum = tensor_samples(to, k, 1);
        float guess = samples[k].guess ? guess_scale(net, i) : 1;
        op_add(pass, &from, samples[k].scale * guess, &sum);
    }
    pass_drop(pass, &y);
    pass_drop(pass, x);
}

/* conv_in(latents) + the hints' embeddings */
static struct tensor begin(struct pass *pass, const struct controlnet *net,
                           const struct unet_input *in, const struct controlnet_sample *samples)
{
    const struct tensor *latents = in->latents;
    const struct conv *conv = &net->encoder.conv_in;
    struct tensor x = pass_tensor(pass, latents->n, latents->h, latents->w, conv->out);

    op_conv2d(pass, &(struct conv2d){.conv = conv, .x = latents, .y = &x});
    for (int i = 0; i < x.n; i++) {
        struct tensor to = tensor_samples(&x, i, 1);
        for (int k = 0; k < samples[i].hint_count; k++)
            op_add(pass, samples[i].hints[k].embedding, samples[i].hints[k].scale, &to);
    }
    return x;
}

/* The time's embedding, and with it a union's modes. */
static struct tensor begin_time(struct pass *pass, const struct controlnet *net,
                                const struct unet_input *in,
                                const struct controlnet_sample *samples)
{
    struct unet_input told_too = *in;
    struct tensor modes, told, time;

    if (net->kinds.modes == 0)
        return unet_time_forward(pass, &net->encoder, in);
    modes = pass_tensor_of(pass, DTYPE_F32, in->latents->n, 1, 1, net->kinds.told1.in);
    for (int i = 0; i < modes.n; i++) {
        struct tensor row = tensor_samples(&modes, i, 1);
        controlnet_union_spell(pass, &net->kinds, &net->encoder.config, samples[i].modes, &row);
    }
    told = controlnet_union_tell(pass, &net->kinds, &modes);
    told_too.told = &told;
    time = unet_time_forward(pass, &net->encoder, &told_too);
    pass_drop(pass, &told);
    pass_drop(pass, &modes);
    return time;
}

void controlnet_apply(struct pass *pass, const struct controlnet *net, const struct unet_input *in,
                      const struct controlnet_sample *samples, struct unet_middle *middle,
                      int first)
{
    struct tensor time = begin_time(pass, net, in, samples);
    struct tensor x = begin(pass, net, in, samples), to;
    struct skips skips = {.count = 0};

    x = unet_encoder_forward(pass, &net->encoder, in, x, &time, &skips);
    ASSERT(skips.count == net->zero_count && skips.count == middle->skips.count);
    for (int i = 0; i < skips.count; i++) {
        to = tensor_samples(&middle->skips.items[i], first, x.n);
        add_residual(pass, net, i, &skips.items[i], samples, &to);
    }
    to = tensor_samples(&middle->x, first, x.n);
    add_residual(pass, net, net->zero_count, &x, samples, &to);
    pass_drop(pass, &time);
}

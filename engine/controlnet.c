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

static int read_fields(struct controlnet *net, struct checkpoint *c, struct err *err)
{
    const struct json *json = checkpoint_config(c, COMPONENT_UNET);
    const char *order =
        json_string_or(json_get(json, "controlnet_conditioning_channel_order"), "rgb");

    if (strcmp(order, "rgb") != 0 && strcmp(order, "bgr") != 0)
        return refuse(c, err, "controlnet_conditioning_channel_order", order);
    if (json_bool_or(json_get(json, "global_pool_conditions"), false))
        return refuse(c, err, "global_pool_conditions", "true");
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
                   "ControlNets are read, no ControlNet-Union, -XS, -LLLite or Control-LoRA",
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

/* What the network adds before its i-th of n skips is scaled by in guess mode, as diffusers has it:
 * from 0.1 to 1 at equal ratios. */
static float guess_scale(int i, int n)
{
    return (float)pow(10, (double)i / n - 1);
}

/* to += scale · zero(x), sample by sample; x is dropped. */
static void add_residual(struct pass *pass, const struct linear *zero, struct tensor *x,
                         const struct controlnet_sample *samples, float guess, struct tensor *to)
{
    struct tensor y = pass_tensor(pass, x->n, x->h, x->w, x->c);

    op_matmul(pass, &(struct matmul){.linear = zero, .x = x, .y = &y});
    for (int i = 0; i < x->n; i++) {
        struct tensor from = tensor_samples(&y, i, 1), sum = tensor_samples(to, i, 1);
        op_add(pass, &from, samples[i].guess ? samples[i].scale * guess : samples[i].scale, &sum);
    }
    pass_drop(pass, &y);
    pass_drop(pass, x);
}

/* conv_in(latents) + the hint's embedding */
static struct tensor begin(struct pass *pass, const struct controlnet *net,
                           const struct unet_input *in, const struct controlnet_sample *samples)
{
    const struct tensor *latents = in->latents;
    const struct conv *conv = &net->encoder.conv_in;
    struct tensor x = pass_tensor(pass, latents->n, latents->h, latents->w, conv->out);

    for (int i = 0; i < x.n; i++) {
        struct tensor from = tensor_samples(latents, i, 1), to = tensor_samples(&x, i, 1);
        op_conv2d(pass, &(struct conv2d){
                            .conv = conv, .x = &from, .y = &to, .residual = samples[i].embedding});
    }
    return x;
}

void controlnet_apply(struct pass *pass, const struct controlnet *net, const struct unet_input *in,
                      const struct controlnet_sample *samples, struct unet_middle *middle,
                      int first)
{
    struct tensor time = unet_time_forward(pass, &net->encoder, in);
    struct tensor x = begin(pass, net, in, samples), to;
    struct skips skips = {.count = 0};

    x = unet_encoder_forward(pass, &net->encoder, in, x, &time, &skips);
    ASSERT(skips.count == net->zero_count && skips.count == middle->skips.count);
    for (int i = 0; i < skips.count; i++) {
        to = tensor_samples(&middle->skips.items[i], first, x.n);
        add_residual(pass, &net->zeros[i], &skips.items[i], samples,
                     guess_scale(i, net->zero_count), &to);
    }
    to = tensor_samples(&middle->x, first, x.n);
    add_residual(pass, &net->mid_zero, &x, samples, 1, &to);
    pass_drop(pass, &time);
}

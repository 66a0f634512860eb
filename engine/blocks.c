#include "engine/blocks.h"

void resnet_bind(struct binder *b, struct resnet *r, const struct resnet_shape *s,
                 const char *prefix)
{
    bind_norm(b, &r->norm1, s->in, s->groups, s->eps, "%s.norm1", prefix);
    bind_conv(b, &r->conv1, s->in, s->out, 1, "%s.conv1", prefix);
    if (s->embedding > 0)
        bind_linear(b, &r->time, s->embedding, s->out, BIND_BIAS, "%s.time_emb_proj", prefix);
    bind_norm(b, &r->norm2, s->out, s->groups, s->eps, "%s.norm2", prefix);
    bind_conv(b, &r->conv2, s->out, s->out, 1, "%s.conv2", prefix);
    if (s->in != s->out)
        bind_linear(b, &r->shortcut, s->in, s->out, BIND_BIAS, "%s.conv_shortcut", prefix);
}

/* conv1(silu(norm1(x))) + time */
static struct tensor first_half(struct pass *pass, const struct resnet *r, const struct tensor *x,
                                const struct tensor *silu_time)
{
    struct tensor h = pass_tensor(pass, x->n, x->h, x->w, r->conv1.out);
    struct affine pre = op_group_norm(pass, x, &r->norm1, true);
    struct tensor time = {0};

    if (r->time.in > 0) {
        time = pass_tensor_of(pass, DTYPE_F32, x->n, 1, 1, r->time.out);
        op_matmul(pass, &(struct matmul){.linear = &r->time, .x = silu_time, .y = &time});
    }
    op_conv2d(pass, &(struct conv2d){.conv = &r->conv1,
                                     .x = x,
                                     .y = &h,
                                     .pre = &pre,
                                     .time = r->time.in > 0 ? &time : NULL});
    pass_drop(pass, &time);
    affine_drop(pass, &pre);
    return h;
}

struct tensor resnet_forward(struct pass *pass, const struct resnet *r, const struct tensor *x,
                             const struct tensor *silu_time)
{
    struct tensor y = pass_tensor(pass, x->n, x->h, x->w, r->conv2.out);
    struct tensor h = first_half(pass, r, x, silu_time);
    struct affine pre = op_group_norm(pass, &h, &r->norm2, true);
    struct tensor shortcut = {0};

    if (r->shortcut.in > 0) {
        shortcut = pass_tensor(pass, x->n, x->h, x->w, r->shortcut.out);
        op_matmul(pass, &(struct matmul){.linear = &r->shortcut, .x = x, .y = &shortcut});
    }
    op_conv2d(pass, &(struct conv2d){.conv = &r->conv2,
                                     .x = &h,
                                     .y = &y,
                                     .pre = &pre,
                                     .residual = r->shortcut.in > 0 ? &shortcut : x});
    pass_drop(pass, &shortcut);
    affine_drop(pass, &pre);
    pass_drop(pass, &h);
    return y;
}

void resnet_apply(struct pass *pass, const struct resnet *r, struct tensor *x,
                  const struct tensor *silu_time)
{
    struct tensor y = resnet_forward(pass, r, x, silu_time);

    pass_drop(pass, x);
    *x = y;
}

void upsample_apply(struct pass *pass, const struct conv *conv, struct tensor *x, int height,
                    int width)
{
    struct tensor y = pass_tensor(pass, x->n, height, width, conv->out);

    op_conv2d(pass, &(struct conv2d){.conv = conv, .x = x, .y = &y, .upsample = true});
    pass_drop(pass, x);
    *x = y;
}

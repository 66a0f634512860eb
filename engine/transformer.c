#include "engine/transformer.h"

#include <math.h>
#include <stdio.h>

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

void transformer_bind(struct binder *b, struct transformer *t, const struct transformer_shape *s,
                      const char *at)
{
    char block[96];
    int c = s->channels;

    t->depth = s->depth;
    t->heads = s->heads;
    bind_norm(b, &t->norm, c, s->groups, 1e-6f, "%s.norm", at);
    bind_linear(b, &t->proj_in, c, c, BIND_BIAS, "%s.proj_in", at);
    for (int i = 0; i < s->depth; i++) {
        snprintf(block, sizeof(block), "%s.transformer_blocks.%d", at, i);
        bind_transformer_block(b, &t->blocks[i], c, s->context, block);
    }
    bind_linear(b, &t->proj_out, c, c, BIND_BIAS, "%s.proj_out", at);
}

/* ---- forward ---- */

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

void transformer_apply(struct pass *pass, const struct transformer *t, const struct tensor *text,
                       struct tensor *x)
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

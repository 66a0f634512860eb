#include "engine/clip.h"

#include <math.h>
#include <string.h>

#define EOS_LARGEST 2 /* the published configurations' wrong eos_token_id */

static const char *const QKV[] = {"q_proj", "k_proj", "v_proj"};

/* Single files do not say that heads are 64 wide, that OpenCLIP's towers have the exact gelu, and
 * that SD2 leaves the last layer out. */
static void config_from_shapes(struct clip_config *c, struct checkpoint *checkpoint,
                               enum component text)
{
    enum family family = checkpoint_family(checkpoint);
    const char *tokens = "text_model.embeddings.token_embedding.weight";

    *c = (struct clip_config){.act = ACT_QUICK_GELU, .eps = 1e-5f, .eos = EOS_LARGEST};
    c->vocabulary = bind_dim(checkpoint, text, 0, "%s", tokens);
    c->hidden = bind_dim(checkpoint, text, 1, "%s", tokens);
    c->positions = bind_dim(checkpoint, text, 0, "text_model.embeddings.position_embedding.weight");
    c->intermediate = bind_dim(checkpoint, text, 0, "text_model.encoder.layers.0.mlp.fc1.weight");
    while (c->layers <= CLIP_LAYERS_MAX &&
           bind_dim(checkpoint, text, 0, "text_model.encoder.layers.%d.mlp.fc1.weight", c->layers) >
               0)
        c->layers++;
    c->heads = c->hidden >= 64 ? c->hidden / 64 : 1;
    if (family == FAMILY_SD2)
        c->layers--;
    if (family == FAMILY_SD2 || text == COMPONENT_TEXT_2)
        c->act = ACT_GELU;
    if (text == COMPONENT_TEXT_2)
        c->projection = bind_dim(checkpoint, text, 0, "text_projection.weight");
}

static enum activation act_by_name(const char *name)
{
    return strcmp(name, "quick_gelu") == 0 ? ACT_QUICK_GELU
           : strcmp(name, "gelu") == 0     ? ACT_GELU
                                           : ACT_NONE;
}

/* Only the encoder that is not SDXL's first, or SD's only one, has a projection that is read. */
static int projection_of(const struct json *json, enum component component)
{
    return component == COMPONENT_TEXT_2 ? (int)json_int_or(json_get(json, "projection_dim"), 512)
                                         : 0;
}

int clip_config_read(struct clip_config *c, struct checkpoint *checkpoint, enum component component,
                     struct err *err)
{
    const struct json *json = checkpoint_config(checkpoint, component);

    if (json == NULL)
        config_from_shapes(c, checkpoint, component);
    else
        *c = (struct clip_config){
            .vocabulary = (int)json_int_or(json_get(json, "vocab_size"), 49408),
            .positions = (int)json_int_or(json_get(json, "max_position_embeddings"), 77),
            .hidden = (int)json_int_or(json_get(json, "hidden_size"), 512),
            .intermediate = (int)json_int_or(json_get(json, "intermediate_size"), 2048),
            .layers = (int)json_int_or(json_get(json, "num_hidden_layers"), 12),
            .heads = (int)json_int_or(json_get(json, "num_attention_heads"), 8),
            .act = act_by_name(json_string_or(json_get(json, "hidden_act"), "quick_gelu")),
            .eps = (float)json_double_or(json_get(json, "layer_norm_eps"), 1e-5),
            .eos = (int)json_int_or(json_get(json, "eos_token_id"), EOS_LARGEST),
            .projection = projection_of(json, component),
        };
    if (c->hidden < 1 || c->intermediate < 1 || c->heads < 1 || c->hidden % c->heads != 0 ||
        c->layers < 1 || c->layers > CLIP_LAYERS_MAX || c->positions < 2 || c->act == ACT_NONE ||
        c->projection < 0)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%s: its text encoder is no CLIP text encoder that this version knows "
                       "(hidden_size %d, num_attention_heads %d, num_hidden_layers %d)",
                       checkpoint_file(checkpoint, component), c->hidden, c->heads, c->layers);
    return 0;
}

static void bind_layer(struct binder *b, struct clip_layer *l, const struct clip_config *c, int i)
{
    const char *at = "text_model.encoder.layers";

    bind_norm(b, &l->norm1, c->hidden, 1, c->eps, "%s.%d.layer_norm1", at, i);
    bind_stack(b, &l->qkv, c->hidden, c->hidden, 3, QKV, BIND_BIAS, "%s.%d.self_attn", at, i);
    bind_linear(b, &l->out, c->hidden, c->hidden, BIND_BIAS, "%s.%d.self_attn.out_proj", at, i);
    bind_norm(b, &l->norm2, c->hidden, 1, c->eps, "%s.%d.layer_norm2", at, i);
    bind_linear(b, &l->fc1, c->hidden, c->intermediate, BIND_BIAS, "%s.%d.mlp.fc1", at, i);
    bind_linear(b, &l->fc2, c->intermediate, c->hidden, BIND_BIAS, "%s.%d.mlp.fc2", at, i);
}

int clip_bind(struct clip *clip, const struct clip_config *c, struct checkpoint *checkpoint,
              enum component component, struct backend *backend, struct err *err)
{
    struct binder b = bind_begin(checkpoint, component, &clip->parameters, backend, err);

    clip->config = *c;
    b.exact = true;
    bind_embedding(&b, &clip->tokens, c->vocabulary, c->hidden,
                   "text_model.embeddings.token_embedding.weight");
    bind_embedding(&b, &clip->positions, c->positions, c->hidden,
                   "text_model.embeddings.position_embedding.weight");
    for (int i = 0; i < c->layers; i++)
        bind_layer(&b, &clip->layers[i], c, i);
    bind_norm(&b, &clip->final_norm, c->hidden, 1, c->eps, "text_model.final_layer_norm");
    if (c->projection > 0)
        bind_linear(&b, &clip->projection, c->hidden, c->projection, BIND_NO_BIAS,
                    "text_projection");
    return b.failed ? -1 : 0;
}

void clip_release(struct clip *clip)
{
    parameters_release(&clip->parameters);
}

/* y = x + out(attention(norm1(x))); y += fc2(act(fc1(norm2(y)))). y may be x. */
static void layer_forward(struct pass *pass, const struct clip_config *c,
                          const struct clip_layer *l, const struct tensor *x, struct tensor *y)
{
    struct tensor h = pass_tensor(pass, x->n, 1, x->w, c->hidden);
    struct tensor qkv = pass_tensor(pass, x->n, 1, x->w, 3 * c->hidden);
    struct tensor mlp = pass_tensor(pass, x->n, 1, x->w, c->intermediate);
    struct tensor q = tensor_columns(&qkv, 0, c->hidden);
    struct tensor k = tensor_columns(&qkv, c->hidden, c->hidden);
    struct tensor v = tensor_columns(&qkv, 2 * c->hidden, c->hidden);

    op_layer_norm(pass, x, &l->norm1, &h);
    op_matmul(pass, &(struct matmul){.linear = &l->qkv, .x = &h, .y = &qkv});
    op_attention(pass, &(struct attention){.q = &q,
                                           .k = &k,
                                           .v = &v,
                                           .y = &h,
                                           .heads = c->heads,
                                           .scale = 1 / sqrtf((float)(c->hidden / c->heads)),
                                           .causal = true});
    op_matmul(pass, &(struct matmul){.linear = &l->out, .x = &h, .y = y, .residual = x});
    op_layer_norm(pass, y, &l->norm2, &h);
    op_matmul(pass, &(struct matmul){.linear = &l->fc1, .x = &h, .y = &mlp, .act = c->act});
    op_matmul(pass, &(struct matmul){.linear = &l->fc2, .x = &mlp, .y = y, .residual = y});
    pass_drop(pass, &mlp);
    pass_drop(pass, &qkv);
    pass_drop(pass, &h);
}

/* One token of 1 × 1 × tokens × c. */
static struct tensor row_at(const struct tensor *x, int at)
{
    struct tensor row = *x;

    row.w = 1;
    row.data = (char *)x->data + (size_t)at * (size_t)x->ld * dtype_bytes(x->dtype);
    return row;
}

/* pooled = projection(final_norm(x at one token)) */
static void pooled_forward(struct pass *pass, const struct clip *clip, const struct tensor *x,
                           int at, struct tensor *pooled)
{
    struct tensor h = pass_tensor_of(pass, DTYPE_F32, 1, 1, 1, x->c);
    struct tensor row = row_at(x, pass->planning || pass->failed ? 0 : at);

    op_layer_norm(pass, &row, &clip->final_norm, clip->projection.in > 0 ? &h : pooled);
    if (clip->projection.in > 0)
        op_matmul(pass, &(struct matmul){.linear = &clip->projection, .x = &h, .y = pooled});
    pass_drop(pass, &h);
}

void clip_forward(struct pass *pass, const struct clip *clip, const int *ids,
                  const struct clip_reading *reading, struct tensor *y, struct tensor *pooled)
{
    const struct clip_config *c = &clip->config;
    int taken = c->layers - reading->skip;
    struct tensor x = pass_tensor_of(pass, DTYPE_F32, y->n, 1, y->w, y->c);
    struct tensor *state = reading->raw ? y : &x; /* after the layers so far */

    op_embed(pass, ids, &clip->tokens, &clip->positions, state);
    for (int i = 0; i < reading->row_count && !pass->planning && !pass->failed; i++) {
        struct tensor row = row_at(state, reading->rows[i].at);
        op_upload(pass, &row, reading->rows[i].values);
    }
    for (int i = 0; i < taken; i++)
        layer_forward(pass, c, &clip->layers[i], state, state);
    if (!reading->raw)
        op_layer_norm(pass, &x, &clip->final_norm, y);
    ASSERT(pooled == NULL || y->n == 1);
    for (int i = taken; pooled != NULL && i < c->layers; i++) {
        layer_forward(pass, c, &clip->layers[i], state, &x);
        state = &x;
    }
    if (pooled != NULL)
        pooled_forward(pass, clip, state, reading->pooled_at, pooled);
    pass_drop(pass, &x);
}

int clip_pooled_width(const struct clip_config *c)
{
    return c->projection > 0 ? c->projection : c->hidden;
}

int clip_pooled_position(const struct clip_config *config, const int *ids, int tokens)
{
    int at = 0;

    for (int i = 0; i < tokens; i++) {
        if (config->eos != EOS_LARGEST && ids[i] == config->eos)
            return i;
        if (config->eos == EOS_LARGEST && ids[i] > ids[at])
            at = i;
    }
    return at;
}

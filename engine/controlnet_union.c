#include "engine/controlnet_union.h"

#include <stdio.h>
#include <string.h>

/* ---- binding ---- */

bool controlnet_union_is(struct checkpoint *c)
{
    return bind_dim(c, COMPONENT_UNET, 0, "task_embedding") > 0;
}

/* diffusers' own spelling of "layers". */
#define LAYERS "transformer_layes"

static void bind_block(struct binder *b, struct union_block *block, int c, int i)
{
    bind_norm(b, &block->norm1, c, 1, 1e-5f, LAYERS ".%d.ln_1", i);
    bind_values(b, &block->value, c, LAYERS ".%d.attn", i);
    bind_linear(b, &block->out, c, c, BIND_BIAS, LAYERS ".%d.attn.out_proj", i);
    bind_norm(b, &block->norm2, c, 1, 1e-5f, LAYERS ".%d.ln_2", i);
    bind_linear(b, &block->fc1, c, 4 * c, BIND_BIAS, LAYERS ".%d.mlp.c_fc", i);
    bind_linear(b, &block->fc2, 4 * c, c, BIND_BIAS, LAYERS ".%d.mlp.c_proj", i);
}

static void bind_blocks(struct binder *b, struct controlnet_union *u, int c)
{
    while (u->block_count < CONTROLNET_UNION_BLOCKS_MAX &&
           bind_dim(b->checkpoint, b->component, 0, LAYERS ".%d.ln_1.weight", u->block_count) > 0) {
        bind_block(b, &u->blocks[u->block_count], c, u->block_count);
        u->block_count++;
    }
}

static bool too_many_modes(struct binder *b, int modes, int told)
{
    if (b->failed || (modes <= CONTROLNET_MODES_MAX && told <= UNET_WIDTH_MAX))
        return false;
    err_set(b->err, ERR_LIMIT, ERR_REJECT,
            "%s: tensor 'task_embedding' has %d modes, told in %d numbers; up to %d in %d are read",
            checkpoint_file(b->checkpoint, b->component), modes, told, CONTROLNET_MODES_MAX,
            UNET_WIDTH_MAX);
    b->failed = true;
    return true;
}

void controlnet_union_bind(struct binder *b, struct controlnet_union *u,
                           const struct unet_config *config)
{
    int c = config->channels[0], wide = config->embedding;
    int modes = bind_dim(b->checkpoint, b->component, 0, "task_embedding");
    int told = bind_dim(b->checkpoint, b->component, 1, "control_add_embedding.linear_1.weight");

    *u = (struct controlnet_union){.modes = modes};
    if (modes == 0 || too_many_modes(b, modes, told))
        return;
    u->mode_width = told / modes;
    b->exact = true;
    bind_embedding(b, &u->tasks, modes, c, "task_embedding");
    bind_blocks(b, u, c);
    bind_linear(b, &u->project, c, c, BIND_BIAS, "spatial_ch_projs");
    bind_linear(b, &u->told1, modes * u->mode_width, wide, BIND_BIAS,
                "control_add_embedding.linear_1");
    bind_linear(b, &u->told2, wide, wide, BIND_BIAS, "control_add_embedding.linear_2");
    b->exact = false;
}

/* ---- forward ---- */

/* scale · the mode's own vector */
static struct tensor task(struct pass *pass, const struct controlnet_union *u, int mode,
                          float scale)
{
    struct tensor y = pass_tensor_of(pass, DTYPE_F32, 1, 1, 1, u->tasks.columns);
    size_t first = (size_t)mode * (size_t)u->tasks.columns;
    float values[UNET_WIDTH_MAX];

    for (int i = 0; i < u->tasks.columns && !pass->planning; i++)
        values[i] =
            scale * element_to_f32(u->tasks.stored.data, u->tasks.stored.dtype, first + (size_t)i);
    op_upload(pass, &y, values);
    return y;
}

/* x += out(value(norm1(x))); x += fc2(quick_gelu(fc1(norm2(x)))) */
static void block_apply(struct pass *pass, const struct union_block *block, struct tensor *x)
{
    struct tensor h = pass_tensor_of(pass, DTYPE_F32, 1, 1, 1, x->c);
    struct tensor value = pass_tensor_of(pass, DTYPE_F32, 1, 1, 1, x->c);
    struct tensor wide = pass_tensor_of(pass, DTYPE_F32, 1, 1, 1, 4 * x->c);

    op_layer_norm(pass, x, &block->norm1, &h);
    op_matmul(pass, &(struct matmul){.linear = &block->value, .x = &h, .y = &value});
    op_matmul(pass, &(struct matmul){.linear = &block->out, .x = &value, .y = x, .residual = x});
    op_layer_norm(pass, x, &block->norm2, &h);
    op_matmul(pass,
              &(struct matmul){.linear = &block->fc1, .x = &h, .y = &wide, .act = ACT_QUICK_GELU});
    op_matmul(pass, &(struct matmul){.linear = &block->fc2, .x = &wide, .y = x, .residual = x});
    pass_drop(pass, &wide);
    pass_drop(pass, &value);
    pass_drop(pass, &h);
}

void controlnet_union_move(struct pass *pass, const struct controlnet_union *u, int mode,
                           float scale, struct tensor *y)
{
    struct tensor mean = pass_tensor_of(pass, DTYPE_F32, 1, 1, 1, y->c);
    struct tensor x = task(pass, u, mode, scale);

    op_mean(pass, y, &mean);
    op_add(pass, &mean, scale, &x);
    for (int i = 0; i < u->block_count; i++)
        block_apply(pass, &u->blocks[i], &x);
    op_matmul(pass, &(struct matmul){.linear = &u->project, .x = &x, .y = &mean});
    op_add(pass, &mean, 1, y);
    pass_drop(pass, &x);
    pass_drop(pass, &mean);
}

/* For each mode the sinusoids of 1 where it is there, else those of 0. */
void controlnet_union_spell(struct pass *pass, const struct controlnet_union *u,
                            const struct unet_config *config, uint32_t modes, struct tensor *y)
{
    float values[UNET_WIDTH_MAX] = {0}; /* an odd width ends in 0 */

    for (int mode = 0; mode < u->modes; mode++)
        unet_sinusoids(config, modes >> mode & 1, values + mode * u->mode_width, u->mode_width);
    op_upload(pass, y, values);
}

struct tensor controlnet_union_tell(struct pass *pass, const struct controlnet_union *u,
                                    const struct tensor *x)
{
    struct tensor hidden = pass_tensor_of(pass, DTYPE_F32, x->n, 1, 1, u->told1.out);
    struct tensor y = pass_tensor_of(pass, DTYPE_F32, x->n, 1, 1, u->told2.out);

    op_matmul(pass, &(struct matmul){.linear = &u->told1, .x = x, .y = &hidden, .act = ACT_SILU});
    op_matmul(pass, &(struct matmul){.linear = &u->told2, .x = &hidden, .y = &y});
    pass_drop(pass, &hidden);
    return y;
}

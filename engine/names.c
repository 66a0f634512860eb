#include "engine/names.h"

#include <stdio.h>
#include <string.h>

/* One part of a name for another; `from` is matched as a prefix that ends at a dot or the end. */
struct rename {
    const char *from, *to;
};

static const struct rename UNET_RESNET[] = {{"norm1", "in_layers.0"},
                                            {"conv1", "in_layers.2"},
                                            {"time_emb_proj", "emb_layers.1"},
                                            {"norm2", "out_layers.0"},
                                            {"conv2", "out_layers.3"},
                                            {"conv_shortcut", "skip_connection"},
                                            {NULL, NULL}};

static const struct rename UNET_TOP[] = {{"time_embedding.linear_1", "time_embed.0"},
                                         {"time_embedding.linear_2", "time_embed.2"},
                                         {"add_embedding.linear_1", "label_emb.0.0"},
                                         {"add_embedding.linear_2", "label_emb.0.2"},
                                         {"conv_in", "input_blocks.0.0"},
                                         {"conv_norm_out", "out.0"},
                                         {"conv_out", "out.2"},
                                         {"mid_block.attentions.0", "middle_block.1"},
                                         {NULL, NULL}};

static const struct rename OPEN_CLIP_TOP[] = {
    {"text_model.embeddings.token_embedding", "token_embedding"},
    {"text_model.embeddings.position_embedding.weight", "positional_embedding"},
    {"text_model.final_layer_norm", "ln_final"},
    {"text_projection.weight", "text_projection"},
    {NULL, NULL}};

static const struct rename OPEN_CLIP_LAYER[] = {{"layer_norm1", "ln_1"},
                                                {"layer_norm2", "ln_2"},
                                                {"mlp.fc1", "mlp.c_fc"},
                                                {"mlp.fc2", "mlp.c_proj"},
                                                {"self_attn.out_proj", "attn.out_proj"},
                                                {"self_attn.q_proj.weight", "attn.in_proj_weight"},
                                                {"self_attn.k_proj.weight", "attn.in_proj_weight"},
                                                {"self_attn.v_proj.weight", "attn.in_proj_weight"},
                                                {"self_attn.q_proj.bias", "attn.in_proj_bias"},
                                                {"self_attn.k_proj.bias", "attn.in_proj_bias"},
                                                {"self_attn.v_proj.bias", "attn.in_proj_bias"},
                                                {NULL, NULL}};

static const struct rename VAE_RESNET[] = {{"conv_shortcut", "nin_shortcut"}, {NULL, NULL}};

static const struct rename VAE_ATTENTION[] = {
    {"group_norm", "norm"},   {"to_q", "q"}, {"to_k", "k"}, {"to_v", "v"},
    {"to_out.0", "proj_out"}, {NULL, NULL}};

static const struct rename VAE_LEGACY[] = {
    {"to_q", "query"}, {"to_k", "key"}, {"to_v", "value"}, {"to_out.0", "proj_attn"}, {NULL, NULL}};

/* The rest of `name` after `from`, if `from` ends at a part's boundary. */
static const char *after(const char *name, const char *from)
{
    size_t len = strlen(from);
    return strncmp(name, from, len) == 0 && (name[len] == '.' || name[len] == '\0') ? name + len
                                                                                    : NULL;
}

static bool put(char *out, const char *prefix, const char *middle, const char *rest)
{
    return snprintf(out, CHECKPOINT_NAME_MAX_BYTES, "%s%s%s", prefix, middle, rest) <
           CHECKPOINT_NAME_MAX_BYTES;
}

/* prefix + the first matching rename applied to `name`; unmatched names stay as they are. */
static bool put_renamed(char *out, const char *prefix, const struct rename *table, const char *name)
{
    for (; table->from != NULL; table++) {
        const char *rest = after(name, table->from);
        if (rest != NULL)
            return put(out, prefix, table->to, rest);
    }
    return put(out, prefix, name, "");
}

static bool unet_block(const struct ldm_layout *l, const char *name, char *out)
{
    char prefix[96], kind[16];
    int block, item, used = 0, per = l->layers + 1;
    bool down = strncmp(name, "down_blocks.", 12) == 0;

    if (sscanf(name, "%*[a-z_].%d.%15[a-z].%d.%n", &block, kind, &item, &used) != 3 || used == 0 ||
        block < 0 || block >= 16)
        return false;
    const char *rest = name + used;
    if (strcmp(kind, "downsamplers") == 0) {
        snprintf(prefix, sizeof(prefix), "%sinput_blocks.%d.0.op", l->unet, (block + 1) * per);
        return put(out, prefix, strchr(rest, '.') ? strchr(rest, '.') : "", "");
    }
    if (strcmp(kind, "upsamplers") == 0) {
        snprintf(prefix, sizeof(prefix), "%soutput_blocks.%d.%d.", l->unet, block * per + l->layers,
                 l->up_attention[block] ? 2 : 1);
        return put(out, prefix, rest, "");
    }
    snprintf(prefix, sizeof(prefix), "%s%s_blocks.%d.%d.", l->unet, down ? "input" : "output",
             block * per + item + (down ? 1 : 0), strcmp(kind, "attentions") == 0);
    return strcmp(kind, "resnets") == 0 ? put_renamed(out, prefix, UNET_RESNET, rest)
                                        : put(out, prefix, rest, "");
}

/* The hint's convolutions are every other layer of one sequence, each with its SiLU behind it. */
static bool controlnet_name(const struct ldm_layout *l, const char *name, char *out)
{
    char prefix[64];
    int at, used = 0;

    if (sscanf(name, "down_blocks.%d%n", &at, &used) == 1)
        snprintf(prefix, sizeof(prefix), "%szero_convs.%d.0", l->unet, at);
    else if (sscanf(name, "cond_embedding.blocks.%d%n", &at, &used) == 1 && at + 2 < l->hint_layers)
        snprintf(prefix, sizeof(prefix), "%sinput_hint_block.%d", l->unet, 2 * at + 2);
    else if (strncmp(name, "cond_embedding.conv_in", used = 22) == 0)
        snprintf(prefix, sizeof(prefix), "%sinput_hint_block.0", l->unet);
    else if (strncmp(name, "cond_embedding.conv_out", used = 23) == 0)
        snprintf(prefix, sizeof(prefix), "%sinput_hint_block.%d", l->unet, 2 * l->hint_layers - 2);
    else if (strncmp(name, "mid_block", used = 9) == 0)
        snprintf(prefix, sizeof(prefix), "%smiddle_block_out.0", l->unet);
    else
        return false;
    return put(out, prefix, name + used, "");
}

static bool unet_name(const struct ldm_layout *l, const char *name, char *out)
{
    char prefix[64];
    const char *rest;

    if (strncmp(name, "down_blocks.", 12) == 0 || strncmp(name, "up_blocks.", 10) == 0)
        return unet_block(l, name, out);
    for (int i = 0; i < 2; i++) {
        snprintf(prefix, sizeof(prefix), "mid_block.resnets.%d", i);
        if ((rest = after(name, prefix)) != NULL && *rest == '.') {
            snprintf(prefix, sizeof(prefix), "%smiddle_block.%d.", l->unet, i * 2);
            return put_renamed(out, prefix, UNET_RESNET, rest + 1);
        }
    }
    if (strncmp(name, "controlnet_", 11) == 0)
        return controlnet_name(l, name + 11, out);
    return put_renamed(out, l->unet, UNET_TOP, name);
}

static bool vae_name(const struct ldm_layout *l, const char *name, char *out)
{
    static const char *MODEL = "first_stage_model.";
    char prefix[96], side[16], kind[16];
    int block, item, used = 0;

    if (sscanf(name, "%15[a-z].mid_block.%15[a-z].%d.%n", side, kind, &item, &used) == 3 && used) {
        bool attention = strcmp(kind, "attentions") == 0;
        snprintf(prefix, sizeof(prefix), "%s%s.mid.%s_%d.", MODEL, side,
                 attention ? "attn" : "block", item + 1);
        return put_renamed(out, prefix, attention ? VAE_ATTENTION : VAE_RESNET, name + used);
    }
    if (sscanf(name, "%15[a-z].%*[a-z]_blocks.%d.%15[a-z].%d.%n", side, &block, kind, &item,
               &used) == 4 &&
        used) {
        bool decoder = strcmp(side, "decoder") == 0;
        const char *way = decoder ? "up" : "down";
        int level = decoder ? l->vae_levels - 1 - block : block;
        if (strcmp(kind, "resnets") == 0) {
            snprintf(prefix, sizeof(prefix), "%s%s.%s.%d.block.%d.", MODEL, side, way, level, item);
            return put_renamed(out, prefix, VAE_RESNET, name + used);
        }
        snprintf(prefix, sizeof(prefix), "%s%s.%s.%d.%ssample.", MODEL, side, way, level, way);
        return put(out, prefix, name + used, "");
    }
    for (int i = 0; i < 2; i++) {
        const char *sides[] = {"encoder.conv_norm_out", "decoder.conv_norm_out"};
        const char *rest = after(name, sides[i]);
        if (rest != NULL)
            return put(out, i ? "first_stage_model.decoder" : "first_stage_model.encoder",
                       ".norm_out", rest);
    }
    return put(out, MODEL, name, "");
}

static bool open_clip_name(const char *model, const char *name, struct ldm_place *place)
{
    static const char *const THIRDS[] = {"q_proj", "k_proj", "v_proj"};
    char prefix[96];
    int layer, used = 0;

    if (sscanf(name, "text_model.encoder.layers.%d.%n", &layer, &used) != 1 || used == 0) {
        place->transposed = strcmp(name, "text_projection.weight") == 0;
        return put_renamed(place->name, model, OPEN_CLIP_TOP, name);
    }
    for (int i = 0; i < 3; i++)
        if (strncmp(name + used, "self_attn.", 10) == 0 && after(name + used + 10, THIRDS[i]))
            place->third = i;
    snprintf(prefix, sizeof(prefix), "%stransformer.resblocks.%d.", model, layer);
    return put_renamed(place->name, prefix, OPEN_CLIP_LAYER, name + used);
}

bool ldm_find(const struct ldm_layout *layout, enum component component, const char *name,
              struct ldm_place *place)
{
    const char *text = layout->text[component];

    *place = (struct ldm_place){.third = -1};
    switch (component) {
    case COMPONENT_TEXT:
    case COMPONENT_TEXT_2:
        if (text == NULL)
            return false;
        return layout->open_clip[component] ? open_clip_name(text, name, place)
                                            : put(place->name, text, name, "");
    case COMPONENT_UNET:
        return unet_name(layout, name, place->name);
    case COMPONENT_VAE:
        return vae_name(layout, name, place->name);
    default:
        return false;
    }
}

bool legacy_name(enum component component, const char *name, char out[CHECKPOINT_NAME_MAX_BYTES])
{
    const char *attention;

    if (component == COMPONENT_TEXT || component == COMPONENT_TEXT_2)
        return strncmp(name, "text_model.", 11) == 0 && put(out, name + 11, "", "");
    if (component != COMPONENT_VAE || (attention = strstr(name, "attentions.0.")) == NULL)
        return false;
    char prefix[96];
    snprintf(prefix, sizeof(prefix), "%.*s", (int)(attention + 13 - name), name);
    return put_renamed(out, prefix, VAE_LEGACY, attention + 13);
}

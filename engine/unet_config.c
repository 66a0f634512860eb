/* What the UNet looks like: from its config.json, or from the shapes in a single file. */
#include "engine/unet.h"

#include <string.h>

static int refuse(struct checkpoint *c, struct err *err, const char *field, const char *value)
{
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: its configuration has %s = %s, which this version does not draw",
                   checkpoint_file(c, COMPONENT_UNET), field, value);
}

/* An integer, or element `i` of a list of them. */
static int int_at(const struct json *value, int i, int fallback)
{
    if (value == NULL || value->type != JSON_ARRAY)
        return (int)json_int_or(value, fallback);
    value = value->child;
    while (value != NULL && i-- > 0)
        value = value->next;
    return (int)json_int_or(value, fallback);
}

static const char *string_at(const struct json *list, int i)
{
    const struct json *item = list != NULL && list->type == JSON_ARRAY ? list->child : NULL;

    while (item != NULL && i-- > 0)
        item = item->next;
    return json_string_or(item, "");
}

/* Transformer blocks of attention `j` of a level: a number, or one number for each attention. */
static int depth_at(const struct json *depths, int level, int j)
{
    const struct json *item = depths;

    if (depths != NULL && depths->type == JSON_ARRAY) {
        item = depths->child;
        while (item != NULL && level-- > 0)
            item = item->next;
    }
    return int_at(item, j, 1);
}

/* Fields that change the network; any value but these is another family. */
static int check_fixed_fields(const struct json *json, struct checkpoint *c, struct err *err)
{
    static const struct {
        const char *field, *value;
    } STRINGS[] = {{"act_fn", "silu"},
                   {"mid_block_type", "UNetMidBlock2DCrossAttn"},
                   {"resnet_time_scale_shift", "default"},
                   {"time_embedding_type", "positional"}};
    static const char *ABSENT[] = {"class_embed_type",     "encoder_hid_dim",
                                   "encoder_hid_dim_type", "timestep_post_act",
                                   "cross_attention_norm", "num_class_embeds"};
    static const char *FALSE[] = {"center_input_sample", "dual_cross_attention",
                                  "only_cross_attention", "class_embeddings_concat"};

    for (size_t i = 0; i < sizeof(STRINGS) / sizeof(STRINGS[0]); i++) {
        const char *value = json_string_or(json_get(json, STRINGS[i].field), STRINGS[i].value);
        if (strcmp(value, STRINGS[i].value) != 0)
            return refuse(c, err, STRINGS[i].field, value);
    }
    for (size_t i = 0; i < sizeof(ABSENT) / sizeof(ABSENT[0]); i++) {
        const struct json *value = json_get(json, ABSENT[i]);
        if (value != NULL && value->type != JSON_NULL)
            return refuse(c, err, ABSENT[i], value->text ? value->text : "a value");
    }
    for (size_t i = 0; i < sizeof(FALSE) / sizeof(FALSE[0]); i++)
        if (json_bool_or(json_get(json, FALSE[i]), false))
            return refuse(c, err, FALSE[i], "true");
    return 0;
}

/* On the way up the list is read backwards, unless there is one for the way up. */
static int up_depth_at(const struct json *json, int levels, int i, int j)
{
    const struct json *own = json_get(json, "reverse_transformer_layers_per_block");

    return own != NULL && own->type != JSON_NULL
               ? depth_at(own, levels - 1 - i, j)
               : depth_at(json_get(json, "transformer_layers_per_block"), i, j);
}

static int heads_at(const struct json *json, int level)
{
    const struct json *heads = json_get(json, "num_attention_heads");

    if (heads == NULL || heads->type == JSON_NULL)
        heads = json_get(json, "attention_head_dim"); /* diffusers' name for the number of heads */
    return int_at(heads, level, 8);
}

static int read_level(struct unet_config *u, const struct json *json, int i, struct checkpoint *c,
                      struct err *err)
{
    const char *down = string_at(json_get(json, "down_block_types"), i);
    const char *up = string_at(json_get(json, "up_block_types"), u->levels - 1 - i);
    bool attention = strcmp(down, "CrossAttnDownBlock2D") == 0;

    if (!attention && strcmp(down, "DownBlock2D") != 0)
        return refuse(c, err, "down_block_types", down);
    if (strcmp(up, attention ? "CrossAttnUpBlock2D" : "UpBlock2D") != 0)
        return refuse(c, err, "up_block_types", up);
    u->channels[i] = int_at(json_get(json, "block_out_channels"), i, 0);
    u->layers[i] = int_at(json_get(json, "layers_per_block"), i, 2);
    u->heads[i] = heads_at(json, i);
    for (int j = 0; attention && j < u->layers[i] && j < UNET_LAYERS_MAX; j++)
        u->down_depth[i][j] = depth_at(json_get(json, "transformer_layers_per_block"), i, j);
    for (int j = 0; attention && j <= u->layers[i] && j <= UNET_LAYERS_MAX; j++)
        u->up_depth[i][j] = up_depth_at(json, u->levels, i, j);
    return 0;
}

/* SDXL's pooled text and numbers; how many numbers, the pipeline's kind says. */
static int read_added(struct unet_config *u, const struct json *json, struct checkpoint *c,
                      struct err *err)
{
    const char *type = json_string_or(json_get(json, "addition_embed_type"), "");
    int whole = (int)json_int_or(json_get(json, "projection_class_embeddings_input_dim"), 0);

    if (*type == '\0')
        return 0;
    if (strcmp(type, "text_time") != 0)
        return refuse(c, err, "addition_embed_type", type);
    u->ids = checkpoint_family(c) == FAMILY_SDXL_REFINER ? UNET_IDS_MAX - 1 : UNET_IDS_MAX;
    u->id_width = (int)json_int_or(json_get(json, "addition_time_embed_dim"), 0);
    u->pooled = whole - u->ids * u->id_width;
    return 0;
}

static int config_from_json(struct unet_config *u, const struct json *json, struct checkpoint *c,
                            struct err *err)
{
    const struct json *channels = json_get(json, "block_out_channels");

    if (check_fixed_fields(json, c, err) != 0)
        return -1;
    *u = (struct unet_config){
        .in_channels = (int)json_int_or(json_get(json, "in_channels"), 4),
        .out_channels = (int)json_int_or(json_get(json, "out_channels"), 4),
        .levels = channels != NULL ? (int)channels->count : 0,
        .context = int_at(json_get(json, "cross_attention_dim"), 0, 1280),
        .groups = (int)json_int_or(json_get(json, "norm_num_groups"), 32),
        .eps = (float)json_double_or(json_get(json, "norm_eps"), 1e-5),
        .flip_sin_to_cos = json_bool_or(json_get(json, "flip_sin_to_cos"), true),
        .freq_shift = (int)json_int_or(json_get(json, "freq_shift"), 0),
        .guidance_width = (int)json_int_or(json_get(json, "time_cond_proj_dim"), 0),
    };
    if (u->levels < 1 || u->levels > UNET_LEVELS_MAX)
        return refuse(c, err, "block_out_channels", "a list of another length");
    for (int i = 0; i < u->levels; i++)
        if (read_level(u, json, i, c, err) != 0)
            return -1;
    u->embedding = int_at(json_get(json, "time_embedding_dim"), 0, 4 * u->channels[0]);
    u->mid_depth = depth_at(json_get(json, "transformer_layers_per_block"), u->levels - 1, 0);
    return read_added(u, json, c, err);
}

/* How many tensors there are whose name has 0, 1, … in its place. */
#define COUNT_TENSORS(count, limit, ...)                                                           \
    do {                                                                                           \
        while ((count) <= (limit) && bind_dim(c, COMPONENT_UNET, 0, __VA_ARGS__) > 0)              \
            (count)++;                                                                             \
    } while (0)

static void level_from_shapes(struct unet_config *u, struct checkpoint *c, int i)
{
    COUNT_TENSORS(u->layers[i], UNET_LAYERS_MAX, "down_blocks.%d.resnets.%d.conv1.weight", i,
                  u->layers[i]);
    for (int j = 0; j < u->layers[i] && j < UNET_LAYERS_MAX; j++) {
        int *depth = &u->down_depth[i][j];
        COUNT_TENSORS(*depth, UNET_DEPTH_MAX,
                      "down_blocks.%d.attentions.%d.transformer_blocks.%d.attn2.to_k.weight", i, j,
                      *depth);
        if (*depth > 0)
            u->context = bind_dim(
                c, COMPONENT_UNET, 1,
                "down_blocks.%d.attentions.%d.transformer_blocks.0.attn2.to_k.weight", i, j);
    }
}

/* Once the number of levels is known. */
static void way_up_from_shapes(struct unet_config *u, struct checkpoint *c)
{
    for (int i = 0; i < u->levels; i++)
        for (int j = 0; j <= u->layers[i] && j <= UNET_LAYERS_MAX; j++)
            COUNT_TENSORS(u->up_depth[i][j], UNET_DEPTH_MAX,
                          "up_blocks.%d.attentions.%d.transformer_blocks.%d.attn2.to_k.weight",
                          u->levels - 1 - i, j, u->up_depth[i][j]);
}

static void mid_from_shapes(struct unet_config *u, struct checkpoint *c)
{
    COUNT_TENSORS(u->mid_depth, UNET_DEPTH_MAX,
                  "mid_block.attentions.0.transformer_blocks.%d.attn2.to_k.weight", u->mid_depth);
}

static void added_from_shapes(struct unet_config *u, struct checkpoint *c)
{
    int whole = bind_dim(c, COMPONENT_UNET, 1, "add_embedding.linear_1.weight");

    if (whole == 0)
        return;
    u->ids = checkpoint_family(c) == FAMILY_SDXL_REFINER ? UNET_IDS_MAX - 1 : UNET_IDS_MAX;
    u->pooled = bind_dim(c, COMPONENT_TEXT_2, 0, "text_projection.weight");
    u->id_width = (whole - u->pooled) / u->ids;
}

/* A file does not say how many heads: SD1 has 8, the others heads of 64. */
static void config_from_shapes(struct unet_config *u, struct checkpoint *c)
{
    const enum component unet = COMPONENT_UNET;
    bool eight = checkpoint_family(c) == FAMILY_SD1;

    *u = (struct unet_config){.groups = 32, .eps = 1e-5f, .flip_sin_to_cos = true};
    u->in_channels = bind_dim(c, unet, 1, "conv_in.weight");
    u->out_channels = bind_dim(c, unet, 0, "conv_out.weight");
    u->embedding = bind_dim(c, unet, 0, "time_embedding.linear_1.weight");
    for (int i = 0; i < UNET_LEVELS_MAX; i++) {
        u->channels[i] = bind_dim(c, unet, 0, "down_blocks.%d.resnets.0.conv1.weight", i);
        if (u->channels[i] == 0)
            break;
        u->levels = i + 1;
        u->heads[i] = eight ? 8 : u->channels[i] > 64 ? u->channels[i] / 64 : 1;
        level_from_shapes(u, c, i);
    }
    way_up_from_shapes(u, c);
    mid_from_shapes(u, c);
    added_from_shapes(u, c);
}

static int check_depths(const struct unet_config *u, struct checkpoint *c, struct err *err)
{
    bool usable = u->mid_depth >= 1 && u->mid_depth <= UNET_DEPTH_MAX;

    for (int i = 0; i < u->levels; i++)
        for (int j = 0; j <= u->layers[i]; j++)
            usable = usable && u->up_depth[i][j] >= 0 && u->up_depth[i][j] <= UNET_DEPTH_MAX &&
                     (j == u->layers[i] ||
                      (u->down_depth[i][j] >= 0 && u->down_depth[i][j] <= UNET_DEPTH_MAX));
    if (!usable)
        return refuse(c, err, "transformer_layers_per_block", "a number outside of 1 to 12");
    if (u->ids > 0 && (u->pooled < 1 || u->id_width < 2 || u->ids * u->id_width > UNET_WIDTH_MAX))
        return refuse(c, err, "projection_class_embeddings_input_dim or addition_time_embed_dim",
                      "a value that leaves no room for the pooled text or its numbers");
    if (u->guidance_width != 0 && (u->guidance_width < 4 || u->guidance_width > UNET_WIDTH_MAX))
        return refuse(c, err, "time_cond_proj_dim", "an impossible width");
    return 0;
}

static int check_heads(const struct unet_config *u, struct checkpoint *c, struct err *err)
{
    for (int i = 0; i < u->levels; i++)
        if (u->heads[i] < 1 || u->channels[i] % u->heads[i] != 0)
            return refuse(c, err, "attention_head_dim",
                          "a number of heads that does not divide its width");
    return 0;
}

static int check_sizes(const struct unet_config *u, struct checkpoint *c, struct err *err)
{
    if ((u->in_channels != 4 && u->in_channels != 8 && u->in_channels != 9) || u->out_channels != 4)
        return refuse(c, err, "in_channels or out_channels",
                      "another number than 4, or 8 or 9 in_channels");
    if (u->in_channels == 8 && checkpoint_has(c, COMPONENT_TEXT_2))
        return refuse(c, err, "in_channels", "8 (an SDXL model that follows instructions)");
    if (u->levels < 1 || u->context < 1 || u->groups < 1 || u->embedding < 1)
        return refuse(c, err, "block_out_channels or cross_attention_dim", "nothing usable");
    for (int i = 0; i < u->levels; i++) {
        if (u->channels[i] < 2 || u->channels[i] > UNET_WIDTH_MAX ||
            u->channels[i] % u->groups != 0)
            return refuse(c, err, "block_out_channels",
                          "a width that norm_num_groups does not divide");
        if (u->layers[i] < 1 || u->layers[i] > UNET_LAYERS_MAX)
            return refuse(c, err, "layers_per_block", "a number outside of 1 to 4");
    }
    return check_heads(u, c, err) != 0 ? -1 : check_depths(u, c, err);
}

int unet_config_read(struct unet_config *config, struct checkpoint *checkpoint, struct err *err)
{
    const struct json *json = checkpoint_config(checkpoint, COMPONENT_UNET);

    if (json == NULL)
        config_from_shapes(config, checkpoint);
    else if (config_from_json(config, json, checkpoint, err) != 0)
        return -1;
    return check_sizes(config, checkpoint, err);
}

/* Fields of a ControlNet's config.json that change what it computes. */
static int check_copy_fields(const struct json *json, struct checkpoint *c, struct err *err)
{
    const char *mid = json_string_or(json_get(json, "mid_block_type"), "UNetMidBlock2DCrossAttn");

    if (strcmp(mid, "UNetMidBlock2DCrossAttn") != 0 && strcmp(mid, "UNetMidBlock2D") != 0)
        return refuse(c, err, "mid_block_type", mid);
    return 0;
}

int unet_config_copy(struct unet_config *u, const struct unet_config *model, struct checkpoint *c,
                     struct err *err)
{
    const struct json *json = checkpoint_config(c, COMPONENT_UNET);

    *u = *model;
    u->in_channels = u->out_channels;
    u->guidance_width = 0;
    u->mid_depth = 0;
    memset(u->layers, 0, sizeof(u->layers));
    memset(u->down_depth, 0, sizeof(u->down_depth));
    for (int i = 0; i < u->levels; i++) {
        level_from_shapes(u, c, i);
        if (u->layers[i] != model->layers[i])
            return err_set(err, ERR_FORMAT, ERR_REJECT,
                           "%s: has %d layers at level %d, the model has %d; it belongs to a model "
                           "of another family",
                           checkpoint_file(c, COMPONENT_UNET), u->layers[i], i, model->layers[i]);
        if (json != NULL)
            u->heads[i] = heads_at(json, i);
    }
    u->context = model->context; /* binding compares it with the file's */
    mid_from_shapes(u, c);
    if (json != NULL && check_copy_fields(json, c, err) != 0)
        return -1;
    return check_heads(u, c, err);
}

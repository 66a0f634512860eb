#include "engine/synthetic.h"

#include "common/buf.h"
#include "engine/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLIP_L                                                                                     \
    "{\"vocab_size\":49408,\"hidden_size\":768,\"intermediate_size\":3072,"                        \
    "\"num_hidden_layers\":12,\"num_attention_heads\":12}"
#define CLIP_G                                                                                     \
    "{\"vocab_size\":49408,\"hidden_size\":1280,\"intermediate_size\":5120,"                       \
    "\"num_hidden_layers\":32,\"num_attention_heads\":20,\"hidden_act\":\"gelu\","                 \
    "\"projection_dim\":1280}"
#define VAE(scale)                                                                                 \
    "{\"block_out_channels\":[128,256,512,512],\"layers_per_block\":2,\"scaling_factor\":" scale "}"
#define SCHEDULER(class, more)                                                                     \
    "{\"_class_name\":\"" class "\",\"beta_schedule\":\"scaled_linear\",\"beta_start\":0.00085,"   \
                                "\"beta_end\":0.012,\"num_train_timesteps\":1000" more "}"
#define EULER                                                                                      \
    SCHEDULER("EulerDiscreteScheduler", ",\"timestep_spacing\":\"leading\",\"steps_offset\":1")

static const struct synthetic SYNTHETICS[] = {
    {
        .family = FAMILY_SD1,
        .configs =
            {[COMPONENT_TEXT] = CLIP_L,
             [COMPONENT_UNET] =
                 "{\"block_out_channels\":[320,640,1280,1280],\"cross_attention_dim\":768,"
                 "\"attention_head_dim\":8,\"sample_size\":64,\"down_block_types\":["
                 "\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\",\"CrossAttnDownBlock2D\","
                 "\"DownBlock2D\"],\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\","
                 "\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\"]}",
             [COMPONENT_VAE] = VAE("0.18215")},
        .scheduler = SCHEDULER("DDIMScheduler", ""),
    },
    {
        .family = FAMILY_SDXL,
        .configs =
            {[COMPONENT_TEXT] = CLIP_L,
             [COMPONENT_TEXT_2] = CLIP_G,
             [COMPONENT_UNET] =
                 "{\"block_out_channels\":[320,640,1280],\"cross_attention_dim\":2048,"
                 "\"attention_head_dim\":[5,10,20],\"transformer_layers_per_block\":[1,2,10],"
                 "\"addition_embed_type\":\"text_time\",\"addition_time_embed_dim\":256,"
                 "\"projection_class_embeddings_input_dim\":2816,\"sample_size\":128,"
                 "\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\","
                 "\"CrossAttnDownBlock2D\"],\"up_block_types\":[\"CrossAttnUpBlock2D\","
                 "\"CrossAttnUpBlock2D\",\"UpBlock2D\"]}",
             [COMPONENT_VAE] = VAE("0.13025")},
        .scheduler = EULER,
    },
    {
        .family = FAMILY_SDXL_REFINER,
        .configs =
            {[COMPONENT_TEXT_2] = CLIP_G,
             [COMPONENT_UNET] =
                 "{\"block_out_channels\":[384,768,1536,1536],\"cross_attention_dim\":1280,"
                 "\"attention_head_dim\":[6,12,24,24],\"transformer_layers_per_block\":4,"
                 "\"addition_embed_type\":\"text_time\",\"addition_time_embed_dim\":256,"
                 "\"projection_class_embeddings_input_dim\":2560,\"sample_size\":128,"
                 "\"down_block_types\":[\"DownBlock2D\",\"CrossAttnDownBlock2D\","
                 "\"CrossAttnDownBlock2D\",\"DownBlock2D\"],\"up_block_types\":[\"UpBlock2D\","
                 "\"CrossAttnUpBlock2D\",\"CrossAttnUpBlock2D\",\"UpBlock2D\"]}",
             [COMPONENT_VAE] = VAE("0.13025")},
        .scheduler = EULER,
    },
};

const struct synthetic *synthetic_of(enum family family)
{
    for (size_t i = 0; i < sizeof(SYNTHETICS) / sizeof(SYNTHETICS[0]); i++)
        if (SYNTHETICS[i].family == family)
            return &SYNTHETICS[i];
    return NULL;
}

/* ---- as a file ---- */

#define CHUNK_ELEMENTS (1u << 20)

struct header {
    struct buf text;
    uint64_t bytes; /* of the tensors described so far */
};

static void add_tensor(struct header *header, const char *name, const int64_t *dims, int rank)
{
    uint64_t count = 1;

    buf_printf(&header->text, "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[",
               header->bytes > 0 ? "," : "{", name);
    for (int i = 0; i < rank; i++) {
        buf_printf(&header->text, "%s%lld", i ? "," : "", (long long)dims[i]);
        count *= (uint64_t)dims[i];
    }
    buf_printf(&header->text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)header->bytes,
               (unsigned long long)(header->bytes + 2 * count));
    header->bytes += 2 * count;
}

/* Under the name that an LDM file has for it. */
static void describe(void *user, enum component component, const char *name, const int64_t *dims,
                     int rank)
{
    static const struct ldm_layout LAYOUT = {
        .text = {[COMPONENT_TEXT] = "cond_stage_model.transformer."},
        .unet = "model.diffusion_model.",
        .layers = 2,
        .vae_levels = 4,
        .up_attention = {false, true, true, true}};
    struct header *header = user;
    struct ldm_place place;

    if (ldm_find(&LAYOUT, component, name, &place))
        add_tensor(header, place.name, dims, rank);
    else
        header->text.failed = true;
}

static bool write_values(FILE *file, const uint16_t *values, uint64_t bytes)
{
    bool written = true;

    for (uint64_t left = bytes / 2; left > 0 && written;) {
        size_t n = left < CHUNK_ELEMENTS ? (size_t)left : CHUNK_ELEMENTS;
        written = fwrite(values, 2, n, file) == n;
        left -= n;
    }
    return written;
}

static int write_file(struct header *header, const uint16_t *values, const char *path,
                      struct err *err)
{
    FILE *file = fopen(path, "wb");
    bool written = false;
    uint64_t length;

    buf_char(&header->text, '}');
    length = header->text.len;
    if (file != NULL && !header->text.failed)
        written = fwrite(&length, sizeof(length), 1, file) == 1 &&
                  fwrite(header->text.data, 1, length, file) == length &&
                  write_values(file, values, header->bytes);
    if (file != NULL && fclose(file) != 0)
        written = false;
    buf_release(&header->text);
    return written ? 0 : err_set(err, ERR_IO, ERR_FATAL, "%s cannot be written", path);
}

int synthetic_write(const struct checkpoint *checkpoint, const char *path, struct err *err)
{
    struct header header = {.bytes = 0};

    buf_init(&header.text, 1u << 20);
    checkpoint_synthesized(checkpoint, describe, &header);
    return write_file(&header, checkpoint_pool(checkpoint), path, err);
}

/* ---- a ControlNet ---- */

/* A copy of the way down and the middle. */
static void describe_copy(void *user, enum component component, const char *name,
                          const int64_t *dims, int rank)
{
    static const char *const KEPT[] = {"conv_in.", "time_embedding.", "down_blocks.", "mid_block."};

    for (size_t i = 0; i < sizeof(KEPT) / sizeof(KEPT[0]); i++)
        if (component == COMPONENT_UNET && strncmp(name, KEPT[i], strlen(KEPT[i])) == 0)
            add_tensor(user, name, dims, rank);
}

static void add_conv(struct header *header, const char *name, int in, int out, int kernel)
{
    char full[CHECKPOINT_NAME_MAX_BYTES];

    snprintf(full, sizeof(full), "%s.weight", name);
    add_tensor(header, full, (int64_t[]){out, in, kernel, kernel}, 4);
    snprintf(full, sizeof(full), "%s.bias", name);
    add_tensor(header, full, (int64_t[]){out}, 1);
}

/* The published one halves the picture three times. */
static void add_hint(struct header *header, int channels)
{
    static const int WIDTHS[] = {16, 16, 32, 32, 96, 96, 256};
    char name[64];

    add_conv(header, "controlnet_cond_embedding.conv_in", 3, WIDTHS[0], 3);
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "controlnet_cond_embedding.blocks.%d", i);
        add_conv(header, name, WIDTHS[i], WIDTHS[i + 1], 3);
    }
    add_conv(header, "controlnet_cond_embedding.conv_out", WIDTHS[6], channels, 3);
}

static void add_zeros(struct header *header, const struct unet_config *u)
{
    char name[64];
    int number = 0;

    for (int i = 0; i < u->levels; i++)
        for (int j = i == 0 ? -1 : 0; j < u->layers[i] + (i + 1 < u->levels); j++) {
            snprintf(name, sizeof(name), "controlnet_down_blocks.%d", number++);
            add_conv(header, name, u->channels[i], u->channels[i], 1);
        }
    add_conv(header, "controlnet_mid_block", u->channels[u->levels - 1], u->channels[u->levels - 1],
             1);
}

int synthetic_write_controlnet(const struct checkpoint *checkpoint, const struct unet_config *unet,
                               const char *path, struct err *err)
{
    struct header header = {.bytes = 0};

    buf_init(&header.text, 1u << 20);
    checkpoint_synthesized(checkpoint, describe_copy, &header);
    add_hint(&header, unet->channels[0]);
    add_zeros(&header, unet);
    return write_file(&header, checkpoint_pool(checkpoint), path, err);
}

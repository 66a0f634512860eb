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

static void describe(void *user, enum component component, const char *name, const int64_t *dims,
                     int rank)
{
    static const struct ldm_layout LAYOUT = {
        .text = {[COMPONENT_TEXT] = "cond_stage_model.transformer."},
        .layers = 2,
        .vae_levels = 4,
        .up_attention = {false, true, true, true}};
    struct header *header = user;
    struct ldm_place place;
    uint64_t count = 1;

    if (!ldm_find(&LAYOUT, component, name, &place)) {
        header->text.failed = true;
        return;
    }
    buf_printf(&header->text, "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[",
               header->bytes > 0 ? "," : "{", place.name);
    for (int i = 0; i < rank; i++) {
        buf_printf(&header->text, "%s%lld", i ? "," : "", (long long)dims[i]);
        count *= (uint64_t)dims[i];
    }
    buf_printf(&header->text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)header->bytes,
               (unsigned long long)(header->bytes + 2 * count));
    header->bytes += 2 * count;
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

int synthetic_write(const struct checkpoint *checkpoint, const char *path, struct err *err)
{
    struct header header = {.bytes = 0};
    FILE *file = fopen(path, "wb");
    uint64_t length;
    bool written = false;

    buf_init(&header.text, 1u << 20);
    checkpoint_synthesized(checkpoint, describe, &header);
    buf_char(&header.text, '}');
    length = header.text.len;
    if (file != NULL && !header.text.failed)
        written = fwrite(&length, sizeof(length), 1, file) == 1 &&
                  fwrite(header.text.data, 1, length, file) == length &&
                  write_values(file, checkpoint_pool(checkpoint), header.bytes);
    buf_release(&header.text);
    if (file != NULL && fclose(file) != 0)
        written = false;
    return written ? 0 : err_set(err, ERR_IO, ERR_FATAL, "%s cannot be written", path);
}

/* Opening a checkpoint: which files there are, and of which kind and family. */
#include "engine/checkpoint_parts.h"

#include "common/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_MAX_BYTES 4096

static bool exists(const char *path)
{
    return access(path, R_OK) == 0;
}

static int add_file(struct part *part, const char *path, struct err *err)
{
    if (part->count == CHECKPOINT_SHARDS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s: more than %d shards", path,
                       CHECKPOINT_SHARDS_MAX);
    if (tensor_file_open(&part->shards[part->count], path, err) != 0)
        return -1;
    part->count++;
    part->used[part->count - 1] =
        calloc(tensor_file_count(part->shards[part->count - 1]) + 1, sizeof(bool));
    if (part->used[part->count - 1] == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", path);
    return 0;
}

/* The shards that an index names, each once. */
static int add_shards(struct part *part, const char *folder, const char *index_path,
                      struct err *err)
{
    const char *names[CHECKPOINT_SHARDS_MAX];
    struct json_doc *index;
    const struct json *map;
    int count = 0, rc = -1;
    char path[PATH_MAX_BYTES];

    if (json_parse_file(&index, index_path, NULL, err) != 0)
        return -1;
    map = json_get(json_root(index), "weight_map");
    if (map == NULL || map->type != JSON_OBJECT) {
        err_set(err, ERR_FORMAT, ERR_REJECT, "%s: has no weight_map", index_path);
        goto out;
    }
    for (const struct json *entry = map->child; entry != NULL; entry = entry->next) {
        const char *name = json_string_or(entry, "");
        int i = 0;
        while (i < count && strcmp(names[i], name) != 0)
            i++;
        if (i < count)
            continue;
        if (*name == '\0' || strchr(name, '/') != NULL || count == CHECKPOINT_SHARDS_MAX) {
            err_set(err, ERR_FORMAT, ERR_REJECT, "%s: names an impossible shard for '%s'",
                    index_path, entry->key);
            goto out;
        }
        names[count++] = name;
        snprintf(path, sizeof(path), "%s/%s", folder, name);
        if (add_file(part, path, err) != 0)
            goto out;
    }
    rc = 0;
out:
    json_doc_free(index);
    return rc;
}

/* The weights of a component in its folder. Full precision first, as diffusers takes it when no
 * variant is asked for. */
static int add_weights(struct part *part, const char *folder, const char *weights, struct err *err)
{
    static const char *const PATTERNS[] = {"%s/%s.safetensors",
                                           "%s/%s.safetensors.index.json",
                                           "%s/%s.fp16.safetensors",
                                           "%s/%s.safetensors.index.fp16.json",
                                           "%s/%s.fp16.safetensors.index.json",
                                           "%s/%s%s.bin",
                                           "%s/%s%s.bin.index.json",
                                           "%s/%s%s.fp16.bin"};
    /* What transformers calls the same in torch's format. */
    const char *torch = strcmp(weights, "model") == 0 ? "pytorch_" : "";
    char path[PATH_MAX_BYTES + 64];

    for (size_t i = 0; i < sizeof(PATTERNS) / sizeof(PATTERNS[0]); i++) {
        bool by_torch = strstr(PATTERNS[i], ".bin") != NULL;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        if (by_torch)
            snprintf(path, sizeof(path), PATTERNS[i], folder, torch, weights);
        else
            snprintf(path, sizeof(path), PATTERNS[i], folder, weights);
#pragma GCC diagnostic pop
        if (exists(path))
            return strstr(path, ".json") != NULL ? add_shards(part, folder, path, err)
                                                 : add_file(part, path, err);
    }
    return err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                   "%s: no %s.safetensors, sharded index, fp16 variant or .bin of torch in it",
                   folder, weights);
}

static int open_component(struct checkpoint *c, enum component component, struct err *err)
{
    char folder[PATH_MAX_BYTES], path[PATH_MAX_BYTES + 64];

    if (snprintf(folder, sizeof(folder), "%s/%s", c->path, component_place(component)->folder) >=
        (int)sizeof(folder))
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s: the path is too long", c->path);
    snprintf(path, sizeof(path), "%s/config.json", folder);
    if (json_parse_file(&c->configs[component], path, NULL, err) != 0)
        return -1;
    return add_weights(&c->parts[component], folder, component_place(component)->weights, err);
}

static int check_pipeline(const char *path, const struct json *index, struct err *err)
{
    const char *class = json_string_or(json_get(index, "_class_name"), "");
    static const char *KNOWN[] = {
        "StableDiffusionPipeline",          "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",   "StableDiffusionInstructPix2PixPipeline",
        "LatentConsistencyModelPipeline",   "LatentConsistencyModelImg2ImgPipeline",
        "StableDiffusionXLPipeline",        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    };

    for (size_t i = 0; i < sizeof(KNOWN) / sizeof(KNOWN[0]); i++)
        if (strcmp(class, KNOWN[i]) == 0)
            return 0;
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: is a %s, a family that this version does not draw; it draws "
                   "StableDiffusionPipeline models (SD1.x, SD2.x) and StableDiffusionXLPipeline "
                   "models",
                   path, *class ? class : "pipeline without _class_name");
}

/* A text encoder that model_index.json names as [null, null], or not at all, is not there. */
static int find_parts(struct checkpoint *c, const char *path, struct err *err)
{
    const struct json *index = json_root(c->index);

    for (int i = 0; i < COMPONENT_COUNT; i++) {
        const struct json *entry = json_get(index, component_place((enum component)i)->folder);
        c->has[i] = component_place((enum component)i)->tokenizer == NULL ||
                    (entry != NULL && entry->type == JSON_ARRAY && entry->child != NULL &&
                     entry->child->type == JSON_STRING);
    }
    if (c->has[COMPONENT_TEXT] || c->has[COMPONENT_TEXT_2])
        return 0;
    return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: names no text_encoder", path);
}

static enum family tree_family(const struct checkpoint *c)
{
    const struct json *text = checkpoint_config(c, COMPONENT_TEXT);

    if (!c->has[COMPONENT_TEXT_2])
        return strcmp(json_string_or(json_get(text, "hidden_act"), ""), "gelu") == 0 ? FAMILY_SD2
                                                                                     : FAMILY_SD1;
    return json_bool_or(json_get(json_root(c->index), "requires_aesthetics_score"), false)
               ? FAMILY_SDXL_REFINER
               : FAMILY_SDXL;
}

static int open_tree(struct checkpoint *c, struct err *err)
{
    char path[PATH_MAX_BYTES];

    snprintf(path, sizeof(path), "%s/model_index.json", c->path);
    if (!exists(path))
        return err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                       "%s: is a folder without model_index.json, so no diffusers model", c->path);
    if (json_parse_file(&c->index, path, NULL, err) != 0 ||
        check_pipeline(path, json_root(c->index), err) != 0 || find_parts(c, path, err) != 0)
        return -1;
    for (int i = 0; i < COMPONENT_COUNT; i++)
        if (c->has[i] && open_component(c, (enum component)i, err) != 0)
            return -1;
    c->family = tree_family(c);
    snprintf(path, sizeof(path), "%s/scheduler/scheduler_config.json", c->path);
    return json_parse_file(&c->scheduler, path, NULL, err);
}

static bool has(const struct tensor_file *file, const char *name)
{
    return tensor_file_find(file, name) != NULL;
}

static int unsupported(const struct checkpoint *c, const char *what, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: is %s, a family that this version does not draw; it draws SD1.x, SD2.x and "
                   "SDXL, as single files and diffusers folders",
                   c->path, what);
}

static int check_single(const struct checkpoint *c, const struct tensor_file *file, struct err *err)
{
    if (has(file, "control_model.time_embed.0.weight"))
        return unsupported(c, "a ControlNet", err);
    if (has(file, "edm_mean") || has(file, "edm_vpred.sigma_max"))
        return unsupported(c, "an EDM model", err);
    if (!has(file, "model.diffusion_model.input_blocks.0.0.weight"))
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%s: holds no Stable Diffusion model (no tensor "
                       "'model.diffusion_model.input_blocks.0.0.weight'); adapters, VAEs and text "
                       "encoders cannot be drawn with alone",
                       c->path);
    return 0;
}

/* The family is told by how the text encoders are called. */
static void find_texts(struct checkpoint *c, const struct tensor_file *file)
{
    struct ldm_layout *l = &c->layout;

    if (has(file, "conditioner.embedders.1.model.ln_final.weight")) {
        c->family = FAMILY_SDXL;
        l->text[COMPONENT_TEXT] = "conditioner.embedders.0.transformer.";
        l->text[COMPONENT_TEXT_2] = "conditioner.embedders.1.model.";
    } else if (has(file, "conditioner.embedders.0.model.ln_final.weight")) {
        c->family = FAMILY_SDXL_REFINER;
        l->text[COMPONENT_TEXT_2] = "conditioner.embedders.0.model.";
    } else if (has(file, "cond_stage_model.model.ln_final.weight")) {
        c->family = FAMILY_SD2;
        l->text[COMPONENT_TEXT] = "cond_stage_model.model.";
        l->open_clip[COMPONENT_TEXT] = true;
    } else {
        l->text[COMPONENT_TEXT] = "cond_stage_model.transformer.";
    }
    l->open_clip[COMPONENT_TEXT_2] = true;
    c->has[COMPONENT_TEXT] = l->text[COMPONENT_TEXT] != NULL;
    c->has[COMPONENT_TEXT_2] = l->text[COMPONENT_TEXT_2] != NULL;
}

/* SD2 was trained on the layer before the last, which is there all the same. */
static void find_idle(struct checkpoint *c, const struct tensor_file *file)
{
    char name[CHECKPOINT_NAME_MAX_BYTES];

    for (int i = 0; c->family == FAMILY_SD2; i++) {
        snprintf(name, sizeof(name), "%stransformer.resblocks.%d.ln_1.weight",
                 c->layout.text[COMPONENT_TEXT], i);
        if (!has(file, name))
            break;
        snprintf(c->idle, sizeof(c->idle), "%.*s", (int)strlen(name) - 11, name);
    }
}

/* `l->unet` is known. */
static void find_unet_layout(struct ldm_layout *l, const struct tensor_file *file)
{
    char name[CHECKPOINT_NAME_MAX_BYTES];

    l->layers = 2;
    for (int block = 1; block < 16; block++) {
        snprintf(name, sizeof(name), "%sinput_blocks.%d.0.op.weight", l->unet, block);
        if (has(file, name)) {
            l->layers = block - 1;
            break;
        }
    }
}

static void find_layout(struct checkpoint *c, const struct tensor_file *file)
{
    char name[CHECKPOINT_NAME_MAX_BYTES];
    struct ldm_layout *l = &c->layout;

    l->unet = "model.diffusion_model.";
    find_unet_layout(l, file);
    for (int block = 0; block < 16; block++) {
        snprintf(name, sizeof(name), "model.diffusion_model.output_blocks.%d.1.norm.weight",
                 block * (l->layers + 1) + l->layers);
        l->up_attention[block] = has(file, name);
        snprintf(name, sizeof(name), "first_stage_model.encoder.down.%d.block.0.norm1.weight",
                 block);
        if (has(file, name))
            l->vae_levels = block + 1;
    }
}

static int check_extension(const char *path, struct err *err)
{
    const char *dot = strrchr(path, '.');

    if (file_tensor_stem(path) > 0)
        return 0;
    if (dot != NULL && strcmp(dot, ".json") == 0)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%s: is no model but what a folder says of one; name the model's folder",
                       path);
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: is not read; .safetensors, .ckpt, .pt, .pth and .bin files and diffusers "
                   "folders are",
                   path);
}

static int open_single(struct checkpoint *c, struct err *err)
{
    c->format = CHECKPOINT_LDM;
    if (check_extension(c->path, err) != 0 || add_file(&c->parts[0], c->path, err) != 0 ||
        check_single(c, c->parts[0].shards[0], err) != 0)
        return -1;
    c->has[COMPONENT_UNET] = c->has[COMPONENT_VAE] = true;
    find_texts(c, c->parts[0].shards[0]);
    find_idle(c, c->parts[0].shards[0]);
    find_layout(c, c->parts[0].shards[0]);
    return 0;
}

/* What is at the path, opened by whichever of the two fits it. */
static int open_path(struct checkpoint **out, const char *path,
                     int (*open_folder)(struct checkpoint *, struct err *),
                     int (*open_file)(struct checkpoint *, struct err *), struct err *err)
{
    struct checkpoint *c = calloc(1, sizeof(*c));
    struct stat st;
    int rc;

    if (c == NULL || (c->path = strdup(path)) == NULL) {
        free(c);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", path);
    }
    if (stat(path, &st) != 0)
        rc = err_set(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, ERR_REJECT, "%s: %s", path,
                     strerror(errno));
    else
        rc = S_ISDIR(st.st_mode) ? open_folder(c, err) : open_file(c, err);
    if (rc != 0) {
        checkpoint_close(c);
        return -1;
    }
    *out = c;
    return 0;
}

int checkpoint_open(struct checkpoint **out, const char *path, struct err *err)
{
    return open_path(out, path, open_tree, open_single, err);
}

/* ---- networks that stand beside a model ---- */

static int open_control_folder(struct checkpoint *c, struct err *err)
{
    char path[PATH_MAX_BYTES + 64];

    snprintf(path, sizeof(path), "%s/config.json", c->path);
    c->has[COMPONENT_UNET] = true;
    if (exists(path) && json_parse_file(&c->configs[COMPONENT_UNET], path, NULL, err) != 0)
        return -1;
    return add_weights(&c->parts[COMPONENT_UNET], c->path, component_place(COMPONENT_UNET)->weights,
                       err);
}

/* The original names begin with control_model., or in some conversions with nothing. */
static void find_control_layout(struct checkpoint *c, const struct tensor_file *file)
{
    static const char *const PREFIXES[] = {"control_model.", ""};
    char name[CHECKPOINT_NAME_MAX_BYTES];

    for (size_t i = 0; i < sizeof(PREFIXES) / sizeof(PREFIXES[0]); i++) {
        snprintf(name, sizeof(name), "%sinput_hint_block.0.weight", PREFIXES[i]);
        if (!has(file, name))
            continue;
        c->format = CHECKPOINT_LDM;
        c->layout.unet = PREFIXES[i];
        find_unet_layout(&c->layout, file);
        for (int n = 0; has(file, name); n++) {
            c->layout.hint_layers = n + 1;
            snprintf(name, sizeof(name), "%sinput_hint_block.%d.weight", PREFIXES[i], 2 * n + 2);
        }
        return;
    }
}

static int open_control_file(struct checkpoint *c, struct err *err)
{
    struct part *part = &c->parts[COMPONENT_UNET];

    c->has[COMPONENT_UNET] = true;
    if (check_extension(c->path, err) != 0 || add_file(part, c->path, err) != 0)
        return -1;
    find_control_layout(c, part->shards[0]);
    if (c->format == CHECKPOINT_LDM) { /* where a single file's tensors are looked for */
        c->parts[0] = *part;
        *part = (struct part){.count = 0};
    }
    return 0;
}

int checkpoint_open_control(struct checkpoint **out, const char *path, struct err *err)
{
    return open_path(out, path, open_control_folder, open_control_file, err);
}

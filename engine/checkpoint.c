#include "engine/checkpoint.h"

#include "engine/names.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_MAX_BYTES 4096
#define POOL_ELEMENTS (64u << 20)

struct part {
    struct safetensors *shards[CHECKPOINT_SHARDS_MAX];
    bool *used[CHECKPOINT_SHARDS_MAX]; /* by tensor index */
    int count;
};

/* A tensor that a file holds as a part of another, or transposed. */
struct derived {
    struct derived *next;
    const struct stored_tensor *from;
    int third;
    struct stored_tensor tensor;
    char data[]; /* of a transposed one */
};

/* A tensor that a synthetic checkpoint was asked for. */
struct asked {
    struct asked *next;
    enum component component;
    int64_t dims[4];
    int rank;
    char name[];
};

struct checkpoint {
    char *path;
    enum checkpoint_format format;
    struct part parts[COMPONENT_COUNT]; /* a single file is parts[0] alone */
    struct json_doc *configs[COMPONENT_COUNT];
    struct json_doc *scheduler, *index;
    bool has[COMPONENT_COUNT];
    enum family family;
    struct ldm_layout layout;
    struct derived *derived;
    char idle[CHECKPOINT_NAME_MAX_BYTES]; /* tensors that begin so are there and never used */
    uint16_t *pool;                       /* synthetic: POOL_ELEMENTS values in f16 */
    struct stored_tensor synthetic;
    struct asked *asked, **asked_end; /* in order */
};

static const struct {
    const char *folder, *weights, *tokenizer;
} COMPONENTS[COMPONENT_COUNT] = {
    [COMPONENT_TEXT] = {"text_encoder", "model", "tokenizer"},
    [COMPONENT_TEXT_2] = {"text_encoder_2", "model", "tokenizer_2"},
    [COMPONENT_UNET] = {"unet", "diffusion_pytorch_model", NULL},
    [COMPONENT_VAE] = {"vae", "diffusion_pytorch_model", NULL},
};

const char *component_name(enum component component)
{
    return COMPONENTS[component].folder;
}

const char *component_tokenizer(enum component component)
{
    return COMPONENTS[component].tokenizer;
}

const char *family_name(enum family family)
{
    static const char *const NAMES[] = {
        [FAMILY_SD1] = "sd1",
        [FAMILY_SD2] = "sd2",
        [FAMILY_SDXL] = "sdxl",
        [FAMILY_SDXL_REFINER] = "sdxl-refiner",
    };
    return NAMES[family];
}

static bool exists(const char *path)
{
    return access(path, R_OK) == 0;
}

static int add_file(struct part *part, const char *path, struct err *err)
{
    if (part->count == CHECKPOINT_SHARDS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s: more than %d shards", path,
                       CHECKPOINT_SHARDS_MAX);
    if (safetensors_open(&part->shards[part->count], path, err) != 0)
        return -1;
    part->count++;
    part->used[part->count - 1] =
        calloc(safetensors_count(part->shards[part->count - 1]) + 1, sizeof(bool));
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

/* Full precision first, as diffusers takes it when no variant is asked for. */
static int open_component(struct checkpoint *c, enum component component, struct err *err)
{
    static const char *PATTERNS[] = {"%s/%s.safetensors", "%s/%s.safetensors.index.json",
                                     "%s/%s.fp16.safetensors", "%s/%s.safetensors.index.fp16.json",
                                     "%s/%s.fp16.safetensors.index.json"};
    char folder[PATH_MAX_BYTES], path[PATH_MAX_BYTES + 64];

    if (snprintf(folder, sizeof(folder), "%s/%s", c->path, COMPONENTS[component].folder) >=
        (int)sizeof(folder))
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s: the path is too long", c->path);
    snprintf(path, sizeof(path), "%s/config.json", folder);
    if (json_parse_file(&c->configs[component], path, NULL, err) != 0)
        return -1;
    for (size_t i = 0; i < sizeof(PATTERNS) / sizeof(PATTERNS[0]); i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(path, sizeof(path), PATTERNS[i], folder, COMPONENTS[component].weights);
#pragma GCC diagnostic pop
        if (!exists(path))
            continue;
        return strstr(path, ".json") != NULL ? add_shards(&c->parts[component], folder, path, err)
                                             : add_file(&c->parts[component], path, err);
    }
    return err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                   "%s: no %s.safetensors, sharded index or fp16 variant in it", folder,
                   COMPONENTS[component].weights);
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
        const struct json *entry = json_get(index, COMPONENTS[i].folder);
        c->has[i] = COMPONENTS[i].tokenizer == NULL ||
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

static bool has(const struct safetensors *file, const char *name)
{
    return safetensors_find(file, name) != NULL;
}

static int unsupported(const struct checkpoint *c, const char *what, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "%s: is %s, a family that this version does not draw; it draws SD1.x, SD2.x and "
                   "SDXL, as single files and diffusers folders",
                   c->path, what);
}

static int check_single(const struct checkpoint *c, const struct safetensors *file, struct err *err)
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
static void find_texts(struct checkpoint *c, const struct safetensors *file)
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
static void find_idle(struct checkpoint *c, const struct safetensors *file)
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

static void find_layout(struct checkpoint *c, const struct safetensors *file)
{
    char name[CHECKPOINT_NAME_MAX_BYTES];
    struct ldm_layout *l = &c->layout;

    l->layers = 2;
    for (int block = 1; block < 16; block++) {
        snprintf(name, sizeof(name), "model.diffusion_model.input_blocks.%d.0.op.weight", block);
        if (has(file, name)) {
            l->layers = block - 1;
            break;
        }
    }
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

static int open_single(struct checkpoint *c, struct err *err)
{
    const char *dot = strrchr(c->path, '.');

    if (dot == NULL || strcmp(dot, ".safetensors") != 0)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%s: only .safetensors files and diffusers folders are read; pickled .ckpt "
                       "and .bin files can run code and must be converted first",
                       c->path);
    c->format = CHECKPOINT_LDM;
    if (add_file(&c->parts[0], c->path, err) != 0 ||
        check_single(c, c->parts[0].shards[0], err) != 0)
        return -1;
    c->has[COMPONENT_UNET] = c->has[COMPONENT_VAE] = true;
    find_texts(c, c->parts[0].shards[0]);
    find_idle(c, c->parts[0].shards[0]);
    find_layout(c, c->parts[0].shards[0]);
    return 0;
}

int checkpoint_open(struct checkpoint **out, const char *path, struct err *err)
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
        rc = S_ISDIR(st.st_mode) ? open_tree(c, err) : open_single(c, err);
    if (rc != 0) {
        checkpoint_close(c);
        return -1;
    }
    *out = c;
    return 0;
}

int checkpoint_open_synthetic(struct checkpoint **out, const struct synthetic *synthetic,
                              struct err *err)
{
    struct checkpoint *c = calloc(1, sizeof(*c));
    uint32_t lcg = 1;
    int rc = 0;

    if (c != NULL) {
        c->path = strdup("synthetic");
        c->pool = malloc(POOL_ELEMENTS * sizeof(*c->pool));
    }
    if (c == NULL || c->path == NULL || c->pool == NULL) {
        checkpoint_close(c);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for random weights");
    }
    c->format = CHECKPOINT_SYNTHETIC;
    c->family = synthetic->family;
    c->asked_end = &c->asked;
    /* Signs and mantissas at random, magnitudes from 2^-7 to 2^-6. */
    for (size_t i = 0; i < POOL_ELEMENTS; i++) {
        lcg = lcg * 1664525u + 1013904223u;
        c->pool[i] = (uint16_t)((lcg >> 16 & 0x83ff) | 8 << 10);
    }
    for (int i = 0; i < COMPONENT_COUNT && rc == 0; i++) {
        c->has[i] = synthetic->configs[i] != NULL;
        if (c->has[i])
            rc = json_parse(&c->configs[i], synthetic->configs[i], strlen(synthetic->configs[i]),
                            NULL, err);
    }
    if (rc != 0 || json_parse(&c->scheduler, synthetic->scheduler, strlen(synthetic->scheduler),
                              NULL, err) != 0) {
        checkpoint_close(c);
        return -1;
    }
    *out = c;
    return 0;
}

/* One that finds no memory is left out. */
static void remember(struct checkpoint *c, enum component component, const char *name,
                     const int64_t *dims, int rank)
{
    struct asked *asked = malloc(sizeof(*asked) + strlen(name) + 1);

    if (asked == NULL)
        return;
    *asked = (struct asked){.component = component, .rank = rank};
    memcpy(asked->dims, dims, (size_t)rank * sizeof(*dims));
    strcpy(asked->name, name);
    *c->asked_end = asked;
    c->asked_end = &asked->next;
}

void checkpoint_synthesized(const struct checkpoint *c,
                            void (*see)(void *user, enum component component, const char *name,
                                        const int64_t *dims, int rank),
                            void *user)
{
    for (const struct asked *a = c->asked; a != NULL; a = a->next)
        see(user, a->component, a->name, a->dims, a->rank);
}

const uint16_t *checkpoint_pool(const struct checkpoint *c)
{
    return c->pool;
}

const struct stored_tensor *checkpoint_synthesize(struct checkpoint *c, enum component component,
                                                  const char *name, const int64_t *dims, int rank)
{
    struct stored_tensor *t = &c->synthetic;

    if (c->format != CHECKPOINT_SYNTHETIC)
        return NULL;
    remember(c, component, name, dims, rank);
    *t = (struct stored_tensor){
        .name = "synthetic", .dtype = DTYPE_F16, .usable = true, .rank = rank, .count = 1};
    for (int i = 0; i < rank; i++) {
        t->dims[i] = dims[i];
        t->count *= dims[i];
    }
    ASSERT(t->count <= (int64_t)POOL_ELEMENTS);
    t->data = c->pool;
    return t;
}

void checkpoint_close(struct checkpoint *c)
{
    if (c == NULL)
        return;
    for (int i = 0; i < COMPONENT_COUNT; i++) {
        for (int s = 0; s < c->parts[i].count; s++) {
            safetensors_close(c->parts[i].shards[s]);
            free(c->parts[i].used[s]);
        }
        json_doc_free(c->configs[i]);
    }
    while (c->derived != NULL) {
        struct derived *next = c->derived->next;
        free(c->derived);
        c->derived = next;
    }
    while (c->asked != NULL) {
        struct asked *next = c->asked->next;
        free(c->asked);
        c->asked = next;
    }
    json_doc_free(c->scheduler);
    json_doc_free(c->index);
    free(c->pool);
    free(c->path);
    free(c);
}

enum checkpoint_format checkpoint_format(const struct checkpoint *c)
{
    return c->format;
}

const char *checkpoint_path(const struct checkpoint *c)
{
    return c->path;
}

enum family checkpoint_family(const struct checkpoint *c)
{
    return c->family;
}

bool checkpoint_has(const struct checkpoint *c, enum component component)
{
    return c->has[component];
}

const struct json *checkpoint_config(const struct checkpoint *c, enum component component)
{
    return c->configs[component] ? json_root(c->configs[component]) : NULL;
}

const struct json *checkpoint_scheduler(const struct checkpoint *c)
{
    return c->scheduler ? json_root(c->scheduler) : NULL;
}

const struct json *checkpoint_index(const struct checkpoint *c)
{
    return c->index ? json_root(c->index) : NULL;
}

static const struct part *part_of(const struct checkpoint *c, enum component component)
{
    return &c->parts[c->format == CHECKPOINT_LDM ? 0 : component];
}

static const struct stored_tensor *find_in(const struct part *part, const char *name)
{
    for (int i = 0; i < part->count; i++) {
        const struct stored_tensor *tensor = safetensors_find(part->shards[i], name);
        if (tensor != NULL) {
            part->used[i][safetensors_index(part->shards[i], tensor)] = true;
            return tensor;
        }
    }
    return NULL;
}

static void transpose(char *to, const struct stored_tensor *t)
{
    size_t element = dtype_bytes(t->dtype);
    int64_t rows = t->dims[0], columns = t->dims[1];

    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            memcpy(to + (size_t)(j * rows + i) * element,
                   (const char *)t->data + (size_t)(i * columns + j) * element, element);
}

/* What does not have the shape to be taken apart is returned as it is, for binding to refuse. NULL
 * when there is no memory. */
static const struct stored_tensor *derive(struct checkpoint *c, const struct stored_tensor *from,
                                          const struct ldm_place *place)
{
    size_t bytes = (size_t)from->count * dtype_bytes(from->dtype);
    struct derived *d = c->derived;

    if (!from->usable || (place->transposed ? from->rank != 2 : from->dims[0] % 3 != 0))
        return from;
    while (d != NULL && (d->from != from || d->third != place->third))
        d = d->next;
    if (d != NULL)
        return &d->tensor;
    d = malloc(sizeof(*d) + (place->transposed ? bytes : 0));
    if (d == NULL)
        return NULL;
    *d = (struct derived){.next = c->derived, .from = from, .third = place->third, .tensor = *from};
    if (place->transposed) {
        d->tensor.dims[0] = from->dims[1];
        d->tensor.dims[1] = from->dims[0];
        d->tensor.data = d->data;
        transpose(d->data, from);
    } else {
        d->tensor.dims[0] /= 3;
        d->tensor.count /= 3;
        d->tensor.data = (const char *)from->data + (size_t)place->third * (bytes / 3);
    }
    c->derived = d;
    return &d->tensor;
}

static const struct stored_tensor *find_ldm(struct checkpoint *c, enum component component,
                                            const char *name)
{
    const struct stored_tensor *tensor;
    char other[CHECKPOINT_NAME_MAX_BYTES];
    struct ldm_place place;

    if (!ldm_find(&c->layout, component, name, &place))
        return NULL;
    tensor = find_in(&c->parts[0], place.name);
    if (tensor == NULL && component == COMPONENT_TEXT && legacy_name(component, name, other) &&
        ldm_find(&c->layout, component, other, &place))
        tensor = find_in(&c->parts[0], place.name);
    if (tensor == NULL || (place.third < 0 && !place.transposed))
        return tensor;
    return derive(c, tensor, &place);
}

const struct stored_tensor *checkpoint_find(struct checkpoint *c, enum component component,
                                            const char *name)
{
    const struct part *part = part_of(c, component);
    char other[CHECKPOINT_NAME_MAX_BYTES];
    const struct stored_tensor *tensor;

    if (c->format == CHECKPOINT_LDM)
        return find_ldm(c, component, name);
    tensor = find_in(part, name);
    if (tensor == NULL && legacy_name(component, name, other))
        tensor = find_in(part, other);
    return tensor;
}

const struct stored_tensor *checkpoint_marker(const struct checkpoint *c, const char *name)
{
    return c->format == CHECKPOINT_LDM ? safetensors_find(c->parts[0].shards[0], name) : NULL;
}

const char *checkpoint_metadata(const struct checkpoint *c, const char *key)
{
    return c->format == CHECKPOINT_LDM ? safetensors_metadata(c->parts[0].shards[0], key) : NULL;
}

void checkpoint_stored_name(const struct checkpoint *c, enum component component, const char *name,
                            char out[CHECKPOINT_NAME_MAX_BYTES])
{
    struct ldm_place place;
    bool other = c->format == CHECKPOINT_LDM && ldm_find(&c->layout, component, name, &place);

    snprintf(out, CHECKPOINT_NAME_MAX_BYTES, "%s", other ? place.name : name);
}

const char *checkpoint_file(const struct checkpoint *c, enum component component)
{
    const struct part *part = part_of(c, component);
    return part->count > 0 ? safetensors_path(part->shards[0]) : c->path;
}

static bool begins_with(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static bool belongs(const struct checkpoint *c, enum component component, const char *name)
{
    if (c->format != CHECKPOINT_LDM)
        return true;
    if (component == COMPONENT_UNET || component == COMPONENT_VAE)
        return begins_with(name, component == COMPONENT_UNET ? "model.diffusion_model."
                                                             : "first_stage_model.");
    return c->has[component] && begins_with(name, c->layout.text[component]);
}

void checkpoint_size(const struct checkpoint *c, enum component component, uint64_t *elements,
                     uint64_t *bytes)
{
    const struct part *part = part_of(c, component);

    *elements = *bytes = 0;
    for (int s = 0; s < part->count; s++)
        for (size_t i = 0; i < safetensors_count(part->shards[s]); i++) {
            const struct stored_tensor *tensor = safetensors_at(part->shards[s], i);
            if (!tensor->usable || !belongs(c, component, tensor->name))
                continue;
            *elements += (uint64_t)tensor->count;
            *bytes += (uint64_t)tensor->count * dtype_bytes(tensor->dtype);
        }
}

static bool is_baggage(const struct checkpoint *c, const char *name)
{
    static const char *PREFIXES[] = {"model_ema.", "loss."};
    static const char *NAMES[] = {"betas",
                                  "alphas_cumprod",
                                  "alphas_cumprod_prev",
                                  "sqrt_alphas_cumprod",
                                  "sqrt_one_minus_alphas_cumprod",
                                  "log_one_minus_alphas_cumprod",
                                  "sqrt_recip_alphas_cumprod",
                                  "sqrt_recipm1_alphas_cumprod",
                                  "posterior_variance",
                                  "posterior_log_variance_clipped",
                                  "posterior_mean_coef1",
                                  "posterior_mean_coef2",
                                  "scale_factor",
                                  "logvar",
                                  "v_pred",
                                  "ztsnr",
                                  "cond_stage_model.model.text_projection"};

    if (strstr(name, "position_ids") != NULL || strstr(name, "logit_scale") != NULL)
        return true;
    if (c->idle[0] != '\0' && begins_with(name, c->idle))
        return true;
    for (size_t i = 0; i < sizeof(PREFIXES) / sizeof(PREFIXES[0]); i++)
        if (begins_with(name, PREFIXES[i]))
            return true;
    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++)
        if (strcmp(name, NAMES[i]) == 0)
            return true;
    return false;
}

void checkpoint_unused(const struct checkpoint *c, void (*see)(void *user, const char *name),
                       void *user)
{
    for (int p = 0; p < COMPONENT_COUNT; p++)
        for (int s = 0; s < c->parts[p].count; s++)
            for (size_t i = 0; i < safetensors_count(c->parts[p].shards[s]); i++) {
                const struct stored_tensor *tensor = safetensors_at(c->parts[p].shards[s], i);
                if (!c->parts[p].used[s][i] && tensor->usable && !is_baggage(c, tensor->name))
                    see(user, tensor->name);
            }
}

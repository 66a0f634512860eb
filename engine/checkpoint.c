#include "engine/checkpoint_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POOL_ELEMENTS (64u << 20)

static const struct component_place COMPONENTS[COMPONENT_COUNT] = {
    [COMPONENT_TEXT] = {"text_encoder", "model", "tokenizer"},
    [COMPONENT_TEXT_2] = {"text_encoder_2", "model", "tokenizer_2"},
    [COMPONENT_UNET] = {"unet", "diffusion_pytorch_model", NULL},
    [COMPONENT_VAE] = {"vae", "diffusion_pytorch_model", NULL},
};

const struct component_place *component_place(enum component component)
{
    return &COMPONENTS[component];
}

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
            tensor_file_close(c->parts[i].shards[s]);
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
        const struct stored_tensor *tensor = tensor_file_find(part->shards[i], name);
        if (tensor != NULL) {
            part->used[i][tensor_file_index(part->shards[i], tensor)] = true;
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
    return c->format == CHECKPOINT_LDM ? tensor_file_find(c->parts[0].shards[0], name) : NULL;
}

bool checkpoint_number(const struct checkpoint *c, const char *name, int64_t *number)
{
    return c->format == CHECKPOINT_LDM && tensor_file_number(c->parts[0].shards[0], name, number);
}

const char *checkpoint_metadata(const struct checkpoint *c, const char *key)
{
    return c->format == CHECKPOINT_LDM ? tensor_file_metadata(c->parts[0].shards[0], key) : NULL;
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
    return part->count > 0 ? tensor_file_path(part->shards[0]) : c->path;
}

uint64_t checkpoint_digest(const struct checkpoint *c, enum component component)
{
    const struct part *part = part_of(c, component);
    uint64_t hash = 0;

    for (int i = 0; i < part->count; i++)
        hash = hash * 0x100000001b3u ^ tensor_file_digest(part->shards[i]);
    return hash;
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
        return begins_with(name,
                           component == COMPONENT_UNET ? c->layout.unet : "first_stage_model.");
    return c->has[component] && begins_with(name, c->layout.text[component]);
}

void checkpoint_size(const struct checkpoint *c, enum component component, uint64_t *elements,
                     uint64_t *bytes)
{
    const struct part *part = part_of(c, component);

    *elements = *bytes = 0;
    for (int s = 0; s < part->count; s++)
        for (size_t i = 0; i < tensor_file_count(part->shards[s]); i++) {
            const struct stored_tensor *tensor = tensor_file_at(part->shards[s], i);
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
            for (size_t i = 0; i < tensor_file_count(c->parts[p].shards[s]); i++) {
                const struct stored_tensor *tensor = tensor_file_at(c->parts[p].shards[s], i);
                if (!c->parts[p].used[s][i] && tensor->usable && !is_baggage(c, tensor->name))
                    see(user, tensor->name);
            }
}

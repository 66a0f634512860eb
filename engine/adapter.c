/* Reading an adapter for a model: keys to layers, layers to branches. */
#include "engine/adapter.h"

#include "engine/runtime.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const struct parameters *model_parameters(const struct model *model, enum component component)
{
    for (int i = 0; i < model->encoder_count; i++)
        if (model->encoders[i].component == component)
            return &model->encoders[i].clip.parameters;
    return component == COMPONENT_UNET ? &model->unet.parameters : NULL;
}

/* ---- the model's names ---- */

/* As LDM numbers the blocks of this UNet, whatever files it came from. */
static struct ldm_layout layout_of(const struct unet_config *u)
{
    struct ldm_layout layout = {.unet = "", .layers = u->layers[0]};

    for (int k = 0; k < u->levels; k++)
        layout.up_attention[k] = u->up_depth[u->levels - 1 - k][0] > 0;
    return layout;
}

static int make_keys(struct adapter_keys **out, const struct model *model, struct err *err)
{
    struct ldm_layout layout = layout_of(&model->unet.config);
    struct adapter_keys *keys;

    if (adapter_keys_create(&keys, err) != 0)
        return -1;
    for (int c = 0; c < COMPONENT_COUNT; c++) {
        const struct parameters *p = model_parameters(model, (enum component)c);
        for (int i = 0; p != NULL && i < p->target_count; i++)
            if (adapter_keys_add(keys, (enum component)c, i, p->targets[i].name, &layout,
                                 model->encoder_count == 1, err) != 0)
                goto fail;
    }
    if (adapter_keys_seal(keys, err) != 0)
        goto fail;
    *out = keys;
    return 0;
fail:
    adapter_keys_free(keys);
    return -1;
}

/* ---- keys to deltas ---- */

static int by_layer(const void *a, const void *b)
{
    const struct delta *x = a, *y = b;

    if (x->component != y->component)
        return x->component < y->component ? -1 : 1;
    if (x->target->slot != y->target->slot)
        return x->target->slot < y->target->slot ? -1 : 1;
    return (x->target->part > y->target->part) - (x->target->part < y->target->part);
}

static int refuse_key(const struct adapter *a, const char *key, struct err *err)
{
    if (strncmp(key, "bundle_emb.", 11) == 0)
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%s: key '%.120s' is a textual inversion inside of an adapter, which is not "
                       "read; give it as a file of its own",
                       a->info.path, key);
    return err_set(err, ERR_FORMAT, ERR_REJECT,
                   "%s: key '%.120s' matches nothing in %s, a model of family %s; the adapter was "
                   "made for another family or is of a kind that is not read",
                   a->info.path, key, a->model->info.path, a->model->info.family);
}

/* Which delta each target has, by component and target; 0: none yet. */
struct places {
    int *of[COMPONENT_COUNT];
};

static int enter_key(struct adapter *a, struct places *places, const struct adapter_keys *keys,
                     const struct stored_tensor *tensor, struct err *err)
{
    const struct parameters *p;
    struct adapter_key key;
    struct delta *delta;
    int *place;

    if (!adapter_keys_find(keys, tensor->name, &key))
        return refuse_key(a, tensor->name, err);
    p = model_parameters(a->model, key.component);
    place = &places->of[key.component][key.number];
    if (*place == 0) {
        *place = ++a->delta_count;
        a->deltas[*place - 1] =
            (struct delta){.component = key.component, .target = &p->targets[key.number]};
    }
    delta = &a->deltas[*place - 1];
    if (delta->tensors[key.role] != NULL)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "%s: keys '%.120s' and '%.120s' say the same; the file is damaged",
                       a->info.path, delta->tensors[key.role]->name, tensor->name);
    delta->tensors[key.role] = tensor;
    return 0;
}

static int read_keys(struct adapter *a, struct err *err)
{
    struct adapter_keys *keys = a->model->adapter_keys;
    size_t count = tensor_file_count(a->file);
    struct places places = {0};
    int rc = 0;

    if (count == 0)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: holds no tensors", a->info.path);
    a->deltas = calloc(count, sizeof(*a->deltas));
    for (int c = 0; c < COMPONENT_COUNT; c++) {
        const struct parameters *p = model_parameters(a->model, (enum component)c);
        places.of[c] = calloc(p != NULL ? (size_t)p->target_count + 1 : 1, sizeof(int));
        if (places.of[c] == NULL || a->deltas == NULL)
            rc = err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", a->info.path);
    }
    for (size_t i = 0; i < count && rc == 0; i++)
        rc = enter_key(a, &places, keys, tensor_file_at(a->file, i), err);
    for (int c = 0; c < COMPONENT_COUNT; c++)
        free(places.of[c]);
    if (rc == 0)
        qsort(a->deltas, (size_t)a->delta_count, sizeof(*a->deltas), by_layer);
    return rc;
}

/* ---- alphas ---- */

/* What the file says of alphas as a whole: peft's metadata, or, for layers that have none in a file
 * where others have, the most frequent one, as diffusers does. */
struct alphas {
    struct json_doc *doc;
    const struct json *metadata;  /* lora_adapter_metadata, or NULL */
    double most[COMPONENT_COUNT]; /* negative: none has any */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double most_frequent(double *values, int count)
{
    double best = -1;
    int most = 0;

    qsort(values, (size_t)count, sizeof(*values), by_value);
    for (int i = 0, run = 0; i < count; i++) {
        run = i > 0 && values[i] == values[i - 1] ? run + 1 : 1;
        if (run > most) {
            most = run;
            best = values[i];
        }
    }
    return best;
}

static int alphas_read(struct alphas *alphas, const struct adapter *a, struct err *err)
{
    const char *text = tensor_file_metadata(a->file, "lora_adapter_metadata");
    double *values = malloc(((size_t)a->delta_count + 1) * sizeof(*values));

    *alphas = (struct alphas){0};
    if (values == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", a->info.path);
    for (int c = 0; c < COMPONENT_COUNT; c++) {
        int count = 0;
        for (int i = 0; i < a->delta_count; i++) {
            const struct delta *d = &a->deltas[i];
            if (d->component == (enum component)c && d->tensors[ROLE_ALPHA] != NULL &&
                scalar_read(d->tensors[ROLE_ALPHA], &values[count]))
                count++;
        }
        alphas->most[c] = most_frequent(values, count);
    }
    free(values);
    if (text == NULL)
        return 0;
    if (json_parse(&alphas->doc, text, strlen(text), NULL, err) != 0)
        return err_prefix(err, "%s: metadata lora_adapter_metadata", a->info.path);
    alphas->metadata = json_root(alphas->doc);
    return 0;
}

/* A key of the metadata, under the component's name or, in a file of one network, bare. */
static const struct json *metadata_of(const struct alphas *alphas, enum component component,
                                      const char *key)
{
    const struct json *value;
    char full[96];

    snprintf(full, sizeof(full), "%s.%s", component_name(component), key);
    value = json_get(alphas->metadata, full);
    return value != NULL ? value : json_get(alphas->metadata, key);
}

/* peft's rule: a pattern is a module's name or its end. */
static const struct json *pattern_of(const struct json *patterns, const char *name)
{
    size_t len = strlen(name);

    for (const struct json *p = patterns ? patterns->child : NULL; p != NULL; p = p->next) {
        size_t tail = strlen(p->key);
        if (tail <= len && strcmp(name + len - tail, p->key) == 0 &&
            (tail == len || name[len - tail - 1] == '.'))
            return p;
    }
    return NULL;
}

/* The layer's alpha where it has no tensor of its own; negative: its rank. */
static double alpha_of(const struct alphas *alphas, const struct delta *d)
{
    const struct json *pattern, *rslora;
    const struct stored_tensor *down = d->tensors[ROLE_DOWN];
    double alpha, rank;

    if (alphas->metadata == NULL || d->tensors[ROLE_ALPHA] != NULL || down == NULL)
        return alphas->most[d->component];
    alpha = json_double_or(metadata_of(alphas, d->component, "lora_alpha"), -1);
    pattern = pattern_of(metadata_of(alphas, d->component, "alpha_pattern"), d->target->name);
    rslora = metadata_of(alphas, d->component, "use_rslora");
    rank = down->rank > 0 && down->dims[0] > 0 ? (double)down->dims[0] : 1;
    if (pattern != NULL)
        alpha = json_double_or(pattern, alpha);
    return alpha >= 0 && json_bool_or(rslora, false) ? alpha * sqrt(rank) : alpha;
}

static int check_deltas(struct adapter *a, struct err *err)
{
    struct alphas alphas;
    int rc = alphas_read(&alphas, a, err);

    for (int i = 0; i < a->delta_count && rc == 0; i++)
        rc = delta_check(&a->deltas[i], a->info.path, alpha_of(&alphas, &a->deltas[i]), err);
    json_doc_free(alphas.doc);
    return rc;
}

/* ---- branches ---- */

static bool is_low_rank(const struct delta *d)
{
    return d->kind == DELTA_LOW_RANK && d->tensors[ROLE_MAGNITUDE] == NULL &&
           d->tensors[ROLE_DIFF_BIAS] == NULL;
}

static int group_deltas(struct adapter *a, struct err *err)
{
    a->groups = calloc((size_t)a->delta_count, sizeof(*a->groups));
    if (a->groups == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", a->info.path);
    for (int i = 0; i < a->delta_count; i++) {
        const struct delta *d = &a->deltas[i];
        struct delta_group *g = a->group_count > 0 ? &a->groups[a->group_count - 1] : NULL;
        if (g == NULL || g->component != d->component || g->slot != d->target->slot) {
            g = &a->groups[a->group_count++];
            *g = (struct delta_group){
                .component = d->component, .slot = d->target->slot, .first = i, .has_branch = true};
        }
        g->count++;
        g->has_branch = g->has_branch && is_low_rank(d);
    }
    return 0;
}

static int rank_of(const struct adapter *a, const struct delta_group *g)
{
    int rank = 0;

    for (int i = 0; i < g->count; i++)
        rank += a->deltas[g->first + i].rank;
    return rank;
}

/* A composed filter's memory, for the adapter to own. */
static float *new_filter(struct adapter *a, size_t count)
{
    float **grown = realloc(a->filters, ((size_t)a->filter_count + 1) * sizeof(*a->filters));
    float *filter = malloc(count * sizeof(float));

    if (grown != NULL)
        a->filters = grown;
    if (grown == NULL || filter == NULL) {
        free(filter);
        return NULL;
    }
    return a->filters[a->filter_count++] = filter;
}

static int make_down(struct adapter *a, struct delta_group *g, const struct layer *layer,
                     struct err *err)
{
    struct weight_part parts[BIND_STACK_MAX];
    const struct target *t = a->deltas[g->first].target;
    struct weight_spec spec = {.parts = parts,
                               .part_count = g->count,
                               .in = t->in,
                               .kernel = t->kernel,
                               .exact = layer->exact};
    struct weight *weight;

    for (int i = 0; i < g->count; i++) {
        const struct delta *d = &a->deltas[g->first + i];
        const struct stored_tensor *down = d->tensors[ROLE_DOWN];
        parts[i] = (struct weight_part){.data = down->data, .dtype = down->dtype, .out = d->rank};
        if (d->tensors[ROLE_MID] != NULL) {
            float *filter =
                new_filter(a, (size_t)d->rank * (size_t)t->in * (size_t)(t->kernel * t->kernel));
            if (filter == NULL)
                return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", a->info.path);
            delta_compose(d, filter);
            parts[i] = (struct weight_part){.data = filter, .dtype = DTYPE_F32, .out = d->rank};
        }
    }
    if (parameters_weight(&a->parameters, &spec, &weight, err) != 0)
        return -1;
    if (layer->conv != NULL)
        g->branch.down_filter = (struct conv){.weight = weight,
                                              .in = t->in,
                                              .out = rank_of(a, g),
                                              .kernel = t->kernel,
                                              .stride = layer->conv->stride};
    else
        g->branch.down = (struct linear){.weight = weight, .in = t->in, .out = rank_of(a, g)};
    return 0;
}

/* The parts' matrices down the diagonal of one that makes all of a stack's columns. */
static void fill_diagonal(const struct adapter *a, const struct delta_group *g, int rank, float *up)
{
    int column = 0;

    for (int i = 0; i < g->count; i++) {
        const struct delta *d = &a->deltas[g->first + i];
        const struct stored_tensor *t = d->tensors[ROLE_UP];
        size_t row = (size_t)d->target->part * (size_t)d->target->out;
        for (int o = 0; o < d->target->out; o++)
            for (int r = 0; r < d->rank; r++)
                up[(row + (size_t)o) * (size_t)rank + (size_t)(column + r)] =
                    element_to_f32(t->data, t->dtype, (size_t)o * (size_t)d->rank + (size_t)r);
        column += d->rank;
    }
}

static int make_up(struct adapter *a, struct delta_group *g, const struct layer *layer,
                   struct err *err)
{
    const struct delta *first = &a->deltas[g->first];
    const struct stored_tensor *up = first->tensors[ROLE_UP];
    int rank = rank_of(a, g), out = first->target->out * layer->part_count;
    struct weight_part part = {.data = up->data, .dtype = up->dtype, .out = out};
    struct weight_spec spec = {.parts = &part,
                               .part_count = 1,
                               .in = rank,
                               .kernel = 1,
                               .geglu = layer->geglu,
                               .exact = layer->exact};
    float *diagonal = NULL;
    struct weight *weight;
    int rc;

    if (layer->part_count > 1) {
        diagonal = calloc((size_t)out * (size_t)rank, sizeof(float));
        if (diagonal == NULL)
            return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", a->info.path);
        fill_diagonal(a, g, rank, diagonal);
        part.data = diagonal;
        part.dtype = DTYPE_F32;
    }
    rc = parameters_weight(&a->parameters, &spec, &weight, err);
    free(diagonal);
    if (rc == 0)
        g->branch.up = (struct linear){.weight = weight, .in = rank, .out = out};
    return rc;
}

static int make_branches(struct adapter *a, struct err *err)
{
    for (int i = 0; i < a->group_count; i++) {
        struct delta_group *g = &a->groups[i];
        const struct parameters *p = model_parameters(a->model, g->component);
        const struct layer *layer = &p->layers[g->slot - 1];
        a->info.layers++;
        a->info.merged += !g->has_branch;
        if (g->has_branch && (make_down(a, g, layer, err) != 0 || make_up(a, g, layer, err) != 0))
            return -1;
    }
    return 0;
}

/* ---- the whole ---- */

static void adapter_free(struct adapter *a)
{
    parameters_release(&a->parameters);
    for (int i = 0; i < a->filter_count; i++)
        free(a->filters[i]);
    free(a->filters);
    free(a->groups);
    free(a->deltas);
    tensor_file_close(a->file);
    free(a);
}

static int read_adapter(struct adapter *a, const char *path, struct err *err)
{
    struct backend *backend = a->model->engine->backend;

    a->parameters.backend = backend;
    if (tensor_file_open(&a->file, path, err) != 0)
        return -1;
    a->info.path = tensor_file_path(a->file);
    if (a->model->adapter_keys == NULL && make_keys(&a->model->adapter_keys, a->model, err) != 0)
        return -1;
    if (read_keys(a, err) != 0 || check_deltas(a, err) != 0 || group_deltas(a, err) != 0 ||
        make_branches(a, err) != 0)
        return -1;
    a->info.bytes = parameters_bytes(&a->parameters);
    if (backend->weights_bytes > a->model->engine->memory_max_bytes)
        return err_set(err, ERR_MEMORY, ERR_RETRY,
                       "%s: the engine may use %zu MiB, which does not hold it", path,
                       a->model->engine->memory_max_bytes >> 20);
    return 0;
}

int engine_load_adapter(struct adapter **out, struct model *model, const char *path,
                        struct err *err)
{
    struct adapter *a = calloc(1, sizeof(*a));
    int rc;

    if (a == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for an adapter");
    a->model = model;
    fair_lock_take(&model->engine->lock);
    rc = read_adapter(a, path, err);
    if (rc == 0) {
        a->next = model->adapters;
        model->adapters = a;
        *out = a;
    } else {
        adapter_free(a);
    }
    fair_lock_give(&model->engine->lock);
    return rc;
}

/* The lock is held. */
static void unload(struct adapter *a)
{
    struct adapter **link;

    adaptations_forget(a->model, a);
    for (link = &a->model->adapters; *link != a; link = &(*link)->next)
        continue;
    *link = a->next;
    adapter_free(a);
}

void engine_unload_adapter(struct adapter *a)
{
    struct engine *engine;

    if (a == NULL)
        return;
    engine = a->model->engine;
    fair_lock_take(&engine->lock);
    unload(a);
    fair_lock_give(&engine->lock);
}

void model_unload_adapters(struct model *model)
{
    while (model->adapters != NULL)
        unload(model->adapters);
    adapter_keys_free(model->adapter_keys);
    model->adapter_keys = NULL;
}

const struct adapter_info *adapter_info(const struct adapter *a)
{
    return &a->info;
}

uint64_t adapter_digest(struct adapter *a)
{
    if (!a->has_digest)
        a->digest = tensor_file_digest(a->file);
    a->has_digest = true;
    return a->digest;
}

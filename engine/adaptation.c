#include "engine/adaptation.h"

#include "engine/runtime.h"

#include <stdio.h>
#include <stdlib.h>

#define LAYER_DELTAS_MAX (ENGINE_ADAPTERS_MAX * BIND_STACK_MAX)

struct adaptation {
    struct adaptation *next; /* of the model's, newest first */
    struct model *model;
    struct draw_adapter adapters[ENGINE_ADAPTERS_MAX];
    int count;
    int holders;
    uint64_t id;                              /* never given twice */
    uint64_t used;                            /* when the last holder left */
    bool copies;                              /* some layer is a copy */
    struct change **changes[COMPONENT_COUNT]; /* by slot - 1; NULL: the network is as it is */
    struct parameters parameters;             /* scales, copies */
    void **owned;                             /* host memory that goes with it */
    int owned_count;
    size_t owned_bytes; /* counted among the weights */
};

/* Memory of the adaptation's own, zeroed. */
static void *own(struct adaptation *a, size_t bytes)
{
    void **grown = realloc(a->owned, ((size_t)a->owned_count + 1) * sizeof(*a->owned));
    void *memory = calloc(1, bytes);

    if (grown != NULL)
        a->owned = grown;
    if (grown == NULL || memory == NULL) {
        free(memory);
        return NULL;
    }
    a->owned_bytes += bytes;
    a->parameters.backend->weights_bytes += bytes;
    return a->owned[a->owned_count++] = memory;
}

static void adaptation_free(struct adaptation *a)
{
    parameters_release(&a->parameters);
    a->parameters.backend->weights_bytes -= a->owned_bytes;
    for (int i = 0; i < a->owned_count; i++)
        free(a->owned[i]);
    free(a->owned);
    free(a);
}

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to adapt a model");
}

/* ---- one layer ---- */

/* What the combination has for a layer: each adapter's group, in order. */
struct layer_groups {
    const struct layer *layer;
    struct {
        const struct adapter *adapter;
        const struct delta_group *group;
        double scale;
    } items[ENGINE_ADAPTERS_MAX];
    int count;
};

/* The columns' factors of a branch: each part has its own alpha. */
static int make_scale(struct adaptation *a, const struct adapter *adapter,
                      const struct delta_group *g, double scale, const float **vector,
                      struct err *err)
{
    int rank = g->branch.up.in, column = 0, rc;
    float *values = malloc((size_t)rank * sizeof(float));

    if (values == NULL)
        return no_memory(err);
    for (int i = 0; i < g->count; i++) {
        const struct delta *d = &adapter->deltas[g->first + i];
        for (int r = 0; r < d->rank; r++)
            values[column++] = (float)(scale * d->scale);
    }
    rc = parameters_vector(&a->parameters, values, (size_t)rank, vector, err);
    free(values);
    return rc;
}

static int make_branches(struct adaptation *a, const struct layer_groups *l, struct change *change,
                         struct err *err)
{
    for (int i = 0; i < l->count; i++) {
        int at = change->branch_count;
        if (l->items[i].scale == 0)
            continue;
        if (make_scale(a, l->items[i].adapter, l->items[i].group, l->items[i].scale,
                       &change->branches[at].scale, err) != 0)
            return -1;
        change->branches[at].branch = &l->items[i].group->branch;
        change->branch_count++;
    }
    return 0;
}

/* w += what one delta makes of the pristine part. */
static int add_delta(const struct delta *d, double scale, const float *pristine, float *w,
                     size_t count)
{
    float *changed;
    int rc;

    if (d->tensors[ROLE_MAGNITUDE] == NULL)
        return delta_add(d, scale, w);
    changed = malloc(count * sizeof(float));
    if (changed == NULL)
        return -1;
    memcpy(changed, pristine, count * sizeof(float));
    rc = delta_apply(d, scale, changed);
    for (size_t i = 0; i < count && rc == 0; i++)
        w[i] += changed[i] - pristine[i];
    free(changed);
    return rc;
}

/* The numbers of one part with every delta that it has. */
static int merge_part(const struct layer_groups *l, int part, size_t count, float *w)
{
    const struct weight_part *stored = &l->layer->parts[part];
    float *pristine = malloc(count * sizeof(float));
    int rc = pristine != NULL ? 0 : -1;

    for (size_t i = 0; i < count && rc == 0; i++)
        w[i] = pristine[i] = element_to_f32(stored->data, stored->dtype, i);
    for (int i = 0; i < l->count && rc == 0; i++) {
        const struct delta_group *g = l->items[i].group;
        const struct delta *d = l->items[i].adapter->deltas + g->first;
        for (int j = 0; j < g->count && rc == 0; j++)
            if (d[j].target->part == part)
                rc = add_delta(&d[j], l->items[i].scale, pristine, w, count);
    }
    free(pristine);
    return rc;
}

/* The bias with every difference of it, or the layer's own where there is none. */
static int merge_bias(struct adaptation *a, const struct layer_groups *l, const float **bias,
                      int out, struct err *err)
{
    float *values = malloc((size_t)out * sizeof(float));
    bool any = false;
    int rc = 0;

    if (values == NULL)
        return no_memory(err);
    layer_bias(l->layer, values);
    for (int i = 0; i < l->count; i++) {
        const struct delta_group *g = l->items[i].group;
        for (int j = 0; j < g->count; j++) {
            const struct delta *d = &l->items[i].adapter->deltas[g->first + j];
            const struct stored_tensor *t = d->tensors[ROLE_DIFF_BIAS];
            float *at = values + d->target->part * d->target->out;
            any = any || t != NULL;
            for (int o = 0; t != NULL && o < d->target->out; o++)
                at[o] += (float)l->items[i].scale * element_to_f32(t->data, t->dtype, (size_t)o);
        }
    }
    if (any)
        rc = parameters_vector(&a->parameters, values, (size_t)out, bias, err);
    free(values);
    return rc;
}

static int make_copy(struct adaptation *a, const struct layer_groups *l, struct change *change,
                     struct err *err)
{
    const struct layer *layer = l->layer;
    int in = layer->conv ? layer->conv->in : layer->linear->in;
    int out = layer->conv ? layer->conv->out : layer->linear->out;
    int kernel = layer->conv ? layer->conv->kernel : 1;
    size_t each = (size_t)out / (size_t)layer->part_count * (size_t)in * (size_t)(kernel * kernel);
    size_t count = each * (size_t)layer->part_count;
    /* A filter's numbers stay borrowed; a matrix's do not. */
    float *w = kernel > 1 ? own(a, count * sizeof(float)) : malloc(count * sizeof(float));
    struct weight_part part = {.data = w, .dtype = DTYPE_F32, .out = out};
    struct weight_spec spec = {.parts = &part,
                               .part_count = 1,
                               .in = in,
                               .kernel = kernel,
                               .geglu = layer->geglu,
                               .exact = layer->exact};
    struct linear *linear = own(a, sizeof(*linear));
    struct conv *conv = own(a, sizeof(*conv));
    struct weight *weight;
    int rc = w != NULL && linear != NULL && conv != NULL ? 0 : no_memory(err);

    for (int p = 0; p < layer->part_count && rc == 0; p++)
        if (merge_part(l, p, each, w + each * (size_t)p) != 0)
            rc = no_memory(err);
    if (rc == 0)
        rc = parameters_weight(&a->parameters, &spec, &weight, err);
    if (rc == 0 && layer->conv != NULL) {
        *conv = *layer->conv;
        conv->weight = weight;
        change->conv = conv;
        rc = merge_bias(a, l, &conv->bias, out, err);
    } else if (rc == 0) {
        *linear = *layer->linear;
        linear->weight = weight;
        change->linear = linear;
        rc = merge_bias(a, l, &linear->bias, out, err);
    }
    if (kernel == 1)
        free(w);
    a->copies = true;
    return rc;
}

static int make_change(struct adaptation *a, const struct layer_groups *l, struct change **out,
                       struct err *err)
{
    struct change *change =
        own(a, sizeof(*change) + (size_t)l->count * sizeof(change->branches[0]));
    bool branches = true;

    if (change == NULL)
        return no_memory(err);
    *out = change;
    for (int i = 0; i < l->count; i++)
        branches = branches && l->items[i].group->has_branch;
    return branches ? make_branches(a, l, change, err) : make_copy(a, l, change, err);
}

/* ---- all layers ---- */

static const struct delta_group *find_group(const struct adapter *a, enum component component,
                                            int slot)
{
    int low = 0, high = a->group_count;

    while (low < high) {
        int middle = (low + high) / 2;
        const struct delta_group *g = &a->groups[middle];
        if (g->component == component && g->slot == slot)
            return g;
        if (g->component < component || (g->component == component && g->slot < slot))
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int make_network(struct adaptation *a, enum component component, struct err *err)
{
    const struct parameters *p = model_parameters(a->model, component);
    int slots = p != NULL ? p->layer_count : 0;

    for (int slot = 1; slot <= slots; slot++) {
        struct layer_groups l = {.layer = &p->layers[slot - 1]};
        for (int i = 0; i < a->count; i++) {
            const struct adapter *adapter = a->adapters[i].adapter;
            const struct delta_group *g = find_group(adapter, component, slot);
            if (g == NULL)
                continue;
            l.items[l.count].adapter = adapter;
            l.items[l.count].group = g;
            l.items[l.count++].scale = a->adapters[i].scale;
        }
        if (l.count == 0)
            continue;
        if (a->changes[component] == NULL)
            a->changes[component] = own(a, (size_t)slots * sizeof(struct change *));
        if (a->changes[component] == NULL)
            return no_memory(err);
        if (make_change(a, &l, &a->changes[component][slot - 1], err) != 0)
            return -1;
    }
    return 0;
}

/* Drops idle combinations until the budget holds what there is; an error if it never does. */
static int settle_memory(struct engine *engine, struct err *err)
{
    while (engine->backend->weights_bytes > engine->memory_max_bytes)
        if (!adaptations_evict(engine))
            return err_set(err, ERR_MEMORY, ERR_RETRY,
                           "loras: the layers they change need %zu MiB with the model's weights, "
                           "the engine may use %zu MiB; use fewer or give it more memory",
                           (engine->backend->weights_bytes >> 20) + 1,
                           engine->memory_max_bytes >> 20);
    return 0;
}

/* ---- the list ---- */

static struct adaptation *find(const struct model *model, const struct draw_adapter *adapters,
                               int count)
{
    for (struct adaptation *a = model->adaptations; a != NULL; a = a->next) {
        bool same = a->count == count;
        for (int i = 0; i < count && same; i++)
            same = a->adapters[i].adapter == adapters[i].adapter &&
                   a->adapters[i].scale == adapters[i].scale;
        if (same)
            return a;
    }
    return NULL;
}

int adaptation_acquire(struct adaptation **out, struct model *model,
                       const struct draw_adapter *adapters, int count, struct err *err)
{
    struct adaptation *a = count <= ENGINE_ADAPTERS_MAX ? find(model, adapters, count) : NULL;

    *out = NULL;
    if (count == 0)
        return 0;
    if (count < 0 || count > ENGINE_ADAPTERS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "loras: a picture takes up to %d, not %d",
                       ENGINE_ADAPTERS_MAX, count);
    if (a != NULL) {
        a->holders++;
        *out = a;
        return 0;
    }
    for (int i = 0; i < count; i++)
        if (adapters[i].adapter->model != model)
            return err_set(err, ERR_INVALID, ERR_REJECT, "loras: %s was loaded for another model",
                           adapters[i].adapter->info.path);
    a = calloc(1, sizeof(*a));
    if (a == NULL)
        return no_memory(err);
    a->model = model;
    a->parameters.backend = model->engine->backend;
    a->count = count;
    a->holders = 1;
    a->id = ++model->engine->adaptation_clock;
    memcpy(a->adapters, adapters, (size_t)count * sizeof(adapters[0]));
    for (int c = 0; c < COMPONENT_COUNT; c++)
        if (make_network(a, (enum component)c, err) != 0) {
            adaptation_free(a);
            return -1;
        }
    if (settle_memory(model->engine, err) != 0) {
        adaptation_free(a);
        return -1;
    }
    a->next = model->adaptations;
    model->adaptations = a;
    *out = a;
    return 0;
}

static void drop(struct adaptation *a)
{
    struct adaptation **link;

    ASSERT(a->holders == 0);
    for (link = &a->model->adaptations; *link != a; link = &(*link)->next)
        continue;
    *link = a->next;
    adaptation_free(a);
}

void adaptation_release(struct adaptation *a)
{
    if (a == NULL || --a->holders > 0)
        return;
    a->used = ++a->model->engine->adaptation_clock;
    if (!a->copies)
        drop(a);
}

int adaptation_save(const struct adaptation *a, struct saved_adapter saved[ENGINE_ADAPTERS_MAX])
{
    memset(saved, 0, ENGINE_ADAPTERS_MAX * sizeof(saved[0]));
    for (int i = 0; a != NULL && i < a->count; i++) {
        struct adapter *adapter = a->adapters[i].adapter;
        const char *slash = strrchr(adapter->info.path, '/');
        saved[i].digest = adapter_digest(adapter);
        saved[i].scale = a->adapters[i].scale;
        snprintf(saved[i].name, sizeof(saved[i].name), "%s",
                 slash != NULL ? slash + 1 : adapter->info.path);
    }
    return a != NULL ? a->count : 0;
}

int adaptation_restore(struct adaptation **out, struct model *model,
                       const struct saved_adapter *saved, int count, struct err *err)
{
    struct draw_adapter adapters[ENGINE_ADAPTERS_MAX];

    if (count < 0 || count > ENGINE_ADAPTERS_MAX)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is damaged");
    for (int i = 0; i < count; i++) {
        struct adapter *found = model->adapters;
        while (found != NULL && adapter_digest(found) != saved[i].digest)
            found = found->next;
        if (found == NULL)
            return err_set(err, ERR_NOT_FOUND, ERR_RETRY,
                           "a saved session draws with adapter %.63s, which is not loaded or is "
                           "another file now",
                           saved[i].name);
        adapters[i] = (struct draw_adapter){.adapter = found, .scale = saved[i].scale};
    }
    return adaptation_acquire(out, model, adapters, count, err);
}

void adaptations_forget(struct model *model, const struct adapter *adapter)
{
    struct adaptation *next;

    for (struct adaptation *a = model->adaptations; a != NULL; a = next) {
        bool holds = adapter == NULL;
        next = a->next;
        for (int i = 0; i < a->count; i++)
            holds = holds || a->adapters[i].adapter == adapter;
        if (holds)
            drop(a);
    }
}

bool adaptations_evict(struct engine *engine)
{
    struct adaptation *oldest = NULL;

    pthread_mutex_lock(&engine->counts_lock);
    for (const struct model *m = engine->models; m != NULL; m = m->next)
        for (struct adaptation *a = m->adaptations; a != NULL; a = a->next)
            if (a->holders == 0 && (oldest == NULL || a->used < oldest->used))
                oldest = a;
    pthread_mutex_unlock(&engine->counts_lock);
    if (oldest != NULL)
        drop(oldest);
    return oldest != NULL;
}

/* ---- passes ---- */

void adapted_rows_add(struct adapted_rows *rows, const struct adaptation *a,
                      enum component component, int samples)
{
    struct change *const *changes = a != NULL ? a->changes[component] : NULL;
    uint64_t id = changes != NULL ? a->id : 0;

    ASSERT(rows->count < ADAPTED_RUNS_MAX);
    rows->runs[rows->count++] =
        (struct pass_run){.samples = samples, .changes = (const struct change *const *)changes};
    rows->changed = rows->changed || changes != NULL;
    /* FNV-1a over the sequence */
    rows->id = (rows->id ? rows->id : 0xcbf29ce484222325u) ^ id;
    rows->id = rows->id * 0x100000001b3u ^ (uint64_t)samples;
    rows->id *= 0x100000001b3u;
}

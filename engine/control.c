#include "engine/control.h"

#include "engine/runtime.h"

#include <stdlib.h>

_Static_assert(CONTROLNET_HINTS_MAX >= ENGINE_CONTROLS_MAX, "all may be one union's");

/* ---- loading ---- */

static void control_release(void *what)
{
    struct control *c = what;

    if (c->kind == CONTROL_NET)
        controlnet_release(&c->net);
    else
        t2i_adapter_release(&c->adapter);
    checkpoint_close(c->checkpoint);
    c->checkpoint = NULL;
}

static int check_factor(const struct control *c, struct err *err)
{
    if (c->net.factor == c->model->info.vae_factor)
        return 0;
    return err_set(err, ERR_FORMAT, ERR_REJECT,
                   "%s: shrinks its hint %d times, the model's VAE shrinks pictures %d times",
                   c->info.path, c->net.factor, c->model->info.vae_factor);
}

static int bind(struct control *c, struct err *err)
{
    const struct model *m = c->model;
    struct backend *backend = m->engine->backend;

    if (c->kind == CONTROL_T2I_ADAPTER)
        return t2i_adapter_bind(&c->adapter, &m->unet.config, m->info.vae_factor, c->checkpoint,
                                backend, err);
    return controlnet_bind(&c->net, &m->unet.config, c->checkpoint, backend, err) != 0
               ? -1
               : check_factor(c, err);
}

static int control_load(void *what, struct err *err)
{
    struct control *c = what;
    struct backend *backend = c->model->engine->backend;
    uint64_t bytes;

    c->kind = CONTROL_NET;
    c->net = (struct controlnet){.parameters.backend = backend};
    c->adapter = (struct t2i_adapter){.parameters.backend = backend};
    if (checkpoint_open_control(&c->checkpoint, c->info.path, err) != 0)
        return -1;
    c->kind = t2i_adapter_is(c->checkpoint) ? CONTROL_T2I_ADAPTER : CONTROL_NET;
    if (bind(c, err) != 0)
        return -1;
    c->info.path = checkpoint_path(c->checkpoint);
    c->info.kind = c->kind == CONTROL_T2I_ADAPTER ? "T2I-Adapter"
                   : c->net.kinds.modes > 0       ? "ControlNet-Union"
                                                  : "ControlNet";
    c->info.bytes =
        parameters_bytes(c->kind == CONTROL_NET ? &c->net.parameters : &c->adapter.parameters);
    checkpoint_size(c->checkpoint, COMPONENT_UNET, &c->info.parameters, &bytes);
    return 0;
}

int engine_load_control(struct control **out, struct model *model, const char *path,
                        struct err *err)
{
    static const struct loader CONTROLS = {.load = control_load, .release = control_release};
    struct engine *engine = model->engine;
    struct control *c = calloc(1, sizeof(*c));

    if (c == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a ControlNet");
    c->model = model;
    c->info.path = path;
    if (load_within_budget(engine, &CONTROLS, c, path, err) != 0) {
        free(c);
        return -1;
    }
    fair_lock_take(&engine->lock);
    c->id = ++engine->adaptation_clock;
    c->next = model->controls;
    model->controls = c;
    fair_lock_give(&engine->lock);
    *out = c;
    return 0;
}

/* The lock is held. */
static void unload(struct control *c)
{
    struct control **link;

    for (link = &c->model->controls; *link != c; link = &(*link)->next)
        continue;
    *link = c->next;
    control_release(c);
    free(c);
}

void engine_unload_control(struct control *c)
{
    struct engine *engine;

    if (c == NULL)
        return;
    engine = c->model->engine;
    fair_lock_take(&engine->lock);
    unload(c);
    fair_lock_give(&engine->lock);
}

void model_unload_controls(struct model *model)
{
    while (model->controls != NULL)
        unload(model->controls);
}

const struct control_info *control_info(const struct control *c)
{
    return &c->info;
}

uint64_t control_digest(struct control *c)
{
    if (!c->has_digest)
        c->digest = checkpoint_digest(c->checkpoint, COMPONENT_UNET);
    c->has_digest = true;
    return c->digest;
}

/* ---- hints ---- */

int control_made_count(const struct control *c)
{
    return c->kind == CONTROL_NET ? 1 : c->adapter.block_count;
}

struct tensor control_made(const struct control *c, int i, int h, int w)
{
    int width = c->net.hint_out.out;

    if (c->kind == CONTROL_T2I_ADAPTER) {
        width = c->adapter.blocks[i].width;
        for (int n = c->adapter.blocks[i].shift; n > 0; n--) {
            h = (h + 1) / 2;
            w = (w + 1) / 2;
        }
    }
    return (struct tensor){
        .dtype = model_act(c->model), .n = 1, .h = h, .w = w, .c = width, .ld = width};
}

void control_forward(struct pass *pass, const struct control *c, const struct control_hint *hint,
                     struct tensor *made)
{
    int factor = c->model->info.vae_factor;
    int height = hint->height * factor, width = hint->width * factor;
    struct tensor picture;

    if (c->kind == CONTROL_T2I_ADAPTER) {
        t2i_adapter_forward(pass, &c->adapter, hint->planes, height, width, made);
        return;
    }
    picture = pass_tensor_of(pass, DTYPE_F32, 1, height, width, 3);
    op_upload(pass, &picture, hint->planes);
    controlnet_embed(pass, &c->net, &picture, made);
    if (c->net.kinds.modes > 0)
        controlnet_union_move(pass, &c->net.kinds, hint->mode, hint->scale, made);
    pass_drop(pass, &picture);
}

/* ---- a step's samples ---- */

static int rows_alloc(struct controlled_rows *rows, const struct guided_row *given, int count,
                      struct err *err)
{
    size_t most = 0;

    *rows = (struct controlled_rows){.count = 0};
    for (int i = 0; i < count; i++)
        most += (size_t)given[i].controls->count;
    if (most == 0)
        return 0;
    rows->controls = malloc(most * sizeof(struct control *));
    rows->rows = malloc(most * sizeof(rows->rows[0]));
    rows->samples = malloc(most * sizeof(rows->samples[0]));
    rows->features = malloc(most * T2I_BLOCKS_MAX * sizeof(rows->features[0]));
    if (rows->controls != NULL && rows->rows != NULL && rows->samples != NULL &&
        rows->features != NULL)
        return 0;
    controlled_rows_release(rows);
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a batch with ControlNets");
}

void controlled_rows_release(struct controlled_rows *rows)
{
    free(rows->controls);
    free(rows->rows);
    free(rows->samples);
    free(rows->features);
    *rows = (struct controlled_rows){.count = 0};
}

/* Whether it guides the session's next step. diffusers counts the sampler's calls, from where a
 * picture is begun with to where its sampler ends, a refiner's share included; but how long a
 * T2I-Adapter goes on it counts in the steps that were asked for. */
static bool is_active(const struct session *s, const struct session_control *c)
{
    double calls = sampler_calls_total(&s->plan), call = s->state.index - s->plan.begin;

    if (c->control->kind == CONTROL_T2I_ADAPTER)
        return call / calls >= c->start && call < (int)(s->plan.steps * c->end);
    return call / calls >= c->start && (call + 1) / calls <= c->end;
}

/* A T2I-Adapter's maps for one sample. */
static void add_maps(struct controlled_rows *rows, const struct session_control *c, int sample)
{
    for (int i = 0; i < control_made_count(c->control); i++)
        rows->features[rows->feature_count++] = (struct unet_feature){
            .sample = sample, .level = i, .x = &c->made[i], .scale = (float)c->scale};
}

/* Whether it leaves the negative prompt's sample alone: one that guesses, and one that pools if the
 * picture's first ControlNet does, which diffusers asks for all. */
static bool spares_negative(const struct session_controls *all, const struct session_control *c)
{
    int first = 0;

    while (all->items[first].control->kind != CONTROL_NET)
        first++;
    return c->guess || (c->control->net.pools && all->items[first].control->net.pools);
}

/* What the network's pass sees of a picture. Of several hints of one union each is scaled as it
 * comes in, and what comes out is as strong as it is; one that does not guide this step is left
 * out, but its mode is told all the same: so diffusers has it. */
static struct controlnet_sample see(const struct session *s, const struct session_control *first,
                                    enum controlled which)
{
    const struct session_control *c = first;
    bool several = c->members > 1;
    struct controlnet_sample seen = {.scale = several ? 1 : (float)c->scale, .guess = c->guess};

    for (int left = c->members; left > 0; c++) {
        if (c->control != first->control)
            continue;
        left--;
        if (c->control->net.kinds.modes > 0)
            seen.modes |= 1u << c->mode;
        if (which == CONTROLLED_NOW && several && !is_active(s, c))
            continue;
        seen.hints[seen.hint_count].embedding = &c->made[0];
        seen.hints[seen.hint_count++].scale = several ? (float)c->scale : 1;
    }
    return seen;
}

/* A ControlNet for one sample. */
static void add_row(struct controlled_rows *rows, const struct guided_row *given,
                    const struct session_control *c, int sample, enum controlled which)
{
    int at = rows->count;

    if (spares_negative(given->controls, c) && given->session->conditioning.rows_are == ROWS_TEXT &&
        given->row == 0)
        return;
    rows->count++;
    rows->controls[at] = c->control;
    rows->rows[at] = sample;
    rows->samples[at] = see(given->session, c, which);
    /* FNV-1a over the sequence */
    rows->id = (rows->id ? rows->id : 0xcbf29ce484222325u) ^ c->control->id;
    rows->id = (rows->id * 0x100000001b3u ^ (uint64_t)sample) * 0x100000001b3u;
}

/* The sample's control in a place of its list, if it guides this step. Several hints of one union
 * are one in the first one's place, and that guides every step. */
static const struct session_control *control_at(const struct guided_row *of, int place,
                                                enum controlled which)
{
    const struct session_control *c = &of->controls->items[place];

    if (place >= of->controls->count || c->members == 0)
        return NULL;
    return which == CONTROLLED_EVER || c->members > 1 || is_active(of->session, c) ? c : NULL;
}

/* Adds every sample that has this network in this place. */
static void add_alike(struct controlled_rows *rows, const struct guided_row *given, int count,
                      int place, enum controlled which, const struct control *control, bool taken[])
{
    for (int i = 0; i < count; i++) {
        const struct session_control *c = control_at(&given[i], place, which);
        if (c == NULL || c->control != control)
            continue;
        if (control->kind == CONTROL_NET)
            add_row(rows, &given[i], c, i, which);
        else
            add_maps(rows, c, i);
        taken[i] = true;
    }
}

int controlled_rows_make(struct controlled_rows *rows, const struct guided_row *given, int count,
                         enum controlled which, struct err *err)
{
    if (rows_alloc(rows, given, count, err) != 0)
        return -1;
    /* Place by place, so that each session's own order holds. */
    for (int place = 0; rows->controls != NULL && place < ENGINE_CONTROLS_MAX; place++) {
        bool taken[CONDITIONING_ROWS_MAX * ENGINE_SESSIONS_MAX] = {false};
        for (int i = 0; i < count; i++) {
            const struct session_control *c = control_at(&given[i], place, which);
            if (c != NULL && !taken[i])
                add_alike(rows, given, count, place, which, c->control, taken);
        }
    }
    return 0;
}

/* How many from `first` on are neighbouring samples of one network. */
static int run_length(const struct controlled_rows *rows, int first)
{
    int n = 1;

    while (first + n < rows->count && rows->controls[first + n] == rows->controls[first] &&
           rows->rows[first + n] == rows->rows[first] + n)
        n++;
    return n;
}

/* The latents, without what a wider network reads beside them, and all else of some samples. */
static void apply_run(struct pass *pass, const struct controlled_rows *rows, int at, int n,
                      const struct unet_input *in, struct unet_middle *middle)
{
    const struct controlnet *net = &rows->controls[at]->net;
    const struct unet_config *u = &net->encoder.config;
    int first = rows->rows[at];
    struct tensor latents = tensor_samples(in->latents, first, n);
    struct tensor text = tensor_samples(in->text, first, n);
    struct tensor pooled = tensor_samples(in->pooled, first, n);
    struct unet_input own = {
        .latents = &latents, .timesteps = in->timesteps, .text = &text, .pooled = &pooled};

    latents = tensor_columns(&latents, 0, u->in_channels);
    if (!pass->planning) {
        own.timesteps = in->timesteps + first;
        own.ids = in->ids + first * u->ids;
    }
    controlnet_apply(pass, net, &own, rows->samples + at, middle, first);
}

void controlled_forward(struct pass *pass, const struct unet *unet, const struct unet_input *in,
                        const struct controlled_rows *rows, struct tensor *y)
{
    struct unet_input guided = *in;
    struct unet_middle middle;
    int runs = pass->run_count;

    if (rows != NULL) {
        guided.features = rows->features;
        guided.feature_count = rows->feature_count;
    }
    middle = unet_encode(pass, unet, &guided);
    pass->run_count = 0; /* adapters change the model's own layers, not these */
    for (int at = 0, n; rows != NULL && at < rows->count; at += n) {
        n = run_length(rows, at);
        apply_run(pass, rows, at, n, in, &middle);
    }
    pass->run_count = runs;
    unet_decode(pass, unet, in, &middle, y);
}

/*
 * What a piece of work needs of memory, known before it is done: the network's forward function
 * runs over an arena without memory, and the peak is kept per model, kind of work and shape.
 */
#include "engine/runtime.h"

static void plan_text(struct pass *pass, const struct clip *clip, int rows, int tokens)
{
    const struct clip_config *c = &clip->config;
    struct tensor y = pass_tensor_of(pass, DTYPE_F32, rows, 1, tokens, c->hidden);
    struct tensor pooled = pass_tensor_of(pass, DTYPE_F32, rows, 1, 1, clip_pooled_width(c));

    clip_forward(pass, clip, NULL, &(struct clip_reading){0}, &y, &pooled);
    pass_drop(pass, &pooled);
    pass_drop(pass, &y);
}

static void plan_step(struct pass *pass, const struct model *model,
                      const struct controlled_rows *controlled, const struct work_plan *plan)
{
    int rows = plan->rows, h = plan->height, w = plan->width;
    const struct unet_config *u = &model->unet.config;
    struct tensor x = pass_tensor_of(pass, DTYPE_F32, rows, h, w, u->in_channels);
    struct tensor text = pass_tensor(pass, rows, 1, plan->tokens, u->context);
    struct tensor pooled = pass_tensor_of(pass, DTYPE_F32, rows, 1, 1, u->pooled);
    struct tensor y = pass_tensor_of(pass, DTYPE_F32, rows, h, w, u->out_channels);

    controlled_forward(pass, &model->unet,
                       &(struct unet_input){.latents = &x, .text = &text, .pooled = &pooled},
                       controlled, &y);
    pass_drop(pass, &y);
    pass_drop(pass, &pooled);
    pass_drop(pass, &text);
    pass_drop(pass, &x);
}

static void plan_vae(struct pass *pass, const struct model *model, bool decode, int rows, int h,
                     int w)
{
    int factor = model->info.vae_factor;
    struct tensor latents =
        pass_tensor_of(pass, DTYPE_F32, rows, h, w, decode ? LATENT_CHANNELS : 2 * LATENT_CHANNELS);
    struct tensor pixels = pass_tensor_of(pass, DTYPE_F32, rows, h * factor, w * factor, 3);

    if (decode)
        vae_decode(pass, &model->vae, &latents, &pixels);
    else
        vae_encode(pass, &model->vae, &pixels, &latents);
    pass_drop(pass, &pixels);
    pass_drop(pass, &latents);
}

/* What is made lies in memory of its own. */
static void plan_hint(struct pass *pass, const struct control *control, int h, int w)
{
    struct tensor made[T2I_BLOCKS_MAX];

    for (int i = 0; i < control_made_count(control); i++)
        made[i] = control_made(control, i, h, w);
    control_forward(pass, control, &(struct control_hint){.height = h, .width = w}, made);
}

enum dtype work_act(const struct model *model, enum work work)
{
    bool wide = (work == WORK_DECODE || work == WORK_ENCODE) && model->vae.config.wide;

    if (work == WORK_TEXT || work == WORK_TEXT_2)
        return DTYPE_F32;
    return wide && model_act(model) == DTYPE_F16 ? DTYPE_BF16 : model_act(model);
}

/* Runs the forward function over addresses without memory. */
static int make_plan(const struct model *model, const struct work_variant *variant,
                     struct work_plan *plan, struct err *err)
{
    struct arena arena;
    struct pass pass;

    arena_init_plan(&arena);
    pass = pass_plan(model->engine->backend, &arena, work_act(model, plan->work), err);
    pass_adapt(&pass, variant->adapted);
    switch (plan->work) {
    case WORK_TEXT:
    case WORK_TEXT_2:
        plan_text(&pass, &model->encoders[plan->work - WORK_TEXT].clip, plan->rows, plan->width);
        break;
    case WORK_STEP:
        plan_step(&pass, model, variant->controlled, plan);
        break;
    case WORK_DECODE:
    case WORK_ENCODE:
        plan_vae(&pass, model, plan->work == WORK_DECODE, plan->rows, plan->height, plan->width);
        break;
    case WORK_HINT:
        plan_hint(&pass, variant->hinted, plan->height, plan->width);
        break;
    }
    plan->arena_bytes = arena.peak_bytes;
    plan->prepare_bytes = pass.prepare_bytes;
    plan->weights_bytes = model->engine->backend->weights_bytes;
    return pass.failed ? -1 : 0;
}

static void promise(struct engine *engine, size_t bytes)
{
    pthread_mutex_lock(&engine->counts_lock);
    if (bytes > engine->promised_bytes)
        engine->promised_bytes = bytes;
    pthread_mutex_unlock(&engine->counts_lock);
}

int work_plans_fit(const struct model *model, const struct work_plan *plans, int count,
                   struct err *err)
{
    struct engine *engine = model->engine;
    size_t more = 0, arena = 0, need;
    int factor = model->info.vae_factor;

    for (int i = 0; i < count; i++) {
        more += plans[i].prepare_bytes;
        arena = plans[i].arena_bytes > arena ? plans[i].arena_bytes : arena;
    }
    do {
        need = engine->backend->weights_bytes + more + arena;
        if (need <= engine->memory_max_bytes) {
            promise(engine, more + arena);
            return 0;
        }
    } while (adaptations_evict(engine));
    return err_set(
        err, ERR_MEMORY, ERR_RETRY,
        "width and height: %d × %d needs %zu MiB with the model's weights, the engine may "
        "use %zu MiB; draw it smaller or give it more memory",
        plans[0].width * factor, plans[0].height * factor, (need >> 20) + 1,
        engine->memory_max_bytes >> 20);
}

void pass_adapt(struct pass *pass, const struct adapted_rows *adapted)
{
    if (adapted == NULL || !adapted->changed)
        return;
    pass->runs = adapted->runs;
    pass->run_count = adapted->count;
}

static bool same_work(const struct work_plan *a, const struct work_plan *b)
{
    return a->work == b->work && a->rows == b->rows && a->height == b->height &&
           a->width == b->width && a->tokens == b->tokens && a->variant == b->variant;
}

/* 0: nothing sets it apart. */
static uint64_t variant_id(const struct work_variant *v)
{
    uint64_t adapted = v->adapted != NULL && v->adapted->changed ? v->adapted->id : 0;
    uint64_t controlled = v->controlled != NULL ? v->controlled->id : 0;

    return adapted ^ controlled * 3 ^ (v->hinted != NULL ? v->hinted->id : 0);
}

/* `plan` says what is wanted and receives the rest. */
static int find(struct model *model, const struct work_variant *variant, struct work_plan *plan,
                struct err *err)
{
    plan->variant = variant_id(variant);
    for (int i = 0; i < model->plan_count; i++) {
        struct work_plan *known = &model->plans[i];
        if (!same_work(known, plan))
            continue;
        /* What it was to prepare may have been made since, and then counts as weights. */
        if (known->prepare_bytes > 0 &&
            known->weights_bytes != model->engine->backend->weights_bytes &&
            make_plan(model, variant, known, err) != 0)
            return -1;
        *plan = *known;
        return work_plans_fit(model, plan, 1, err);
    }
    if (make_plan(model, variant, plan, err) != 0 || work_plans_fit(model, plan, 1, err) != 0)
        return -1;
    model->plans[model->plan_count < PLANS_MAX ? model->plan_count++
                                               : model->plan_next++ % PLANS_MAX] = *plan;
    return 0;
}

int work_plan_find(struct model *model, enum work work, int rows, int height, int width,
                   struct work_plan *plan, struct err *err)
{
    return work_plan_find_adapted(model, work, rows, height, width, NULL, plan, err);
}

int work_plan_find_adapted(struct model *model, enum work work, int rows, int height, int width,
                           const struct adapted_rows *adapted, struct work_plan *plan,
                           struct err *err)
{
    *plan = (struct work_plan){.work = work, .rows = rows, .height = height, .width = width};
    ASSERT(work != WORK_STEP && work != WORK_HINT);
    return find(model, &(struct work_variant){.adapted = adapted}, plan, err);
}

int work_plan_find_step(struct model *model, int rows, int height, int width, int tokens,
                        const struct work_variant *variant, struct work_plan *plan, struct err *err)
{
    *plan = (struct work_plan){
        .work = WORK_STEP, .rows = rows, .height = height, .width = width, .tokens = tokens};
    return find(model, variant, plan, err);
}

int work_plan_find_hint(struct model *model, int height, int width, const struct control *control,
                        struct work_plan *plan, struct err *err)
{
    *plan = (struct work_plan){.work = WORK_HINT, .rows = 1, .height = height, .width = width};
    return find(model, &(struct work_variant){.hinted = control}, plan, err);
}

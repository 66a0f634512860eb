/*
 * One step of many sessions. Every session adds rows, samples of the network; rows whose texts are
 * of one length go through it together, since no row's result depends on the others. A session's
 * outputs are put together when all of its rows have been computed.
 */
#include "engine/decode.h"
#include "engine/runtime.h"

#include <stdio.h>
#include <stdlib.h>

#define STEP_ROWS_MAX (CONDITIONING_ROWS_MAX * ENGINE_SESSIONS_MAX)

/* One row of one session on its way through the network. */
struct asked {
    struct session *session;
    int row, text;
    float *output; /* of a latent's size */
    bool taken;    /* into a pass */
};

struct step {
    struct asked rows[STEP_ROWS_MAX];
    int count;
    float *outputs; /* row by row, a session's one after the other */
};

/* What one pass reads and writes on the host, row by row. */
struct batch {
    struct asked *rows[STEP_ROWS_MAX];
    int count, tokens;
    float *input;  /* count × (latent + extra) */
    float *output; /* count × latent */
    float *text;   /* count × tokens × context */
    float *pooled; /* count × pooled */
    float *ids;    /* count × ids */
    double timesteps[STEP_ROWS_MAX];
    double guidance[STEP_ROWS_MAX];
    struct freeu freeu[STEP_ROWS_MAX];
    struct adapted_rows adapted;
    struct controlled_rows controlled;
};

/* ---- what is asked ---- */

static int ask(struct step *step, struct session *const sessions[], int count, struct err *err)
{
    size_t each = sessions[0]->count;

    step->count = 0;
    for (int i = 0; i < count; i++)
        for (int row = 0; row < sessions[i]->conditioning.row_count; row++) {
            struct session *s = sessions[i];
            int text = conditioning_text_at(&s->conditioning, row, session_pass_calls(s));
            double sigma = sampler_sigma(&s->plan, &s->state);
            if (!guidance_asks(&s->guidance, &s->conditioning, row, sigma))
                continue;
            step->rows[step->count++] = (struct asked){.session = s, .row = row, .text = text};
        }
    step->outputs = malloc((size_t)step->count * each * sizeof(float));
    if (step->outputs == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a step of %d rows", step->count);
    for (int i = 0; i < step->count; i++)
        step->rows[i].output = step->outputs + (size_t)i * each;
    return 0;
}

static int tokens_of(const struct asked *a)
{
    return conditioning_tokens(&a->session->conditioning, a->text);
}

/* ---- one pass ---- */

/* Takes a session's rows from step->rows[first] on that have the batch's length; returns how many.
 */
static int take_session(struct batch *b, struct step *step, int first)
{
    const struct session *s = step->rows[first].session;
    int before = b->count;

    for (int i = first; i < step->count && step->rows[i].session == s; i++)
        if (!step->rows[i].taken && tokens_of(&step->rows[i]) == b->tokens) {
            step->rows[i].taken = true;
            b->rows[b->count++] = &step->rows[i];
        }
    if (b->count > before)
        adapted_rows_add(&b->adapted, s->adaptation, COMPONENT_UNET, b->count - before);
    return b->count - before;
}

/* How many rows take_session would take. */
static int count_session(const struct batch *b, const struct step *step, int first)
{
    int count = 0;

    for (int i = first; i < step->count && step->rows[i].session == step->rows[first].session; i++)
        count += !step->rows[i].taken && tokens_of(&step->rows[i]) == b->tokens;
    return count;
}

/* The first row that is not in a pass yet, and as many others of its length as go with it. False:
 * all are. */
static bool batch_take(struct batch *b, struct step *step)
{
    int first = 0, i;

    while (first < step->count && step->rows[first].taken)
        first++;
    if (first == step->count)
        return false;
    const struct session *s = step->rows[first].session;
    int64_t pixels = (int64_t)s->latent_h * s->latent_w;
    int64_t most = s->model->engine->backend->step_pixels_max;
    b->count = 0;
    b->tokens = tokens_of(&step->rows[first]);
    b->adapted = (struct adapted_rows){.count = 0};
    for (i = first; i < step->count; i++) {
        if (i > first && step->rows[i].session == step->rows[i - 1].session)
            continue;
        if (b->count > 0 && pixels * (b->count + count_session(b, step, i)) > most)
            break;
        take_session(b, step, i);
    }
    return true;
}

static int batch_alloc(struct batch *b, struct err *err)
{
    const struct session *s = b->rows[0]->session;
    const struct conditioning *c = &s->conditioning;
    size_t text = (size_t)b->tokens * (size_t)c->width, rows = (size_t)b->count;

    b->input = malloc(
        rows * (2 * s->count + s->extra_count + text + (size_t)c->pooled_width + UNET_IDS_MAX) *
        sizeof(float));
    if (b->input == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a batch of %d rows", b->count);
    b->output = b->input + rows * (s->count + s->extra_count);
    b->text = b->output + rows * s->count;
    b->pooled = b->text + rows * text;
    b->ids = b->pooled + rows * (size_t)c->pooled_width;
    return 0;
}

static void batch_fill_row(struct batch *b, int i)
{
    const struct asked *a = b->rows[i];
    const struct session *s = a->session;
    const struct conditioning *c = &s->conditioning;
    size_t text = (size_t)b->tokens * (size_t)c->width, pooled = (size_t)c->pooled_width;
    float *input = b->input + (size_t)i * (s->count + s->extra_count);

    sampler_scale_input(&s->plan, &s->state, s->latents, input, s->count);
    if (c->rows_are == ROWS_BOTH && a->row == 2) /* without the picture */
        memset(input + s->count, 0, s->extra_count * sizeof(float));
    else
        memcpy(input + s->count, s->extra, s->extra_count * sizeof(float));
    memcpy(b->text + (size_t)i * text, conditioning_text(c, a->text), text * sizeof(float));
    memcpy(b->pooled + (size_t)i * pooled, conditioning_pooled(c, a->text), pooled * sizeof(float));
    memcpy(b->ids + i * c->id_count, c->rows[a->row].ids, (size_t)c->id_count * sizeof(float));
    b->timesteps[i] = sampler_timestep(&s->plan, &s->state);
    b->guidance[i] = c->guidance_scale;
    b->freeu[i] = s->freeu;
}

/* What guides the batch's rows. */
static int batch_guide(struct batch *b, enum controlled which, struct err *err)
{
    struct guided_row guided[STEP_ROWS_MAX];

    for (int i = 0; i < b->count; i++)
        guided[i] = (struct guided_row){.session = b->rows[i]->session,
                                        .controls = &b->rows[i]->session->controls,
                                        .row = b->rows[i]->row};
    return controlled_rows_make(&b->controlled, guided, b->count, which, err);
}

static int batch_plan(const struct batch *b, struct work_plan *plan, struct err *err)
{
    const struct session *s = b->rows[0]->session;
    struct work_variant variant = {.adapted = &b->adapted, .controlled = &b->controlled};

    return work_plan_find_step(s->model, b->count, s->latent_h, s->latent_w, b->tokens, &variant,
                               plan, err);
}

static int batch_compute(struct batch *b, struct err *err)
{
    const struct session *s = b->rows[0]->session;
    struct model *m = s->model;
    const struct unet_config *u = &m->unet.config;
    struct work_plan plan;
    struct tensor x, text, text_rows, pooled, y;
    struct pass pass;

    if (batch_plan(b, &plan, err) != 0 || work_begin(m, &plan, &pass, err) != 0)
        return -1;
    pass_adapt(&pass, &b->adapted);
    x = pass_tensor_of(&pass, DTYPE_F32, b->count, s->latent_h, s->latent_w, u->in_channels);
    text = pass_tensor(&pass, b->count, 1, b->tokens, u->context);
    pooled = pass_tensor_of(&pass, DTYPE_F32, b->count, 1, 1, u->pooled);
    y = pass_tensor_of(&pass, DTYPE_F32, b->count, s->latent_h, s->latent_w, LATENT_CHANNELS);
    text_rows = text;
    text_rows.n = b->count * b->tokens;
    text_rows.w = 1;
    op_upload(&pass, &x, b->input);
    op_upload(&pass, &text_rows, b->text);
    op_upload(&pass, &pooled, b->pooled);
    controlled_forward(&pass, &m->unet,
                       &(struct unet_input){.latents = &x,
                                            .timesteps = b->timesteps,
                                            .text = &text,
                                            .pooled = &pooled,
                                            .ids = b->ids,
                                            .guidance = b->guidance,
                                            .freeu = b->freeu},
                       &b->controlled, &y);
    op_download(&pass, b->output, &y);
    work_end(m, &pass);
    return pass.failed ? -1 : 0;
}

static int batch_run(struct batch *b, struct err *err)
{
    size_t each = b->rows[0]->session->count;
    int rc = batch_alloc(b, err);

    if (rc != 0)
        return -1;
    for (int i = 0; i < b->count; i++)
        batch_fill_row(b, i);
    rc = batch_guide(b, CONTROLLED_NOW, err);
    if (rc == 0)
        rc = batch_compute(b, err);
    controlled_rows_release(&b->controlled);
    for (int i = 0; i < b->count && rc == 0; i++)
        memcpy(b->rows[i]->output, b->output + (size_t)i * each, each * sizeof(float));
    free(b->input);
    return rc;
}

/* ---- the sessions' places ---- */

static void advance(struct session *s, float *outputs)
{
    char name[32];

    guidance_combine(&s->guidance, &s->conditioning, sampler_sigma(&s->plan, &s->state), outputs,
                     s->count);
    if (sampler_draws(&s->plan, &s->state))
        rng_normal(&s->rng, s->noise, s->count);
    snprintf(name, sizeof(name), "latents.%d", session_calls_made(s));
    sampler_step(&s->plan, &s->state, outputs, s->latents, s->history, s->noise, s->count);
    if (s->blends)
        session_blend(s);
    session_show_latents(s, name, s->latents);
    if (s->sequel != NULL && s->state.index == s->end)
        session_hand_over(s);
    if (session_steps_left(s) == 0)
        session_show_latents(s, "latents", s->latents);
}

static void advance_all(const struct step *step)
{
    for (int i = 0; i < step->count; i++)
        if (i == 0 || step->rows[i].session != step->rows[i - 1].session)
            advance(step->rows[i].session, step->rows[i].output);
}

static int check_step(const struct model *model, struct session *const sessions[], int count,
                      struct err *err)
{
    if (count < 1 || count > ENGINE_SESSIONS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "a step takes 1 to %d sessions, not %d",
                       ENGINE_SESSIONS_MAX, count);
    for (int i = 0; i < count; i++)
        if (sessions[i]->model != model || sessions[i]->width != sessions[0]->width ||
            sessions[i]->height != sessions[0]->height || session_steps_left(sessions[i]) == 0)
            return err_set(err, ERR_INVALID, ERR_REJECT,
                           "sessions of one step must share the model and the size and have steps "
                           "left");
    return 0;
}

static int run(struct step *step, struct session *const sessions[], int count, struct err *err)
{
    struct batch batch;
    int rc = ask(step, sessions, count, err);

    while (rc == 0 && batch_take(&batch, step))
        rc = batch_run(&batch, err);
    if (rc == 0) /* only now, so that on error no session has advanced */
        advance_all(step);
    free(step->outputs);
    return rc;
}

int engine_step(struct model *model, struct session *const sessions[], int count, struct err *err)
{
    struct step *step;
    int rc;

    if (check_step(model, sessions, count, err) != 0)
        return -1;
    step = malloc(sizeof(*step));
    if (step == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a step");
    fair_lock_take(&model->engine->lock);
    model->engine->backend->computing++;
    rc = run(step, sessions, count, err);
    model->engine->backend->computing--;
    fair_lock_give(&model->engine->lock);
    free(step);
    return rc;
}

/* ---- planning ---- */

/* The arena of the largest of the passes that a step of these sessions would take. */
static int plan_passes(struct step *step, struct session *const sessions[], int count,
                       size_t *bytes, struct err *err)
{
    struct work_plan plan;
    struct batch batch;
    int rc = ask(step, sessions, count, err);

    *bytes = 0;
    while (rc == 0 && batch_take(&batch, step)) {
        rc = batch_guide(&batch, CONTROLLED_EVER, err);
        if (rc == 0)
            rc = batch_plan(&batch, &plan, err);
        controlled_rows_release(&batch.controlled);
        if (rc == 0 && plan.arena_bytes > *bytes)
            *bytes = plan.arena_bytes;
    }
    free(step->outputs);
    return rc;
}

/* The arenas of a step and of a decoding, which on a card run beside each other: several pictures
 * are not worth it where memory then holds no more than one of the two. */
static int plan_both(struct engine *engine, int count, size_t step, size_t decoding, size_t *bytes,
                     struct err *err)
{
    bool beside = engine->backend->lanes > 1 && count > 1;
    size_t weights = engine->backend->weights_bytes;

    *bytes = beside ? step + decoding : step > decoding ? step : decoding;
    if (!beside || weights + *bytes <= engine->memory_max_bytes)
        return 0;
    return err_set(err, ERR_MEMORY, ERR_RETRY,
                   "%d pictures at once and a decoding beside them need %zu MiB with the weights, "
                   "the engine may use %zu MiB",
                   count, ((weights + *bytes) >> 20) + 1, engine->memory_max_bytes >> 20);
}

int engine_plan(struct session *const sessions[], int count, size_t *bytes, struct err *err)
{
    const struct session *first = sessions[0];
    struct engine *engine = first->model->engine;
    struct step *step = malloc(sizeof(*step));
    struct work_plan decoding;
    size_t step_bytes;
    int rc;

    ASSERT(count >= 1 && count <= ENGINE_SESSIONS_MAX);
    if (step == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a step");
    fair_lock_take(&engine->lock);
    rc = decode_plan(first->model, first->latent_h, first->latent_w, &decoding, err);
    if (rc == 0)
        rc = plan_passes(step, sessions, count, &step_bytes, err);
    if (rc == 0)
        rc = plan_both(engine, count, step_bytes, decoding.arena_bytes, bytes, err);
    fair_lock_give(&engine->lock);
    free(step);
    return rc;
}

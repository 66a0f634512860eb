/* One picture being drawn: its making and decoding; step.c has its steps. */
#include "engine/decode.h"
#include "engine/reading.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void session_show(const struct session *s, const char *name, const float *data, int rank,
                  const int64_t *dims)
{
    struct stage stage = {.name = name, .data = data, .rank = rank};

    if (s->observer.see == NULL)
        return;
    memcpy(stage.dims, dims, (size_t)rank * sizeof(dims[0]));
    s->observer.see(s->observer.user, &stage);
}

void session_show_latents(const struct session *s, const char *name, const float *data)
{
    session_show(s, name, data, 4, (int64_t[]){1, LATENT_CHANNELS, s->latent_h, s->latent_w});
}

/* ---- making one ---- */

int session_refuse(struct err *err, const char *field, const char *problem)
{
    return err_set(err, ERR_INVALID, ERR_REJECT, "%s: %s", field, problem);
}

static int refuse_outline(struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, ERR_FATAL, "an outline has no weights to compute with");
}

static struct guidance guidance_of(const struct draw *d)
{
    bool limited = d->guidance_interval[0] >= 0;

    return (struct guidance){.scale = d->guidance_scale,
                             .image_scale = d->image_guidance_scale,
                             .rescale = d->guidance_rescale,
                             .low = limited ? d->guidance_interval[0] : -1,
                             .high = limited ? d->guidance_interval[1] : INFINITY};
}

static size_t latents_count(const struct model *model, int width, int height)
{
    int factor = model->info.vae_factor;
    return (size_t)LATENT_CHANNELS * (size_t)(height / factor) * (size_t)(width / factor);
}

/* What a wider network reads beside the latents. */
static size_t extra_count(const struct model *model, size_t latents)
{
    size_t channels = (size_t)(model->unet.config.in_channels - LATENT_CHANNELS);
    return latents / LATENT_CHANNELS * channels;
}

float *latents_alloc(const struct model *model, int width, int height, bool blends)
{
    size_t count = latents_count(model, width, height);
    size_t kept = blends ? 2 * count + count / LATENT_CHANNELS : 0;

    return calloc((2 + SAMPLER_HISTORY) * count + extra_count(model, count) + kept, sizeof(float));
}

void session_set_size(struct session *s, int width, int height, float *latents)
{
    s->width = width;
    s->height = height;
    s->latent_w = width / s->model->info.vae_factor;
    s->latent_h = height / s->model->info.vae_factor;
    s->count = latents_count(s->model, width, height);
    s->latents = latents;
    s->history = latents + s->count;
    s->noise = s->history + SAMPLER_HISTORY * s->count;
    s->extra = s->noise + s->count;
    s->extra_count = extra_count(s->model, s->count);
    s->kept = s->extra + s->extra_count;
    s->kept_mask = s->kept + 2 * s->count;
}

/* What was promised to sessions that have ended is free. */
static void count_session(struct engine *engine, int more)
{
    pthread_mutex_lock(&engine->counts_lock);
    engine->sessions += more;
    if (engine->sessions == 0)
        engine->promised_bytes = 0;
    pthread_mutex_unlock(&engine->counts_lock);
}

int session_alloc(struct session **out, struct model *model, int width, int height, bool blends,
                  struct err *err)
{
    struct session *s;
    float *latents;

    if (model->engine->backend->outline)
        return refuse_outline(err);
    s = calloc(1, sizeof(*s));
    if (s == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
    s->model = model;
    s->blends = blends;
    count_session(model->engine, +1);
    latents = latents_alloc(model, width, height, blends);
    if (latents == NULL) {
        session_free(s);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
    }
    session_set_size(s, width, height, latents);
    *out = s;
    return 0;
}

void session_free(struct session *s)
{
    if (s == NULL)
        return;
    if (s->adaptation != NULL || s->controls.count > 0) {
        fair_lock_take(&s->model->engine->lock);
        session_controls_release(&s->controls);
        sequel_free(s->sequel);
        s->sequel = NULL;
        adaptation_release(s->adaptation);
        fair_lock_give(&s->model->engine->lock);
    }
    count_session(s->model->engine, -1);
    sequel_free(s->sequel);
    conditioning_release(&s->conditioning);
    free(s->latents);
    free(s);
}

/* What is planned for before anything is computed: the session's pass, or a sequel's. */
struct planned {
    struct model *model;
    const struct session *session;
    const struct conditioning *conditioning;
    const struct session_controls *controls;
    int latent_h, latent_w;
    bool encodes; /* a picture that it begins with */
};

/* A step of all rows that are told texts of one length, with all that ever guides them. */
static int plan_length(const struct planned *p, int tokens, struct work_plan *plan, struct err *err)
{
    const struct session *s = p->session;
    const struct conditioning *c = p->conditioning;
    struct adapted_rows adapted = {.count = 0};
    struct controlled_rows controlled = {.count = 0};
    struct work_variant variant = {.adapted = &adapted, .controlled = &controlled};
    struct guided_row guided[CONDITIONING_ROWS_MAX];
    int rows = conditioning_rows_of(c, tokens), rc;

    for (int i = 0; i < rows; i++) /* the last ones, which every control guides */
        guided[i] = (struct guided_row){
            .session = s, .controls = p->controls, .row = c->row_count - rows + i};
    if (p->model == s->model)
        adapted_rows_add(&adapted, s->adaptation, COMPONENT_UNET, rows);
    if (controlled_rows_make(&controlled, guided, rows, CONTROLLED_EVER, err) != 0)
        return -1;
    rc = work_plan_find_step(p->model, rows, p->latent_h, p->latent_w, tokens, &variant, plan, err);
    controlled_rows_release(&controlled);
    return rc;
}

/* The largest plan of a step: for each length of text that rows are told, as if they were told all
 * of that length at once. */
static int check_steps(const struct planned *p, struct work_plan *largest, struct err *err)
{
    const struct conditioning *c = p->conditioning;

    *largest = (struct work_plan){.arena_bytes = 0};
    for (int i = 0; i < c->text_count; i++) {
        struct work_plan plan;
        if (plan_length(p, conditioning_tokens(c, i), &plan, err) != 0)
            return -1;
        if (plan.arena_bytes > largest->arena_bytes)
            *largest = plan;
    }
    return 0;
}

/* Everything that can be refused is refused before anything is computed. */
static int check_plans(const struct planned *p, struct err *err)
{
    struct work_plan plans[4];
    int h = p->latent_h, w = p->latent_w, count = 0;

    if (check_steps(p, &plans[count++], err) != 0 ||
        decode_plan(p->model, h, w, &plans[count++], err) != 0)
        return -1;
    if (p->encodes && work_plan_find(p->model, WORK_ENCODE, 1, h, w, &plans[count++], err) != 0)
        return -1;
    if (p->controls->count > 0 && session_controls_plan(p->controls, &plans[count++], err) != 0)
        return -1;
    return work_plans_fit(p->model, plans, count, err) != 0
               ? -1
               : work_reserve(p->model, plans, count, err);
}

static int check_own_plans(const struct session *s, const struct draw *d, struct err *err)
{
    return check_plans(&(struct planned){.model = s->model,
                                         .session = s,
                                         .conditioning = &s->conditioning,
                                         .controls = &s->controls,
                                         .latent_h = s->latent_h,
                                         .latent_w = s->latent_w,
                                         .encodes = d->init_image != NULL},
                       err);
}

static int check_sequel_plans(const struct session *s, const struct sequel *sequel,
                              const struct draw *d, struct err *err)
{
    int factor = sequel->model->info.vae_factor;

    return check_plans(&(struct planned){.model = sequel->model,
                                         .session = s,
                                         .conditioning = &sequel->conditioning,
                                         .controls = &sequel->controls,
                                         .latent_h = sequel->height / factor,
                                         .latent_w = sequel->width / factor,
                                         .encodes = sequel->redraws && d->mask != NULL},
                       err);
}

void session_begin(struct session *s)
{
    s->end = s->plan.calls;
    sampler_begin(&s->plan, &s->state);
}

static int make_plans(struct session *s, const struct draw *d, struct err *err)
{
    if (request_plan(&s->plan, s->model, d, err) != 0)
        return -1;
    session_begin(s);
    return session_plan_sequels(s, d, err);
}

/* What the prompts mean, for the session and each of its sequels. */
struct texts {
    struct reading own, next[SEQUELS_MAX];
};

/* Inversions are of the session's model; a refiner reads the prompts as they are. */
static int read_texts(struct session *s, const struct draw *d, struct texts *texts, struct err *err)
{
    struct draw after = request_after(d);
    struct reading *next = texts->next;

    if (reading_make(&texts->own, &s->conditioning, s->model, d, request_calls(&s->plan, d), true,
                     err) != 0)
        return -1;
    for (struct sequel *q = s->sequel; q != NULL; q = q->next)
        if (reading_make(next++, &q->conditioning, q->model, &after,
                         request_calls(&q->plan, &after), q->redraws, err) != 0)
            return -1;
    return 0;
}

static int encode_texts(struct session *s, const struct draw *d, const struct texts *texts,
                        struct err *err)
{
    struct draw after = request_after(d);
    const struct reading *next = texts->next;

    if (session_encode_text(s, &s->conditioning, &texts->own, d, err) != 0)
        return -1;
    for (struct sequel *q = s->sequel; q != NULL; q = q->next)
        if (session_encode_text(s, &q->conditioning, next++, &after, err) != 0)
            return -1;
    return 0;
}

static int check_memory(const struct session *s, const struct draw *d, struct err *err)
{
    int rc = check_own_plans(s, d, err);

    for (const struct sequel *q = s->sequel; q != NULL && rc == 0; q = q->next)
        rc = check_sequel_plans(s, q, d, err);
    return rc;
}

static int prepare_texts(struct session *s, const struct draw *d, struct err *err)
{
    struct texts texts = {.own = {.part_count = 0}};
    int rc = read_texts(s, d, &texts, err);

    if (rc == 0)
        rc = check_memory(s, d, err);
    if (rc == 0)
        rc = encode_texts(s, d, &texts, err);
    reading_release(&texts.own);
    for (int i = 0; i < SEQUELS_MAX; i++)
        reading_release(&texts.next[i]);
    return rc;
}

static int start_drawing(struct session *s, const struct draw *d, struct err *err)
{
    struct start start;
    int rc = start_make(&start, s->model, d, err);

    if (rc == 0)
        session_start(s, &start, false);
    start_release(&start);
    return rc;
}

/* What takes the device. */
static int prepare(struct session *s, const struct draw *d, struct err *err)
{
    if (make_plans(s, d, err) != 0 ||
        adaptation_acquire(&s->adaptation, s->model, d->adapters, d->adapter_count, err) != 0 ||
        session_controls_init(&s->controls, s->model, d, err) != 0 ||
        session_size_pictures(s, d, err) != 0 || prepare_texts(s, d, err) != 0 ||
        session_controls_embed(&s->controls, err) != 0 || session_encode_pictures(s, d, err) != 0 ||
        start_drawing(s, d, err) != 0)
        return -1;
    if (s->sequel && s->end == s->plan.begin)
        session_hand_over(s);
    return 0;
}

int session_create(struct session **out, struct model *model, const struct draw *draw,
                   const struct stage_observer *observer, struct err *err)
{
    struct draw d = *draw;
    struct session *s = NULL;
    int rc = 0;

    if (request_resolve(&d, model, err) != 0 ||
        session_alloc(&s, model, d.width, d.height, d.mask != NULL && !model_inpaints(model),
                      err) != 0)
        return -1;
    s->guidance = guidance_of(&d);
    s->freeu = d.freeu;
    if (observer != NULL)
        s->observer = *observer;
    rng_seed(&s->rng, d.rng, d.seed);
    if (d.hires.width > 0)
        rc = session_add_second_pass(s, &d.hires, err);
    if (rc == 0 && request_is_refined(&d))
        rc = session_add_refiner(s, d.refiner, err);
    if (rc == 0) {
        fair_lock_take(&model->engine->lock);
        rc = prepare(s, &d, err);
        fair_lock_give(&model->engine->lock);
    }
    if (rc != 0) {
        session_free(s);
        return -1;
    }
    *out = s;
    return 0;
}

struct model *session_model(const struct session *s)
{
    return s->model;
}

int session_calls_made(const struct session *s)
{
    return s->steps_before + s->state.index - s->plan.begin;
}

int session_pass_calls(const struct session *s)
{
    return s->pass_before + s->state.index - s->plan.begin;
}

static int sequel_calls(const struct session *s)
{
    int calls = 0;

    for (const struct sequel *q = s->sequel; q != NULL; q = q->next)
        calls += q->end - q->plan.begin;
    return calls;
}

int session_steps_total(const struct session *s)
{
    return s->steps_before + s->end - s->plan.begin + sequel_calls(s);
}

int session_steps_left(const struct session *s)
{
    return s->end - s->state.index + sequel_calls(s);
}

int session_width(const struct session *s)
{
    return s->width;
}

int session_height(const struct session *s)
{
    return s->height;
}

/* ---- decoding ---- */

/* Latents through the VAE into planes of -1 … 1, 3 × height × width. */
static int decode(struct session *s, float *planes, struct err *err)
{
    vae_unscale(&s->model->vae.config, s->noise, s->latents, s->count / LATENT_CHANNELS);
    return decode_latents(s->model, s->noise, s->latent_h, s->latent_w, planes, err);
}

/* Planes of -1 … 1 to rows of 0 … 1 and of bytes; false if any value is no number. */
static bool to_pixels(const float *planes, size_t pixels, float *rows, uint8_t *rgb)
{
    bool finite = true;

    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < 3; c++) {
            float v = planes[c * pixels + i];
            finite = finite && isfinite(v);
            v = fminf(fmaxf(v / 2 + 0.5f, 0), 1);
            rows[3 * i + c] = v;
            rgb[3 * i + c] = (uint8_t)rintf(v * 255);
        }
    return finite;
}

int session_decode(struct session *s, struct image *image, struct err *err)
{
    size_t pixels = (size_t)s->width * (size_t)s->height;
    float *planes = malloc(6 * pixels * sizeof(float));
    struct image made = {.width = s->width, .height = s->height, .rgb = malloc(3 * pixels)};
    int rc = -1;

    if (planes == NULL || made.rgb == NULL) {
        err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a picture of %d × %d", s->width,
                s->height);
        goto out;
    }
    fair_lock_take(&s->model->engine->lock);
    s->model->engine->backend->computing++;
    rc = decode(s, planes, err);
    s->model->engine->backend->computing--;
    fair_lock_give(&s->model->engine->lock);
    if (rc != 0)
        goto out;
    if (!to_pixels(planes, pixels, planes + 3 * pixels, made.rgb)) {
        rc = err_set(err, ERR_INVALID, ERR_REJECT,
                     "the model made a picture of infinities; its weights or guidance_scale "
                     "overflow, or it needs precision f32");
        goto out;
    }
    session_show(s, "image", planes + 3 * pixels, 3, (int64_t[]){s->height, s->width, 3});
out:
    free(planes);
    if (rc == 0)
        *image = made;
    else
        image_release(&made);
    return rc;
}

int model_plan(struct model *model, int width, int height, int count, size_t *bytes,
               struct err *err)
{
    struct work_plan step, decoding;
    int w = width / model->info.vae_factor, h = height / model->info.vae_factor;
    int each = model_is_instructed(model) ? 3 : 2, rows;
    int fit = model->engine->backend->step_pixels_max / (each * w * h > 0 ? each * w * h : 1);
    int rc;

    if (model->engine->backend->outline)
        return refuse_outline(err);
    if (request_check_size("width", width, err) != 0 ||
        request_check_size("height", height, err) != 0)
        return -1;
    rows = each * (count < fit ? count : fit > 0 ? fit : 1);
    fair_lock_take(&model->engine->lock);
    rc = work_plan_find_step(model, rows, h, w, model->tokens, &(struct work_variant){0}, &step,
                             err) ||
         decode_plan(model, h, w, &decoding, err);
    fair_lock_give(&model->engine->lock);
    if (rc != 0)
        return -1;
    *bytes = step.arena_bytes > decoding.arena_bytes ? step.arena_bytes : decoding.arena_bytes;
    return 0;
}

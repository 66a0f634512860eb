/* One picture being drawn: its making, steps and decoding. */
#include "engine/decode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Latent pixels of one pass; more sessions run in several. No picture depends on it. */
#define STEP_PIXELS_MAX 16384
#define STEP_ROWS_MAX (CONDITIONING_ROWS_MAX * ENGINE_SESSIONS_MAX)

#define IMAGE_GUIDANCE_SCALE 1.5 /* StableDiffusionInstructPix2PixPipeline's */

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

static int check_size(const char *field, int size, struct err *err)
{
    if (size >= ENGINE_SIZE_MIN && size <= ENGINE_SIZE_MAX && size % ENGINE_SIZE_MULTIPLE == 0)
        return 0;
    return err_set(err, ERR_INVALID, ERR_REJECT, "%s: %d is no multiple of %d from %d to %d", field,
                   size, ENGINE_SIZE_MULTIPLE, ENGINE_SIZE_MIN, ENGINE_SIZE_MAX);
}

/* A refiner may be any model that draws SDXL's latents; alone, one that was trained as a refiner
 * has nothing to begin with. */
static int check_refiner(const struct model *model, const struct draw *d, struct err *err)
{
    const struct model *refiner = d->refiner;

    if (checkpoint_family(model->checkpoint) == FAMILY_SDXL_REFINER && d->init_image == NULL)
        return session_refuse(err, "init_image",
                              "the model is a refiner, which draws over a picture; give one, or "
                              "name the model as another's refiner");
    if (refiner == NULL)
        return 0;
    if (model->unet.config.pooled == 0 || refiner->unet.config.pooled == 0 ||
        refiner->info.vae_factor != model->info.vae_factor)
        return session_refuse(err, "refiner",
                              "both models must be of SDXL's kind and share the latents' size");
    if (d->mask != NULL || model->unet.config.in_channels != LATENT_CHANNELS ||
        refiner->unet.config.in_channels != LATENT_CHANNELS)
        return session_refuse(err, "refiner", "goes with neither a mask nor an inpainting model");
    if (!(d->switch_at >= 0 && d->switch_at <= 1))
        return session_refuse(err, "refiner.switch_at", "must be a number from 0 to 1");
    return 0;
}

/* `draw` with the model's defaults filled in. */
static int resolve(struct draw *d, const struct model *model, struct err *err)
{
    if (d->prompt == NULL)
        return session_refuse(err, "prompt", "is missing");
    if (d->init_image != NULL) {
        d->width = d->init_image->width;
        d->height = d->init_image->height;
    }
    d->width = d->width ? d->width : model->info.width;
    d->height = d->height ? d->height : model->info.height;
    d->steps = d->steps ? d->steps : model->info.steps;
    d->guidance_scale = d->guidance_scale < 0 ? model->info.guidance_scale : d->guidance_scale;
    if (check_size("width", d->width, err) != 0 || check_size("height", d->height, err) != 0)
        return -1;
    if (d->width % model->info.vae_factor != 0 || d->height % model->info.vae_factor != 0)
        return session_refuse(err, "width and height", "the model's VAE does not divide them");
    if (session_check_images(model, d, err) != 0 || check_refiner(model, d, err) != 0 ||
        session_check_text(model, d, err) != 0)
        return -1;
    if (d->image_guidance_scale < 0)
        d->image_guidance_scale = IMAGE_GUIDANCE_SCALE;
    return 0;
}

/* What a session needs beside its latents to be told of, or to keep, a picture. */
static int alloc_pictures(struct session *s, bool blends)
{
    size_t pixels = s->count / LATENT_CHANNELS;
    size_t kept = blends ? 2 * s->count + pixels : 0;

    s->blends = blends;
    s->extra_count = pixels * (size_t)(s->model->unet.config.in_channels - LATENT_CHANNELS);
    s->extra = calloc(s->extra_count + kept + 1, sizeof(float));
    if (s->extra == NULL)
        return -1;
    s->kept = s->extra + s->extra_count;
    s->kept_mask = s->kept + 2 * s->count;
    return 0;
}

int session_alloc(struct session **out, struct model *model, int width, int height, int rows,
                  bool blends, struct err *err)
{
    struct session *s = calloc(1, sizeof(*s));
    int factor = model->info.vae_factor;

    if (s == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
    s->model = model;
    model->engine->sessions++;
    s->width = width;
    s->height = height;
    s->latent_w = width / factor;
    s->latent_h = height / factor;
    s->count = (size_t)LATENT_CHANNELS * (size_t)s->latent_h * (size_t)s->latent_w;
    s->latents = calloc((2 + SAMPLER_HISTORY) * s->count, sizeof(float));
    if (s->latents == NULL || alloc_pictures(s, blends) != 0 ||
        conditioning_init(&s->conditioning, &model->unet.config, rows, model->tokens) != 0) {
        session_free(s);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
    }
    s->history = s->latents + s->count;
    s->noise = s->history + SAMPLER_HISTORY * s->count;
    *out = s;
    return 0;
}

int session_add_sequel(struct session *s, struct model *refiner, int rows, struct err *err)
{
    s->sequel = calloc(1, sizeof(*s->sequel));
    if (s->sequel == NULL || conditioning_init(&s->sequel->conditioning, &refiner->unet.config,
                                               rows, refiner->tokens) != 0)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
    s->sequel->model = refiner;
    return 0;
}

static void sequel_free(struct sequel *sequel)
{
    if (sequel != NULL)
        conditioning_release(&sequel->conditioning);
    free(sequel);
}

void session_free(struct session *s)
{
    if (s == NULL)
        return;
    if (s->adaptation != NULL) {
        pthread_mutex_lock(&s->model->engine->lock);
        adaptation_release(s->adaptation);
        pthread_mutex_unlock(&s->model->engine->lock);
    }
    s->model->engine->sessions--;
    sequel_free(s->sequel);
    conditioning_release(&s->conditioning);
    free(s->extra);
    free(s->latents);
    free(s);
}

/* Everything that can be refused is refused before anything is computed. */
static int check_plans(struct model *model, const struct session *s, int rows, bool from_image,
                       struct err *err)
{
    struct work_plan plans[3];
    struct adapted_rows adapted = {.count = 0};
    int h = s->latent_h, w = s->latent_w, count = 0;

    if (model == s->model)
        adapted_rows_add(&adapted, s->adaptation, COMPONENT_UNET, rows);
    if (work_plan_find_adapted(model, WORK_STEP, rows, h, w, &adapted, &plans[count++], err) != 0 ||
        decode_plan(model, h, w, &plans[count++], err) != 0)
        return -1;
    if (from_image && work_plan_find(model, WORK_ENCODE, 1, h, w, &plans[count++], err) != 0)
        return -1;
    return work_plans_fit(model, plans, count, err);
}

/* Guidance takes the negative prompt beside the prompt, unless the network was distilled from it. A
 * network that follows instructions is guided by both, prompt and picture, or by neither. */
static int rows_of(const struct model *model, const struct draw *d)
{
    if (model_is_instructed(model))
        return d->guidance_scale > 1 && d->image_guidance_scale >= 1 ? 3 : 1;
    return d->guidance_scale > 1 && model->unet.config.guidance_width == 0 ? 2 : 1;
}

/* The session's place is the first call of its plan. */
static void begin(struct session *s)
{
    s->end = s->plan.calls;
    sampler_begin(&s->plan, &s->state);
}

/* The sequel takes over where its plan begins; what adapted the model before it does not go with
 * it. The lock is held. */
static void hand_over(struct session *s)
{
    struct sequel *sequel = s->sequel;

    s->steps_before = s->end - s->plan.begin;
    conditioning_release(&s->conditioning);
    adaptation_release(s->adaptation);
    s->adaptation = NULL;
    s->model = sequel->model;
    s->conditioning = sequel->conditioning;
    s->plan = sequel->plan;
    begin(s);
    free(sequel);
    s->sequel = NULL;
}

static int make_plans(struct session *s, const struct draw *d, struct err *err)
{
    struct sampler_request request = {.sampler = d->sampler,
                                      .schedule = d->schedule,
                                      .steps = d->steps,
                                      .eta = d->eta,
                                      .sdxl = s->model->unet.config.pooled > 0,
                                      .from_image =
                                          d->init_image != NULL && !model_is_instructed(s->model),
                                      .strength = d->strength};
    struct sequel *sequel = s->sequel;

    if (sampler_plan_make(&s->plan, &s->model->sampler, &request, err) != 0)
        return -1;
    begin(s);
    if (sequel == NULL)
        return 0;
    if (sampler_plan_make(&sequel->plan, &sequel->model->sampler, &request, err) != 0)
        return err_prefix(err, "refiner");
    s->end = sampler_share_end(&s->plan, d->switch_at);
    int from = sampler_share_begin(&sequel->plan, d->switch_at);
    /* From an image its first call may come before the refiner's turn, or well after it. */
    if (from > sequel->plan.begin || s->end > s->plan.begin)
        sequel->plan.begin = from;
    return 0;
}

/* What takes the device. */
static int prepare(struct session *s, const struct draw *d, struct err *err)
{
    bool from_image = d->init_image != NULL;
    struct sequel *sequel = s->sequel;

    if (make_plans(s, d, err) != 0 ||
        adaptation_acquire(&s->adaptation, s->model, d->adapters, d->adapter_count, err) != 0 ||
        check_plans(s->model, s, s->conditioning.rows, from_image, err) != 0 ||
        (sequel && check_plans(sequel->model, s, sequel->conditioning.rows, false, err) != 0) ||
        session_encode_text(s, d, err) != 0 || session_start(s, d, err) != 0)
        return -1;
    if (sequel && s->end == s->plan.begin)
        hand_over(s);
    return 0;
}

int session_create(struct session **out, struct model *model, const struct draw *draw,
                   const struct stage_observer *observer, struct err *err)
{
    struct draw d = *draw;
    struct session *s = NULL;
    int rc = 0;

    if (resolve(&d, model, err) != 0 ||
        session_alloc(&s, model, d.width, d.height, rows_of(model, &d),
                      d.mask != NULL && !model_inpaints(model), err) != 0)
        return -1;
    s->guidance_scale = d.guidance_scale;
    s->image_guidance_scale = d.image_guidance_scale;
    if (observer != NULL)
        s->observer = *observer;
    rng_seed(&s->rng, d.rng, d.seed);
    if (d.refiner != NULL && d.switch_at < 1)
        rc = session_add_sequel(s, d.refiner, rows_of(d.refiner, &d), err);
    if (rc == 0) {
        pthread_mutex_lock(&model->engine->lock);
        rc = prepare(s, &d, err);
        pthread_mutex_unlock(&model->engine->lock);
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

int session_steps_total(const struct session *s)
{
    return s->steps_before + s->end - s->plan.begin +
           (s->sequel ? sampler_calls_total(&s->sequel->plan) : 0);
}

int session_steps_left(const struct session *s)
{
    return s->end - s->state.index + (s->sequel ? sampler_calls_total(&s->sequel->plan) : 0);
}

int session_width(const struct session *s)
{
    return s->width;
}

int session_height(const struct session *s)
{
    return s->height;
}

/* ---- stepping ---- */

/* What one pass over several sessions reads and writes on the host, row by row. */
struct batch {
    struct session *const *sessions;
    int count, rows;
    float *input;  /* rows × (latent + extra) */
    float *output; /* rows × latent */
    float *text;   /* rows × tokens × context */
    float *pooled; /* rows × pooled */
    float *ids;    /* rows × ids */
    double timesteps[STEP_ROWS_MAX];
    double guidance[STEP_ROWS_MAX];
    struct adapted_rows adapted;
};

static int batch_alloc(struct batch *b, struct session *const sessions[], int count,
                       struct err *err)
{
    const struct session *first = sessions[0];
    const struct conditioning *c = &first->conditioning;
    size_t text_each = (size_t)c->tokens * (size_t)c->width, rows;

    *b = (struct batch){.sessions = sessions, .count = count};
    for (int i = 0; i < count; i++)
        b->rows += sessions[i]->conditioning.rows;
    rows = (size_t)b->rows;
    b->input = malloc(rows *
                      (2 * first->count + first->extra_count + text_each + (size_t)c->pooled_width +
                       UNET_IDS_MAX) *
                      sizeof(float));
    if (b->input == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a batch of %d rows", b->rows);
    b->output = b->input + rows * (first->count + first->extra_count);
    b->text = b->output + rows * first->count;
    b->pooled = b->text + rows * text_each;
    b->ids = b->pooled + rows * (size_t)c->pooled_width;
    return 0;
}

static void batch_fill_row(struct batch *b, int row, const struct session *s, int own_row)
{
    const struct conditioning *c = &s->conditioning;
    size_t text_each = (size_t)c->tokens * (size_t)c->width, pooled = (size_t)c->pooled_width;
    float *input = b->input + (size_t)row * (s->count + s->extra_count);

    sampler_scale_input(&s->plan, &s->state, s->latents, input, s->count);
    if (c->rows == 3 && own_row == 2) /* without the picture */
        memset(input + s->count, 0, s->extra_count * sizeof(float));
    else
        memcpy(input + s->count, s->extra, s->extra_count * sizeof(float));
    memcpy(b->text + (size_t)row * text_each, conditioning_text(c, own_row),
           text_each * sizeof(float));
    memcpy(b->pooled + (size_t)row * pooled, conditioning_pooled(c, own_row),
           pooled * sizeof(float));
    memcpy(b->ids + row * c->id_count, c->ids[own_row], (size_t)c->id_count * sizeof(float));
    b->timesteps[row] = sampler_timestep(&s->plan, &s->state);
    b->guidance[row] = c->guidance_scale;
}

static void batch_fill(struct batch *b)
{
    int row = 0;

    for (int i = 0; i < b->count; i++) {
        const struct session *s = b->sessions[i];
        for (int r = 0; r < s->conditioning.rows; r++)
            batch_fill_row(b, row++, s, r);
        adapted_rows_add(&b->adapted, s->adaptation, COMPONENT_UNET, s->conditioning.rows);
    }
}

static int batch_run(struct batch *b, struct err *err)
{
    const struct session *first = b->sessions[0];
    struct model *m = first->model;
    const struct unet_config *u = &m->unet.config;
    struct work_plan plan;
    struct tensor x, text, text_rows, pooled, y;
    struct pass pass;

    if (work_plan_find_adapted(m, WORK_STEP, b->rows, first->latent_h, first->latent_w, &b->adapted,
                               &plan, err) != 0 ||
        work_begin(m, &plan, model_act(m), &pass, err) != 0)
        return -1;
    pass_adapt(&pass, &b->adapted);
    x = pass_tensor_of(&pass, DTYPE_F32, b->rows, first->latent_h, first->latent_w, u->in_channels);
    text = pass_tensor(&pass, b->rows, 1, m->tokens, u->context);
    pooled = pass_tensor_of(&pass, DTYPE_F32, b->rows, 1, 1, u->pooled);
    y = pass_tensor_of(&pass, DTYPE_F32, b->rows, first->latent_h, first->latent_w,
                       LATENT_CHANNELS);
    text_rows = text;
    text_rows.n = b->rows * m->tokens;
    text_rows.w = 1;
    op_upload(&pass, &x, b->input);
    op_upload(&pass, &text_rows, b->text);
    op_upload(&pass, &pooled, b->pooled);
    unet_forward(&pass, &m->unet,
                 &(struct unet_input){.latents = &x,
                                      .timesteps = b->timesteps,
                                      .text = &text,
                                      .pooled = &pooled,
                                      .ids = b->ids,
                                      .guidance = b->guidance},
                 &y);
    op_download(&pass, b->output, &y);
    return pass.failed ? -1 : 0;
}

/* Ho and Salimans 2022: negative + scale · (positive - negative), into `negative`. */
static void guide(float *negative, const float *positive, float scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        negative[i] += scale * (positive[i] - negative[i]);
}

/* Brooks et al. 2023, "InstructPix2Pix", into `text`. */
static void guide_by_both(float *text, const float *image, const float *neither, float scale,
                          float image_scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        text[i] = neither[i] + scale * (text[i] - image[i]) + image_scale * (image[i] - neither[i]);
}

static void advance(struct session *s, float *output)
{
    char name[32];

    if (s->conditioning.rows == 2)
        guide(output, output + s->count, (float)s->guidance_scale, s->count);
    if (s->conditioning.rows == 3)
        guide_by_both(output, output + s->count, output + 2 * s->count, (float)s->guidance_scale,
                      (float)s->image_guidance_scale, s->count);
    if (sampler_draws(&s->plan, &s->state))
        rng_normal(&s->rng, s->noise, s->count);
    snprintf(name, sizeof(name), "latents.%d", session_steps_total(s) - session_steps_left(s));
    sampler_step(&s->plan, &s->state, output, s->latents, s->history, s->noise, s->count);
    if (s->blends)
        session_blend(s);
    session_show_latents(s, name, s->latents);
    if (session_steps_left(s) == 0)
        session_show_latents(s, "latents", s->latents);
    if (s->sequel != NULL && s->state.index == s->end)
        hand_over(s);
}

static void batch_advance(struct batch *b)
{
    int row = 0;

    for (int i = 0; i < b->count; i++) {
        struct session *s = b->sessions[i];
        advance(s, b->output + (size_t)row * s->count);
        row += s->conditioning.rows;
    }
}

static int check_batch(const struct model *model, struct session *const sessions[], int count,
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

/* How many sessions from sessions[0] on go into one pass. */
static int batch_size(struct session *const sessions[], int count)
{
    int64_t pixels = (int64_t)sessions[0]->latent_h * sessions[0]->latent_w, total = 0;
    int taken = 0;

    while (taken < count) {
        total += pixels * sessions[taken]->conditioning.rows;
        if (taken > 0 && total > STEP_PIXELS_MAX)
            break;
        taken++;
    }
    return taken;
}

int engine_step(struct model *model, struct session *const sessions[], int count, struct err *err)
{
    struct batch batches[ENGINE_SESSIONS_MAX];
    int made = 0, rc = 0;

    if (check_batch(model, sessions, count, err) != 0)
        return -1;
    pthread_mutex_lock(&model->engine->lock);
    for (int first = 0; first < count && rc == 0; first += batches[made++].count) {
        struct batch *b = &batches[made];
        rc = batch_alloc(b, sessions + first, batch_size(sessions + first, count - first), err);
        if (rc != 0)
            break;
        batch_fill(b);
        rc = batch_run(b, err);
    }
    /* Only now, so that on error no session has advanced. */
    for (int i = 0; i < made; i++) {
        if (rc == 0)
            batch_advance(&batches[i]);
        free(batches[i].input);
    }
    pthread_mutex_unlock(&model->engine->lock);
    return rc;
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
    pthread_mutex_lock(&s->model->engine->lock);
    rc = decode(s, planes, err);
    pthread_mutex_unlock(&s->model->engine->lock);
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
    int fit = STEP_PIXELS_MAX / (each * w * h > 0 ? each * w * h : 1);
    int rc;

    if (check_size("width", width, err) != 0 || check_size("height", height, err) != 0)
        return -1;
    rows = each * (count < fit ? count : fit > 0 ? fit : 1);
    pthread_mutex_lock(&model->engine->lock);
    rc = work_plan_find(model, WORK_STEP, rows, h, w, &step, err) ||
         decode_plan(model, h, w, &decoding, err);
    pthread_mutex_unlock(&model->engine->lock);
    if (rc != 0)
        return -1;
    *bytes = step.arena_bytes > decoding.arena_bytes ? step.arena_bytes : decoding.arena_bytes;
    return 0;
}

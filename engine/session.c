/* One picture being drawn: its making and decoding; step.c has its steps. */
#include "engine/decode.h"
#include "engine/reading.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

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

static int check_guidance(const struct model *model, const struct draw *d, struct err *err)
{
    const double *interval = d->guidance_interval;
    bool asks = d->guidance_rescale > 0 || interval[0] >= 0;

    if (!(d->guidance_rescale >= 0 && d->guidance_rescale <= 1))
        return session_refuse(err, "guidance_rescale", "must be a number from 0 to 1");
    if (interval[0] >= 0 && !(interval[1] > interval[0]))
        return session_refuse(err, "guidance_interval",
                              "must be two sigmas, the lower one first; guidance is left out where "
                              "the noise is below or above them");
    if (freeu_is_on(&d->freeu) ? !(d->freeu.b2 > 0 && d->freeu.s1 > 0 && d->freeu.s2 > 0)
                               : d->freeu.b2 > 0 || d->freeu.s1 > 0 || d->freeu.s2 > 0)
        return session_refuse(err, "freeu", "needs b1, b2, s1 and s2, all above 0");
    if (asks && model_is_instructed(model))
        return session_refuse(err, interval[0] >= 0 ? "guidance_interval" : "guidance_rescale",
                              "does not go with a model that follows instructions; leave it out");
    return 0;
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
        check_guidance(model, d, err) != 0 || session_check_text(model, d, err) != 0 ||
        control_check(model, d, err) != 0)
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

int session_alloc(struct session **out, struct model *model, int width, int height, bool blends,
                  struct err *err)
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
    if (s->latents == NULL || alloc_pictures(s, blends) != 0) {
        session_free(s);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
    }
    s->history = s->latents + s->count;
    s->noise = s->history + SAMPLER_HISTORY * s->count;
    *out = s;
    return 0;
}

int session_add_sequel(struct session *s, struct model *refiner, struct err *err)
{
    s->sequel = calloc(1, sizeof(*s->sequel));
    if (s->sequel == NULL)
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
    if (s->adaptation != NULL || s->control_count > 0) {
        pthread_mutex_lock(&s->model->engine->lock);
        session_controls_release(s);
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

/* A step of all rows that are told texts of one length, with all that ever guides them. */
static int plan_length(struct model *model, const struct session *s, const struct conditioning *c,
                       int tokens, struct work_plan *plan, struct err *err)
{
    struct adapted_rows adapted = {.count = 0};
    struct controlled_rows controlled = {.count = 0};
    struct work_variant variant = {.adapted = &adapted, .controlled = &controlled};
    struct guided_row guided[CONDITIONING_ROWS_MAX];
    int rows = conditioning_rows_of(c, tokens), rc;

    for (int i = 0; i < rows; i++) /* the last ones, which every control guides */
        guided[i] = (struct guided_row){.session = s, .row = c->row_count - rows + i};
    if (model == s->model) {
        adapted_rows_add(&adapted, s->adaptation, COMPONENT_UNET, rows);
        if (controlled_rows_make(&controlled, guided, rows, CONTROLLED_EVER, err) != 0)
            return -1;
    }
    rc = work_plan_find_step(model, rows, s->latent_h, s->latent_w, tokens, &variant, plan, err);
    controlled_rows_release(&controlled);
    return rc;
}

/* The largest plan of a step: for each length of text that rows are told, as if they were told all
 * of that length at once. */
static int check_steps(struct model *model, const struct session *s, const struct conditioning *c,
                       struct work_plan *largest, struct err *err)
{
    *largest = (struct work_plan){.arena_bytes = 0};
    for (int i = 0; i < c->text_count; i++) {
        struct work_plan plan;
        if (plan_length(model, s, c, conditioning_tokens(c, i), &plan, err) != 0)
            return -1;
        if (plan.arena_bytes > largest->arena_bytes)
            *largest = plan;
    }
    return 0;
}

/* Everything that can be refused is refused before anything is computed. */
static int check_plans(struct model *model, const struct session *s, const struct conditioning *c,
                       bool from_image, struct err *err)
{
    struct work_plan plans[4];
    int h = s->latent_h, w = s->latent_w, count = 0;

    if (check_steps(model, s, c, &plans[count++], err) != 0 ||
        decode_plan(model, h, w, &plans[count++], err) != 0)
        return -1;
    if (from_image && work_plan_find(model, WORK_ENCODE, 1, h, w, &plans[count++], err) != 0)
        return -1;
    if (model == s->model && s->control_count > 0 &&
        session_controls_plan(s, &plans[count++], err) != 0)
        return -1;
    return work_plans_fit(model, plans, count, err);
}

/* The session's place is the first call of its plan. */
static void begin(struct session *s)
{
    s->end = s->plan.calls;
    sampler_begin(&s->plan, &s->state);
}

/* What adapted the model before the sequel does not go with it, nor does its FreeU. */
void session_hand_over(struct session *s)
{
    struct sequel *sequel = s->sequel;

    s->steps_before = s->end - s->plan.begin;
    conditioning_release(&s->conditioning);
    adaptation_release(s->adaptation);
    s->adaptation = NULL;
    session_controls_release(s);
    s->freeu = (struct freeu){.b1 = 0};
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

/* Times in a prompt count the calls that the request's steps make, as a1111 counts them. */
static int calls_of(const struct sampler_plan *plan, const struct draw *d)
{
    return sampler_calls_per_step(plan) * d->steps;
}

/* Reads the texts for the model and its sequel, checks memory, and encodes them. Inversions are of
 * the session's model; a sequel reads the prompts as they are. */
static int prepare_texts(struct session *s, const struct draw *d, struct err *err)
{
    bool from_image = d->init_image != NULL;
    struct reading own = {.part_count = 0}, next = {.part_count = 0};
    struct sequel *sequel = s->sequel;
    int rc = reading_make(&own, &s->conditioning, s->model, d, calls_of(&s->plan, d), true, err);

    if (rc == 0 && sequel)
        rc = reading_make(&next, &sequel->conditioning, sequel->model, d,
                          calls_of(&sequel->plan, d), false, err);
    if (rc == 0)
        rc = check_plans(s->model, s, &s->conditioning, from_image, err);
    if (rc == 0 && sequel)
        rc = check_plans(sequel->model, s, &sequel->conditioning, false, err);
    if (rc == 0)
        rc = session_encode_text(s, &s->conditioning, &own, d, err);
    if (rc == 0 && sequel)
        rc = session_encode_text(s, &sequel->conditioning, &next, d, err);
    reading_release(&own);
    reading_release(&next);
    return rc;
}

/* What takes the device. */
static int prepare(struct session *s, const struct draw *d, struct err *err)
{
    if (make_plans(s, d, err) != 0 ||
        adaptation_acquire(&s->adaptation, s->model, d->adapters, d->adapter_count, err) != 0 ||
        session_controls_init(s, d, err) != 0 || prepare_texts(s, d, err) != 0 ||
        session_controls_embed(s, err) != 0 || session_start(s, d, err) != 0)
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

    if (resolve(&d, model, err) != 0 ||
        session_alloc(&s, model, d.width, d.height, d.mask != NULL && !model_inpaints(model),
                      err) != 0)
        return -1;
    s->guidance = guidance_of(&d);
    s->freeu = d.freeu;
    if (observer != NULL)
        s->observer = *observer;
    rng_seed(&s->rng, d.rng, d.seed);
    if (d.refiner != NULL && d.switch_at < 1)
        rc = session_add_sequel(s, d.refiner, err);
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

int session_calls_made(const struct session *s)
{
    return s->steps_before + s->state.index - s->plan.begin;
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
    rc = work_plan_find_step(model, rows, h, w, model->tokens, &(struct work_variant){0}, &step,
                             err) ||
         decode_plan(model, h, w, &decoding, err);
    pthread_mutex_unlock(&model->engine->lock);
    if (rc != 0)
        return -1;
    *bytes = step.arena_bytes > decoding.arena_bytes ? step.arena_bytes : decoding.arena_bytes;
    return 0;
}

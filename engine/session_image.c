/*
 * Where a picture starts from: noise, or a picture with noise over it; and what it is told of a
 * picture and a mask all along.
 *
 * The order in which a session draws from its random stream is diffusers': with an image the VAE's
 * posterior, then the start noise, then the posterior of the masked image, then what each step
 * takes. A network that is told of the mask leaves the first one out when it redraws everything;
 * one that is not has the third one drawn, though nobody reads it. A second pass draws in this
 * order when it begins; until then what the VAE says of its pictures waits in a struct start.
 */
#include "engine/runtime.h"

#include <math.h>
#include <stdlib.h>

/* Pixels to planes of -1 … 1. */
static void to_planes(const struct image *image, float *planes)
{
    size_t pixels = (size_t)image->width * (size_t)image->height;

    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < 3; c++)
            planes[c * pixels + i] = 2 * ((float)image->rgb[3 * i + c] / 255) - 1;
}

/* planes to the VAE's mean and log variance, 2 × latent. */
static int encode(struct model *m, const struct image *size, const float *planes, float *moments,
                  struct err *err)
{
    int h = size->height / m->info.vae_factor, w = size->width / m->info.vae_factor;
    struct work_plan plan;
    struct tensor x, y;
    struct pass pass;

    if (work_plan_find(m, WORK_ENCODE, 1, h, w, &plan, err) != 0 ||
        work_begin(m, &plan, &pass, err) != 0)
        return -1;
    x = pass_tensor_of(&pass, DTYPE_F32, 1, size->height, size->width, 3);
    y = pass_tensor_of(&pass, DTYPE_F32, 1, h, w, 2 * LATENT_CHANNELS);
    op_upload(&pass, &x, planes);
    vae_encode(&pass, &m->vae, &x, &y);
    op_download(&pass, moments, &y);
    work_end(m, &pass);
    return pass.failed ? -1 : 0;
}

/* A sample of what the VAE says, scaled. */
static void draw_posterior(struct session *s, const float *moments, float *latents)
{
    rng_normal(&s->rng, s->noise, s->count);
    for (size_t i = 0; i < s->count; i++) {
        float log_variance = fminf(fmaxf(moments[s->count + i], -30), 20);
        latents[i] = moments[i] + expf(0.5f * log_variance) * s->noise[i];
    }
    vae_scale(&s->model->vae.config, latents, latents, s->count / LATENT_CHANNELS);
}

/* ---- masks ---- */

/* A half or more of the luma counts as white. */
static bool is_redrawn(const struct image *mask, size_t pixel)
{
    return image_luma(mask->rgb + 3 * pixel) >= 128;
}

/* The mask of latent pixels: nearest, which is each block's first pixel. */
static void shrink_mask(const struct image *mask, int factor, float *to)
{
    for (int y = 0; y + factor <= mask->height; y += factor)
        for (int x = 0; x + factor <= mask->width; x += factor)
            *to++ = is_redrawn(mask, (size_t)y * (size_t)mask->width + (size_t)x);
}

/* What is redrawn becomes gray. */
static void mask_planes(const struct image *mask, float *planes)
{
    size_t pixels = (size_t)mask->width * (size_t)mask->height;

    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < 3 && is_redrawn(mask, i); c++)
            planes[c * pixels + i] = 0;
}

/* latents = what is kept of `kept`, and else what they were */
static void blend(struct session *s, const float *kept, const float *mask)
{
    size_t pixels = s->count / LATENT_CHANNELS;

    for (size_t i = 0; i < s->count; i++) {
        float redrawn = mask[i % pixels];
        s->latents[i] = (1 - redrawn) * kept[i] + redrawn * s->latents[i];
    }
}

void session_blend(struct session *s)
{
    const float *kept = s->kept;

    if (s->state.index < s->end) {
        sampler_renoise(&s->plan, &s->state, s->noise, s->kept + s->count, s->kept, s->count);
        kept = s->noise;
    }
    blend(s, kept, s->kept_mask);
}

void session_renew_blend(struct session *s)
{
    if (s->blends)
        rng_normal(&s->rng, s->kept + s->count, s->count);
}

/* ---- starting ---- */

bool model_inpaints(const struct model *model)
{
    return model->unet.config.in_channels == 2 * LATENT_CHANNELS + 1;
}

bool model_is_instructed(const struct model *model)
{
    return model->unet.config.in_channels == 2 * LATENT_CHANNELS;
}

int session_check_images(const struct model *model, const struct draw *d, struct err *err)
{
    if (model_inpaints(model) && (d->init_image == NULL || d->mask == NULL))
        return session_refuse(err, "mask", "an inpainting model needs init_image and mask");
    if (model_is_instructed(model) && d->init_image == NULL)
        return session_refuse(err, "init_image", "the model changes a picture; give one");
    if (model_is_instructed(model) && d->mask != NULL)
        return session_refuse(err, "mask", "the model changes all of a picture; leave it out");
    if (!model_is_instructed(model) && d->image_guidance_scale >= 0)
        return session_refuse(err, "image_guidance_scale",
                              "only a model that follows instructions takes one; leave it out");
    if (d->mask != NULL && d->init_image == NULL)
        return session_refuse(err, "mask", "needs init_image");
    if (d->mask != NULL &&
        (d->mask->width != d->init_image->width || d->mask->height != d->init_image->height))
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "mask: is %d×%d, but init_image is %d×%d; both must have one size",
                       d->mask->width, d->mask->height, d->init_image->width,
                       d->init_image->height);
    return 0;
}

/* Puts a start's parts into its values, which may not be there yet; returns how many they are. */
static size_t lay_out(struct start *start, const struct model *model, size_t count)
{
    bool masked = start->kind == START_MASKED, told = masked && model_inpaints(model);
    bool image = start->kind != START_NOISE && !(told && start->whole);
    size_t counts[] = {image ? 2 * count : 0, told ? 2 * count : 0,
                       masked ? count / LATENT_CHANNELS : 0};
    float **parts[] = {&start->image, &start->masked, &start->mask};
    size_t used = 0;

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        *parts[i] = counts[i] > 0 && start->values != NULL ? start->values + used : NULL;
        used += counts[i];
    }
    return used;
}

int start_alloc(struct start *start, const struct model *model, size_t count, struct err *err)
{
    start->value_count = lay_out(start, model, count);
    start->values = calloc(start->value_count + 1, sizeof(float));
    if (start->values == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for init_image");
    lay_out(start, model, count);
    return 0;
}

void start_release(struct start *start)
{
    free(start->values);
    *start = (struct start){.kind = START_NOISE};
}

static enum start_kind kind_of(const struct model *model, const struct draw *d)
{
    if (d->init_image == NULL)
        return START_NOISE;
    if (d->mask != NULL)
        return START_MASKED;
    return model_is_instructed(model) ? START_INSTRUCTED : START_IMAGE;
}

/* Fills in the parts. */
static int read_pictures(struct start *start, struct model *model, const struct draw *d,
                         float *planes, struct err *err)
{
    to_planes(d->init_image, planes);
    if (start->image != NULL && encode(model, d->init_image, planes, start->image, err) != 0)
        return -1;
    if (start->mask != NULL)
        shrink_mask(d->mask, model->info.vae_factor, start->mask);
    if (start->masked == NULL)
        return 0;
    mask_planes(d->mask, planes);
    return encode(model, d->init_image, planes, start->masked, err);
}

int start_make(struct start *start, struct model *model, const struct draw *d, struct err *err)
{
    size_t pixels = (size_t)d->width * (size_t)d->height;
    size_t factor = (size_t)model->info.vae_factor;
    float *planes;
    int rc;

    *start = (struct start){.kind = kind_of(model, d), .whole = d->strength >= 1};
    if (start_alloc(start, model, LATENT_CHANNELS * pixels / (factor * factor), err) != 0)
        return -1;
    if (start->kind == START_NOISE)
        return 0;
    planes = malloc(3 * pixels * sizeof(float));
    if (planes == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for init_image");
    rc = read_pictures(start, model, d, planes, err);
    free(planes);
    return rc;
}

/* The start noise, over the latents that there are if `over_latents`. */
static void start_noise(struct session *s, bool over_latents, bool redraws)
{
    rng_normal(&s->rng, s->noise, s->count);
    session_show_latents(s, redraws ? "hires.noise" : "noise", s->noise);
    if (s->blends)
        memcpy(s->kept + s->count, s->noise, s->count * sizeof(float));
    sampler_noise(&s->plan, s->latents, s->noise, over_latents ? s->latents : NULL, s->count);
}

/* The picture's latents; where a pass before has drawn them, only what is kept. */
static void take_picture(struct session *s, const struct start *start, bool redraws)
{
    float *picture = redraws ? s->history : s->latents; /* scratch, before the first step */

    draw_posterior(s, start->image, picture);
    if (redraws)
        blend(s, picture, start->mask);
}

static void start_masked(struct session *s, const struct start *start, bool redraws)
{
    size_t pixels = s->count / LATENT_CHANNELS;

    if (start->image != NULL)
        take_picture(s, start, redraws);
    if (s->blends) {
        memcpy(s->kept, s->latents, s->count * sizeof(float));
        memcpy(s->kept_mask, start->mask, pixels * sizeof(float));
    }
    start_noise(s, !start->whole, redraws);
    if (s->blends) {
        rng_normal(&s->rng, s->noise, s->count);
    } else {
        memcpy(s->extra, start->mask, pixels * sizeof(float));
        draw_posterior(s, start->masked, s->extra + pixels);
    }
}

void session_start(struct session *s, const struct start *start, bool redraws)
{
    switch (start->kind) {
    case START_MASKED:
        start_masked(s, start, redraws);
        return;
    case START_INSTRUCTED:
        memcpy(s->extra, start->image, s->count * sizeof(float)); /* the mean, as the VAE has it */
        start_noise(s, false, redraws);
        return;
    case START_IMAGE:
        draw_posterior(s, start->image, s->latents);
        session_show_latents(s, "init_latents", s->latents);
        start_noise(s, true, redraws);
        return;
    default:
        start_noise(s, redraws, redraws);
    }
}

/*
 * Where a picture starts from: noise, or a picture with noise over it; and what it is told of a
 * picture and a mask all along.
 *
 * The order in which a session draws from its random stream is diffusers': with an image the VAE's
 * posterior, then the start noise, then the posterior of the masked image, then what each step
 * takes. A network that is told of the mask leaves the first one out when it redraws everything;
 * one that is not has the third one drawn, though nobody reads it.
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
static int run_encoder(struct session *s, const float *planes, float *moments, struct err *err)
{
    struct model *m = s->model;
    struct work_plan plan;
    struct tensor x, y;
    struct pass pass;

    if (work_plan_find(m, WORK_ENCODE, 1, s->latent_h, s->latent_w, &plan, err) != 0 ||
        work_begin(m, &plan, &pass, err) != 0)
        return -1;
    x = pass_tensor_of(&pass, DTYPE_F32, 1, s->height, s->width, 3);
    y = pass_tensor_of(&pass, DTYPE_F32, 1, s->latent_h, s->latent_w, 2 * LATENT_CHANNELS);
    op_upload(&pass, &x, planes);
    vae_encode(&pass, &m->vae, &x, &y);
    op_download(&pass, moments, &y);
    return pass.failed ? -1 : 0;
}

enum posterior { POSTERIOR_SAMPLE, POSTERIOR_MODE };

/* Planes to latents: a sample, scaled, or the mode as the VAE has it. */
static int encode_planes(struct session *s, const float *planes, enum posterior posterior,
                         float *latents, struct err *err)
{
    float *moments = malloc(2 * s->count * sizeof(float));
    int rc;

    if (moments == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for init_image");
    rc = run_encoder(s, planes, moments, err);
    if (rc == 0 && posterior == POSTERIOR_MODE) {
        memcpy(latents, moments, s->count * sizeof(float));
    } else if (rc == 0) {
        rng_normal(&s->rng, s->noise, s->count);
        for (size_t i = 0; i < s->count; i++) {
            float log_variance = fminf(fmaxf(moments[s->count + i], -30), 20);
            moments[i] += expf(0.5f * log_variance) * s->noise[i];
        }
        vae_scale(&s->model->vae.config, latents, moments, s->count / LATENT_CHANNELS);
    }
    free(moments);
    return rc;
}

/* ---- masks ---- */

/* A half or more of the luma counts as white. */
static bool is_redrawn(const struct image *mask, size_t pixel)
{
    return image_luma(mask->rgb + 3 * pixel) >= 128;
}

/* The mask of latent pixels: nearest, which is each block's first pixel. */
static void shrink_mask(const struct session *s, const struct image *mask, float *to)
{
    size_t factor = (size_t)s->model->info.vae_factor;

    for (size_t y = 0; y < (size_t)s->latent_h; y++)
        for (size_t x = 0; x < (size_t)s->latent_w; x++)
            to[y * (size_t)s->latent_w + x] =
                is_redrawn(mask, y * factor * (size_t)s->width + x * factor);
}

/* What is redrawn becomes gray. */
static void mask_planes(const struct image *mask, float *planes)
{
    size_t pixels = (size_t)mask->width * (size_t)mask->height;

    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < 3 && is_redrawn(mask, i); c++)
            planes[c * pixels + i] = 0;
}

void session_blend(struct session *s)
{
    size_t pixels = s->count / LATENT_CHANNELS;
    const float *kept = s->kept;

    if (s->state.index < s->plan.calls) {
        sampler_renoise(&s->plan, &s->state, s->noise, s->kept + s->count, s->kept, s->count);
        kept = s->noise;
    }
    for (size_t i = 0; i < s->count; i++) {
        float redrawn = s->kept_mask[i % pixels];
        s->latents[i] = (1 - redrawn) * kept[i] + redrawn * s->latents[i];
    }
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

/* The start noise, over the image latents that are in s->latents if `over_image`. */
static void start_noise(struct session *s, bool over_image)
{
    rng_normal(&s->rng, s->noise, s->count);
    session_show_latents(s, "noise", s->noise);
    if (s->blends)
        memcpy(s->kept + s->count, s->noise, s->count * sizeof(float));
    sampler_noise(&s->plan, s->latents, s->noise, over_image ? s->latents : NULL, s->count);
}

/* The start of a picture of which a part is redrawn, `planes` being the whole. */
static int start_masked(struct session *s, const struct draw *d, float *planes, struct err *err)
{
    size_t pixels = s->count / LATENT_CHANNELS;
    bool whole = d->strength >= 1;

    if ((s->blends || !whole) && encode_planes(s, planes, POSTERIOR_SAMPLE, s->latents, err) != 0)
        return -1;
    if (s->blends) {
        memcpy(s->kept, s->latents, s->count * sizeof(float));
        shrink_mask(s, d->mask, s->kept_mask);
    }
    start_noise(s, !whole);
    if (s->blends) {
        rng_normal(&s->rng, s->noise, s->count);
        return 0;
    }
    shrink_mask(s, d->mask, s->extra);
    mask_planes(d->mask, planes);
    return encode_planes(s, planes, POSTERIOR_SAMPLE, s->extra + pixels, err);
}

static int start_from_image(struct session *s, const struct draw *d, float *planes, struct err *err)
{
    if (d->mask != NULL)
        return start_masked(s, d, planes, err);
    if (model_is_instructed(s->model)) {
        if (encode_planes(s, planes, POSTERIOR_MODE, s->extra, err) != 0)
            return -1;
        start_noise(s, false);
        return 0;
    }
    if (encode_planes(s, planes, POSTERIOR_SAMPLE, s->latents, err) != 0)
        return -1;
    session_show_latents(s, "image_latents", s->latents);
    start_noise(s, true);
    return 0;
}

int session_start(struct session *s, const struct draw *d, struct err *err)
{
    float *planes;
    int rc;

    if (d->init_image == NULL) {
        start_noise(s, false);
        return 0;
    }
    planes = malloc(3 * (size_t)s->width * (size_t)s->height * sizeof(float));
    if (planes == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for init_image");
    to_planes(d->init_image, planes);
    rc = start_from_image(s, d, planes, err);
    free(planes);
    return rc;
}

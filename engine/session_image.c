/*
 * Where a picture starts from: noise, or a picture with noise over it.
 *
 * The order in which a session draws from its random stream is diffusers': with an image the VAE's
 * posterior, then the start noise, then what each step takes.
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
        work_begin(m, &plan, model_act(m), &pass, err) != 0)
        return -1;
    x = pass_tensor_of(&pass, DTYPE_F32, 1, s->height, s->width, 3);
    y = pass_tensor_of(&pass, DTYPE_F32, 1, s->latent_h, s->latent_w, 2 * LATENT_CHANNELS);
    op_upload(&pass, &x, planes);
    vae_encode(&pass, &m->vae, &x, &y);
    op_download(&pass, moments, &y);
    return pass.failed ? -1 : 0;
}

/* Pixels to a sample of the VAE's posterior, scaled, in s->latents. */
static int encode_image(struct session *s, const struct image *image, struct err *err)
{
    size_t pixels = (size_t)s->width * (size_t)s->height;
    float *planes = malloc((3 * pixels + 2 * s->count) * sizeof(float));
    float *moments = planes + 3 * pixels;
    int rc;

    if (planes == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for init_image");
    to_planes(image, planes);
    rc = run_encoder(s, planes, moments, err);
    if (rc == 0)
        rng_normal(&s->rng, s->noise, s->count);
    for (size_t i = 0; i < s->count && rc == 0; i++) {
        float log_variance = fminf(fmaxf(moments[s->count + i], -30), 20);
        moments[i] += expf(0.5f * log_variance) * s->noise[i];
    }
    if (rc == 0)
        vae_scale(&s->model->vae.config, s->latents, moments, s->count / LATENT_CHANNELS);
    free(planes);
    return rc;
}

int session_start(struct session *s, const struct draw *d, struct err *err)
{
    if (d->init_image != NULL && encode_image(s, d->init_image, err) != 0)
        return -1;
    if (d->init_image != NULL)
        session_show_latents(s, "image_latents", s->latents);
    rng_normal(&s->rng, s->noise, s->count);
    session_show_latents(s, "noise", s->noise);
    sampler_noise(&s->plan, s->latents, s->noise, d->init_image ? s->latents : NULL, s->count);
    return 0;
}

/*
 * What a session goes on with when its plan is through: a refiner, which draws the rest of the
 * steps, or the second pass, in which the same model draws once more over what it has drawn,
 * enlarged.
 *
 * The second pass is an image to image of its own (StableDiffusionImg2ImgPipeline with latents for
 * its image): its start noise is the next that is drawn from the session's random stream, after the
 * last step of the first pass. Memory for its latents is taken at the beginning, so that handing
 * over cannot fail.
 */
#include "engine/runtime.h"

#include <stdlib.h>

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
}

int session_add_refiner(struct session *s, struct model *refiner, struct err *err)
{
    s->sequel = calloc(1, sizeof(*s->sequel));
    if (s->sequel == NULL)
        return no_memory(err);
    s->sequel->model = refiner;
    s->sequel->width = s->width;
    s->sequel->height = s->height;
    return 0;
}

int session_add_second_pass(struct session *s, const struct draw_hires *hires, struct err *err)
{
    if (session_add_refiner(s, s->model, err) != 0)
        return -1;
    s->sequel->redraws = true;
    s->sequel->width = hires->width;
    s->sequel->height = hires->height;
    s->sequel->enlargement = hires->enlargement;
    s->sequel->latents = latents_alloc(s->model, hires->width, hires->height);
    return s->sequel->latents == NULL ? no_memory(err) : 0;
}

void sequel_free(struct sequel *sequel)
{
    if (sequel == NULL)
        return;
    conditioning_release(&sequel->conditioning);
    free(sequel->latents);
    free(sequel);
}

int session_check_second_pass(const struct model *model, const struct draw *d, struct err *err)
{
    const struct draw_hires *hires = &d->hires;

    if (hires->width < d->width || hires->height < d->height)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "hires: %d×%d is smaller than the first pass, %d×%d", hires->width,
                       hires->height, d->width, d->height);
    if (!(hires->strength >= 0 && hires->strength <= 1))
        return session_refuse(err, "hires.strength", "must be a number from 0 to 1");
    if (d->refiner != NULL || d->control_count > 0 || d->mask != NULL)
        return session_refuse(err, "hires",
                              "goes with neither a refiner nor ControlNets nor a mask; leave one "
                              "of them out");
    if (model->unet.config.in_channels != LATENT_CHANNELS)
        return session_refuse(err, "hires",
                              "does not go with a model that reads a picture beside the latents; "
                              "leave it out");
    return 0;
}

/* What adapted the model before a refiner does not go with it, nor does its FreeU. */
static void drop_what_adapts(struct session *s)
{
    adaptation_release(s->adaptation);
    s->adaptation = NULL;
    session_controls_release(s);
    s->freeu = (struct freeu){.b1 = 0};
}

/* The latents in the sequel's size. */
static void enlarge(struct session *s, struct sequel *sequel)
{
    float *drawn = s->latents;
    int h = s->latent_h, w = s->latent_w;

    session_set_size(s, sequel->width, sequel->height, sequel->latents);
    sequel->latents = NULL;
    latents_enlarge(sequel->enlargement, drawn, h, w, s->latents, s->latent_h, s->latent_w,
                    LATENT_CHANNELS);
    free(drawn);
    session_show_latents(s, "hires.enlarged", s->latents);
}

static void add_noise(struct session *s)
{
    rng_normal(&s->rng, s->noise, s->count);
    session_show_latents(s, "hires.noise", s->noise);
    sampler_noise(&s->plan, s->latents, s->noise, s->latents, s->count);
}

void session_hand_over(struct session *s)
{
    struct sequel *sequel = s->sequel;

    s->steps_before = s->end - s->plan.begin;
    conditioning_release(&s->conditioning);
    if (!sequel->redraws)
        drop_what_adapts(s);
    s->model = sequel->model;
    s->conditioning = sequel->conditioning;
    s->plan = sequel->plan;
    session_begin(s);
    if (sequel->redraws) {
        enlarge(s, sequel);
        add_noise(s);
    }
    free(sequel);
    s->sequel = NULL;
}

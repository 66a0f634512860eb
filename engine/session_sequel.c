/*
 * What a session goes on with when its plan is through: the second pass, in which the same model
 * draws once more over what it has drawn, enlarged; and a refiner, which draws the rest of the
 * steps, of the second pass if there is one.
 *
 * The second pass is an image to image of its own (StableDiffusionImg2ImgPipeline with latents for
 * its image), or with a mask an inpainting over the enlarged picture whose redrawn part has the
 * enlarged latents (StableDiffusionInpaintPipeline): what it draws from the session's random stream
 * comes after the last step of the first pass. Memory for its latents is taken, its hints are
 * embedded and its pictures encoded at the beginning, so that handing over cannot fail.
 */
#include "engine/resize.h"
#include "engine/runtime.h"

#include <stdlib.h>

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a session");
}

/* Adds one of this size behind the others; NULL: no memory. */
static struct sequel *add(struct session *s, struct model *model, int width, int height)
{
    struct sequel **link = &s->sequel;

    while (*link != NULL)
        link = &(*link)->next;
    *link = calloc(1, sizeof(**link));
    if (*link != NULL) {
        (*link)->model = model;
        (*link)->width = width;
        (*link)->height = height;
    }
    return *link;
}

int session_add_refiner(struct session *s, struct model *refiner, struct err *err)
{
    int width = s->sequel ? s->sequel->width : s->width;
    int height = s->sequel ? s->sequel->height : s->height;

    return add(s, refiner, width, height) == NULL ? no_memory(err) : 0;
}

int session_add_second_pass(struct session *s, const struct draw_hires *hires, struct err *err)
{
    struct sequel *sequel = add(s, s->model, hires->width, hires->height);

    if (sequel == NULL)
        return no_memory(err);
    sequel->redraws = true;
    sequel->enlargement = hires->enlargement;
    sequel->latents = latents_alloc(s->model, hires->width, hires->height, s->blends);
    return sequel->latents == NULL ? no_memory(err) : 0;
}

static void sequel_release(struct sequel *sequel)
{
    conditioning_release(&sequel->conditioning);
    session_controls_release(&sequel->controls);
    start_release(&sequel->start);
    free(sequel->latents);
    free(sequel);
}

void sequel_free(struct sequel *sequel)
{
    while (sequel != NULL) {
        struct sequel *next = sequel->next;
        sequel_release(sequel);
        sequel = next;
    }
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
    if (model_is_instructed(model))
        return session_refuse(err, "hires",
                              "does not go with a model that follows instructions; leave it out");
    return 0;
}

/* ---- making ---- */

/* Both models' plans are parted where the refiner takes over. */
static void part_plans(const struct sampler_plan *plan, int *end, struct sequel *refiner,
                       double switch_at)
{
    int from = sampler_share_begin(&refiner->plan, switch_at);

    *end = sampler_share_end(plan, switch_at);
    /* From an image its first call may come before the refiner's turn, or well after it. */
    if (from > refiner->plan.begin || *end > plan->begin)
        refiner->plan.begin = from;
}

int session_plan_sequels(struct session *s, const struct draw *d, struct err *err)
{
    const struct sampler_plan *before = &s->plan;
    int *end = &s->end;

    for (struct sequel *q = s->sequel; q != NULL; q = q->next) {
        if ((q->redraws ? request_plan_second_pass(&q->plan, q->model, d, err)
                        : request_plan_refiner(&q->plan, d, err)) != 0)
            return -1;
        q->end = q->plan.calls;
        if (!q->redraws)
            part_plans(before, end, q, d->switch_at);
        before = &q->plan;
        end = &q->end;
    }
    return 0;
}

/* It is the first sequel, or there is none. */
static struct sequel *second_pass(struct session *s)
{
    return s->sequel != NULL && s->sequel->redraws ? s->sequel : NULL;
}

int session_size_pictures(struct session *s, const struct draw *d, struct err *err)
{
    struct sequel *sequel = second_pass(s);
    struct draw again = request_after(d);

    return sequel != NULL ? session_controls_init(&sequel->controls, s->model, &again, err) : 0;
}

/* What an inpainting second pass begins with: picture and mask in its size. */
static int start_enlarged(struct sequel *sequel, struct draw *again, struct err *err)
{
    struct image picture = {0}, mask = {0};
    int rc = image_resize(again->init_image, again->width, again->height, &picture, err);

    if (rc == 0)
        rc = image_resize(again->mask, again->width, again->height, &mask, err);
    again->init_image = &picture;
    again->mask = &mask;
    if (rc == 0)
        rc = start_make(&sequel->start, sequel->model, again, err);
    image_release(&picture);
    image_release(&mask);
    return rc;
}

int session_encode_pictures(struct session *s, const struct draw *d, struct err *err)
{
    struct sequel *sequel = second_pass(s);
    struct draw again = request_after(d);

    if (sequel == NULL)
        return 0;
    if (session_controls_embed(&sequel->controls, err) != 0)
        return -1;
    return d->mask != NULL ? start_enlarged(sequel, &again, err) : 0;
}

/* ---- handing over ---- */

/* What adapted the model before a refiner does not go with it, nor does its FreeU. */
static void drop_what_adapts(struct session *s)
{
    adaptation_release(s->adaptation);
    s->adaptation = NULL;
    session_controls_release(&s->controls);
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

/* The sequel's controls become the session's. */
static void change_controls(struct session *s, struct sequel *sequel)
{
    session_controls_release(&s->controls);
    s->controls = sequel->controls;
    sequel->controls.count = 0;
}

static void take_over(struct session *s)
{
    struct sequel *sequel = s->sequel;
    int taken = s->end - s->plan.begin;

    s->steps_before += taken;
    s->pass_before = sequel->redraws ? 0 : s->pass_before + taken;
    conditioning_release(&s->conditioning);
    s->conditioning = sequel->conditioning;
    sequel->conditioning = (struct conditioning){.row_count = 0};
    s->model = sequel->model;
    s->plan = sequel->plan;
    session_begin(s);
    s->end = sequel->end;
    if (sequel->redraws) {
        change_controls(s, sequel);
        enlarge(s, sequel);
        session_start(s, &sequel->start, true);
    } else {
        drop_what_adapts(s);
        session_renew_blend(s);
    }
    s->sequel = sequel->next;
    sequel_release(sequel);
}

void session_hand_over(struct session *s)
{
    do
        take_over(s);
    while (s->sequel != NULL && s->end == s->plan.begin);
}

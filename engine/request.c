/*
 * What of a request needs the model's configuration but none of its weights: defaults, checks,
 * schedules. session_create begins with it; session_check is it alone.
 */
#include "engine/reading.h"

#define IMAGE_GUIDANCE_SCALE 1.5 /* StableDiffusionInstructPix2PixPipeline's */

/* ---- checks ---- */

int request_check_size(const char *field, int size, struct err *err)
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
    if (model->unet.config.in_channels != LATENT_CHANNELS ||
        refiner->unet.config.in_channels != LATENT_CHANNELS)
        return session_refuse(err, "refiner",
                              "does not go with an inpainting model, before it or for it; mask a "
                              "plain one, or leave the refiner out");
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

static int check_sizes(const struct model *model, const char *const fields[2], int width,
                       int height, struct err *err)
{
    if (request_check_size(fields[0], width, err) != 0 ||
        request_check_size(fields[1], height, err) != 0)
        return -1;
    if (width % model->info.vae_factor != 0 || height % model->info.vae_factor != 0)
        return session_refuse(err, fields[0], "the model's VAE does not divide it and the height");
    return 0;
}

static int resolve_second_pass(struct draw *d, const struct model *model, struct err *err)
{
    static const char *const FIELDS[2] = {"hires.width", "hires.height"};

    d->hires.steps = d->hires.steps ? d->hires.steps : d->steps;
    if (check_sizes(model, FIELDS, d->hires.width, d->hires.height, err) != 0)
        return -1;
    return session_check_second_pass(model, d, err);
}

int request_resolve(struct draw *d, const struct model *model, struct err *err)
{
    static const char *const FIELDS[2] = {"width", "height"};

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
    if (check_sizes(model, FIELDS, d->width, d->height, err) != 0)
        return -1;
    if (session_check_images(model, d, err) != 0 || check_refiner(model, d, err) != 0 ||
        check_guidance(model, d, err) != 0 || session_check_text(model, d, err) != 0 ||
        control_check(model, d, err) != 0)
        return -1;
    if (d->image_guidance_scale < 0)
        d->image_guidance_scale = IMAGE_GUIDANCE_SCALE;
    return d->hires.width > 0 ? resolve_second_pass(d, model, err) : 0;
}

/* ---- schedules ---- */

bool request_is_refined(const struct draw *d)
{
    return d->refiner != NULL && d->switch_at < 1;
}

struct draw request_after(const struct draw *d)
{
    struct draw again = *d;

    if (d->hires.width == 0)
        return again;
    again.width = d->hires.width;
    again.height = d->hires.height;
    again.steps = d->hires.steps;
    again.strength = d->hires.strength;
    return again;
}

static struct sampler_request request_of(const struct model *model, const struct draw *d,
                                         bool from_image)
{
    return (struct sampler_request){.sampler = d->sampler,
                                    .schedule = d->schedule,
                                    .steps = d->steps,
                                    .eta = d->eta,
                                    .sdxl = model->unet.config.pooled > 0,
                                    .from_image = from_image,
                                    .strength = d->strength};
}

int request_plan(struct sampler_plan *plan, const struct model *model, const struct draw *d,
                 struct err *err)
{
    bool from_image = d->init_image != NULL && !model_is_instructed(model);
    struct sampler_request request = request_of(model, d, from_image);

    return sampler_plan_make(plan, &model->sampler, &request, err);
}

int request_plan_second_pass(struct sampler_plan *plan, const struct model *model,
                             const struct draw *d, struct err *err)
{
    struct draw again = request_after(d);
    struct sampler_request request = request_of(model, &again, true);
    int rc = sampler_plan_make(plan, &model->sampler, &request, err);

    return rc == 0 ? 0 : err_prefix(err, "hires");
}

int request_plan_refiner(struct sampler_plan *plan, const struct draw *d, struct err *err)
{
    struct draw after = request_after(d);
    bool from_image = d->init_image != NULL || d->hires.width > 0;
    struct sampler_request request = request_of(d->refiner, &after, from_image);
    int rc = sampler_plan_make(plan, &d->refiner->sampler, &request, err);

    return rc == 0 ? 0 : err_prefix(err, "refiner");
}

int request_calls(const struct sampler_plan *plan, const struct draw *d)
{
    return sampler_calls_per_step(plan) * d->steps;
}

/* ---- a request alone ---- */

static int check_texts(struct model *model, const struct draw *d, const struct sampler_plan *plan,
                       bool inversions, struct err *err)
{
    struct reading reading = {.part_count = 0};
    struct conditioning conditioning = {.row_count = 0};
    int rc =
        reading_make(&reading, &conditioning, model, d, request_calls(plan, d), inversions, err);

    reading_release(&reading);
    conditioning_release(&conditioning);
    return rc;
}

int session_check(struct model *model, const struct draw *draw, struct err *err)
{
    struct draw d = *draw, after;
    struct sampler_plan plan;

    if (request_resolve(&d, model, err) != 0 || request_plan(&plan, model, &d, err) != 0 ||
        check_texts(model, &d, &plan, true, err) != 0)
        return -1;
    after = request_after(&d);
    if (d.hires.width > 0 && (request_plan_second_pass(&plan, model, &d, err) != 0 ||
                              check_texts(model, &after, &plan, true, err) != 0))
        return -1;
    if (request_is_refined(&d) && (request_plan_refiner(&plan, &d, err) != 0 ||
                                   check_texts(d.refiner, &after, &plan, false, err) != 0))
        return -1;
    return 0;
}

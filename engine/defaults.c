#include "engine/defaults.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_xl(const struct checkpoint *c)
{
    return checkpoint_has(c, COMPONENT_TEXT_2);
}

/* ---- the scheduler ---- */

/* The standard deviation of a norm's bias: the only thing about the weights that tells SD2's two
 * kinds apart. Source: ComfyUI, supported_models.py. */
#define V_BIAS_DEVIATION 0.09

/* SD2.0 base, trained on the noise, says how long it was trained; no v model says this number.
 * Source: diffusers, single_file_utils.py. */
#define EPSILON_GLOBAL_STEP 875000

static double deviation(const struct stored_tensor *t)
{
    double sum = 0, squares = 0, count = (double)t->count;

    for (int64_t i = 0; i < t->count; i++) {
        double v = element_to_f32(t->data, t->dtype, (size_t)i);
        sum += v;
        squares += v * v;
    }
    return sqrt(fmax(squares / count - sum / count * (sum / count), 0));
}

/* Of the first norm in the last attention on the way up; 1 where there is none. */
static double last_bias_deviation(struct checkpoint *c)
{
    const struct stored_tensor *last = NULL;
    char name[CHECKPOINT_NAME_MAX_BYTES];

    for (int k = 0; k < UNET_LEVELS_MAX; k++)
        for (int j = 0; j <= UNET_LAYERS_MAX; j++) {
            const struct stored_tensor *t;
            snprintf(name, sizeof(name),
                     "up_blocks.%d.attentions.%d.transformer_blocks.0.norm1.bias", k, j);
            t = checkpoint_find(c, COMPONENT_UNET, name);
            last = t != NULL && t->usable && t->count > 0 ? t : last;
        }
    return last != NULL ? deviation(last) : 1;
}

static bool has_global_step(const struct checkpoint *c, int64_t wanted)
{
    int64_t step;

    return checkpoint_number(c, "global_step", &step) && step == wanted;
}

static enum prediction single_prediction(struct checkpoint *c)
{
    const char *said = checkpoint_metadata(c, "modelspec.prediction_type");
    const char *architecture = checkpoint_metadata(c, "modelspec.architecture");

    if (checkpoint_marker(c, "v_pred") != NULL)
        return PREDICTION_V;
    if (said != NULL && (strcmp(said, "v") == 0 || strcmp(said, "v_prediction") == 0))
        return PREDICTION_V;
    if (said != NULL && strcmp(said, "epsilon") == 0)
        return PREDICTION_EPSILON;
    if (checkpoint_family(c) != FAMILY_SD2)
        return PREDICTION_EPSILON;
    if (architecture != NULL && strstr(architecture, "-768-v") != NULL)
        return PREDICTION_V;
    if (has_global_step(c, EPSILON_GLOBAL_STEP))
        return PREDICTION_EPSILON;
    return last_bias_deviation(c) > V_BIAS_DEVIATION ? PREDICTION_V : PREDICTION_EPSILON;
}

/* As the families were published. A file that says its schedule ends without a signal wants to
 * start there, which takes trailing steps. */
static struct sampler_config single_scheduler(struct checkpoint *c)
{
    static const enum sampler OWN[] = {[FAMILY_SD1] = SAMPLER_PNDM,
                                       [FAMILY_SD2] = SAMPLER_DDIM,
                                       [FAMILY_SDXL] = SAMPLER_EULER,
                                       [FAMILY_SDXL_REFINER] = SAMPLER_EULER};
    struct sampler_config config =
        sampler_config_default(OWN[checkpoint_family(c)], single_prediction(c));

    if (is_xl(c))
        config.spacing = SPACING_LEADING;
    if (checkpoint_marker(c, "ztsnr") != NULL) {
        config.rescale_betas_zero_snr = true;
        config.spacing = SPACING_TRAILING;
    }
    return config;
}

/* diffusers' pipelines of SD1 and SD2 repair what early scheduler files got wrong. */
static void repair(struct sampler_config *config, const struct checkpoint *c)
{
    const char *class = json_string_or(json_get(checkpoint_index(c), "_class_name"), "");
    bool inpaint = strcmp(class, "StableDiffusionInpaintPipeline") == 0;

    if (!inpaint && strcmp(class, "StableDiffusionPipeline") != 0 &&
        strcmp(class, "StableDiffusionImg2ImgPipeline") != 0)
        return;
    config->steps_offset = 1;
    if (inpaint && config->skip_prk_steps == CHOICE_NO)
        config->skip_prk_steps = CHOICE_YES;
    if (!inpaint && (config->clip_sample == CHOICE_YES ||
                     (config->own == SAMPLER_DDIM && config->clip_sample == CHOICE_UNSET)))
        config->clip_sample = CHOICE_NO;
}

int defaults_scheduler(struct sampler_config *config, struct checkpoint *c, const char *prediction,
                       struct err *err)
{
    const struct json *json = checkpoint_scheduler(c);

    if (json == NULL)
        *config = single_scheduler(c);
    else if (sampler_config_read(config, json, err) != 0)
        return err_prefix(err, "%s/scheduler/scheduler_config.json", checkpoint_path(c));
    repair(config, c);
    if (prediction == NULL)
        return 0;
    if (strcmp(prediction, "epsilon") == 0)
        config->prediction = PREDICTION_EPSILON;
    else if (strcmp(prediction, "v_prediction") == 0)
        config->prediction = PREDICTION_V;
    else
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "prediction '%s' is neither 'epsilon' nor 'v_prediction'", prediction);
    return 0;
}

/* ---- the rest ---- */

#define INSTRUCTED_STEPS 100 /* StableDiffusionInstructPix2PixPipeline's */
#define DISTILLED_STEPS 4
#define TOLD_GUIDANCE_SCALE 8.5 /* LatentConsistencyModelPipeline's */

/* "1024x1024", where a file says so. */
static bool read_resolution(const struct checkpoint *c, int vae_factor, struct defaults *d)
{
    const char *said = checkpoint_metadata(c, "modelspec.resolution");
    int w, h;

    if (said == NULL || sscanf(said, "%dx%d", &w, &h) != 2 || w < vae_factor || h < vae_factor ||
        w % vae_factor != 0 || h % vae_factor != 0)
        return false;
    d->sample_w = w / vae_factor;
    d->sample_h = h / vae_factor;
    return true;
}

/* Distilled models draw in a few steps without guidance. A folder says so by its scheduler: one
 * that was made for them, or Euler's with trailing steps, which takes the last timestep first. */
static bool is_distilled(const struct sampler_config *s)
{
    bool trailing = s->spacing == SPACING_TRAILING && s->prediction == PREDICTION_EPSILON &&
                    !s->rescale_betas_zero_snr;

    return strcmp(s->own_class, "LCMScheduler") == 0 || strcmp(s->own_class, "TCDScheduler") == 0 ||
           (trailing && (s->own == SAMPLER_EULER || s->own == SAMPLER_EULER_A));
}

struct defaults defaults_read(struct checkpoint *c, const struct sampler_config *scheduler,
                              int in_channels, int vae_factor)
{
    const struct json *unet = checkpoint_config(c, COMPONENT_UNET), *index = checkpoint_index(c);
    int guidance_width = (int)json_int_or(json_get(unet, "time_cond_proj_dim"), 0);
    bool wide =
        unet == NULL && checkpoint_family(c) == FAMILY_SD2 && scheduler->prediction == PREDICTION_V;
    int sample = (int)json_int_or(json_get(unet, "sample_size"), is_xl(c) ? 128 : wide ? 96 : 64);
    struct defaults d = {
        .sample_w = sample, .sample_h = sample, .steps = 50, .guidance_scale = is_xl(c) ? 5 : 7.5};

    if (strcmp(json_string_or(json_get(index, "_class_name"), ""),
               "StableDiffusionXLInpaintPipeline") == 0)
        d.guidance_scale = 7.5;
    if (in_channels == 8)
        d.steps = INSTRUCTED_STEPS;
    if (is_distilled(scheduler)) {
        d.steps = DISTILLED_STEPS;
        d.guidance_scale = 0;
    }
    if (guidance_width > 0) { /* it is told the scale instead of being guided */
        d.steps = DISTILLED_STEPS;
        d.guidance_scale = TOLD_GUIDANCE_SCALE;
    }
    d.zero_negative =
        is_xl(c) && json_bool_or(json_get(index, "force_zeros_for_empty_prompt"),
                                 index != NULL || checkpoint_family(c) == FAMILY_SDXL);
    read_resolution(c, vae_factor, &d);
    return d;
}

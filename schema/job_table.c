/* The contract's table. The order is the order of the canonical form. */
#include "schema/job_table.h"

#include "common/sampling.h"
#include "schema/job.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define NAME_BYTES 255 /* of models and adapters: what a file system takes */
#define URI_MAX_BYTES JOB_MAX_BYTES
#define SEED_MAX 9223372036854775807.0

static const char *const dialects[] = {"diffusers", "a1111", "comfyui", NULL};
static const char *const generators[] = {"torch", "philox", NULL};
static const char *const precisions[] = {"auto", "f32", "bf16", "f16", NULL};
static const char *const preprocessors[] = {"canny", NULL};
static const char *const upscalers[] = {"latent", "latent-nearest", "latent-nearest-exact",
                                        "latent-bicubic", NULL};
static const char *const priorities[] = {"interactive", "normal", "bulk", NULL};
static const char *const tiers[] = {"fast", "standard", "premium", NULL};
static const char *const formats[] = {"png", "jpeg", "webp", NULL};

#define AT(type, member) .offset = offsetof(struct type, member)
#define LIST(member, counter, maximum)                                                             \
    .offset = offsetof(struct job, member), .count_offset = offsetof(struct job, counter),         \
    .limit = (maximum)

static const struct field lora_rows[] = {
    {"name", FIELD_TEXT, true, AT(job_lora, name), .min = 1, .max = NAME_BYTES,
     .help = "name in the models directory"},
    {"scale", FIELD_NUMBER, .has_default = true, AT(job_lora, scale), .min = -4, .max = 4,
     .number = 1, .help = "strength of the adapter"},
};
static const struct field_table lora_table = {lora_rows, COUNT(lora_rows), sizeof(struct job_lora)};

static const struct field controlnet_rows[] = {
    {"name", FIELD_TEXT, true, AT(job_controlnet, name), .min = 1, .max = NAME_BYTES,
     .help = "name in the models directory"},
    {"image", FIELD_URI, true, AT(job_controlnet, image), .max = URI_MAX_BYTES,
     .help = "the hint picture"},
    {"scale", FIELD_NUMBER, .has_default = true, AT(job_controlnet, scale), .min = 0, .max = 4,
     .number = 1, .help = "strength of the hint"},
    {"start", FIELD_NUMBER, .has_default = true, AT(job_controlnet, start), .min = 0, .max = 1,
     .number = 0, .help = "part of the steps at which it begins"},
    {"end", FIELD_NUMBER, .has_default = true, AT(job_controlnet, end), .min = 0, .max = 1,
     .number = 1, .help = "part of the steps at which it ends"},
    {"guess_mode", FIELD_BOOL, .has_default = true, AT(job_controlnet, guess_mode), .number = 0,
     .help = "let the hint speak without a prompt"},
    {"mode", FIELD_INT, AT(job_controlnet, mode), .min = 0, .max = 31, .number = -1,
     .help = "of a ControlNet-Union, which needs it: the kind of hint, as diffusers' control_mode"},
    {"preprocess", FIELD_CHOICE, AT(job_controlnet, preprocess), .choices = preprocessors,
     .help = "makes the hint of the picture: canny, its edges; by default the picture is the hint"},
    {"low_threshold", FIELD_NUMBER, AT(job_controlnet, low_threshold), .min = 0, .max = 10000,
     .number = -1, .help = "of canny: an edge goes on where it is steeper than this; 100"},
    {"high_threshold", FIELD_NUMBER, AT(job_controlnet, high_threshold), .min = 0, .max = 10000,
     .number = -1, .help = "of canny: an edge begins where it is steeper than this; 200"},
};
static const struct field_table controlnet_table = {controlnet_rows, COUNT(controlnet_rows),
                                                    sizeof(struct job_controlnet)};

static const struct field refiner_rows[] = {
    {"model", FIELD_TEXT, true, AT(job_refiner, model), .min = 1, .max = NAME_BYTES,
     .help = "the refiner's name in the model catalogue"},
    {"switch_at", FIELD_NUMBER, .has_default = true, AT(job_refiner, switch_at), .min = 0, .max = 1,
     .number = 0.8, .help = "part of the noise schedule at which it takes over"},
};
static const struct field_table refiner_table = {refiner_rows, COUNT(refiner_rows),
                                                 sizeof(struct job_refiner)};

static const struct field hires_rows[] = {
    {"scale", FIELD_NUMBER, AT(job_hires, scale), .min = 1, .max = 4, .number = -1,
     .help = "of width and height, to the nearest multiple of 8"},
    {"width", FIELD_INT, AT(job_hires, width), .min = 64, .max = JOB_SIZE_MAX, .multiple = 8,
     .help = "pixels, instead of scale"},
    {"height", FIELD_INT, AT(job_hires, height), .min = 64, .max = JOB_SIZE_MAX, .multiple = 8,
     .help = "pixels, instead of scale"},
    {"strength", FIELD_NUMBER, .has_default = true, AT(job_hires, strength), .min = 0, .max = 1,
     .number = 0.7, .help = "how much of the enlarged picture to redraw"},
    {"steps", FIELD_INT, AT(job_hires, steps), .min = 1, .max = 500,
     .help = "of which strength's part is taken; by default the job's"},
    {"upscaler", FIELD_CHOICE, .has_default = true, AT(job_hires, upscaler), .text = "latent",
     .choices = upscalers, .help = "how latents are enlarged; latent is bilinear"},
};
static const struct field_table hires_table = {hires_rows, COUNT(hires_rows),
                                               sizeof(struct job_hires)};

#define FREEU(member, what)                                                                        \
    {                                                                                              \
#member, FIELD_NUMBER, true, AT(job_freeu, member), .min = 0.01, .max = 4, .number = -1,   \
                                                            .help = what                           \
    }
static const struct field freeu_rows[] = {
    FREEU(b1, "factor of half the channels in the first block on the way up"),
    FREEU(b2, "the same in the second"),
    FREEU(s1, "factor of the skipped low frequencies in the first block"),
    FREEU(s2, "the same in the second"),
};
static const struct field_table freeu_table = {freeu_rows, COUNT(freeu_rows),
                                               sizeof(struct job_freeu)};

static const struct field output_rows[] = {
    {"format", FIELD_CHOICE, .has_default = true, AT(job_output, format), .text = "png",
     .choices = formats, .help = "file format"},
    {"quality", FIELD_INT, .has_default = true, AT(job_output, quality), .min = 1, .max = 100,
     .number = 90, .help = "of jpeg and webp"},
    {"prefix", FIELD_TEXT, AT(job_output, prefix), .max = 512, .help = "before object names"},
    {"metadata", FIELD_BOOL, .has_default = true, AT(job_output, metadata), .number = 1,
     .help = "embed the request in the file"},
};
static const struct field_table output_table = {output_rows, COUNT(output_rows),
                                                sizeof(struct job_output)};

static const struct field rows[] = {
    {"id", FIELD_NAME, AT(job, id),
     .help = "idempotency key; in a file by default from batch, line number and content"},
    {"batch", FIELD_NAME, AT(job, batch), .help = "what the job belongs to"},
    {"tenant", FIELD_NAME, .has_default = true, AT(job, tenant), .text = "default",
     .help = "who pays"},
    {"priority", FIELD_CHOICE, .has_default = true, AT(job, priority), .text = "normal",
     .choices = priorities, .help = "class of urgency"},
    {"not_before", FIELD_TIME, AT(job, not_before_ns), .help = "earliest start, RFC 3339"},
    {"deadline", FIELD_TIME, AT(job, deadline_ns),
     .help = "RFC 3339; a job that has not started by then expires"},
    {"max_attempts", FIELD_INT, .has_default = true, AT(job, max_attempts), .min = 1, .max = 20,
     .number = 3, .help = "before it is given up"},
    {"tier", FIELD_CHOICE, AT(job, tier), .choices = tiers,
     .help = "quality of service; by default the model catalogue's"},
    {"confidential", FIELD_BOOL, .has_default = true, AT(job, confidential), .number = 0,
     .help = "only in the confidential pool"},
    {"max_price", FIELD_NUMBER, AT(job, max_price), .min = 0, .max = 1e9, .number = -1,
     .help = "most that the job may cost, in the price table's money"},
    {"callback", FIELD_CALLBACK, AT(job, callback), .max = 2048,
     .help = "https URL that gets the signed terminal record; http where the cell allows it"},
    {"model", FIELD_TEXT, true, AT(job, model), .min = 1, .max = NAME_BYTES,
     .help = "name in the model catalogue: a folder, or a file without .safetensors or .ckpt"},
    {"prompt", FIELD_TEXT, true, AT(job, prompt), .max = JOB_PROMPT_MAX_BYTES,
     .help = "what to draw"},
    {"negative_prompt", FIELD_TEXT, AT(job, negative_prompt), .max = JOB_PROMPT_MAX_BYTES,
     .help = "what not to draw; absent is not the same as empty"},
    {"width", FIELD_INT, AT(job, width), .min = 64, .max = JOB_SIZE_MAX, .multiple = 8,
     .help = "pixels; by default the model's own"},
    {"height", FIELD_INT, AT(job, height), .min = 64, .max = JOB_SIZE_MAX, .multiple = 8,
     .help = "pixels; by default the model's own"},
    {"steps", FIELD_INT, AT(job, steps), .min = 1, .max = 500, .help = "by default the model's"},
    {"guidance_scale", FIELD_NUMBER, AT(job, guidance_scale), .min = 0, .max = 50, .number = -1,
     .help = "at most 1 turns guidance off; by default the model's"},
    {"guidance_rescale", FIELD_NUMBER, AT(job, guidance_rescale), .min = 0, .max = 1, .number = -1,
     .help = "how much of the contrast that guidance adds is taken back; 0 by default"},
    {"guidance_interval", FIELD_RANGE, AT(job, guidance_interval), .min = 0, .max = 100000,
     .number = -1,
     .help = "[low, high]: guidance only where the noise, sigma, is above low and at most high"},
    {"freeu", FIELD_OBJECT, AT(job, freeu), .table = &freeu_table,
     .help = "FreeU: more of the network's middle, less of what skips it; not of the refiner"},
    {"sampler", FIELD_CHOICE, AT(job, sampler), .choices = sampler_names,
     .help = "by default the model's"},
    {"schedule", FIELD_CHOICE, AT(job, schedule), .choices = schedule_names,
     .help = "spacing of the noise levels; by default the model's"},
    {"eta", FIELD_NUMBER, .has_default = true, AT(job, eta), .min = 0, .max = 1, .number = 0,
     .help = "noise that ddim or tcd adds at each step"},
    {"seed", FIELD_INT64, AT(job, seed), .min = 0, .max = SEED_MAX, .number = -1,
     .help = "by default from the id, so that a retry draws the same picture"},
    {"images", FIELD_INT, .has_default = true, AT(job, images), .min = 1, .max = JOB_IMAGES_MAX,
     .number = 1, .help = "pictures to draw; picture i uses seed + i"},
    {"clip_skip", FIELD_INT, .has_default = true, AT(job, clip_skip), .min = 0, .max = 12,
     .number = 0, .help = "layers of the text encoder to leave out, as diffusers counts"},
    {"loras", FIELD_OBJECT_LIST, LIST(loras, lora_count, JOB_LORAS_MAX), .table = &lora_table,
     .help = "adapters"},
    {"embeddings", FIELD_TEXT_LIST, LIST(embeddings, embedding_count, JOB_EMBEDDINGS_MAX), .min = 1,
     .max = NAME_BYTES, .help = "textual inversions; by default those named in the prompt"},
    {"controlnets", FIELD_OBJECT_LIST, LIST(controlnets, controlnet_count, JOB_CONTROLNETS_MAX),
     .table = &controlnet_table, .help = "pictures that guide the drawing"},
    {"init_image", FIELD_URI, AT(job, init_image), .max = URI_MAX_BYTES,
     .help = "picture to start from"},
    {"strength", FIELD_NUMBER, AT(job, strength), .min = 0, .max = 1, .number = -1,
     .help = "how much of init_image to redraw; 0.8 by default, 1 with a mask"},
    {"mask", FIELD_URI, AT(job, mask), .max = URI_MAX_BYTES,
     .help = "white is redrawn, black is kept; with init_image"},
    {"image_guidance_scale", FIELD_NUMBER, AT(job, image_guidance_scale), .min = 0, .max = 50,
     .number = -1,
     .help = "how closely a model that follows instructions keeps to init_image; "
             "below 1 turns guidance off; 1.5 by default"},
    {"refiner", FIELD_OBJECT, AT(job, refiner), .table = &refiner_table,
     .help = "model that draws the last steps"},
    {"hires", FIELD_OBJECT, AT(job, hires), .table = &hires_table,
     .help = "second pass: the latents are enlarged and drawn over"},
    {"aesthetic_score", FIELD_NUMBER, AT(job, aesthetic_score), .min = 0, .max = 10, .number = -1,
     .help = "SDXL refiner conditioning"},
    {"negative_aesthetic_score", FIELD_NUMBER, AT(job, negative_aesthetic_score), .min = 0,
     .max = 10, .number = -1, .help = "SDXL refiner conditioning"},
    {"original_size", FIELD_PAIR, AT(job, original_size), .min = 1, .max = 16384, .number = -1,
     .help = "SDXL conditioning: [height, width]"},
    {"target_size", FIELD_PAIR, AT(job, target_size), .min = 1, .max = 16384, .number = -1,
     .help = "SDXL conditioning: [height, width]"},
    {"crop", FIELD_PAIR, AT(job, crop), .min = 0, .max = 16384, .number = -1,
     .help = "SDXL conditioning: [top, left]"},
    {"dialect", FIELD_CHOICE, .has_default = true, AT(job, dialect), .text = "diffusers",
     .choices = dialects, .help = "how weights in the prompt are read; diffusers is plain text"},
    {"rng", FIELD_CHOICE, .has_default = true, AT(job, rng), .text = "torch", .choices = generators,
     .help = "random stream: torch's on the CPU, or philox as on a GPU"},
    {"precision", FIELD_CHOICE, .has_default = true, AT(job, precision), .text = "auto",
     .choices = precisions, .help = "arithmetic of the networks"},
    {"output", FIELD_OBJECT, AT(job, output), .table = &output_table, .help = "the files"},
    {"labels", FIELD_LABELS, LIST(labels, label_count, JOB_LABELS_MAX), .max = 1024,
     .help = "string pairs that are kept and reported"},
};

const struct field_table job_fields = {rows, COUNT(rows), sizeof(struct job)};

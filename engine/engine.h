/*
 * engine.h: prompt in, pixels out. The engine's face; it knows no network, no queue, no file of
 * jobs.
 *
 * An engine is one device and the models loaded on it. A model is one checkpoint: text encoders,
 * UNet, VAE and scheduler configuration. A session is one picture being drawn: its conditioning,
 * latents, sampler state and random stream. `engine_step` advances any mix of sessions that share a
 * model and a size, whatever their prompts, samplers, step counts and guidance; a picture's bytes
 * do not depend on what it was stepped with.
 *
 *     struct engine_options options = ENGINE_OPTIONS_INIT;
 *     engine_create(&engine, &options, &err);
 *     engine_load(&model, engine, "models/tiny-shapes", NULL, &err);
 *     session_create(&session, model, &request, NULL, &err);
 *     while (session_steps_left(session) > 0)
 *         engine_step(model, &session, 1, &err);
 *     session_decode(session, &image, &err);
 *
 * Threads: every function may be called from any thread; those that compute hold the engine's lock
 * but for the time in which they wait for a card, which computes steps and at the same time what
 * prepares and finishes sessions. One session is used by one thread at a time. Models outlive their
 * sessions, the engine its models.
 */
#ifndef ATELIER_ENGINE_ENGINE_H
#define ATELIER_ENGINE_ENGINE_H

#include "common/buf.h"
#include "common/err.h"
#include "engine/enlarge.h"
#include "engine/freeu.h"
#include "engine/image.h"
#include "engine/prompt.h"
#include "engine/rng.h"
#include "engine/sampler.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENGINE_SIZE_MIN 64
#define ENGINE_SIZE_MAX 2048
#define ENGINE_SIZE_MULTIPLE 8
#define ENGINE_STEPS_MAX 500
#define ENGINE_SESSIONS_MAX 64 /* in one engine_step */
#define ENGINE_ADAPTERS_MAX 16 /* of one session */
#define ENGINE_INVERSIONS_MAX 16
#define ENGINE_CONTROLS_MAX 8 /* of one session */

struct engine;
struct model;
struct adapter;
struct control;
struct session;

enum precision {
    PRECISION_AUTO, /* bf16 where the device computes it natively, else f32 */
    PRECISION_F32,
    PRECISION_BF16,
    PRECISION_F16, /* not by dnnl */
};

struct engine_options {
    const char *backend; /* "auto": a card if there is one; "cpu", "ref", "dnnl"; "cuda" or
                            "cuda:0", "cuda:1" …: a card, as CUDA_VISIBLE_DEVICES orders them;
                            "outline": nothing is computed and no weights are read: what is loaded
                            is checked against its files' headers, and is for session_check */
    const char *isa;     /* highest instruction set to use: "auto", "avx2", "avx512",
                            "avx512_bf16", "amx_bf16"; a wish above the processor's own is an error */
    enum precision precision;
    int threads;             /* 0: one per core that the process may use */
    size_t memory_max_bytes; /* weights and activations together; 0: the machine's memory */
    bool weights_16bit;      /* keep 16-bit weights 16-bit in memory when computing in f32 */
    void (*warn)(void *user, const char *message); /* may be NULL; called on the caller's thread */
    void *user;
};
#define ENGINE_OPTIONS_INIT                                                                        \
    {                                                                                              \
        .backend = "auto", .isa = "auto", .precision = PRECISION_AUTO                              \
    }

struct engine_info {
    const char *backend;   /* "dnnl" */
    const char *isa;       /* "amx_bf16", "sm_90" */
    const char *processor; /* "AMD EPYC 9655", "NVIDIA H100 80GB HBM3" */
    enum precision precision;
    int threads;
    size_t memory_bytes; /* of a card, free when it was opened; 0: the machine's */
    int batch_pixels;    /* of sessions that step together: from there on more gain nothing */
    bool overlaps;       /* sessions are prepared and decoded while others step, and not in turn */
};

/* How many cards this machine and build have, each for an engine of its own. */
int engine_cards(void);

/* Opens the device. Errors: an unknown or absent back end or instruction set (ERR_UNSUPPORTED), a
 * card that is absent or does not start (ERR_DEVICE). */
int engine_create(struct engine **engine, const struct engine_options *options,
                  struct err *err) must_check;

/* Frees the engine and every model still loaded. NULL is fine. */
void engine_free(struct engine *engine);

const struct engine_info *engine_info(const struct engine *engine);

struct memory_use {
    size_t weights_bytes;     /* as loaded, transformed ones included */
    size_t activations_bytes; /* planned peak of the arena, scratch included */
};

struct memory_use engine_memory(const struct engine *engine);

const char *engine_version(void);

/* ---- models ---- */

struct model_options {
    const char *prediction; /* "epsilon" or "v_prediction" over what was detected; NULL: detected */
};

struct model_info {
    const char *family; /* "sd1", "sd2", "sdxl", "sdxl-refiner" */
    const char *path;
    const char *format;     /* "diffusers" or "single file" */
    const char *prediction; /* "epsilon" or "v_prediction" */
    int width, height;      /* the model's own size */
    int vae_factor;         /* pixels per latent, each way */
    uint64_t parameters;
    uint64_t file_bytes;
    enum sampler sampler; /* of the model's scheduler file */
    int steps;            /* defaults of the pipeline that diffusers would use */
    double guidance_scale;
};

/* Reads a diffusers folder or a single .safetensors file as it is and binds its weights. `options`
 * may be NULL. Errors (ERR_REJECT): a file that is missing, truncated or lies, a tensor that is
 * missing or of the wrong shape, a family that is not supported; the message names file and tensor.
 * ERR_MEMORY (ERR_RETRY): the budget does not hold it. */
int engine_load(struct model **model, struct engine *engine, const char *path,
                const struct model_options *options, struct err *err) must_check;
/* "sd1", "sdxl" or "sdxl-refiner" as published, with random weights that need no file, for
 * measurements. */
int engine_load_synthetic(struct model **model, struct engine *engine, const char *family,
                          struct err *err) must_check;

void engine_unload(struct model *model);
const struct model_info *model_info(const struct model *model);

/* Reads only headers and configuration and writes a report for people or, with `json`, a JSON
 * object: family, components, shapes, dtypes, sizes, scheduler, what would be refused and why.
 * Of what stands beside models, ControlNets and adapters, it says which kind it is. */
int model_inspect(const char *path, bool json, struct buf *out, struct err *err) must_check;

/* Bytes of activations that `count` sessions of this size need at once, decoding included. Computes
 * nothing; the same plan that a run holds to. ERR_MEMORY says how much is missing. */
int model_plan(struct model *model, int width, int height, int count, size_t *bytes,
               struct err *err) must_check;

/* ---- adapters ---- */

/* Reads a LoRA file of any published kind and naming for this model, and makes it ready: plain and
 * LoCon, LoHa, LoKr, DoRA, full differences. Errors (ERR_REJECT): a file that is missing or lies, a
 * key that matches nothing in the model, a shape that does not fit; the message names file and key.
 * ERR_MEMORY (ERR_RETRY): the budget does not hold it. */
int engine_load_adapter(struct adapter **adapter, struct model *model, const char *path,
                        struct err *err) must_check;

/* No session of the model uses it any more. Unloading a model unloads its adapters. */
void engine_unload_adapter(struct adapter *adapter);

struct adapter_info {
    const char *path;
    int layers;     /* that it changes */
    int merged;     /* of these, how many take a copy of the layer of their own */
    uint64_t bytes; /* of its weights in memory */
};

const struct adapter_info *adapter_info(const struct adapter *adapter);

/* ---- pictures that guide ---- */

/* Reads a ControlNet for this model: a diffusers folder, or a file with diffusers' or the original
 * names. Errors (ERR_REJECT): a file that is missing or lies, a network of another family or kind;
 * the message names the file and the tensor with both shapes, or the field. ERR_MEMORY (ERR_RETRY):
 * the budget does not hold it. */
int engine_load_control(struct control **control, struct model *model, const char *path,
                        struct err *err) must_check;

/* No session of the model uses it any more. Unloading a model unloads its controls. */
void engine_unload_control(struct control *control); /* NULL is fine */

struct control_info {
    const char *path;
    const char *kind; /* "ControlNet" */
    uint64_t parameters;
    uint64_t bytes; /* of its weights in memory */
};

const struct control_info *control_info(const struct control *control);

/* ---- textual inversion ---- */

struct inversion;

/* Reads a textual inversion's file for this model: one tensor of any name (`emb_params`,
 * `string_to_param.*`, diffusers' token) for the encoder that it is as wide as, or `clip_l` and
 * `clip_g` for SDXL's two; [hidden] or [vectors, hidden]. Errors (ERR_REJECT) name file and key. */
int engine_load_inversion(struct inversion **inversion, const struct model *model, const char *path,
                          struct err *err) must_check;
void engine_unload_inversion(struct inversion *inversion); /* NULL is fine */

/* ---- sessions ---- */

/* Wherever `name` stands in a prompt, or the token that a diffusers file is named for, stand the
 * inversion's vectors. */
struct draw_inversion {
    const struct inversion *inversion; /* of the session's model; borrowed for the call */
    const char *name;
};

struct draw_adapter {
    struct adapter *adapter; /* of the session's model; lives as long as the session */
    double scale;
};

struct draw_control {
    struct control *control;   /* of the session's model; lives as long as the session */
    const struct image *image; /* the hint; another size than the picture's is resampled */
    double scale;
    double start, end; /* part of the sampler's calls, 0 … 1 */
    bool guess_mode;   /* as if there were no prompt: see controlnet.h */
    int mode;          /* which of its kinds of hints it is to a ControlNet-Union; -1: not given */
};

/* The second pass: what was drawn is enlarged, noised and drawn again in its final size. */
struct draw_hires {
    int width, height; /* pixels, no fewer than the first pass has; 0: there is no second pass */
    double strength;   /* how much it redraws, 0 … 1 */
    int steps;         /* 0: as many as the first pass has; of these it takes `strength` */
    enum enlargement enlargement;
};

/* What to draw. Strings and images are borrowed for the call. Zero means "not given" only where
 * said. */
struct draw {
    const char *prompt;          /* UTF-8 */
    const char *negative_prompt; /* NULL: absent, which is not the same as "" in every family */
    enum dialect dialect;        /* of both prompts */
    int width, height;           /* pixels; 0: the model's own */
    int steps;                   /* 0: the model's */
    double guidance_scale;       /* at most 1 turns guidance off; negative: the model's */
    double guidance_rescale;     /* 0 … 1: how much of the prompt's own contrast is restored */
    double guidance_interval[2]; /* guidance only where low < sigma <= high; negative: always */
    struct freeu freeu;          /* all 0: none */
    enum sampler sampler;        /* SAMPLER_MODEL: the model's own scheduler file */
    enum schedule schedule;      /* SCHEDULE_MODEL: the model's own */
    double eta;                  /* ddim and tcd */
    enum rng_kind rng;           /* RNG_TORCH, as diffusers on a CPU; RNG_PHILOX, as A1111 */
    uint64_t seed;
    int clip_skip; /* diffusers' meaning */
    struct draw_adapter adapters[ENGINE_ADAPTERS_MAX];
    int adapter_count;
    struct draw_inversion inversions[ENGINE_INVERSIONS_MAX];
    int inversion_count;
    struct draw_control controls[ENGINE_CONTROLS_MAX];
    int control_count;
    const struct image *init_image; /* NULL: text to image; its size is then the picture's size */
    double strength;                /* with init_image, 0 … 1 */
    const struct image *mask;       /* of init_image's size; what is light is redrawn; or NULL */
    double image_guidance_scale;    /* of a model that follows instructions; negative: its own */
    /* What SDXL is told of the picture; negative: diffusers' default. */
    int original_size[2], target_size[2];             /* height, width; the picture's */
    int crop[2];                                      /* top, left; 0, 0 */
    double aesthetic_score, negative_aesthetic_score; /* of the refiner; 6 and 2.5 */
    struct model *refiner; /* NULL: none; else it draws the steps from `switch_at` on */
    double switch_at;      /* part of the noise schedule, 0 … 1 */
    struct draw_hires hires;
};
#define DRAW_INIT                                                                                  \
    {                                                                                              \
        .guidance_scale = -1, .guidance_interval = {-1, -1}, .strength = 0.8,                      \
        .original_size = {-1, -1}, .target_size = {-1, -1}, .crop = {-1, -1},                      \
        .image_guidance_scale = -1, .aesthetic_score = -1, .negative_aesthetic_score = -1,         \
        .hires = {                                                                                 \
            .strength = 0.7                                                                        \
        }                                                                                          \
    }

/* One named tensor on its way through: f32, row-major, `dims[0..rank)`. Borrowed for the call. */
struct stage {
    const char *name; /* "tokens", "prompt_embeds", "noise", "latents.0", "image", … */
    const float *data;
    int64_t dims[4];
    int rank;
};

/* Watches a session's stages. Called on the thread that computes; a non-zero return is ignored. */
struct stage_observer {
    void (*see)(void *user, const struct stage *stage);
    void *user;
};

/* Checks the request, encodes its text, draws its noise. `observer` may be NULL and is copied.
 * Errors: ERR_INVALID or ERR_LIMIT (ERR_REJECT) with the field's name; ERR_MEMORY (ERR_RETRY) when
 * the size does not fit, before anything is computed. */
int session_create(struct session **session, struct model *model, const struct draw *draw,
                   const struct stage_observer *observer, struct err *err) must_check;
void session_free(struct session *session);

/* What session_create would refuse of the request before it computes, but for memory. The model may
 * be an outline; of pictures only the size is looked at. */
int session_check(struct model *model, const struct draw *draw, struct err *err) must_check;

/* The model that takes the next step: with a refiner, the request's at first and then the refiner.
 */
struct model *session_model(const struct session *session);

int session_steps_total(const struct session *session);
int session_steps_left(const struct session *session);

/* The size of the next step; of the picture, once there are none left. */
int session_width(const struct session *session);
int session_height(const struct session *session);

/* Advances each of sessions[0..count) by one step. `model` takes the next step of all of them; they
 * share width and height and have steps left. On error no session has advanced. */
int engine_step(struct model *model, struct session *const sessions[], int count,
                struct err *err) must_check;

/* model_plan for these very sessions, of one model and size, with everything that adapts
 * or guides them at any step. */
int engine_plan(struct session *const sessions[], int count, size_t *bytes,
                struct err *err) must_check;

/* Decodes the latents into 8-bit RGB; the pixels are the caller's to release. Steps may be left. */
int session_decode(struct session *session, struct image *image, struct err *err) must_check;

/* Appends the whole state, portable between machines of one device class. A restored session ends
 * in the same bytes as one that was never saved. Restoring checks version, models and length;
 * `refiner` is the request's, or NULL. */
int session_save(const struct session *session, struct buf *out, struct err *err) must_check;
int session_restore(struct session **session, struct model *model, struct model *refiner,
                    const void *bytes, size_t len, const struct stage_observer *observer,
                    struct err *err) must_check;

#endif

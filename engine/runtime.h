/*
 * runtime.h: what engine.c, plan.c, session*.c, step.c, reading.c, decode.c, inversion.c and
 * measure.c share; nobody else includes it.
 *
 * The engine's lock is held by every function that computes, and given back only where a pass waits
 * for a card or a lane (lane.h): what lies between two passes is never seen half done. Loading a
 * model holds no lock, so that others are drawn with meanwhile: it adds weights, which are nobody's
 * yet, as far as the room allows that open sessions were not promised.
 */
#ifndef ATELIER_ENGINE_RUNTIME_H
#define ATELIER_ENGINE_RUNTIME_H

#include "common/fair_lock.h"
#include "engine/adaptation.h"
#include "engine/checkpoint.h"
#include "engine/clip.h"
#include "engine/conditioning.h"
#include "engine/control.h"
#include "engine/engine.h"
#include "engine/guidance.h"
#include "engine/lane.h"
#include "engine/rng.h"
#include "engine/text_cache.h"
#include "engine/tokenizer.h"
#include "engine/unet.h"
#include "engine/vae.h"

#include <pthread.h>

#define PLANS_MAX 64
#define LATENT_CHANNELS 4

struct engine {
    struct backend *backend;
    struct engine_info info;
    struct fair_lock lock; /* on a processor it is held for as long as a step takes */
    struct lane lanes[BACKEND_LANES_MAX];
    size_t memory_max_bytes;
    pthread_mutex_t counts_lock; /* of the next three; held for moments, also within `lock` */
    int sessions;                /* that are open */
    size_t promised_bytes;       /* the most, over the weights, that one of them was told it gets */
    struct model *models;        /* a list, newest first; left only within `lock`, too */
    struct profile *profile;     /* borrowed; NULL: nobody measures */
    uint64_t adaptation_clock;   /* see adaptation.h */
    void (*warn)(void *user, const char *message);
    void *user;
};

#define ENCODERS_MAX 2

struct reading;

/* WORK_TEXT + i is the model's encoder i. */
enum work { WORK_TEXT, WORK_TEXT_2, WORK_STEP, WORK_DECODE, WORK_ENCODE, WORK_HINT };

/* The arena that one kind of work needs at one shape. */
struct work_plan {
    enum work work;
    int rows, height, width; /* samples of a pass; latent pixels, or tokens by one */
    int tokens;              /* of each sample's text, in a step */
    uint64_t variant;        /* what sets it apart, see struct work_variant */
    size_t arena_bytes;
    size_t prepare_bytes; /* weights in further forms, made when it first runs */
    size_t weights_bytes; /* on the device when this was planned */
};

/* What sets some samples of a pass apart from the model's plain ones; each may be NULL. */
struct work_variant {
    const struct adapted_rows *adapted;
    const struct controlled_rows *controlled; /* WORK_STEP */
    const struct control *hinted;             /* WORK_HINT */
};

struct encoder {
    enum component component;
    struct tokenizer *tokenizer;
    struct clip clip;
};

struct model {
    struct engine *engine;
    struct model *next;
    struct checkpoint *checkpoint; /* stays open: weights are prepared from it when needed */
    struct encoder encoders[ENCODERS_MAX]; /* their embeddings side by side make the text's */
    int encoder_count, tokens;             /* of every prompt */
    bool zero_negative;                    /* an absent negative prompt is zeros, not "" */
    struct unet unet;
    struct vae vae;
    struct adapter *adapters; /* lists of what is loaded for it */
    struct adaptation *adaptations;
    struct text_cache texts;
    struct adapter_keys *adapter_keys; /* made for the first of them */
    struct control *controls;
    struct sampler_config sampler;
    struct model_info info;
    uint64_t fingerprint;
    struct work_plan plans[PLANS_MAX];
    int plan_count, plan_next;
};

/* What a pass begins with. */
enum start_kind {
    START_NOISE, /* or what the pass before it drew, under noise */
    START_IMAGE,
    START_INSTRUCTED, /* noise, and a picture that the network is told of */
    START_MASKED,     /* a picture of which a part is redrawn */
    START_KIND_COUNT
};

/* What the VAE makes of the pictures that a pass begins with; nothing of it is drawn from the
 * random stream yet. */
struct start {
    enum start_kind kind;
    bool whole;    /* masked, and nothing of the picture shines through the start noise */
    float *values; /* owned; the rest lies in it, and is NULL where nobody needs it */
    size_t value_count;
    float *image, *masked; /* 2 × a latent: mean and log variance, of all and of what is kept */
    float *mask;           /* of latent pixels, 1: redrawn */
};

#define SEQUELS_MAX 2 /* of a session: a second pass, and the refiner that ends it */

/* What a session goes on with when its model is through. */
struct sequel {
    struct model *model;          /* the refiner, or for a second pass the same */
    bool redraws;                 /* a second pass */
    int width, height;            /* pixels */
    enum enlargement enlargement; /* of a second pass, as are: */
    float *latents;               /* of its size, as latents_alloc makes them */
    struct session_controls controls;
    struct start start;
    struct conditioning conditioning;
    struct sampler_plan plan;
    int end; /* of the plan's calls; the next one takes over there */
    struct sequel *next;
};

struct session {
    struct model *model; /* that takes the next step */
    int width, height;   /* pixels */
    int latent_h, latent_w;
    struct guidance guidance;
    struct freeu freeu;
    struct conditioning conditioning;
    struct adaptation *adaptation; /* NULL: no adapters */
    struct session_controls controls;
    struct sampler_plan plan;
    struct sampler_state state;
    int end;               /* of the plan's calls; the sequel takes over there */
    int steps_before;      /* taken by the models before this one */
    int pass_before;       /* likewise, of this pass */
    struct sequel *sequel; /* NULL: there is none, or it has taken over */
    struct rng rng;
    size_t count;   /* of one latent tensor */
    float *latents; /* LATENT_CHANNELS × latent_h × latent_w; owned, the rest follows it */
    float *history; /* SAMPLER_HISTORY × count */
    float *noise;   /* count, scratch */
    float *extra;   /* extra_count; what a wider network reads beside the latents: mask and masked
                       picture, or the picture */
    size_t extra_count;
    bool blends;      /* a network that is told of no mask: what it keeps is put back each step */
    float *kept;      /* count; the picture's latents, then the noise that it started with */
    float *kept_mask; /* of latent pixels, 1: redrawn */
    struct stage_observer observer;
};

/* How something with weights is loaded, and what a failed try leaves released. */
struct loader {
    int (*load)(void *what, struct err *err);
    void (*release)(void *what); /* the lock is held */
};

/* Loads it into the room that open sessions were not promised; while it does not fit and something
 * is idle, that goes and it is tried again. `name` is for messages. The lock is not held. */
int load_within_budget(struct engine *engine, const struct loader *loader, void *what,
                       const char *name, struct err *err) must_check;

/* Finds or makes the plan; fails with ERR_MEMORY when the budget does not hold it. */
int work_plan_find(struct model *model, enum work work, int rows, int height, int width,
                   struct work_plan *plan, struct err *err) must_check;

/* The same for samples that see changed layers, and the pass that it is for. `adapted` may be NULL.
 */
int work_plan_find_adapted(struct model *model, enum work work, int rows, int height, int width,
                           const struct adapted_rows *adapted, struct work_plan *plan,
                           struct err *err) must_check;

/* The same of a step whose texts have so many tokens. */
int work_plan_find_step(struct model *model, int rows, int height, int width, int tokens,
                        const struct work_variant *variant, struct work_plan *plan,
                        struct err *err) must_check;

/* The same of what a control makes of a hint. */
int work_plan_find_hint(struct model *model, int height, int width, const struct control *control,
                        struct work_plan *plan, struct err *err) must_check;
void pass_adapt(struct pass *pass, const struct adapted_rows *adapted);

/* Whether the budget holds what all these plans prepare, and the largest arena of them. */
int work_plans_fit(const struct model *model, const struct work_plan *plans, int count,
                   struct err *err) must_check;

/* The type of such work's activations. */
enum dtype work_act(const struct model *model, enum work work);

/* The type of a model's activations in its UNet and what guides it. */
enum dtype model_act(const struct model *model);

/* Shows a stage to the session's observer, if there is one. */
void session_show(const struct session *session, const char *name, const float *data, int rank,
                  const int64_t *dims);

void session_show_latents(const struct session *session, const char *name, const float *data);

/* Memory for a session of this shape, without conditioning. */
int session_alloc(struct session **session, struct model *model, int width, int height, bool blends,
                  struct err *err) must_check;

/* Zeros for everything of a session that has the latents' size; the caller frees them. NULL: no
 * memory. */
float *latents_alloc(const struct model *model, int width, int height, bool blends) must_check;

/* From now on the session's picture has this size, and `latents` are its own. */
void session_set_size(struct session *session, int width, int height, float *latents);

/* The session's place is the first call of its plan. */
void session_begin(struct session *session);

/* How many calls of any model the session has made; the same of the pass that it is in. */
int session_calls_made(const struct session *session);
int session_pass_calls(const struct session *session);

/* ERR_INVALID for a field of the request. */
int session_refuse(struct err *err, const char *field, const char *problem);

/* ---- request.c ---- */

/* The request with the model's defaults, if the model can take it. */
int request_resolve(struct draw *draw, const struct model *model, struct err *err) must_check;

int request_check_size(const char *field, int size, struct err *err) must_check;

/* Whether a refiner draws any of it. */
bool request_is_refined(const struct draw *draw);

/* The request of what follows on the first pass: in the second one's size, if there is one. */
struct draw request_after(const struct draw *draw);

/* The plan of the request's calls of the model in its first and in its second pass, and that of the
 * whole refiner. */
int request_plan(struct sampler_plan *plan, const struct model *model, const struct draw *draw,
                 struct err *err) must_check;
int request_plan_second_pass(struct sampler_plan *plan, const struct model *model,
                             const struct draw *draw, struct err *err) must_check;
int request_plan_refiner(struct sampler_plan *plan, const struct draw *draw,
                         struct err *err) must_check;

/* Times in a prompt count the calls that the request's steps make, as a1111 counts them. */
int request_calls(const struct sampler_plan *plan, const struct draw *draw);

/* ---- session_sequel.c ---- */

/* Memory for one more sequel, without conditioning; the second pass comes before the refiner. */
int session_add_refiner(struct session *session, struct model *refiner, struct err *err) must_check;
int session_add_second_pass(struct session *session, const struct draw_hires *hires,
                            struct err *err) must_check;

/* Frees it and what follows it; the lock is held where it has controls. NULL is fine. */
void sequel_free(struct sequel *sequel);

/* Whether the request's second pass, whose sizes are good each by itself, can be drawn. */
int session_check_second_pass(const struct model *model, const struct draw *draw,
                              struct err *err) must_check;

/* Plans the sequels' calls, and parts the refiner's from those of the model before it. */
int session_plan_sequels(struct session *session, const struct draw *draw,
                         struct err *err) must_check;

/* What the second pass, if there is one, is told of pictures: the hints in its size, and what they
 * and its start become. In between memory is checked. The lock is held. */
int session_size_pictures(struct session *session, const struct draw *draw,
                          struct err *err) must_check;
int session_encode_pictures(struct session *session, const struct draw *draw,
                            struct err *err) must_check;

/* Where the plan has ended the sequel takes over, and the next one, if that has no call of its own.
 * The lock is held. */
void session_hand_over(struct session *session);

/* ---- session_text.c ---- */

/* Whether the model can take what the request says about its text. */
int session_check_text(const struct model *model, const struct draw *draw,
                       struct err *err) must_check;

/* Fills in the texts that a model's conditioning was laid out for, and the numbers beside them. The
 * lock is held. */
int session_encode_text(struct session *session, struct conditioning *conditioning,
                        const struct reading *reading, const struct draw *draw,
                        struct err *err) must_check;

/* ---- session_image.c ---- */

/* Whether the model can take the pictures of the request. */
int session_check_images(const struct model *model, const struct draw *draw,
                         struct err *err) must_check;

/* Whether the network is told of a mask, or follows instructions about a picture. */
bool model_inpaints(const struct model *model);
bool model_is_instructed(const struct model *model);

/* What the VAE makes of the request's pictures, which have its size; `count` latents' values where
 * nothing is read yet. The lock is held for the first one. On failure, too, start_release is due.
 */
int start_make(struct start *start, struct model *model, const struct draw *draw,
               struct err *err) must_check;
int start_alloc(struct start *start, const struct model *model, size_t count,
                struct err *err) must_check;
void start_release(struct start *start);

/* The latents that a pass starts from, and what the session keeps of its pictures. A pass that
 * redraws starts from the latents that there are, except where a mask keeps the picture. */
void session_start(struct session *session, const struct start *start, bool redraws);

/* A refiner blends with noise of its own. */
void session_renew_blend(struct session *session);

/* Puts back what a session keeps, as noisy as the next step wants it. */
void session_blend(struct session *session);

#endif

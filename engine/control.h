/*
 * control.h: the networks that guide a model by a picture, and what a session and a step have of
 * them. engine.h has their face.
 *
 * A control belongs to the model that it was loaded for. What it makes of a session's picture, its
 * hint, is the same at every step and is computed once: the embedding that a ControlNet begins
 * with, or all that a T2I-Adapter has to say. It lies in the back end's memory, and counts there as
 * weights do. What a ControlNet adds at a step depends on the sample alone: a step's samples are
 * cut into runs that one network guides, and each sample is added to in the order of its session's
 * list, whatever the others' are.
 *
 * The engine's lock is held by every caller but control_check's.
 */
#ifndef ATELIER_ENGINE_CONTROL_H
#define ATELIER_ENGINE_CONTROL_H

#include "engine/checkpoint.h"
#include "engine/controlnet.h"
#include "engine/engine.h"
#include "engine/t2i_adapter.h"

struct work_plan;
struct model;

enum control_kind { CONTROL_NET, CONTROL_T2I_ADAPTER };

struct control {
    struct model *model;
    struct control *next; /* of the model's */
    struct checkpoint *checkpoint;
    enum control_kind kind;
    struct controlnet net;      /* of its kind, else empty */
    struct t2i_adapter adapter; /* likewise */
    struct control_info info;
    uint64_t id;     /* never given twice */
    uint64_t digest; /* of the file; see control_digest */
    bool has_digest;
};

/* Of the file's bytes, computed when first asked for. */
uint64_t control_digest(struct control *control);

/* Unloads all of a model's. */
void model_unload_controls(struct model *model);

/* What it makes of a hint of h × w latents: as many tensors, and the shape of each. */
int control_made_count(const struct control *control);
struct tensor control_made(const struct control *control, int i, int h, int w);

/* A hint of so many latents, and what a ControlNet-Union is told of it. */
struct control_hint {
    const float *planes; /* 0 … 1; planning does not read them */
    int height, width;
    int mode;
    float scale; /* among several of one union; alone: 1 */
};

/* Makes it of a hint, `made` being tensors of those shapes. */
void control_forward(struct pass *pass, const struct control *control,
                     const struct control_hint *hint, struct tensor *made);

/* ---- of a session: session_control.c ---- */

struct session_control {
    struct control *control;
    struct image hint;                  /* as large as the session's picture; owned */
    struct tensor made[T2I_BLOCKS_MAX]; /* of the hint; owned, in the back end's memory */
    double scale, start, end;
    bool guess;
    int mode;    /* of a ControlNet-Union's; else as it was given */
    int members; /* entries that its network's pass sees: itself; of a union all that name it for
                    the first of these, 0 for the others */
};

/* All that guide one pass, in the size that it draws. */
struct session_controls {
    struct model *model; /* whose back end's memory they lie in */
    int width, height;   /* pixels */
    int count;
    struct session_control items[ENGINE_CONTROLS_MAX];
};

/* Whether the request's can be drawn with. */
int control_check(const struct model *model, const struct draw *draw, struct err *err) must_check;

/* The request's in its width and height, each with its hint in size and room for its embedding; on
 * failure, too, session_controls_release is due. */
int session_controls_init(struct session_controls *controls, struct model *model,
                          const struct draw *draw, struct err *err) must_check;

/* The largest plan of the hints' embedding; none with no control. */
int session_controls_plan(const struct session_controls *controls, struct work_plan *plan,
                          struct err *err) must_check;

/* Computes the embeddings. */
int session_controls_embed(struct session_controls *controls, struct err *err) must_check;
void session_controls_release(struct session_controls *controls);

/* A control in a saved session; its hint's pixels follow all of them. */
struct saved_control {
    uint64_t digest; /* of the file */
    double scale, start, end;
    int32_t guess, mode;
    char name[64]; /* of the file, cut, for messages */
};

/* Bytes of so many controls of a pass of this size in a saved session. */
size_t session_controls_bytes(int width, int height, int count);
void session_controls_save(const struct session_controls *controls, struct buf *out);

/* `count` of them for a pass of this size, out of what is loaded for the model. Errors:
 * ERR_NOT_FOUND (ERR_RETRY) for one that is not, or whose file is another one. On failure, too,
 * session_controls_release is due. */
int session_controls_restore(struct session_controls *controls, struct model *model, int width,
                             int height, const char *saved, int count, struct err *err) must_check;

/* ---- of a step ---- */

/* What ControlNets add to which samples, in order, and the maps of T2I-Adapters. */
struct controlled_rows {
    const struct control **controls;   /* [count] */
    int *rows;                         /* [count]: the sample of the pass */
    struct controlnet_sample *samples; /* [count] */
    int count;
    uint64_t id; /* of this sequence; 0: it is empty */
    struct unet_feature *features;
    int feature_count;
};

/* A sample of a pass: a row of a session, and what guides it: what the session has now, or what its
 * second pass will have. */
struct guided_row {
    const struct session *session;
    const struct session_controls *controls;
    int row;
};

enum controlled { CONTROLLED_NOW, CONTROLLED_EVER }; /* only those of the next step, or all */

/* For a pass over these samples. */
int controlled_rows_make(struct controlled_rows *rows, const struct guided_row *given, int count,
                         enum controlled which, struct err *err) must_check;
void controlled_rows_release(struct controlled_rows *rows);

/* unet_encode, what the controls add, unet_decode. `rows` may be NULL. */
void controlled_forward(struct pass *pass, const struct unet *unet, const struct unet_input *input,
                        const struct controlled_rows *rows, struct tensor *y);

#endif

/*
 * backend.h: the operators that models are written over, and the devices that run them.
 *
 * A back end is a table of functions; every back end implements every entry, and several can be
 * linked and opened at once, so that tests hold one against another. A pass is one run of a
 * network: it hands out activations from an arena and carries the first error, after which every
 * operator is a no-op. In a planning pass tensors have addresses but no memory, and operators only
 * take and give the scratch that they would use: the forward function that computes is also the one
 * that plans.
 *
 *     struct tensor y = pass_tensor(pass, x->n, x->h, x->w, conv->out);
 *     op_conv2d(pass, &(struct conv2d){.conv = conv, .x = x, .y = &y});
 *     pass_drop(pass, &y);
 *
 * Determinism: what an operator computes for one sample of a batch is the same whatever the other
 * samples are and however many. All accumulate in f32 or wider.
 *
 * A pass is used by one thread; back ends use threads of their own inside an operator. A device
 * that computes several passes beside each other has as many lanes, and a pass has one of them to
 * itself.
 */
#ifndef ATELIER_ENGINE_BACKEND_H
#define ATELIER_ENGINE_BACKEND_H

#include "common/err.h"
#include "engine/arena.h"
#include "engine/measure.h"
#include "engine/tensor.h"

#include <stdbool.h>

struct backend;
struct pass;
struct weight; /* a matrix or a filter as its back end keeps it */

/* ---- parameters, bound once at load ---- */

struct linear {
    struct weight *weight; /* out × in */
    const float *bias;     /* [out] in the back end's memory, or NULL */
    int in, out;           /* with ACT_GEGLU y has out / 2 columns */
    int slot;              /* of its network's layers, from 1; 0: nothing ever changes it */
};

struct conv {
    struct weight *weight; /* out × kernel × kernel × in */
    const float *bias;     /* [out], or NULL */
    int in, out;
    int kernel; /* 1 or 3 */
    int stride; /* 1 or 2 */
    int slot;   /* as in struct linear */
};

struct norm {
    const float *gamma, *beta; /* [channels] */
    int channels;
    int groups; /* of a group norm */
    float eps;
};

struct embedding {
    struct weight *table; /* rows × columns, kept as the file has it */
    int rows, columns;
    struct stored_table {
        const void *data; /* the same on the host, as long as the checkpoint */
        enum dtype dtype;
    } stored;
};

/* One tensor of a file; several are stacked along `out` (fused query, key and value). */
struct weight_part {
    const void *data; /* out × in × kernel × kernel, as torch stores it; of filters and tables
                         borrowed until weight_free, since other forms are made when first needed;
                         of matrices for the call */
    enum dtype dtype;
    int out;
};

struct weight_spec {
    const struct weight_part *parts;
    int part_count;
    int in;
    int kernel;  /* 1: a matrix */
    bool geglu;  /* rows [0, out/2) are values, [out/2, out) their gates */
    bool lookup; /* an embedding's table: only op_embed reads it */
    bool exact;  /* products in f32 whatever the back end computes in: the text encoder's */
    bool wide;   /* bf16 where the back end computes in f16, whose range the network leaves */
};

/* ---- operators' arguments; optional inputs are NULL or zero ---- */

enum activation { ACT_NONE, ACT_SILU, ACT_GELU, ACT_QUICK_GELU, ACT_GEGLU };

/* What a group norm became for one batch: x·scale + shift per sample and channel. */
struct affine {
    float *scale, *shift; /* [n × c] in the arena */
    bool silu;            /* apply SiLU after it */
};

/* Filters with fewer channels than this on either side cost little and see the latents or make the
 * picture: their products are in f32 whatever the back end computes in. */
#define CONV_NARROW 16

/* The type that a weight of `out` rows and what it is multiplied with are rounded to; a table's is
 * its own. */
enum dtype weight_compute(const struct backend *backend, const struct weight_spec *spec, int out);

/* What an operator adds to its products, before all else: (scale ⊙ t) · upᵀ. */
struct addition {
    const struct tensor *t;  /* like y with up->in columns, f32 */
    const struct linear *up; /* out × rank, without a bias */
    const float *scale;      /* [rank] in the back end's memory */
};

#define ADDITIONS_MAX 16

/* y = conv(pre(x)) + additions + bias + time + residual. Padding is kernel / 2, or only below and
 * right. */
struct conv2d {
    const struct conv *conv;
    const struct tensor *x;        /* n × h × w × in */
    struct tensor *y;              /* n × h' × w' × out; its dtype is free */
    const struct affine *pre;      /* optional: applied to x as it is read; padding stays zero */
    const struct tensor *time;     /* optional: n × 1 × 1 × out, f32, added to every pixel */
    const struct tensor *residual; /* optional: like y */
    bool upsample;                 /* x is read at twice its size (or one less), nearest */
    bool pad_end_only;             /* stride 2: pad (0, 1, 0, 1), as the VAE encoder does */
    const struct addition *additions;
    int addition_count;
};

/* y = act(pre(x) · Wᵀ + additions + bias) + residual, row by row. */
struct matmul {
    const struct linear *linear;
    const struct tensor *x;   /* rows × in */
    struct tensor *y;         /* rows × out; its dtype is free */
    const struct affine *pre; /* optional */
    enum activation act;
    const struct tensor *residual; /* optional: like y */
    const struct addition *additions;
    int addition_count;
};

/* y = softmax(scale · q kᵀ) v, head by head; scores are never stored whole. */
struct attention {
    const struct tensor *q; /* n × 1 × tq × heads·d */
    const struct tensor *k; /* n × 1 × tk × heads·d */
    const struct tensor *v; /* like k */
    struct tensor *y;       /* like q */
    int heads;
    float scale;
    bool causal;
};

struct backend_ops {
    const char *name;

    /* Fails with ERR_MEMORY (ERR_RETRY). The result lives until weight_free. */
    int (*weight_create)(struct backend *backend, const struct weight_spec *spec,
                         struct weight **weight, struct err *err);
    void (*weight_free)(struct backend *backend, struct weight *weight);
    size_t (*weight_bytes)(const struct weight *weight);

    /* Device memory for arenas and vectors, 64-byte aligned; NULL when there is none. */
    void *(*memory_alloc)(struct backend *backend, size_t bytes);
    void (*memory_free)(struct backend *backend, void *memory, size_t bytes);

    /* Between host f32 in planes (n × c × h × w) and a channels-last tensor of any dtype. */
    void (*upload)(struct pass *pass, struct tensor *y, const float *planes);
    void (*download)(struct pass *pass, float *planes, const struct tensor *x);
    void (*vector_upload)(struct backend *backend, float *dst, const float *src, size_t count);
    /* Memory that a vector takes, where the back end keeps it in other types behind its values.
     * NULL: the values alone. */
    size_t (*vector_bytes)(size_t count);

    /* Forgets what an earlier pass of the lane asked for and never fetched. NULL: nothing is ever
     * left over. */
    void (*begin)(struct pass *pass);

    void (*conv2d)(struct pass *pass, const struct conv2d *args);
    void (*matmul)(struct pass *pass, const struct matmul *args);
    void (*attention)(struct pass *pass, const struct attention *args);
    void (*group_norm)(struct pass *pass, const struct tensor *x, const struct norm *norm,
                       struct affine *out);
    void (*layer_norm)(struct pass *pass, const struct tensor *x, const struct norm *norm,
                       struct tensor *y);
    void (*concat)(struct pass *pass, const struct tensor *a, const struct tensor *b,
                   struct tensor *y);
    void (*silu)(struct pass *pass, const struct tensor *x, struct tensor *y);
    void (*add)(struct pass *pass, const struct tensor *x, float scale, struct tensor *y);
    /* The lowest frequencies of one sample's channels times `by`; freeu.h has the formula. */
    void (*damp)(struct pass *pass, struct tensor *x, float by);
    void (*mean)(struct pass *pass, const struct tensor *x, struct tensor *y);
    /* y[i] = tokens[ids[i]] + positions[i mod y->w]; ids are on the host. */
    void (*embed)(struct pass *pass, const int *ids, const struct embedding *tokens,
                  const struct embedding *positions, struct tensor *y);

    /* Why the device can do nothing more, or NULL. NULL: it never fails. */
    const char *(*failure)(const struct backend *backend);

    /* Returns when everything asked for so far is done; only measurements need to know. */
    void (*finish)(struct pass *pass);

    void (*destroy)(struct backend *backend);
};

/* How 3×3 convolutions are computed; anything but CONV_BY_TABLE is for tests and measurements. */
enum conv_algorithm { CONV_BY_TABLE, CONV_GEMM, CONV_WINOGRAD, CONV_DIRECT };

#define BACKEND_LANES_MAX 2

#define CPU_STEP_PIXELS 16384 /* four rows of 512×512, or one of 1024×1024 */
#define CPU_BATCH_PIXELS (512 * 512)

struct backend {
    const struct backend_ops *ops;
    enum dtype compute; /* type of activations and of matrix products' inputs */
    const char *isa;
    const char *device;  /* its name; NULL: the processor */
    const char *warning; /* what its user should know; NULL: nothing */
    size_t memory_bytes; /* free on the device when it was opened; 0: the machine's memory */
    bool outline;        /* keeps no weights: nothing can be computed */
    bool native_bf16;    /* bf16 products are faster than f32 ones here */
    int threads;
    int lanes; /* passes that are computed beside each other: 1, or more up to BACKEND_LANES_MAX */
    /* Called by a pass around each wait for the device, so that its caller can let others in. NULL:
     * nobody is let in. Not called by back ends of one lane. */
    void (*wait_begin)(void *user);
    void (*wait_end)(void *user);
    void *wait_user;
    enum conv_algorithm conv;
    int step_pixels_max; /* latent pixels of one pass of a step: enough to fill the device; what has
                            more runs in several passes, and no picture depends on it */
    int batch_pixels; /* of the pictures that step together: fewer do not fill the device, more only
                         wait longer for each other */
    size_t memory_max_bytes;          /* what its engine may use, set before the first model is
                                         loaded; 0: anything */
    _Atomic int computing;            /* steps and decodings under way */
    _Atomic size_t weights_bytes;     /* of all live weights and vectors */
    _Atomic size_t weights_max_bytes; /* beyond it the binding of a model fails; 0: no limit */
};

/* Of memory for vector_upload. */
size_t vector_bytes(const struct backend *backend, size_t count);

/* ---- layers that some samples see changed ---- */

/* A low-rank addition to a layer: (scale ⊙ (pre(x) · downᵀ)) · upᵀ. */
struct branch {
    struct linear down;      /* rank × in, of a matrix */
    struct conv down_filter; /* rank × in × kernel × kernel, of a filter; kernel is 0 otherwise */
    struct linear up;        /* out × rank */
};

/* A layer as some samples see it. */
struct change {
    const struct linear *linear; /* in place of the model's own; NULL: that one */
    const struct conv *conv;     /* the same of a filter */
    int branch_count;            /* at most ADDITIONS_MAX */
    struct {
        const struct branch *branch;
        const float *scale; /* [rank] in the back end's memory */
    } branches[];
};

/* The next samples of a pass, and what they see of the layers, by slot - 1: NULL where a layer is
 * as it was loaded. `changes` NULL: so are all. */
struct pass_run {
    int samples;
    const struct change *const *changes;
};

/* ---- a run ---- */

struct pass {
    struct backend *backend;
    struct arena *arena;
    int lane; /* of the back end's */
    bool planning;
    enum dtype act;       /* type that pass_tensor gives */
    size_t prepare_bytes; /* of weights in forms that this plan needs and that are not made yet */
    bool failed;
    const struct pass_run *runs; /* all samples, in order; borrowed. None: no layer is changed */
    int run_count;
    struct profile *profile; /* NULL: nobody measures */
    struct err *err;
};

/* Starts a pass in a lane, over the lane's arena; `err` is where its first failure goes. */
struct pass pass_begin(struct backend *backend, int lane, struct arena *arena, enum dtype act,
                       struct err *err);

/* Starts a planning pass, which needs no lane. */
struct pass pass_plan(struct backend *backend, struct arena *arena, enum dtype act,
                      struct err *err);

/* An activation of the pass's type. When the arena is full the pass fails. */
struct tensor pass_tensor(struct pass *pass, int n, int h, int w, int c);
struct tensor pass_tensor_of(struct pass *pass, enum dtype dtype, int n, int h, int w, int c);
void pass_drop(struct pass *pass, struct tensor *t);

/* Scratch for one operator; back ends use it, models do not. NULL once the pass has failed. */
void *pass_scratch(struct pass *pass, size_t bytes);
void pass_scratch_drop(struct pass *pass, void *memory);

/* Records the first failure; returns false so that callers can stop. */
bool pass_fail(struct pass *pass, enum err_code code, enum err_class class, const char *message);

void op_upload(struct pass *pass, struct tensor *y, const float *planes);
void op_download(struct pass *pass, float *planes, const struct tensor *x);
void op_conv2d(struct pass *pass, const struct conv2d *args);
void op_matmul(struct pass *pass, const struct matmul *args);
/* The same for samples whose layer is changed; for op_conv2d and op_matmul. */
bool pass_changes(const struct pass *pass, int slot);
void changed_conv2d(struct pass *pass, const struct conv2d *args);
void changed_matmul(struct pass *pass, const struct matmul *args);
void op_attention(struct pass *pass, const struct attention *args);
/* The caller drops the result with affine_drop. */
struct affine op_group_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                            bool silu);
void affine_drop(struct pass *pass, struct affine *affine);
void op_layer_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                   struct tensor *y);
void op_concat(struct pass *pass, const struct tensor *a, const struct tensor *b, struct tensor *y);
/* y = silu(x), which most operators do on their way; y may be x. */
void op_silu(struct pass *pass, const struct tensor *x, struct tensor *y);
/* y += scale · x, in f32, rounded once. A single pixel of x is added to all of y's. */
void op_add(struct pass *pass, const struct tensor *x, float scale, struct tensor *y);
/* In place, of one sample; in f32 until it is stored. */
void op_damp(struct pass *pass, struct tensor *x, float by);
/* y, n × 1 × 1 × c, is the mean of each sample's pixels. */
void op_mean(struct pass *pass, const struct tensor *x, struct tensor *y);
void op_embed(struct pass *pass, const int *ids, const struct embedding *tokens,
              const struct embedding *positions, struct tensor *y);

/* ---- devices ---- */

struct backend_options {
    enum dtype compute;
    int card;        /* of a device with several, from 0 */
    const char *isa; /* "auto" or a name */
    int threads;
    bool weights_16bit;
    enum conv_algorithm conv;
};

/* Each fails with ERR_UNSUPPORTED when this machine or build lacks it. A build has what CMake's
 * options say: cuda (or its kernels run on the host, in tests), dnnl, always ref. */
int backend_ref_open(struct backend **backend, const struct backend_options *options,
                     struct err *err) must_check;
int backend_dnnl_open(struct backend **backend, const struct backend_options *options,
                      struct err *err) must_check;
/* Without operators: models are bound to it, and that is all. */
int backend_outline_open(struct backend **backend, struct err *err) must_check;
/* ERR_DEVICE: there is no card. */
int backend_cuda_open(struct backend **backend, const struct backend_options *options,
                      struct err *err) must_check;
int backend_cuda_cards(void); /* how many there are to open */

#endif

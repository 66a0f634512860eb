/*
 * adapter.h: an adapter's file, read for one model; engine.h has its face.
 *
 * A delta is what the file says of one matrix or filter, a group the deltas of one layer, which may
 * be a stack of several (query, key and value). Low-rank groups become a branch beside the layer;
 * the others (LoHa, LoKr, DoRA, full differences) change a copy of it, see adaptation.h.
 *
 * Tensors point into the mapped file; an adapter owns that, its branches and its list. The engine's
 * lock is held by whoever creates and frees one.
 */
#ifndef ATELIER_ENGINE_ADAPTER_H
#define ATELIER_ENGINE_ADAPTER_H

#include "engine/adapter_keys.h"
#include "engine/bind.h"
#include "engine/engine.h"

#define ADAPTER_RANK_MAX 8192

enum delta_kind { DELTA_LOW_RANK, DELTA_LOHA, DELTA_LOKR, DELTA_DIFF };

struct delta {
    enum component component;
    const struct target *target;
    enum delta_kind kind;
    const struct stored_tensor *tensors[ADAPTER_ROLE_COUNT]; /* NULL: not in the file */
    int rank;                                                /* 0: of a full difference */
    double scale;                                            /* of the product: alpha / rank */
};

struct delta_group {
    enum component component;
    int slot;
    int first, count;     /* deltas */
    bool has_branch;      /* else a copy of the layer is changed */
    struct branch branch; /* columns of `up` in the order of the deltas */
};

struct adapter {
    struct model *model;
    struct adapter *next; /* of the model's */
    struct tensor_file *file;
    struct delta *deltas; /* by component, slot and part */
    struct delta_group *groups;
    int delta_count, group_count;
    struct parameters parameters; /* of the branches */
    float **filters;              /* host memory of composed filters, which stay borrowed */
    int filter_count;
    struct adapter_info info;
    uint64_t digest; /* of the file; see adapter_digest */
    bool has_digest;
};

/* Of the file's bytes, computed when first asked for. */
uint64_t adapter_digest(struct adapter *adapter);

/* The network of a component, or NULL. */
const struct parameters *model_parameters(const struct model *model, enum component component);

/* Unloads all of a model's. */
void model_unload_adapters(struct model *model);

/* ---- adapter_delta.c ---- */

/* Checks the shapes against the target and sets kind, rank and scale. `alpha` counts where the file
 * has none for the layer; negative: the rank. Errors name file and key. */
int delta_check(struct delta *delta, const char *path, double alpha, struct err *err) must_check;

/* w += scale · the difference, without DoRA; w: out × in × kernel × kernel. -1: no memory. */
int delta_add(const struct delta *delta, double scale, float *w) must_check;

/* w becomes what the layer is with this one delta at `scale`: with DoRA as peft has it, the
 * magnitudes over w + difference. -1: no memory. */
int delta_apply(const struct delta *delta, double scale, float *w) must_check;

/* mid ∘ down as one filter: rank × in × kernel × kernel. */
void delta_compose(const struct delta *delta, float *filter);

/* A scalar of any number type. */
bool scalar_read(const struct stored_tensor *tensor, double *value);

#endif

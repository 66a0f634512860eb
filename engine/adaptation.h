/*
 * adaptation.h: what a combination of adapters with scales makes of a model's layers.
 *
 * Sessions that ask for the same combination share one. Low-rank groups stay branches beside the
 * pristine layer; a layer that any other kind of delta touches is copied, with all deltas of the
 * combination in it. Nothing of the model itself is ever written. A combination that holds copies
 * is kept when its last session goes, the one that was idle longest dropped when the memory budget
 * asks for it; one without copies costs nothing to make again.
 *
 * Which layers are copied depends on the adapters alone, never on the batch, on memory or on what
 * was drawn before: a picture's bytes are the same in any company.
 *
 * The engine's lock is held by every caller.
 */
#ifndef ATELIER_ENGINE_ADAPTATION_H
#define ATELIER_ENGINE_ADAPTATION_H

#include "engine/adapter.h"

struct adaptation;

/* The combination; NULL where `count` is 0. Errors: ERR_INVALID for an adapter of another model,
 * ERR_MEMORY (ERR_RETRY) when the budget does not hold the copies. */
int adaptation_acquire(struct adaptation **adaptation, struct model *model,
                       const struct draw_adapter *adapters, int count, struct err *err) must_check;
void adaptation_release(struct adaptation *adaptation); /* NULL is fine */

/* A combination's adapter in a saved session. */
struct saved_adapter {
    uint64_t digest; /* of the file */
    double scale;
    char name[64]; /* of the file, cut, for messages */
};

/* Writes what the combination was asked for, the rest as zeros; returns how many. */
int adaptation_save(const struct adaptation *adaptation,
                    struct saved_adapter saved[ENGINE_ADAPTERS_MAX]);

/* The same combination out of what is loaded for the model. Errors: ERR_NOT_FOUND (ERR_RETRY) for
 * an adapter that is not, or whose file is another one, and what adaptation_acquire says. */
int adaptation_restore(struct adaptation **adaptation, struct model *model,
                       const struct saved_adapter *saved, int count, struct err *err) must_check;

/* Drops idle combinations that hold the adapter, or, with NULL, all of the model's. */
void adaptations_forget(struct model *model, const struct adapter *adapter);

/* Drops the idle combination that was used longest ago, of any model. False: there is none. */
bool adaptations_evict(struct engine *engine);

/* The samples of a pass and what each sees of one network. */
#define ADAPTED_RUNS_MAX (2 * ENGINE_SESSIONS_MAX)

struct adapted_rows {
    struct pass_run runs[ADAPTED_RUNS_MAX];
    int count;
    bool changed; /* any of them */
    uint64_t id;  /* of this sequence of combinations; 0: nothing is changed */
};

/* The next `samples` see the combination's changes, none with NULL. */
void adapted_rows_add(struct adapted_rows *rows, const struct adaptation *adaptation,
                      enum component component, int samples);

#endif

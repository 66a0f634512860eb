/* trial.h: one operator by itself, on an arena of its own, for measurements. The engine's lock is
 * held. */
#ifndef ATELIER_ENGINE_TRIAL_H
#define ATELIER_ENGINE_TRIAL_H

#include "engine/backend.h"

struct trial {
    struct backend *backend;
    struct arena arena;
    struct pass pass;
    void *memory;
    size_t bytes;
};

/* The pass computes in the back end's type. ERR_MEMORY. */
int trial_begin(struct trial *trial, struct backend *backend, size_t bytes,
                struct err *err) must_check;
void trial_end(struct trial *trial);

/* Values in -1 … 1, for the caller to free; zeros would flatter some devices. NULL: no memory. */
float *trial_values(size_t count);

double trial_now(void); /* seconds */

#endif

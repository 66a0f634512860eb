/*
 * store_dir.h: a local directory as object store: DIR/results and DIR/checkpoints as store.h has
 * them, and DIR/.lock, held by the one process that uses DIR.
 *
 * Objects are created only if absent and never show half-written. Putting may happen on another
 * thread than the rest.
 */
#ifndef ATELIER_WORKER_STORE_DIR_H
#define ATELIER_WORKER_STORE_DIR_H

#include "common/err.h"
#include "common/file.h"
#include "worker/store.h"

struct store_dir {
    char root[FILE_PATH_MAX_BYTES];
    char results[FILE_PATH_MAX_BYTES];
    int lock_fd; /* -1 when closed */
};

/* Makes the directory where it is missing, checks that it can be written and locks it. Errors name
 * the directory: a file in its place, no permission, in use by another process (ERR_CONFLICT). */
int store_dir_open(struct store_dir *store, const char *root, struct err *err) must_check;
void store_dir_close(struct store_dir *store);

/* The directory as a store; borrows it. Beginning a job removes what a killed run may have left in
 * its folder, and sweeping one without a manifest removes the folder: nobody else is at work here.
 */
struct store store_dir_store(struct store_dir *store);

/* Removes temporary files that a killed run left in DIR itself. */
void store_dir_sweep_root(const struct store_dir *store);

#endif

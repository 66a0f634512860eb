/*
 * store_dir.h: a local directory as object store.
 *
 *     DIR/results/<id>/<index>-<sha256>.<ext>     the pictures
 *     DIR/results/<id>/manifest.json              written last: the job is done
 *     DIR/.lock                                   held by the one process that uses DIR
 *
 * Objects are created only if absent and never show half-written. Putting may happen on another
 * thread than the rest.
 */
#ifndef ATELIER_WORKER_STORE_DIR_H
#define ATELIER_WORKER_STORE_DIR_H

#include "common/buf.h"
#include "common/err.h"
#include "common/file.h"

#include <stdbool.h>
#include <stddef.h>

struct store_dir {
    char root[FILE_PATH_MAX_BYTES];
    char results[FILE_PATH_MAX_BYTES];
    int lock_fd; /* -1 when closed */
};

/* Makes the directory where it is missing, checks that it can be written and locks it. Errors name
 * the directory: a file in its place, no permission, in use by another process (ERR_CONFLICT). */
int store_dir_open(struct store_dir *store, const char *root, struct err *err) must_check;
void store_dir_close(struct store_dir *store);

/* Whether the job is done: its manifest is there. */
bool store_dir_is_done(const struct store_dir *store, const char *id);

/* Reads the manifest. */
int store_dir_manifest(const struct store_dir *store, const char *id, struct buf *out,
                       struct err *err) must_check;

/* Begins a job: makes its folder and removes what a killed run may have left in it. */
int store_dir_begin(const struct store_dir *store, const char *id, struct err *err) must_check;

/* Puts one object of a job that was begun. The name holds the content's hash, so that one that
 * exists already has the same bytes and is fine. */
int store_dir_put(const struct store_dir *store, const char *id, const char *name,
                  const void *bytes, size_t len, struct err *err) must_check;

/* Puts the manifest. ERR_CONFLICT when there is one: another attempt was first and its result
 * stands. */
int store_dir_finish(const struct store_dir *store, const char *id, const void *bytes, size_t len,
                     struct err *err) must_check;

/* Removes a job's folder if it has no manifest. */
void store_dir_sweep(const struct store_dir *store, const char *id);

/* Removes temporary files that a killed run left in DIR itself. */
void store_dir_sweep_root(const struct store_dir *store);

#endif

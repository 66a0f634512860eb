/*
 * store.h: where results and checkpoints are kept: a local directory (store_dir.h) or an object
 * store (store_s3.h), behind one table.
 *
 *     results/<id>/<index>-<sha256>.<ext>     the pictures, created only if absent
 *     results/<id>/manifest.json              written last, only if absent: the job is done
 *     checkpoints/<id>/<name>                 blobs of jobs that are not done; replaced freely
 *
 * The manifest is the moment of truth: whoever creates it has done the job, everybody else adopts
 * it. A `struct store` is borrowed from what it stands for and is copied freely. Which threads may
 * call is the implementation's to say.
 */
#ifndef ATELIER_WORKER_STORE_H
#define ATELIER_WORKER_STORE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>

#define STORE_BLOB_MAX_BYTES ((size_t)1 << 30)

/* Each implementation fills in all of it; the functions below say what is meant. */
struct store_ops {
    int (*is_done)(void *context, const char *id, bool *done, struct err *err);
    int (*manifest)(void *context, const char *id, struct buf *out, struct err *err);
    int (*begin)(void *context, const char *id, struct err *err);
    int (*put)(void *context, const char *id, const char *name, const void *bytes, size_t len,
               struct err *err);
    int (*finish)(void *context, const char *id, const void *bytes, size_t len, struct err *err);
    int (*sweep)(void *context, const char *id, struct err *err);
    int (*put_blob)(void *context, const char *id, const char *name, const void *bytes, size_t len,
                    struct err *err);
    int (*get_blob)(void *context, const char *id, const char *name, struct buf *out,
                    struct err *err);
    int (*remove_blob)(void *context, const char *id, const char *name, struct err *err);
    int (*clear)(void *context, const char *id, struct err *err);
};

struct store {
    const struct store_ops *ops;
    void *context;
};

/* Whether the job is done: its manifest is there. */
int store_is_done(const struct store *store, const char *id, bool *done,
                  struct err *err) must_check;

/* Appends the manifest. ERR_NOT_FOUND (ERR_REJECT) where there is none. */
int store_manifest(const struct store *store, const char *id, struct buf *out,
                   struct err *err) must_check;

/* Begins a job, before anything is put. */
int store_begin(const struct store *store, const char *id, struct err *err) must_check;

/* Puts one object of a job that was begun. The name holds the content's hash, so that one that
 * exists already has the same bytes and is fine. */
int store_put(const struct store *store, const char *id, const char *name, const void *bytes,
              size_t len, struct err *err) must_check;

/* Puts the manifest. ERR_CONFLICT when there is another: another attempt was first and its result
 * stands. */
int store_finish(const struct store *store, const char *id, const void *bytes, size_t len,
                 struct err *err) must_check;

/* Removes of the job what no manifest names and none can name any more. A failure leaves objects
 * that nobody sees; it spoils nothing. */
int store_sweep(const struct store *store, const char *id, struct err *err) must_check;

/* Checkpoints. One that is not there: get is ERR_NOT_FOUND (ERR_REJECT), remove is fine. */
int store_put_blob(const struct store *store, const char *id, const char *name, const void *bytes,
                   size_t len, struct err *err) must_check;
int store_get_blob(const struct store *store, const char *id, const char *name, struct buf *out,
                   struct err *err) must_check;
int store_remove_blob(const struct store *store, const char *id, const char *name,
                      struct err *err) must_check;

/* Removes what is left of a job that has ended and that nobody draws any more: its checkpoints, and
 * the pictures that no manifest names, all of them where there is none. */
int store_clear(const struct store *store, const char *id, struct err *err) must_check;

#endif

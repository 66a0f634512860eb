/*
 * manifest.h: the record of a job that is done: results/<id>/manifest.json, the moment of truth.
 *
 * The writer borrows everything. The reader owns the parsed text that its strings point into.
 */
#ifndef ATELIER_SCHEMA_MANIFEST_H
#define ATELIER_SCHEMA_MANIFEST_H

#include "common/buf.h"
#include "common/err.h"
#include "schema/job.h"

#include <stdint.h>

#define MANIFEST_VERSION 1
#define MANIFEST_NAME "manifest.json"
#define MANIFEST_MAX_BYTES (4u << 20)
#define MANIFEST_FILE_NAME_BYTES 96 /* "<index>-<sha256>.<ext>" */

/* One picture. */
struct manifest_file {
    char name[MANIFEST_FILE_NAME_BYTES]; /* within the job's folder */
    char sha256[65];                     /* of the file's bytes, hexadecimal */
    uint64_t bytes;
    uint64_t seed; /* the picture's own */
    int width, height;
};

/* Seconds of each stage, summed over the job's pictures; waiting between stages is in `total`. */
struct manifest_times {
    double prepare_s; /* inputs, text encoding, noise; loading a model is not in it */
    double compute_s; /* the job's share of the steps it was batched in, and decoding */
    double publish_s; /* encoding and writing */
    double total_s;   /* from assignment to publication */
};

struct manifest {
    const char *id;
    const char *batch; /* or NULL */
    const char *tenant;
    const char *request; /* canonical JSON, the model's defaults filled in */
    uint64_t content;    /* of the request as submitted: job.content */
    const struct manifest_file *files;
    size_t file_count;
    const char *device_class; /* "cpu" */
    const char *processor, *backend, *isa, *precision;
    const char *model_family;
    const char *engine_version;
    int attempt;
    const char *traceparent;         /* W3C trace context, or NULL */
    int64_t started_ns, finished_ns; /* wall clock */
    struct manifest_times times;
    double predicted_s; /* compute seconds; negative: unknown */
    double actual_s;
    double predicted_price; /* money; not above 0: unknown. The actual one follows from the times */
};

void manifest_write(const struct manifest *manifest, struct buf *out);

struct json;
struct json_doc;

/* What a reader of a finished job wants to know. Strings live as long as `doc`. */
struct manifest_view {
    struct json_doc *doc;
    const struct json *request;
    const struct json *files; /* array of objects as written */
    const char *id;
    uint64_t content;
    double total_s;
};

/* Parses a manifest; the view is the caller's to release. Errors: ERR_FORMAT (ERR_REJECT). */
int manifest_read(struct manifest_view *view, const char *text, size_t len,
                  struct err *err) must_check;
void manifest_view_release(struct manifest_view *view);

/* The files of a manifest that was read: at most `count` of them. Returns how many there are. */
size_t manifest_view_files(const struct manifest_view *view, struct manifest_file *files,
                           size_t count);

#endif

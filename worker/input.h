/*
 * input.h: the pictures that a job names: data:…;base64,… or a path relative to the jobs file.
 */
#ifndef ATELIER_WORKER_INPUT_H
#define ATELIER_WORKER_INPUT_H

#include "common/buf.h"
#include "common/err.h"
#include "engine/image.h"

#define INPUT_MAX_BYTES (64u << 20) /* of one file */

/* Decodes bytes that were read from `uri`, which errors name. */
int input_decode(struct image *image, const char *uri, const struct buf *bytes,
                 struct err *err) must_check;

/* Fetches and decodes; the image is the caller's to release. `base_dir` is the jobs file's folder.
 * Errors name the path (never the bytes of a data URI); s3 and https are ERR_UNSUPPORTED here. */
int input_image(struct image *image, const char *uri, const char *base_dir,
                struct err *err) must_check;

#endif

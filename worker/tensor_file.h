/*
 * tensor_file.h: named f32 tensors into one safetensors file, for --dump-stages.
 *
 * Format: eight bytes of header length (little-endian), a JSON header, the data; the header is
 * padded with blanks so that the data begins at a multiple of eight.
 *
 *     tensor_file_add(&file, "latents.0", data, dims, 3, &err);
 *     tensor_file_write(&file, "out/job.safetensors", &err);
 *     tensor_file_release(&file);
 */
#ifndef ATELIER_WORKER_TENSOR_FILE_H
#define ATELIER_WORKER_TENSOR_FILE_H

#include "common/buf.h"
#include "common/err.h"

#include <stdint.h>

#define TENSOR_FILE_MAX_BYTES ((size_t)4 << 30)

struct tensor_file {
    struct buf header; /* members so far, without the braces */
    struct buf data;
};

void tensor_file_init(struct tensor_file *file);
void tensor_file_release(struct tensor_file *file);

/* Copies the values. Running out of memory shows at the write. */
void tensor_file_add(struct tensor_file *file, const char *name, const float *data,
                     const int64_t *dims, int rank);

/* Replaces an existing file. */
int tensor_file_write(const struct tensor_file *file, const char *path, struct err *err) must_check;

#endif

/*
 * stage_dump.h: named f32 tensors into one safetensors file, for --dump-stages.
 *
 * Format: eight bytes of header length (little-endian), a JSON header, the data; the header is
 * padded with blanks so that the data begins at a multiple of eight.
 *
 *     stage_dump_add(&dump, "latents.0", data, dims, 3, &err);
 *     stage_dump_write(&dump, "out/job.safetensors", &err);
 *     stage_dump_release(&dump);
 */
#ifndef ATELIER_WORKER_STAGE_DUMP_H
#define ATELIER_WORKER_STAGE_DUMP_H

#include "common/buf.h"
#include "common/err.h"

#include <stdint.h>

#define STAGE_DUMP_MAX_BYTES ((size_t)4 << 30)

struct stage_dump {
    struct buf header; /* members so far, without the braces */
    struct buf data;
};

void stage_dump_init(struct stage_dump *file);
void stage_dump_release(struct stage_dump *file);

/* Copies the values. Running out of memory shows at the write. */
void stage_dump_add(struct stage_dump *file, const char *name, const float *data,
                    const int64_t *dims, int rank);

/* Replaces an existing file. */
int stage_dump_write(const struct stage_dump *file, const char *path, struct err *err) must_check;

#endif

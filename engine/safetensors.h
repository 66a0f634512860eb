/*
 * safetensors.h: a memory-mapped .safetensors file, read without trust.
 *
 * Every length, shape product and offset is checked against the file before anything is handed out;
 * overlapping, overflowing or out-of-range tensors are an error that names file and tensor. The
 * file owns names and data; both live until safetensors_close. Reading is safe from many threads.
 *
 * Format: 8 bytes little-endian header length, JSON header, data.
 * Source: https://github.com/huggingface/safetensors#format
 */
#ifndef ATELIER_ENGINE_SAFETENSORS_H
#define ATELIER_ENGINE_SAFETENSORS_H

#include "common/err.h"
#include "common/json.h"
#include "engine/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_RANK_MAX 8
#define SAFETENSORS_HEADER_MAX_BYTES (100u << 20)

struct safetensors;

struct stored_tensor {
    const char *name;
    const char *type; /* as the file names it: "F16", "I64" */
    enum dtype dtype;
    bool usable; /* false: a dtype that holds no weights (I64 position ids): `data` is opaque */
    int rank;
    int64_t dims[SAFETENSORS_RANK_MAX];
    const void *data; /* count × dtype_bytes(dtype), at any alignment */
    int64_t count;    /* elements */
};

/* Errors (ERR_REJECT): ERR_NOT_FOUND, ERR_IO, ERR_FORMAT, each with the path. */
int safetensors_open(struct safetensors **file, const char *path, struct err *err) must_check;

/* Reads from memory that the caller keeps alive; `name` stands for the path in messages. */
int safetensors_open_memory(struct safetensors **file, const void *bytes, size_t len,
                            const char *name, struct err *err) must_check;
void safetensors_close(struct safetensors *file);

const char *safetensors_path(const struct safetensors *file);
size_t safetensors_count(const struct safetensors *file);
const struct stored_tensor *safetensors_at(const struct safetensors *file, size_t index);

/* The index of a tensor of this file. */
size_t safetensors_index(const struct safetensors *file, const struct stored_tensor *tensor);

/* By name, or NULL. */
const struct stored_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* Tells files apart by all their bytes: damage and other versions, not malice. */
uint64_t safetensors_digest(const struct safetensors *file);

/* The value of a __metadata__ key, or NULL. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);

#endif

/*
 * tensor_file.h: a memory-mapped file of named tensors, read without trust.
 *
 * Two formats, told apart by their first bytes: .safetensors, and what torch.save writes (.ckpt,
 * .pt, .pth, .bin), of which only tensors, texts and numbers are taken: nothing in a file is ever
 * run. Every length, shape product and offset is checked against the file before anything is handed
 * out; what lies outside of it, overflows or overlaps is an error that names file and tensor. The
 * file owns names and data; both live until tensor_file_close. Reading is safe from many threads.
 */
#ifndef ATELIER_ENGINE_TENSOR_FILE_H
#define ATELIER_ENGINE_TENSOR_FILE_H

#include "common/err.h"
#include "engine/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TENSOR_RANK_MAX 8

struct tensor_file;

struct stored_tensor {
    const char *name;
    const char *type; /* as safetensors names it: "F16", "I64" */
    enum dtype dtype;
    bool usable; /* false: a dtype that holds no weights (I64 position ids): `data` is opaque */
    int rank;
    int64_t dims[TENSOR_RANK_MAX];
    const void *data; /* count × dtype_bytes(dtype), at any alignment */
    int64_t count;    /* elements */
};

/* Errors (ERR_REJECT): ERR_NOT_FOUND, ERR_IO, ERR_FORMAT, ERR_LIMIT, each with the path. */
int tensor_file_open(struct tensor_file **file, const char *path, struct err *err) must_check;

/* Reads from memory that the caller keeps alive; `name` stands for the path in messages. */
int tensor_file_open_memory(struct tensor_file **file, const void *bytes, size_t len,
                            const char *name, struct err *err) must_check;
void tensor_file_close(struct tensor_file *file);

const char *tensor_file_path(const struct tensor_file *file);
size_t tensor_file_count(const struct tensor_file *file);
const struct stored_tensor *tensor_file_at(const struct tensor_file *file, size_t index);

/* The index of a tensor of this file. */
size_t tensor_file_index(const struct tensor_file *file, const struct stored_tensor *tensor);

/* By name, or NULL. */
const struct stored_tensor *tensor_file_find(const struct tensor_file *file, const char *name);

/* Tells files apart by all their bytes: damage and other versions, not malice. */
uint64_t tensor_file_digest(const struct tensor_file *file);

/* The text that a file says of itself, or NULL: a value of safetensors' __metadata__, or a text
 * beside the tensors of torch's files. */
const char *tensor_file_metadata(const struct tensor_file *file, const char *key);

/* A whole number that stands alone: a tensor of one I64, or a number beside the tensors of torch's
 * files. False: there is none. */
bool tensor_file_number(const struct tensor_file *file, const char *name, int64_t *number);

#endif

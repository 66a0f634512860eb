/* tensor_file_parts.h: what the readers of formats fill in; for tensor_file.c and those only. */
#ifndef ATELIER_ENGINE_TENSOR_FILE_PARTS_H
#define ATELIER_ENGINE_TENSOR_FILE_PARTS_H

#include "common/json.h"
#include "engine/pickle.h"
#include "engine/tensor_file.h"

struct entry {
    struct stored_tensor tensor;
    uint64_t begin, end; /* among the file's data */
};

struct tensor_file {
    char *path;
    const char *bytes;
    size_t len;
    bool mapped;
    struct entry *entries; /* sorted by name once the file is read */
    size_t count;
    struct json_doc *header; /* of safetensors: what names and metadata are kept in */
    struct pickle *pickle;   /* of torch's files: the same, and tensors that had to be copied */
};

/* An ERR_FORMAT that names the file and, unless it is NULL, the tensor. */
int tensor_file_bad(const struct tensor_file *file, struct err *err, const char *tensor,
                    const char *problem);

/* What a dtype of safetensors is; bits of one element, or 0 for an unknown name. */
int stored_tensor_type(struct stored_tensor *tensor, const char *name);

/* Fill in entries, of which each has been checked. Sources: safetensors.c, torch_file.c. */
int safetensors_read(struct tensor_file *file, struct err *err) must_check;
int torch_file_read(struct tensor_file *file, struct err *err) must_check;

#endif

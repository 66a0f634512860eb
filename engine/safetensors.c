/*
 * Format: 8 bytes little-endian header length, JSON header, data.
 * Source: https://github.com/huggingface/safetensors#format
 */
#include "engine/tensor_file_parts.h"

#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES 8
#define HEADER_MAX_BYTES (100u << 20)

static int read_shape(const struct tensor_file *file, const struct json *shape,
                      struct stored_tensor *tensor, struct err *err)
{
    if (shape == NULL || shape->type != JSON_ARRAY)
        return tensor_file_bad(file, err, tensor->name, "has no shape");
    if (shape->count > TENSOR_RANK_MAX)
        return tensor_file_bad(file, err, tensor->name, "has more than 8 dimensions");
    tensor->count = 1;
    for (const struct json *d = shape->child; d != NULL; d = d->next) {
        int64_t dim;
        if (!json_int64(d, &dim) || dim < 0)
            return tensor_file_bad(file, err, tensor->name,
                                   "has a dimension that is no whole number");
        if (__builtin_mul_overflow(tensor->count, dim, &tensor->count))
            return tensor_file_bad(file, err, tensor->name, "has a shape whose product overflows");
        tensor->dims[tensor->rank++] = dim;
    }
    return 0;
}

static int read_entry(const struct tensor_file *file, const struct json *value, uint64_t data_len,
                      struct entry *entry, struct err *err)
{
    const struct json *offsets = json_get(value, "data_offsets");
    struct stored_tensor *tensor = &entry->tensor;
    int64_t begin, end, size_bits;
    int bits;

    tensor->name = value->key;
    if (value->type != JSON_OBJECT)
        return tensor_file_bad(file, err, tensor->name, "is not described by an object");
    bits = stored_tensor_type(tensor, json_string_or(json_get(value, "dtype"), ""));
    if (bits == 0)
        return tensor_file_bad(file, err, tensor->name, "has an unknown dtype");
    if (read_shape(file, json_get(value, "shape"), tensor, err) != 0)
        return -1;
    if (offsets == NULL || offsets->type != JSON_ARRAY || offsets->count != 2 ||
        !json_int64(offsets->child, &begin) || !json_int64(offsets->child->next, &end))
        return tensor_file_bad(file, err, tensor->name, "has no pair of data_offsets");
    if (begin < 0 || end < begin || (uint64_t)end > data_len)
        return tensor_file_bad(
            file, err, tensor->name,
            "lies outside of the file; it is truncated or damaged, fetch it again");
    if (__builtin_mul_overflow(tensor->count, (int64_t)bits, &size_bits) || size_bits % 8 != 0 ||
        size_bits / 8 != end - begin)
        return tensor_file_bad(file, err, tensor->name,
                               "has data_offsets that do not match shape and dtype");
    entry->begin = (uint64_t)begin;
    entry->end = (uint64_t)end;
    return 0;
}

static int by_begin(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int check_overlap(struct tensor_file *file, struct err *err)
{
    qsort(file->entries, file->count, sizeof(file->entries[0]), by_begin);
    for (size_t i = 1; i < file->count; i++)
        if (file->entries[i].begin < file->entries[i - 1].end)
            return tensor_file_bad(file, err, file->entries[i].tensor.name,
                                   "overlaps another tensor");
    return 0;
}

int safetensors_read(struct tensor_file *file, struct err *err)
{
    struct json_limits limits = {.bytes = HEADER_MAX_BYTES, .depth = 8, .nodes = 1u << 24};
    uint64_t header_len = 0, data_len;
    const struct json *root;

    if (file->len < LENGTH_BYTES)
        return tensor_file_bad(file, err, NULL, "is too short to be a safetensors file");
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        header_len = header_len << 8 | (unsigned char)file->bytes[i];
    if (header_len > file->len - LENGTH_BYTES || header_len > HEADER_MAX_BYTES)
        return tensor_file_bad(
            file, err, NULL,
            "its header is longer than the file; it is truncated or no safetensors file");
    if (json_parse(&file->header, file->bytes + LENGTH_BYTES, header_len, &limits, err) != 0)
        return err_prefix(err, "%s: header", file->path);
    root = json_root(file->header);
    if (root->type != JSON_OBJECT)
        return tensor_file_bad(file, err, NULL, "its header is not an object");
    data_len = file->len - LENGTH_BYTES - header_len;
    file->entries = calloc(root->count + 1, sizeof(file->entries[0]));
    if (file->entries == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory for the header", file->path);
    for (const struct json *value = root->child; value != NULL; value = value->next) {
        struct entry *entry = &file->entries[file->count];
        if (strcmp(value->key, "__metadata__") == 0)
            continue;
        if (read_entry(file, value, data_len, entry, err) != 0)
            return -1;
        entry->tensor.data = file->bytes + LENGTH_BYTES + header_len + entry->begin;
        file->count++;
    }
    return check_overlap(file, err);
}

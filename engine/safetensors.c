#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH_BYTES 8

struct entry {
    struct stored_tensor tensor;
    uint64_t begin, end; /* in the data section */
};

struct safetensors {
    char *path;
    const char *bytes;
    size_t len;
    bool mapped;
    struct json_doc *header;
    struct entry *entries; /* sorted by name */
    size_t count;
};

static int bad(const struct safetensors *file, struct err *err, const char *tensor,
               const char *problem)
{
    if (tensor == NULL)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: %s", file->path, problem);
    return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: tensor '%s': %s", file->path, tensor, problem);
}

/* Bits of one element, or 0 for an unknown name. */
static int dtype_bits(const char *name, struct stored_tensor *tensor)
{
    static const struct {
        const char *name;
        int bits;
        bool usable;
        enum dtype dtype;
    } KNOWN[] = {
        {"F32", 32, true, DTYPE_F32},     {"F16", 16, true, DTYPE_F16},
        {"BF16", 16, true, DTYPE_BF16},   {"F64", 64, false, DTYPE_F32},
        {"I64", 64, false, DTYPE_F32},    {"I32", 32, false, DTYPE_F32},
        {"I16", 16, false, DTYPE_F32},    {"I8", 8, false, DTYPE_F32},
        {"U8", 8, false, DTYPE_F32},      {"U16", 16, false, DTYPE_F32},
        {"U32", 32, false, DTYPE_F32},    {"U64", 64, false, DTYPE_F32},
        {"BOOL", 8, false, DTYPE_F32},    {"F8_E4M3", 8, false, DTYPE_F32},
        {"F8_E5M2", 8, false, DTYPE_F32},
    };

    for (size_t i = 0; i < sizeof(KNOWN) / sizeof(KNOWN[0]); i++)
        if (strcmp(KNOWN[i].name, name) == 0) {
            tensor->type = KNOWN[i].name;
            tensor->usable = KNOWN[i].usable;
            tensor->dtype = KNOWN[i].dtype;
            return KNOWN[i].bits;
        }
    return 0;
}

static int read_shape(const struct safetensors *file, const struct json *shape,
                      struct stored_tensor *tensor, struct err *err)
{
    if (shape == NULL || shape->type != JSON_ARRAY)
        return bad(file, err, tensor->name, "has no shape");
    if (shape->count > SAFETENSORS_RANK_MAX)
        return bad(file, err, tensor->name, "has more than 8 dimensions");
    tensor->count = 1;
    for (const struct json *d = shape->child; d != NULL; d = d->next) {
        int64_t dim;
        if (!json_int64(d, &dim) || dim < 0)
            return bad(file, err, tensor->name, "has a dimension that is no whole number");
        if (__builtin_mul_overflow(tensor->count, dim, &tensor->count))
            return bad(file, err, tensor->name, "has a shape whose product overflows");
        tensor->dims[tensor->rank++] = dim;
    }
    return 0;
}

static int read_entry(const struct safetensors *file, const struct json *value, uint64_t data_len,
                      struct entry *entry, struct err *err)
{
    const struct json *offsets = json_get(value, "data_offsets");
    struct stored_tensor *tensor = &entry->tensor;
    int64_t begin, end, size_bits;
    int bits;

    tensor->name = value->key;
    if (value->type != JSON_OBJECT)
        return bad(file, err, tensor->name, "is not described by an object");
    bits = dtype_bits(json_string_or(json_get(value, "dtype"), ""), tensor);
    if (bits == 0)
        return bad(file, err, tensor->name, "has an unknown dtype");
    if (read_shape(file, json_get(value, "shape"), tensor, err) != 0)
        return -1;
    if (offsets == NULL || offsets->type != JSON_ARRAY || offsets->count != 2 ||
        !json_int64(offsets->child, &begin) || !json_int64(offsets->child->next, &end))
        return bad(file, err, tensor->name, "has no pair of data_offsets");
    if (begin < 0 || end < begin || (uint64_t)end > data_len)
        return bad(file, err, tensor->name,
                   "lies outside of the file; it is truncated or damaged, fetch it again");
    if (__builtin_mul_overflow(tensor->count, (int64_t)bits, &size_bits) || size_bits % 8 != 0 ||
        size_bits / 8 != end - begin)
        return bad(file, err, tensor->name, "has data_offsets that do not match shape and dtype");
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

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->tensor.name, ((const struct entry *)b)->tensor.name);
}

static int check_overlap(struct safetensors *file, struct err *err)
{
    qsort(file->entries, file->count, sizeof(file->entries[0]), by_begin);
    for (size_t i = 1; i < file->count; i++)
        if (file->entries[i].begin < file->entries[i - 1].end)
            return bad(file, err, file->entries[i].tensor.name, "overlaps another tensor");
    qsort(file->entries, file->count, sizeof(file->entries[0]), by_name);
    return 0;
}

static int parse(struct safetensors *file, struct err *err)
{
    struct json_limits limits = {
        .bytes = SAFETENSORS_HEADER_MAX_BYTES, .depth = 8, .nodes = 1u << 24};
    uint64_t header_len = 0, data_len;
    const struct json *root;

    if (file->len < LENGTH_BYTES)
        return bad(file, err, NULL, "is too short to be a safetensors file");
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        header_len = header_len << 8 | (unsigned char)file->bytes[i];
    if (header_len > file->len - LENGTH_BYTES || header_len > SAFETENSORS_HEADER_MAX_BYTES)
        return bad(file, err, NULL,
                   "its header is longer than the file; it is truncated or no safetensors file");
    if (json_parse(&file->header, file->bytes + LENGTH_BYTES, header_len, &limits, err) != 0)
        return err_prefix(err, "%s: header", file->path);
    root = json_root(file->header);
    if (root->type != JSON_OBJECT)
        return bad(file, err, NULL, "its header is not an object");
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

int safetensors_open_memory(struct safetensors **out, const void *bytes, size_t len,
                            const char *name, struct err *err)
{
    struct safetensors *file = calloc(1, sizeof(*file));

    if (file == NULL || (file->path = strdup(name)) == NULL) {
        free(file);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", name);
    }
    file->bytes = bytes;
    file->len = len;
    if (parse(file, err) != 0) {
        safetensors_close(file);
        return -1;
    }
    *out = file;
    return 0;
}

int safetensors_open(struct safetensors **out, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *map;

    if (fd < 0)
        return err_set(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, ERR_REJECT, "%s: %s", path,
                       strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < LENGTH_BYTES) {
        close(fd);
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "%s: is too short to be a safetensors file, or not a file", path);
    }
    map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return err_set(err, ERR_IO, ERR_RETRY, "%s: cannot be mapped: %s", path, strerror(errno));
    if (safetensors_open_memory(out, map, (size_t)st.st_size, path, err) != 0) {
        munmap(map, (size_t)st.st_size);
        return -1;
    }
    (*out)->mapped = true;
    return 0;
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL)
        return;
    if (file->mapped)
        munmap((void *)(uintptr_t)file->bytes, file->len);
    json_doc_free(file->header);
    free(file->entries);
    free(file->path);
    free(file);
}

const char *safetensors_path(const struct safetensors *file)
{
    return file->path;
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct stored_tensor *safetensors_at(const struct safetensors *file, size_t index)
{
    ASSERT(index < file->count);
    return &file->entries[index].tensor;
}

size_t safetensors_index(const struct safetensors *file, const struct stored_tensor *tensor)
{
    return (size_t)((const struct entry *)tensor - file->entries);
}

const struct stored_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    struct entry key = {.tensor.name = name};
    const struct entry *found =
        bsearch(&key, file->entries, file->count, sizeof(file->entries[0]), by_name);

    return found == NULL ? NULL : &found->tensor;
}

/* FNV-1a over words, four of them side by side so that they do not wait for each other. */
uint64_t safetensors_digest(const struct safetensors *file)
{
    uint64_t lanes[4] = {0xcbf29ce484222325u, 1, 2, 3}, words[4], hash = file->len;

    for (size_t i = 0; i < file->len; i += sizeof(words)) {
        size_t left = file->len - i;
        memset(words, 0, sizeof(words));
        memcpy(words, file->bytes + i, left < sizeof(words) ? left : sizeof(words));
        for (int j = 0; j < 4; j++)
            lanes[j] = (lanes[j] ^ words[j]) * 0x100000001b3u;
    }
    for (int j = 0; j < 4; j++)
        hash = (hash ^ lanes[j]) * 0x100000001b3u;
    return hash;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    return json_string_or(json_get(json_get(json_root(file->header), "__metadata__"), key), NULL);
}

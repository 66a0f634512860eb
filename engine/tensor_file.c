#include "engine/tensor_file_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MIN_BYTES 8

int tensor_file_bad(const struct tensor_file *file, struct err *err, const char *tensor,
                    const char *problem)
{
    if (tensor == NULL)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: %s", file->path, problem);
    return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: tensor '%s': %s", file->path, tensor, problem);
}

int stored_tensor_type(struct stored_tensor *tensor, const char *name)
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

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->tensor.name, ((const struct entry *)b)->tensor.name);
}

/* By the first bytes; the magic number of torch's older format is itself pickled. */
static int read_any(struct tensor_file *file, struct err *err)
{
    static const char ARCHIVE[] = {'P', 'K', 3, 4};
    static const unsigned char OLD_TORCH[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c,
                                              0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

    if (file->len >= sizeof(OLD_TORCH) && memcmp(file->bytes, OLD_TORCH, sizeof(OLD_TORCH)) == 0)
        return tensor_file_bad(file, err, NULL,
                               "is in the format of torch before 1.6; load it and save it again "
                               "with a newer one");
    if (file->len >= sizeof(ARCHIVE) && memcmp(file->bytes, ARCHIVE, sizeof(ARCHIVE)) == 0)
        return torch_file_read(file, err);
    return safetensors_read(file, err);
}

int tensor_file_open_memory(struct tensor_file **out, const void *bytes, size_t len,
                            const char *name, struct err *err)
{
    struct tensor_file *file = calloc(1, sizeof(*file));

    if (file == NULL || (file->path = strdup(name)) == NULL) {
        free(file);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "%s: no memory", name);
    }
    file->bytes = bytes;
    file->len = len;
    if (read_any(file, err) != 0) {
        tensor_file_close(file);
        return -1;
    }
    if (file->count > 0)
        qsort(file->entries, file->count, sizeof(file->entries[0]), by_name);
    *out = file;
    return 0;
}

int tensor_file_open(struct tensor_file **out, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *map;

    if (fd < 0)
        return err_set(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, ERR_REJECT, "%s: %s", path,
                       strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < FILE_MIN_BYTES) {
        close(fd);
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "%s: is too short to hold tensors, or not a file", path);
    }
    map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return err_set(err, ERR_IO, ERR_RETRY, "%s: cannot be mapped: %s", path, strerror(errno));
    if (tensor_file_open_memory(out, map, (size_t)st.st_size, path, err) != 0) {
        munmap(map, (size_t)st.st_size);
        return -1;
    }
    (*out)->mapped = true;
    return 0;
}

void tensor_file_close(struct tensor_file *file)
{
    if (file == NULL)
        return;
    if (file->mapped)
        munmap((void *)(uintptr_t)file->bytes, file->len);
    json_doc_free(file->header);
    pickle_free(file->pickle);
    free(file->entries);
    free(file->path);
    free(file);
}

const char *tensor_file_path(const struct tensor_file *file)
{
    return file->path;
}

size_t tensor_file_count(const struct tensor_file *file)
{
    return file->count;
}

const struct stored_tensor *tensor_file_at(const struct tensor_file *file, size_t index)
{
    ASSERT(index < file->count);
    return &file->entries[index].tensor;
}

size_t tensor_file_index(const struct tensor_file *file, const struct stored_tensor *tensor)
{
    return (size_t)((const struct entry *)tensor - file->entries);
}

const struct stored_tensor *tensor_file_find(const struct tensor_file *file, const char *name)
{
    struct entry key = {.tensor.name = name};
    const struct entry *found =
        bsearch(&key, file->entries, file->count, sizeof(file->entries[0]), by_name);

    return found == NULL ? NULL : &found->tensor;
}

/* FNV-1a over words, four of them side by side so that they do not wait for each other. */
uint64_t tensor_file_digest(const struct tensor_file *file)
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

const char *tensor_file_metadata(const struct tensor_file *file, const char *key)
{
    const struct pickle_value *said;

    if (file->pickle == NULL)
        return json_string_or(json_get(json_get(json_root(file->header), "__metadata__"), key),
                              NULL);
    said = pickle_get(pickle_root(file->pickle), key);
    return pickle_is(said, PICKLE_TEXT) ? said->text : NULL;
}

bool tensor_file_number(const struct tensor_file *file, const char *name, int64_t *number)
{
    const struct stored_tensor *t = tensor_file_find(file, name);
    const struct pickle_value *said =
        file->pickle != NULL ? pickle_get(pickle_root(file->pickle), name) : NULL;

    if (t != NULL && t->count == 1 && strcmp(t->type, "I64") == 0)
        memcpy(number, t->data, sizeof(*number));
    else if (pickle_is(said, PICKLE_NUMBER))
        *number = said->number;
    else
        return false;
    return true;
}

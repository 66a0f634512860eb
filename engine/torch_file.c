/*
 * What torch.save writes since torch 1.6: an archive with a pickle, data.pkl, that says how tensors
 * are made of storages, and a file for each storage.
 *
 * A file's tensors are those of its dictionaries, named by their keys with dots between; where the
 * outermost one has a "state_dict", of that one alone.
 *
 * Source: torch/serialization.py (_save, persistent_load), torch/_utils.py (_rebuild_*).
 */
#include "engine/tensor_file_parts.h"
#include "engine/zip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 1024
#define DEPTH_MAX 16
#define TENSORS_MAX (1u << 20)
#define VISITS_MAX (1u << 22)

struct unpacking {
    struct tensor_file *file;
    struct zip zip;
    const char *root; /* "archive/", of root_len bytes */
    size_t root_len, capacity, visits;
    struct err *err;
};

static int bad(const struct unpacking *u, const char *tensor, const char *problem)
{
    return tensor_file_bad(u->file, u->err, tensor, problem);
}

static int no_memory(const struct unpacking *u)
{
    return err_set(u->err, ERR_MEMORY, ERR_RETRY, "%s: no memory for its tensors", u->file->path);
}

/* ---- the archive ---- */

static const struct zip_entry *member(const struct unpacking *u, const char *folder,
                                      const char *name)
{
    char path[NAME_MAX_BYTES];
    int len = snprintf(path, sizeof(path), "%.*s%s%s", (int)u->root_len, u->root, folder, name);

    return len < (int)sizeof(path) ? zip_find(&u->zip, path, (size_t)len) : NULL;
}

/* All members lie in one folder, which may have any name. */
static int find_root(struct unpacking *u)
{
    static const char PICKLE[] = "/data.pkl";
    const size_t tail = sizeof(PICKLE) - 1;
    const struct zip_entry *order;

    for (size_t i = 0; i < u->zip.count && u->root == NULL; i++) {
        const struct zip_entry *e = &u->zip.entries[i];
        if (e->name_len > tail && e->name_len < NAME_MAX_BYTES / 2 &&
            memcmp(e->name + e->name_len - tail, PICKLE, tail) == 0 &&
            memchr(e->name, '/', e->name_len - tail) == NULL) {
            u->root = e->name;
            u->root_len = e->name_len - tail + 1;
        }
    }
    if (u->root == NULL)
        return bad(u, NULL, "is an archive, but none of torch's: it has no data.pkl");
    order = member(u, "", "byteorder");
    if (order != NULL && (order->len < 6 || memcmp(order->data, "little", 6) != 0))
        return bad(u, NULL, "was saved on a big-endian machine; save it again on another");
    return 0;
}

/* ---- tensors ---- */

static bool is_class(const struct pickle_value *v, const char *name)
{
    return pickle_is(v, PICKLE_CLASS) && strcmp(v->text, name) == 0;
}

/* The arguments of a tensor's making, or NULL when the value is none. Parameters, and tensors of a
 * class of their own, are made of one. */
static const struct pickle_value *tensor_arguments(const struct pickle_value *v)
{
    for (int i = 0; i < DEPTH_MAX && pickle_is(v, PICKLE_MADE); i++) {
        const struct pickle_value *class = v->items[0], *arguments = v->items[1];
        if (is_class(class, "torch._utils _rebuild_tensor_v2"))
            return arguments;
        if (is_class(class, "torch._tensor _rebuild_from_type_v2")) {
            if (is_class(pickle_item(arguments, 0), "torch._utils _rebuild_tensor_v2"))
                return pickle_item(arguments, 2);
            return NULL;
        }
        if (!is_class(class, "torch._utils _rebuild_parameter"))
            return NULL;
        v = pickle_item(arguments, 0);
    }
    return NULL;
}

static int storage_bits(struct stored_tensor *t, const struct pickle_value *class)
{
    static const char *const STORAGES[][2] = {
        {"torch FloatStorage", "F32"},     {"torch HalfStorage", "F16"},
        {"torch BFloat16Storage", "BF16"}, {"torch DoubleStorage", "F64"},
        {"torch LongStorage", "I64"},      {"torch IntStorage", "I32"},
        {"torch ShortStorage", "I16"},     {"torch CharStorage", "I8"},
        {"torch ByteStorage", "U8"},       {"torch BoolStorage", "BOOL"}};

    for (size_t i = 0; i < sizeof(STORAGES) / sizeof(STORAGES[0]); i++)
        if (is_class(class, STORAGES[i][0]))
            return stored_tensor_type(t, STORAGES[i][1]);
    return 0;
}

/* Sets dims, count and `strides`, in elements. */
static int read_shape(const struct unpacking *u, const struct pickle_value *size,
                      const struct pickle_value *stride, struct stored_tensor *t, int64_t *strides)
{
    if (!pickle_is(size, PICKLE_LIST) || !pickle_is(stride, PICKLE_LIST) ||
        size->count != stride->count)
        return bad(u, t->name, "has no shape");
    if (size->count > TENSOR_RANK_MAX)
        return bad(u, t->name, "has more than 8 dimensions");
    t->rank = (int)size->count;
    t->count = 1;
    for (int i = 0; i < t->rank; i++) {
        const struct pickle_value *d = size->items[i], *s = stride->items[i];
        if (!pickle_is(d, PICKLE_NUMBER) || !pickle_is(s, PICKLE_NUMBER) || d->number < 0 ||
            s->number < 0)
            return bad(u, t->name, "has a dimension that is no whole number");
        t->dims[i] = d->number;
        strides[i] = s->number;
        if (__builtin_mul_overflow(t->count, d->number, &t->count))
            return bad(u, t->name, "has a shape whose product overflows");
    }
    return 0;
}

/* Whether its elements lie in order; `last` receives the last one's place, -1 where it overflows.
 * Where there are none, the other dimensions may be anything. */
static bool is_dense(const struct stored_tensor *t, const int64_t *strides, int64_t *last)
{
    int64_t expected = 1, step;
    bool dense = true;

    *last = 0;
    for (int i = t->rank - 1; i >= 0 && t->count > 0; i--) {
        dense = dense && (t->dims[i] == 1 || strides[i] == expected);
        expected *= t->dims[i]; /* at most the count */
        if (*last < 0 || __builtin_mul_overflow(t->dims[i] - 1, strides[i], &step) ||
            __builtin_add_overflow(*last, step, last))
            *last = -1;
    }
    return dense;
}

/* In order, in memory of the pickle's. */
static const void *copy_in_order(const struct unpacking *u, const struct stored_tensor *t,
                                 const int64_t *strides, const char *from, size_t element)
{
    int64_t at[TENSOR_RANK_MAX] = {0}, place = 0;
    char *copy = pickle_alloc(u->file->pickle, (size_t)t->count * element);

    for (int64_t i = 0; copy != NULL && i < t->count; i++) {
        memcpy(copy + (size_t)i * element, from + (size_t)place * element, element);
        for (int d = t->rank - 1; d >= 0; d--) {
            place += strides[d];
            if (++at[d] < t->dims[d])
                break;
            place -= at[d] * strides[d];
            at[d] = 0;
        }
    }
    return copy;
}

/* Where the tensor lies in its storage, which is a member of the archive. */
static int place_tensor(struct unpacking *u, const struct pickle_value *storage, int64_t offset,
                        const int64_t *strides, struct stored_tensor *t)
{
    const struct pickle_value *id = pickle_is(storage, PICKLE_ELSEWHERE) ? storage->items[0] : NULL;
    const struct pickle_value *key = pickle_item(id, 2);
    const struct zip_entry *data =
        pickle_is(key, PICKLE_TEXT) ? member(u, "data/", key->text) : NULL;
    size_t element = (size_t)storage_bits(t, pickle_item(id, 1)) / 8;
    int64_t last, held;
    bool dense = is_dense(t, strides, &last);

    if (element == 0)
        return bad(u, t->name, "has an unknown dtype");
    if (data == NULL)
        return bad(u, t->name, "lies in a storage that is not there");
    held = (int64_t)(data->len / element);
    if (t->count > 0 && (last < 0 || offset < 0 || offset > held || last >= held - offset))
        return bad(u, t->name, "lies outside of its storage; it is damaged, fetch it again");
    if (t->count > held)
        return bad(u, t->name, "repeats elements of its storage, which is not read");
    t->data = data->data + (t->count > 0 ? (size_t)offset * element : 0);
    if (!dense && t->count > 0) {
        t->data = copy_in_order(u, t, strides, t->data, element);
        if (t->data == NULL)
            return no_memory(u);
    }
    return 0;
}

static int add_tensor(struct unpacking *u, const char *name, const struct pickle_value *arguments)
{
    struct tensor_file *file = u->file;
    const struct pickle_value *offset = pickle_item(arguments, 1);
    int64_t strides[TENSOR_RANK_MAX];
    struct stored_tensor *t;

    if (file->count == u->capacity) {
        size_t capacity = u->capacity ? 2 * u->capacity : 256;
        struct entry *grown =
            capacity > TENSORS_MAX ? NULL : realloc(file->entries, capacity * sizeof(*grown));
        if (grown == NULL)
            return no_memory(u);
        file->entries = grown;
        u->capacity = capacity;
    }
    file->entries[file->count] = (struct entry){.begin = 0};
    t = &file->entries[file->count].tensor;
    t->name = name;
    if (!pickle_is(offset, PICKLE_NUMBER))
        return bad(u, name, "is not made of a storage");
    if (read_shape(u, pickle_item(arguments, 2), pickle_item(arguments, 3), t, strides) != 0 ||
        place_tensor(u, pickle_item(arguments, 0), offset->number, strides, t) != 0)
        return -1;
    file->count++;
    return 0;
}

/* ---- dictionaries ---- */

/* prefix.key, as long as the pickle; NULL without memory. */
static const char *name_below(const struct unpacking *u, const char *prefix,
                              const struct pickle_value *key)
{
    char number[24], *name;
    const char *text = key->text;
    size_t len;

    if (key->type == PICKLE_NUMBER) {
        snprintf(number, sizeof(number), "%lld", (long long)key->number);
        text = number;
    }
    len = strlen(prefix) + strlen(text) + 2;
    name = pickle_alloc(u->file->pickle, len);
    if (name != NULL)
        snprintf(name, len, "%s%s%s", prefix, *prefix ? "." : "", text);
    return name;
}

static int add_dict(struct unpacking *u, const struct pickle_value *dict, const char *prefix,
                    int depth)
{
    for (size_t i = 0; i + 1 < dict->count; i += 2) {
        const struct pickle_value *key = dict->items[i], *value = dict->items[i + 1];
        const struct pickle_value *arguments = tensor_arguments(value);
        bool named = key->type == PICKLE_TEXT || key->type == PICKLE_NUMBER;
        const char *name;
        if (++u->visits > VISITS_MAX)
            return bad(u, NULL, "its dictionaries are in each other without end");
        if (!named || (arguments == NULL && value->type != PICKLE_DICT))
            continue;
        name = name_below(u, prefix, key);
        if (name == NULL)
            return no_memory(u);
        if (arguments != NULL ? add_tensor(u, name, arguments) != 0
                              : depth < DEPTH_MAX && add_dict(u, value, name, depth + 1) != 0)
            return -1;
    }
    return 0;
}

static int unpack(struct unpacking *u)
{
    const struct zip_entry *data;
    const struct pickle_value *root, *state;

    if (zip_read(&u->zip, u->file->bytes, u->file->len, u->err) != 0)
        return err_prefix(u->err, "%s", u->file->path);
    if (find_root(u) != 0)
        return -1;
    data = member(u, "", "data.pkl");
    if (data == NULL)
        return bad(u, NULL, "is an archive, but none of torch's: it has no data.pkl");
    if (pickle_read(&u->file->pickle, data->data, data->len, u->err) != 0)
        return err_prefix(u->err, "%s", u->file->path);
    root = pickle_root(u->file->pickle);
    if (!pickle_is(root, PICKLE_DICT))
        return bad(u, NULL, "holds no dictionary of tensors but something else that was pickled");
    state = pickle_get(root, "state_dict");
    return add_dict(u, pickle_is(state, PICKLE_DICT) ? state : root, "", 0);
}

int torch_file_read(struct tensor_file *file, struct err *err)
{
    struct unpacking u = {.file = file, .err = err};
    int rc = unpack(&u);

    zip_release(&u.zip);
    return rc;
}

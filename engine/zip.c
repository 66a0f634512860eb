#include "engine/zip.h"

#include <stdlib.h>
#include <string.h>

#define END_BYTES 22
#define END_COMMENT_MAX 65535
#define END_SIGN 0x06054b50
#define END64_LOCATOR_BYTES 20
#define END64_LOCATOR_SIGN 0x07064b50
#define END64_BYTES 56
#define END64_SIGN 0x06064b50
#define CENTRAL_BYTES 46
#define CENTRAL_SIGN 0x02014b50
#define LOCAL_BYTES 30
#define LOCAL_SIGN 0x04034b50
#define EXTRA_64 1
#define ALL_ONES_32 0xffffffffu

struct archive {
    const unsigned char *bytes;
    size_t len;
    struct err *err;
};

static uint64_t number_at(const unsigned char *at, int bytes)
{
    uint64_t n = 0;

    for (int i = bytes - 1; i >= 0; i--)
        n = n << 8 | at[i];
    return n;
}

static int bad(const struct archive *a, const char *problem)
{
    return err_set(a->err, ERR_FORMAT, ERR_REJECT, "%s", problem);
}

static int truncated(const struct archive *a)
{
    return bad(a, "its archive is truncated or damaged, fetch it again");
}

/* `bytes` at `offset` that begin with the sign, or NULL. */
static const unsigned char *record_at(const struct archive *a, uint64_t offset, size_t bytes,
                                      uint32_t sign)
{
    if (offset > a->len || a->len - offset < bytes || number_at(a->bytes + offset, 4) != sign)
        return NULL;
    return a->bytes + offset;
}

/* The record at the very end, which a comment may follow. */
static const unsigned char *find_end(const struct archive *a)
{
    for (size_t back = END_BYTES; back <= END_BYTES + END_COMMENT_MAX && back <= a->len; back++) {
        const unsigned char *end = record_at(a, a->len - back, END_BYTES, END_SIGN);
        if (end != NULL && number_at(end + 20, 2) == back - END_BYTES)
            return end;
    }
    return NULL;
}

/* How many entries there are, and where their list begins. */
static int find_list(const struct archive *a, uint64_t *count, uint64_t *offset)
{
    const unsigned char *end = find_end(a), *locator;
    uint64_t at = end != NULL ? (uint64_t)(end - a->bytes) : 0;

    if (end == NULL)
        return truncated(a);
    *count = number_at(end + 10, 2);
    *offset = number_at(end + 16, 4);
    locator = at >= END64_LOCATOR_BYTES
                  ? record_at(a, at - END64_LOCATOR_BYTES, END64_LOCATOR_BYTES, END64_LOCATOR_SIGN)
                  : NULL;
    if (locator == NULL)
        return 0;
    end = record_at(a, number_at(locator + 8, 8), END64_BYTES, END64_SIGN);
    if (end == NULL)
        return truncated(a);
    *count = number_at(end + 32, 8);
    *offset = number_at(end + 48, 8);
    return 0;
}

/* What did not fit 32 bits stands in a field of its own, in this order. */
static int widen(const struct archive *a, const unsigned char *extra, size_t len,
                 uint64_t *sizes[3])
{
    size_t at = 0;

    while (len - at >= 4) {
        uint64_t kind = number_at(extra + at, 2), bytes = number_at(extra + at + 2, 2), used = 0;
        at += 4;
        if (bytes > len - at)
            return truncated(a);
        for (int i = 0; i < 3 && kind == EXTRA_64; i++)
            if (*sizes[i] == ALL_ONES_32) {
                if (bytes - used < 8)
                    return truncated(a);
                *sizes[i] = number_at(extra + at + used, 8);
                used += 8;
            }
        at += bytes;
    }
    return 0;
}

/* The data follows a second header, whose name and extra field may have other lengths. */
static int place(const struct archive *a, uint64_t offset, uint64_t len, struct zip_entry *entry)
{
    const unsigned char *local = record_at(a, offset, LOCAL_BYTES, LOCAL_SIGN);
    uint64_t begin;

    if (local == NULL)
        return truncated(a);
    begin = offset + LOCAL_BYTES + number_at(local + 26, 2) + number_at(local + 28, 2);
    if (begin > a->len || len > a->len - begin)
        return truncated(a);
    entry->data = (const char *)a->bytes + begin;
    entry->len = len;
    return 0;
}

/* Reads the entry at *offset of the list and goes on to the next. */
static int read_entry(const struct archive *a, uint64_t *offset, struct zip_entry *entry)
{
    const unsigned char *c = record_at(a, *offset, CENTRAL_BYTES, CENTRAL_SIGN);
    uint64_t name_len, extra_len, packed, size, local, *sizes[3] = {&size, &packed, &local};

    if (c == NULL)
        return truncated(a);
    packed = number_at(c + 20, 4);
    size = number_at(c + 24, 4);
    name_len = number_at(c + 28, 2);
    extra_len = number_at(c + 30, 2);
    local = number_at(c + 42, 4);
    if (a->len - *offset - CENTRAL_BYTES < name_len + extra_len)
        return truncated(a);
    if (widen(a, c + CENTRAL_BYTES + name_len, extra_len, sizes) != 0)
        return -1;
    if (number_at(c + 10, 2) != 0 || packed != size)
        return bad(a, "its archive is compressed, which torch.save never does; save it again");
    entry->name = (const char *)c + CENTRAL_BYTES;
    entry->name_len = name_len;
    *offset += CENTRAL_BYTES + name_len + extra_len + number_at(c + 32, 2);
    return place(a, local, size, entry);
}

static int by_name(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;
    size_t len = x->name_len < y->name_len ? x->name_len : y->name_len;
    int order = memcmp(x->name, y->name, len);

    return order != 0 ? order : (x->name_len > y->name_len) - (x->name_len < y->name_len);
}

int zip_read(struct zip *zip, const void *bytes, size_t len, struct err *err)
{
    const struct archive a = {.bytes = bytes, .len = len, .err = err};
    uint64_t count, offset;

    *zip = (struct zip){.entries = NULL};
    if (find_list(&a, &count, &offset) != 0)
        return -1;
    if (offset > len || count > (len - offset) / CENTRAL_BYTES)
        return truncated(&a);
    zip->entries = calloc(count + 1, sizeof(*zip->entries));
    if (zip->entries == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for an archive's list");
    for (; zip->count < count; zip->count++)
        if (read_entry(&a, &offset, &zip->entries[zip->count]) != 0) {
            zip_release(zip);
            return -1;
        }
    qsort(zip->entries, zip->count, sizeof(*zip->entries), by_name);
    return 0;
}

void zip_release(struct zip *zip)
{
    free(zip->entries);
    *zip = (struct zip){.entries = NULL};
}

const struct zip_entry *zip_find(const struct zip *zip, const char *name, size_t name_len)
{
    const struct zip_entry key = {.name = name, .name_len = name_len};

    return bsearch(&key, zip->entries, zip->count, sizeof(*zip->entries), by_name);
}

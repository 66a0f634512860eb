/*
 * zip.h: where the files of an archive lie whose files are not compressed, as torch.save writes
 * them.
 *
 * Source: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3 (archives of more than 4 GB).
 */
#ifndef ATELIER_ENGINE_ZIP_H
#define ATELIER_ENGINE_ZIP_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

struct zip_entry {
    const char *name; /* name_len bytes, in the archive */
    size_t name_len;
    const char *data; /* in the archive */
    size_t len;
};

struct zip {
    struct zip_entry *entries; /* sorted by name */
    size_t count;
};

/* Every entry lies inside of the archive, which outlives `zip`. Errors: ERR_FORMAT (ERR_REJECT)
 * without a path, ERR_MEMORY. */
int zip_read(struct zip *zip, const void *bytes, size_t len, struct err *err) must_check;
void zip_release(struct zip *zip);

/* NULL: there is none. */
const struct zip_entry *zip_find(const struct zip *zip, const char *name, size_t name_len);

#endif

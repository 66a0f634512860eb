/*
 * buf.h: a growing byte buffer with a maximum that is given at init.
 *
 * The buffer owns its bytes; they always end in a NUL that `len` does not count. A failed append
 * (over the maximum, out of memory) sets `failed` and makes every later append a no-op, so that a
 * long run of appends needs one check at its end.
 *
 *     struct buf b;
 *     buf_init(&b, 1 << 20);
 *     buf_printf(&b, "%d pictures", n);
 *     if (b.failed) ...
 *     buf_release(&b);
 */
#ifndef ATELIER_COMMON_BUF_H
#define ATELIER_COMMON_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* never NULL after init; NUL-terminated */
    size_t len;
    size_t cap;
    size_t max_bytes;
    bool failed;
};

void buf_init(struct buf *buf, size_t max_bytes);
void buf_release(struct buf *buf);

/* Forgets the content and the failure, keeps the memory. */
void buf_clear(struct buf *buf);

void buf_append(struct buf *buf, const void *bytes, size_t len);
void buf_str(struct buf *buf, const char *text);
void buf_char(struct buf *buf, char c);
void buf_printf(struct buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Makes room for `len` more bytes and returns where they go, or NULL (and `failed`). */
void *buf_reserve(struct buf *buf, size_t len);

#endif

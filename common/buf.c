#include "common/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_CAP_BYTES 64

/* What an empty buffer points at, so that `data` is a string from the start. Never written. */
static char nothing[1];

void buf_init(struct buf *buf, size_t max_bytes)
{
    *buf = (struct buf){.data = nothing, .max_bytes = max_bytes};
}

void buf_release(struct buf *buf)
{
    if (buf->cap > 0)
        free(buf->data);
    buf_init(buf, buf->max_bytes);
}

void buf_clear(struct buf *buf)
{
    buf->len = 0;
    buf->failed = false;
    if (buf->cap > 0)
        buf->data[0] = '\0';
}

/* Makes the allocation hold `len` more bytes and the NUL. */
static bool grow(struct buf *buf, size_t len)
{
    if (buf->failed || len > buf->max_bytes - buf->len) {
        buf->failed = true;
        return false;
    }
    size_t want = buf->len + len + 1;
    if (want <= buf->cap)
        return true;
    size_t cap = buf->cap < FIRST_CAP_BYTES ? FIRST_CAP_BYTES : buf->cap + buf->cap / 2;
    if (cap < want)
        cap = want;
    if (cap > buf->max_bytes + 1)
        cap = buf->max_bytes + 1;
    char *data = realloc(buf->cap > 0 ? buf->data : NULL, cap);
    if (!data) {
        buf->failed = true;
        return false;
    }
    buf->data = data;
    buf->cap = cap;
    return true;
}

void *buf_reserve(struct buf *buf, size_t len)
{
    if (!grow(buf, len))
        return NULL;
    char *at = buf->data + buf->len;
    buf->len += len;
    buf->data[buf->len] = '\0';
    return at;
}

void buf_append(struct buf *buf, const void *bytes, size_t len)
{
    if (len == 0)
        return;
    void *at = buf_reserve(buf, len);
    if (at)
        memcpy(at, bytes, len);
}

void buf_str(struct buf *buf, const char *text)
{
    buf_append(buf, text, strlen(text));
}

void buf_char(struct buf *buf, char c)
{
    buf_append(buf, &c, 1);
}

void buf_printf(struct buf *buf, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    /* The formatted NUL lands on the one that grow() made room for. */
    if (n < 0)
        buf->failed = true;
    else if (n > 0 && grow(buf, (size_t)n)) {
        vsnprintf(buf->data + buf->len, (size_t)n + 1, format, again);
        buf->len += (size_t)n;
    }
    va_end(again);
}

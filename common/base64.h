/*
 * base64.h: base64 (RFC 4648): reading, the URL alphabet too, with or without padding; writing, the
 * plain alphabet with padding.
 */
#ifndef ATELIER_COMMON_BASE64_H
#define ATELIER_COMMON_BASE64_H

#include "common/buf.h"
#include "common/err.h"

#include <stddef.h>

/* Appends the bytes to `out`. Errors: ERR_FORMAT (ERR_REJECT); ERR_LIMIT over the buffer's maximum.
 */
int base64_decode(const char *text, struct buf *out, struct err *err) must_check;

void base64_encode(const void *bytes, size_t len, struct buf *out); /* appends */

#endif

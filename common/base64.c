#include "common/base64.h"

#include <stdint.h>
#include <string.h>

static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    if (c == '+' || c == '-') /* the URL alphabet too: RFC 4648, section 5 */
        return 62;
    return c == '/' || c == '_' ? 63 : -1;
}

int base64_decode(const char *text, struct buf *out, struct err *err)
{
    uint32_t bits = 0;
    int count = 0;
    size_t len = strlen(text), padding = 0, before = out->len;
    while (len > 0 && text[len - 1] == '=' && padding < 2) {
        len--;
        padding++;
    }
    for (size_t i = 0; i < len; i++) {
        int value = value_of(text[i]);
        if (value < 0)
            return err_set(err, ERR_FORMAT, ERR_REJECT,
                           "base64 data: a character that is no part of it at %zu", i);
        bits = bits << 6 | (uint32_t)value;
        count += 6;
        if (count >= 8) {
            count -= 8;
            buf_char(out, (char)(bits >> count & 0xFF));
        }
    }
    if (len % 4 == 1 || (padding > 0 && (len + padding) % 4 != 0))
        return err_set(err, ERR_FORMAT, ERR_REJECT, "base64 data: cut off");
    if (out->failed && len / 4 * 3 > out->max_bytes - before)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "base64 data: larger than %zu bytes",
                       out->max_bytes);
    return out->failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for base64 data") : 0;
}

void base64_encode(const void *bytes, size_t len, struct buf *out)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *from = bytes;
    for (size_t i = 0; i < len; i += 3) {
        size_t left = len - i;
        uint32_t bits = (uint32_t)from[i] << 16 | (left > 1 ? (uint32_t)from[i + 1] << 8 : 0) |
                        (left > 2 ? from[i + 2] : 0);
        buf_char(out, letters[bits >> 18]);
        buf_char(out, letters[bits >> 12 & 63]);
        buf_char(out, left > 1 ? letters[bits >> 6 & 63] : '=');
        buf_char(out, left > 2 ? letters[bits & 63] : '=');
    }
}

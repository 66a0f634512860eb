#include "worker/input.h"

#include "common/buf.h"
#include "common/file.h"
#include "worker/codec.h"

#include <string.h>

static int base64_value(char c)
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

static int decode_base64(const char *text, struct buf *out, struct err *err)
{
    uint32_t bits = 0;
    int count = 0;
    size_t len = strlen(text), padding = 0;
    while (len > 0 && text[len - 1] == '=' && padding < 2) {
        len--;
        padding++;
    }
    for (size_t i = 0; i < len; i++) {
        int value = base64_value(text[i]);
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
    return out->failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a data URI") : 0;
}

static int fetch(struct buf *bytes, const char *uri, const char *base_dir, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (strncmp(uri, "data:", 5) == 0) {
        const char *data = strstr(uri, ";base64,");
        if (!data)
            return err_set(err, ERR_FORMAT, ERR_REJECT, "a data URI without ;base64,");
        return decode_base64(data + 8, bytes, err);
    }
    if (strstr(uri, "://"))
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%.200s: this run reads only local files and data URIs", uri);
    if (file_join(path, base_dir, uri, err) != 0)
        return -1;
    return file_read(bytes, path, err);
}

int input_image(struct image *image, const char *uri, const char *base_dir, struct err *err)
{
    struct buf bytes;
    *image = (struct image){0};
    buf_init(&bytes, CODEC_FILE_MAX_BYTES);
    int rc = fetch(&bytes, uri, base_dir, err);
    if (rc == 0 && codec_decode(image, bytes.data, bytes.len, err) != 0)
        rc = err_prefix(err, "%.200s", strncmp(uri, "data:", 5) == 0 ? "data URI" : uri);
    /* Whatever is wrong with a file that the job names is the job's fault. */
    if (rc != 0 && err && err->class == ERR_FATAL)
        err->class = ERR_REJECT;
    buf_release(&bytes);
    return rc;
}

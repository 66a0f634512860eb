#include "worker/input.h"

#include "common/base64.h"
#include "common/buf.h"
#include "common/file.h"
#include "worker/codec.h"

#include <string.h>

static int fetch(struct buf *bytes, const char *uri, const char *base_dir, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    if (strncmp(uri, "data:", 5) == 0) {
        const char *data = strstr(uri, ";base64,");
        if (!data)
            return err_set(err, ERR_FORMAT, ERR_REJECT, "a data URI without ;base64,");
        return base64_decode(data + 8, bytes, err);
    }
    if (strstr(uri, "://"))
        return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                       "%.200s: this run reads only local files and data URIs", uri);
    if (file_join(path, base_dir, uri, err) != 0)
        return -1;
    return file_read(bytes, path, err);
}

/* Whatever is wrong with a file that the job names is the job's fault. */
int input_decode(struct image *image, const char *uri, const struct buf *bytes, struct err *err)
{
    *image = (struct image){0};
    if (codec_decode(image, bytes->data, bytes->len, err) == 0)
        return 0;
    if (err->class == ERR_FATAL)
        err->class = ERR_REJECT;
    return err_prefix(err, "%.200s", strncmp(uri, "data:", 5) == 0 ? "data URI" : uri);
}

int input_image(struct image *image, const char *uri, const char *base_dir, struct err *err)
{
    struct buf bytes;
    *image = (struct image){0};
    buf_init(&bytes, INPUT_MAX_BYTES);
    int rc = fetch(&bytes, uri, base_dir, err);
    if (rc == 0)
        rc = input_decode(image, uri, &bytes, err);
    if (rc != 0 && err && err->class == ERR_FATAL)
        err->class = ERR_REJECT;
    buf_release(&bytes);
    return rc;
}

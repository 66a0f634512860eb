#include "worker/stage_dump.h"

#include "common/file.h"
#include "common/json.h"

#include <string.h>

#define HEADER_MAX_BYTES (8u << 20)

void stage_dump_init(struct stage_dump *file)
{
    buf_init(&file->header, HEADER_MAX_BYTES);
    buf_init(&file->data, STAGE_DUMP_MAX_BYTES);
}

void stage_dump_release(struct stage_dump *file)
{
    buf_release(&file->header);
    buf_release(&file->data);
}

void stage_dump_add(struct stage_dump *file, const char *name, const float *data,
                    const int64_t *dims, int rank)
{
    struct buf *header = &file->header;
    size_t count = 1, begin = file->data.len;
    buf_str(header, header->len ? "," : "");
    json_write_string(header, name, strlen(name));
    buf_str(header, ":{\"dtype\":\"F32\",\"shape\":[");
    for (int i = 0; i < rank; i++) {
        buf_printf(header, "%s%lld", i ? "," : "", (long long)dims[i]);
        count *= (size_t)dims[i];
    }
    buf_append(&file->data, data, count * sizeof(float));
    buf_printf(header, "],\"data_offsets\":[%zu,%zu]}", begin, begin + count * sizeof(float));
}

int stage_dump_write(const struct stage_dump *file, const char *path, struct err *err)
{
    struct buf out;
    buf_init(&out, STAGE_DUMP_MAX_BYTES + HEADER_MAX_BYTES + 16);
    size_t len = file->header.len + 2, padded = (len + 7) / 8 * 8;
    for (int i = 0; i < 8; i++)
        buf_char(&out, (char)(padded >> (8 * i) & 0xFF));
    buf_char(&out, '{');
    buf_append(&out, file->header.data, file->header.len);
    buf_char(&out, '}');
    for (size_t i = len; i < padded; i++)
        buf_char(&out, ' ');
    buf_append(&out, file->data.data, file->data.len);
    int rc = -1;
    if (out.failed || file->header.failed || file->data.failed)
        err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory to write %s", path);
    else
        rc = file_write(path, out.data, out.len, FILE_REPLACE, err);
    buf_release(&out);
    return rc;
}

/* A JSON text of any bytes: what is read is written in a form that reads back the same. */
#include "common/json.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct json_limits limits = {1 << 20, 64, 1 << 16};
    struct json_doc *doc, *again;
    struct buf out, same;
    struct err err;
    if (json_parse(&doc, (const char *)data, size, &limits, &err) != 0)
        return 0;
    buf_init(&out, 16 << 20);
    buf_init(&same, 16 << 20);
    json_write_canonical(&out, json_root(doc));
    ASSERT(!out.failed);
    if (out.len <= limits.bytes) {
        ASSERT(json_parse(&again, out.data, out.len, &limits, &err) == 0);
        json_write_canonical(&same, json_root(again));
        ASSERT(out.len == same.len && memcmp(out.data, same.data, out.len) == 0);
        json_doc_free(again);
    }
    buf_release(&same);
    buf_release(&out);
    json_doc_free(doc);
    return 0;
}

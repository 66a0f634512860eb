/* Every tensor that a file hands out lies inside of the file, is found by its name and is read. */
#include "engine/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Nothing else keeps the reading alive. */
static volatile unsigned sum;

static void read_through(const struct stored_tensor *t)
{
    const unsigned char *bytes = t->data;
    size_t count = t->usable ? (size_t)t->count * dtype_bytes(t->dtype) : 0;

    for (size_t i = 0; i < count; i++)
        sum += bytes[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *file;
    struct err err;

    if (safetensors_open_memory(&file, data, size, "fuzz.safetensors", &err) != 0) {
        ASSERT(strstr(err.message, "fuzz.safetensors") != NULL);
        return 0;
    }
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const struct stored_tensor *t = safetensors_at(file, i);
        ASSERT(safetensors_find(file, t->name) == t && safetensors_index(file, t) == i);
        ASSERT((const uint8_t *)t->data >= data && (const uint8_t *)t->data <= data + size);
        read_through(t);
    }
    (void)safetensors_metadata(file, "format");
    safetensors_close(file);
    return 0;
}

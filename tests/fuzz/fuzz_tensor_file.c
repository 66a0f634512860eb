/* Every tensor that a file hands out, of either format, is there to its last byte and found by its
 * name (by one of several, where torch's file says a name twice). */
#include "engine/tensor_file.h"

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
    struct tensor_file *file;
    struct err err;

    if (tensor_file_open_memory(&file, data, size, "fuzz.file", &err) != 0) {
        ASSERT(strstr(err.message, "fuzz.file") != NULL);
        return 0;
    }
    for (size_t i = 0; i < tensor_file_count(file); i++) {
        const struct stored_tensor *t = tensor_file_at(file, i);
        ASSERT(strcmp(tensor_file_find(file, t->name)->name, t->name) == 0);
        ASSERT(tensor_file_index(file, t) == i);
        read_through(t);
    }
    (void)tensor_file_metadata(file, "format");
    tensor_file_close(file);
    return 0;
}

/*
 * Any bytes as the file of an adapter, a textual inversion, a ControlNet or a T2I-Adapter for a
 * small model: it loads and unloads, or is refused with a message that names it. An input that is
 * no safetensors file is taken as a list of keys, one a line, which reaches the mapper without a
 * header.
 */
#include "engine/adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL "tests/golden/models/sd2-small"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct adapter_keys *make_keys(void)
{
    static const char *const NAMES[] = {"conv_in", "down_blocks.0.attentions.0.proj_in",
                                        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
                                        "up_blocks.1.upsamplers.0.conv"};
    struct ldm_layout layout = {.unet = "", .layers = 2};
    struct adapter_keys *keys;
    struct err err;

    if (adapter_keys_create(&keys, &err) != 0)
        abort();
    for (int i = 0; i < 4; i++)
        if (adapter_keys_add(keys, COMPONENT_UNET, i, NAMES[i], &layout, true, &err) != 0)
            abort();
    if (adapter_keys_add(keys, COMPONENT_TEXT, 4, "text_model.encoder.layers.0.mlp.fc1", &layout,
                         true, &err) != 0 ||
        adapter_keys_seal(keys, &err) != 0)
        abort();
    return keys;
}

static void try_keys(const uint8_t *data, size_t size)
{
    static struct adapter_keys *keys;
    char key[1024];
    size_t len = 0;

    if (keys == NULL)
        keys = make_keys();
    for (size_t i = 0; i <= size; i++) {
        struct adapter_key found;
        if (i < size && data[i] != '\n' && data[i] != '\0') {
            if (len + 1 < sizeof(key))
                key[len++] = (char)data[i];
            continue;
        }
        key[len] = '\0';
        len = 0;
        if (adapter_keys_find(keys, key, &found))
            ASSERT(found.number >= 0 && found.number <= 4 && found.role < ADAPTER_ROLE_COUNT);
    }
}

static void try_file(const uint8_t *data, size_t size)
{
    static struct engine *engine;
    static struct model *model;
    char path[] = "/tmp/fuzz-adapter-XXXXXX.safetensors";
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct inversion *inversion;
    struct adapter *adapter;
    struct control *control;
    struct err err;
    int fd;

    options.backend = "ref";
    if (engine == NULL && (engine_create(&engine, &options, &err) != 0 ||
                           engine_load(&model, engine, MODEL, NULL, &err) != 0)) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
    fd = mkstemps(path, (int)strlen(".safetensors"));
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    close(fd);
    if (engine_load_adapter(&adapter, model, path, &err) == 0)
        engine_unload_adapter(adapter);
    else
        ASSERT(strstr(err.message, path) != NULL || err.code == ERR_MEMORY);
    if (engine_load_inversion(&inversion, model, path, &err) == 0)
        engine_unload_inversion(inversion);
    if (engine_load_control(&control, model, path, &err) == 0)
        engine_unload_control(control);
    else
        ASSERT(strstr(err.message, path) != NULL || err.code == ERR_MEMORY);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_keys(data, size);
    try_file(data, size);
    return 0;
}

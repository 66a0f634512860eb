#include "cli/setup.h"

#include "worker/support.h"

#include <string.h>

const char *const setup_devices[] = {"auto", "cpu", "cuda", "cuda:N", "dnnl", "ref", NULL};
const char *const setup_isas[] = {"auto",        "generic",  "avx2", "avx512",
                                  "avx512_bf16", "amx_bf16", NULL};
const char *const setup_precisions[] = {"auto", "f32", "bf16", "f16", NULL};

int setup_models_dir(const struct setup_options *options, char out[FILE_PATH_MAX_BYTES],
                     struct err *err)
{
    if (options->models)
        return file_join(out, options->models, "", err);
    if (file_find(out, "models"))
        return 0;
    return err_set(err, ERR_NOT_FOUND, ERR_FATAL,
                   "no models directory beside the program or here; name one with --models DIR");
}

int setup_engine(struct engine **engine, const struct setup_options *options,
                 void (*warn)(void *user, const char *message), void *user, struct err *err)
{
    struct engine_options wanted = ENGINE_OPTIONS_INIT;
    wanted.backend = options->device;
    wanted.isa = options->isa;
    wanted.precision = (enum precision)support_precision_by_name(options->precision);
    wanted.threads = (int)options->threads;
    wanted.memory_max_bytes = options->memory_bytes;
    wanted.warn = warn;
    wanted.user = user;
    return engine_create(engine, &wanted, err);
}

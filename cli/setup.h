/*
 * setup.h: what run and generate have in common: their options, the models directory, the engine.
 */
#ifndef ATELIER_CLI_SETUP_H
#define ATELIER_CLI_SETUP_H

#include "common/conf.h"
#include "common/err.h"
#include "common/file.h"
#include "engine/engine.h"
#include "schema/catalogue.h"

#include <stdbool.h>
#include <stdint.h>

struct setup_options {
    const char *models; /* NULL: found, see setup_models_dir */
    const char *device;
    const char *isa;
    const char *precision;
    int64_t threads;
    uint64_t memory_bytes;
};

/* The rows of a table whose options struct holds a setup_options as `member`. */
#define SETUP_ROWS(type, member)                                                                   \
    {"models",                                                                                     \
     CONF_STRING,                                                                                  \
     offsetof(type, member) + offsetof(struct setup_options, models),                              \
     "DIR",                                                                                        \
     NULL,                                                                                         \
     0,                                                                                            \
     0,                                                                                            \
     NULL,                                                                                         \
     "directory of models: folders and .safetensors files, by name (by default `models` beside "   \
     "the program, its checkout or the working directory)"},                                       \
        {"device", CONF_CHOICE,   offsetof(type, member) + offsetof(struct setup_options, device), \
         "NAME",   "auto",        0,                                                               \
         0,        setup_devices, "what computes; cuda: every card, cuda:N: one of them, from 0"}, \
        {"isa",  CONF_CHOICE, offsetof(type, member) + offsetof(struct setup_options, isa),        \
         "NAME", "auto",      0,                                                                   \
         0,      setup_isas,  "highest instruction set to use"},                                   \
        {"precision",                                                                              \
         CONF_CHOICE,                                                                              \
         offsetof(type, member) + offsetof(struct setup_options, precision),                       \
         "NAME",                                                                                   \
         "auto",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         setup_precisions,                                                                         \
         "arithmetic of the networks; auto is bf16 where it is native"},                           \
        {"threads", CONF_INT, offsetof(type, member) + offsetof(struct setup_options, threads),    \
         "N",       "0",      0,                                                                   \
         4096,      NULL,     "threads that compute; 0: one per core"},                            \
    {                                                                                              \
        "memory", CONF_BYTES,                                                                      \
            offsetof(type, member) + offsetof(struct setup_options, memory_bytes), "SIZE", "0", 0, \
            0, NULL, "budget of weights and activations together; 0: the machine's memory"         \
    }

extern const char *const setup_devices[], *const setup_isas[], *const setup_precisions[];

/* The models directory: the option, or the first that exists of `models` beside the program, up to
 * four directories above it, and in the working directory. */
int setup_models_dir(const struct setup_options *options, char out[FILE_PATH_MAX_BYTES],
                     struct err *err) must_check;

/* Opens the engine; its warnings go to `warn`. */
int setup_engine(struct engine **engine, const struct setup_options *options,
                 void (*warn)(void *user, const char *message), void *user,
                 struct err *err) must_check;

#endif

/*
 * checkpoint.h: a model on disk as its owner has it, a diffusers folder or a single LDM file,
 * behind one set of names: those of diffusers.
 *
 * A checkpoint owns its mapped files and parsed configurations; tensors that it hands out live
 * until checkpoint_close. It remembers which tensors were asked for, so that what nobody wanted can
 * be reported. Used by one thread.
 *
 *     checkpoint_open(&checkpoint, path, &err);
 *     t = checkpoint_find(checkpoint, COMPONENT_UNET, "down_blocks.0.resnets.0.conv1.weight");
 */
#ifndef ATELIER_ENGINE_CHECKPOINT_H
#define ATELIER_ENGINE_CHECKPOINT_H

#include "common/err.h"
#include "common/json.h"
#include "engine/tensor_file.h"

#include <stdbool.h>
#include <stdint.h>

#define CHECKPOINT_SHARDS_MAX 64
#define CHECKPOINT_NAME_MAX_BYTES 192

/* COMPONENT_TEXT_2 is SDXL's second text encoder, the refiner's only one. */
enum component { COMPONENT_TEXT, COMPONENT_TEXT_2, COMPONENT_UNET, COMPONENT_VAE, COMPONENT_COUNT };

/* Told by which parts there are and how they are named, never by their widths. */
enum family { FAMILY_SD1, FAMILY_SD2, FAMILY_SDXL, FAMILY_SDXL_REFINER };

const char *family_name(enum family family);

enum checkpoint_format { CHECKPOINT_DIFFUSERS, CHECKPOINT_LDM, CHECKPOINT_SYNTHETIC };

struct checkpoint;

/* Errors (ERR_REJECT): nothing there, no weights that we read, unreadable JSON, a damaged file, a
 * pipeline of another kind (ERR_UNSUPPORTED); the message names the path. */
int checkpoint_open(struct checkpoint **checkpoint, const char *path, struct err *err) must_check;

/* The same for a network that stands beside a model, a ControlNet or a T2I-Adapter: a folder with
 * its weights or one file, whose tensors are COMPONENT_UNET's. */
int checkpoint_open_control(struct checkpoint **checkpoint, const char *path,
                            struct err *err) must_check;

/* A checkpoint without files, for measurements: configurations as JSON texts and tensors of
 * whatever shape is asked for, filled with small random f16 values from one shared pool. */
struct synthetic {
    enum family family;
    const char *configs[COMPONENT_COUNT]; /* NULL: it has no such component */
    const char *scheduler;
};
int checkpoint_open_synthetic(struct checkpoint **checkpoint, const struct synthetic *synthetic,
                              struct err *err) must_check;

/* For a synthetic checkpoint a tensor of this shape, NULL for any other; lives until the next call.
 */
const struct stored_tensor *checkpoint_synthesize(struct checkpoint *checkpoint,
                                                  enum component component, const char *name,
                                                  const int64_t *dims, int rank);

/* Calls `see` with every tensor that was asked for, and the values that all of them begin with:
 * 2^26 of them, in f16. */
void checkpoint_synthesized(const struct checkpoint *checkpoint,
                            void (*see)(void *user, enum component component, const char *name,
                                        const int64_t *dims, int rank),
                            void *user);
const uint16_t *checkpoint_pool(const struct checkpoint *checkpoint);

void checkpoint_close(struct checkpoint *checkpoint);

enum checkpoint_format checkpoint_format(const struct checkpoint *checkpoint);
const char *checkpoint_path(const struct checkpoint *checkpoint);

enum family checkpoint_family(const struct checkpoint *checkpoint);

/* The folder's name of a component, "unet", and of the tokenizer of a text encoder. */
const char *component_name(enum component component);
const char *component_tokenizer(enum component component);

/* Only text encoders may be absent. */
bool checkpoint_has(const struct checkpoint *checkpoint, enum component component);

/* config.json of a component, scheduler_config.json, model_index.json; NULL in a single file. */
const struct json *checkpoint_config(const struct checkpoint *checkpoint, enum component component);
const struct json *checkpoint_scheduler(const struct checkpoint *checkpoint);
const struct json *checkpoint_index(const struct checkpoint *checkpoint);

/* A tensor by its diffusers name, or NULL. Marks it as used. */
const struct stored_tensor *checkpoint_find(struct checkpoint *checkpoint, enum component component,
                                            const char *name);

/* A single file's tensor of this very name, its numbers and its metadata; NULL or false in a
 * folder. */
const struct stored_tensor *checkpoint_marker(const struct checkpoint *checkpoint,
                                              const char *name);
bool checkpoint_number(const struct checkpoint *checkpoint, const char *name, int64_t *number);
const char *checkpoint_metadata(const struct checkpoint *checkpoint, const char *key);

/* What the file itself calls a tensor, for messages. */
void checkpoint_stored_name(const struct checkpoint *checkpoint, enum component component,
                            const char *name, char out[CHECKPOINT_NAME_MAX_BYTES]);

/* The path of the file that a component's tensors come from, for messages. */
const char *checkpoint_file(const struct checkpoint *checkpoint, enum component component);

/* Of the bytes of a component's files. */
uint64_t checkpoint_digest(const struct checkpoint *checkpoint, enum component component);

/* Elements and bytes of all usable tensors of a component. */
void checkpoint_size(const struct checkpoint *checkpoint, enum component component,
                     uint64_t *elements, uint64_t *bytes);

/* Calls `see` with each tensor of any file that was never found and that is not known to be idle
 * baggage (EMA copies, position ids, training schedules). */
void checkpoint_unused(const struct checkpoint *checkpoint,
                       void (*see)(void *user, const char *name), void *user);

#endif

/*
 * models.h: the models in memory and their adapters and ControlNets: loaded when a job first asks,
 * kept while the engine's budget holds them, what was idle longest unloaded first, adapters before
 * models.
 *
 * One thread acquires; any thread releases.
 */
#ifndef ATELIER_WORKER_MODELS_H
#define ATELIER_WORKER_MODELS_H

#include "common/err.h"
#include "engine/engine.h"
#include "schema/catalogue.h"

#define MODELS_ADAPTER_NAME_BYTES 256

struct models;

int models_create(struct models **models, struct engine *engine, const struct catalogue *catalogue,
                  struct err *err) must_check;
/* Where models come from that the catalogue names a source for: asked before the first load of one,
 * on the thread that acquires. Without it they are an error. */
typedef int models_locate_fn(void *user, const struct catalogue_model *model,
                             char path[FILE_PATH_MAX_BYTES], struct err *err);
void models_set_locate(struct models *models, models_locate_fn *locate, void *user);

void models_free(struct models *models); /* unloads everything; nothing is in use */

/* The model, loaded, held until models_release. Waits for other models' jobs to end where the
 * memory asks for it. An error of the model itself is remembered: the file is read once. `beside`
 * is the number of a model that the caller holds already, for which it does not wait; -1: none. */
int models_acquire(struct models *models, int number, int beside, struct model **model,
                   struct err *err) must_check;
void models_release(struct models *models, int number);

/* The adapter of that name, ready for a model that is held, itself held until
 * models_release_adapter. What is idle is unloaded where the memory asks for it. Errors:
 * ERR_NOT_FOUND (ERR_RETRY: another worker may have it), and what engine_load_adapter says. */
int models_acquire_adapter(struct models *models, int number, const char *name,
                           struct adapter **adapter, struct err *err) must_check;
void models_release_adapter(struct models *models, int number, const struct adapter *adapter);

/* The same of a network that guides the model by a picture. */
int models_acquire_control(struct models *models, int number, const char *name,
                           struct control **control, struct err *err) must_check;
void models_release_control(struct models *models, int number, const struct control *control);

/* Unloads what was idle longest, an adapter or, when there is none, a model; never waits. False
 * when nothing is idle. For the thread that acquires. */
bool models_drop_idle(struct models *models);

/* The same, but waits for a model in use to become idle; false when none is loaded but `beside`,
 * which stays. Whoever holds another model would wait for itself. */
bool models_make_room(struct models *models, int beside);

/* The name of the model that is being loaded, or NULL. Any thread. */
const char *models_loading(struct models *models);

/* The numbers of up to `max` models that are in memory, in no order. Any thread. */
size_t models_resident(struct models *models, int *numbers, size_t max);

/* The names of up to `max` adapters and ControlNets that are in memory, each once, in no order. Any
 * thread. */
size_t models_resident_adapters(struct models *models, char names[][MODELS_ADAPTER_NAME_BYTES],
                                size_t max);

/* How many times a model was loaded. */
int models_load_count(struct models *models);

#endif

/*
 * support.h: what of the job contract this version can draw. A job that asks for more is refused
 * with every such field named, never drawn without it.
 */
#ifndef ATELIER_WORKER_SUPPORT_H
#define ATELIER_WORKER_SUPPORT_H

#include "engine/engine.h"
#include "schema/catalogue.h"
#include "schema/job.h"

/* Adds a problem for each field that cannot be honoured on this engine. */
void support_check(const struct job *job, const struct engine_info *engine,
                   struct job_problems *problems);

/* The same for models that a job names beside its own and that the catalogue lacks. */
void support_check_models(const struct job *job, const struct catalogue *catalogue,
                          struct job_problems *problems);

/* The same for what takes a fleet, and atelier run therefore does not offer. */
void support_check_local(const struct job *job, struct job_problems *problems);

/* The request as the engine wants it, of picture `index`; its size is filled in. Borrows the job's
 * strings; pictures and the refiner are the caller's to set. */
struct draw support_draw(const struct job *job, int index);

/* One of its controlnets, loaded, with its hint. */
struct draw_control support_control(const struct job_controlnet *from, struct control *control,
                                    const struct image *hint);

/* Writes the model's own values where the job has none. */
void support_fill(struct job *job, const struct model_info *info);

/* What the shipped routing policy calls this machine: a CUDA device by its name ("a100"), any
 * processor "g8i". NULL: a CUDA device that it does not know; the operator has to say. */
const char *support_device_class(const struct engine_info *info);

/* How many engines the device option asks for: all cards for "auto" and "cuda", where there are
 * any; otherwise 1. */
int support_device_count(const char *device);

/* The device option that names one of several cards; writes it to `name`, which it returns. */
#define SUPPORT_DEVICE_BYTES 16
const char *support_device_name(int card, char name[SUPPORT_DEVICE_BYTES]);

/* "f32", "bf16", "f16", "auto". */
const char *support_precision_name(enum precision precision);
int support_precision_by_name(const char *name);

#endif

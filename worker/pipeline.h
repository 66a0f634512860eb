/*
 * pipeline.h: from an assigned job to files in the store, in stages that overlap:
 *
 *     prepare   the model in memory, input pictures decoded, text encoded, noise drawn
 *     compute   denoising steps of all pictures that share model and size, together
 *     decode    pixels; a part of compute where the engine does not overlap the two
 *     publish   encoding, hashing, writing; the manifest last
 *
 * Each stage is one thread ("at-prepare", "at-compute" …) with a bounded queue before it, so that
 * the device does not wait for a disk and memory stays bounded. A picture joins the batch at
 * whatever step the others are.
 *
 * The caller owns tasks; from pipeline_put until pipeline_take the pipeline uses them. One thread
 * puts and takes.
 */
#ifndef ATELIER_WORKER_PIPELINE_H
#define ATELIER_WORKER_PIPELINE_H

#include "common/clock.h"
#include "common/err.h"
#include "engine/engine.h"
#include "schema/catalogue.h"
#include "schema/job.h"
#include "schema/manifest.h"
#include "worker/models.h"
#include "worker/store.h"

#include <stdbool.h>
#include <stdint.h>

struct pipeline;
struct picture;

struct pipeline_options {
    struct engine *engine;
    struct models *models;
    const struct catalogue *catalogue;
    const struct store *store;
    /* Reads what a job names by URI, from any stage's thread; NULL: inputs are files below base_dir
     * and data URIs. */
    int (*read_input)(void *user, const char *uri, struct buf *out, struct err *err);
    const char *base_dir;     /* of relative inputs */
    const char *device_class; /* as manifests name it; NULL: "cpu" */
    void (*wake)(void *user); /* called from at-publish when a task is through; may be NULL */
    void *user;
    const char *dump_dir; /* NULL: no stages are dumped */
    const struct clock *clock;
    int batch_max;       /* pictures in one step, 1 … ENGINE_SESSIONS_MAX */
    double batch_pixels; /* a batch of several stays within; 0: no such limit */
    int tasks_max;       /* in the pipeline at once */
};

enum task_stage { TASK_WAITING, TASK_RUNNING, TASK_PUBLISHING };

/* One job on its way. */
struct task {
    struct job job; /* identified; the model's defaults are filled in on the way */
    int model;      /* number in the catalogue */
    int attempt;
    uint64_t line;           /* of the jobs file, for messages */
    uint32_t slot;           /* the caller's */
    double predicted_s;      /* compute seconds; negative: unknown */
    double price;            /* predicted, in the policy's money; negative: unknown */
    const char *traceparent; /* W3C trace context for the manifest, or NULL; borrowed */

    /* What an earlier attempt got done, from pipeline_hand_back; empty: nothing. The pipeline reads
     * it before the first step, and leaves there what a hand-back saves. */
    struct buf saved;

    /* ---- the result, once taken back ---- */
    bool failed;
    struct err err;              /* of a failed one; ERR_CANCELLED when the pipeline was stopped */
    struct manifest_file *files; /* job.images of them; see task_release */
    struct manifest_times times;
    double load_s; /* that this task waited for its model; 0: it was in memory */
    bool adopted;  /* another attempt's manifest stands, and `files` are its files */

    /* ---- the pipeline's own ---- */
    struct adapter *adapters[JOB_LORAS_MAX]; /* of `held`, the job's loras in order; as long */
    size_t adapter_count;
    struct control *controls[JOB_CONTROLNETS_MAX]; /* the job's controlnets, likewise */
    size_t control_count;
    struct model *held;    /* the model, between prepare and publish */
    struct model *refiner; /* the job's refiner, likewise; NULL: none */
    int refiner_number;    /* in the catalogue */
    struct picture *pictures;
    int pictures_left; /* not yet through publish */
    enum task_stage stage;
    int step, steps; /* of its first picture that is not done */
    bool handed_back;
    int64_t started_mono_ns, started_wall_ns;
};

/* Frees what the task and its job own, not the task. */
void task_release(struct task *task);

int pipeline_create(struct pipeline **pipeline, const struct pipeline_options *options,
                    struct err *err) must_check;

/* Ends the threads, finishing nothing that pipeline_stop did not let finish; every task has been
 * taken back or is dropped. */
void pipeline_free(struct pipeline *pipeline);

/* Gives a task in. At most tasks_max may be inside; so it never waits. */
void pipeline_put(struct pipeline *pipeline, struct task *task);

/* The next task that is through, or NULL after `timeout_ms`. */
struct task *pipeline_take(struct pipeline *pipeline, int timeout_ms);

/* What is not decoded by now comes back with ERR_CANCELLED, after the step that is being computed;
 * what is decoded is published. */
void pipeline_stop(struct pipeline *pipeline);

/* Ends one task: within a step it comes back with ERR_CANCELLED, unless it is being published. */
void pipeline_cancel(struct pipeline *pipeline, struct task *task);

/* Like pipeline_stop, but what pictures have got done goes into their tasks' `saved`: the same
 * request with it, on any worker of the device class, goes on from that step and ends in the same
 * bytes. */
void pipeline_hand_back(struct pipeline *pipeline);

struct task_progress {
    enum task_stage stage;
    int step, steps;
};
struct task_progress pipeline_task_progress(struct pipeline *pipeline, const struct task *task);

struct pipeline_progress {
    uint64_t pictures_done, steps_done;
    int active;      /* pictures in the current batch */
    int step, steps; /* of its first picture */
    int width, height;
    double step_s;      /* the latest step */
    double rate;        /* seconds per step and pixel, smoothed; 0: unknown yet */
    double decode_rate; /* seconds per decoded pixel, smoothed; 0: unknown yet */
};

/* A snapshot; any thread. */
struct pipeline_progress pipeline_progress(struct pipeline *pipeline);

#endif

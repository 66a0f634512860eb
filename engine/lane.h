/*
 * lane.h: where an engine's passes run.
 *
 * A processor has one lane. A card has two: steps are computed in the first, while texts are
 * encoded, hints read and pictures decoded in the second. A lane has an arena, which grows when a
 * plan first needs more and never within a pass, and in its back end a stream. A pass has its lane
 * to itself; who wants it queues.
 *
 * The engine's lock is held by every caller. It is given back while a pass waits for its device or
 * its lane, so that others prepare and finish meanwhile what the host has to do.
 */
#ifndef ATELIER_ENGINE_LANE_H
#define ATELIER_ENGINE_LANE_H

#include "engine/backend.h"

#include <stdatomic.h>

struct engine;
struct model;
struct work_plan;

struct lane {
    struct arena arena;
    void *memory;
    _Atomic size_t bytes;   /* of the memory */
    uint64_t next, serving; /* numbers of the queue, as in a fair_lock */
};

/* Waits for the lane of such work, or for the first where memory does not hold both, makes its
 * arena ready for the plan and starts a pass in the type of such work. ERR_MEMORY (ERR_RETRY): the
 * device has less than was planned with. */
int work_begin(struct model *model, const struct work_plan *plan, struct pass *pass,
               struct err *err) must_check;

/* Takes the memory that such plans need from the device now, so that whoever can make room learns
 * here that there is none, and not a step later. ERR_MEMORY (ERR_RETRY). */
int work_reserve(struct model *model, const struct work_plan *plans, int count,
                 struct err *err) must_check;

/* The pass is over, failed or not; results have been downloaded. */
void work_end(struct model *model, const struct pass *pass);

/* Whether the device has failed, which then is the error (ERR_DEVICE, ERR_FATAL): a card that is
 * lost has no memory, either. */
bool engine_lost(const struct engine *engine, struct err *err);

/* Of all arenas; needs no lock. */
size_t lanes_bytes(const struct engine *engine);

/* Frees the arena of a lane that nobody uses and that is not the first. False: there is none. */
bool lanes_spare(struct engine *engine);

/* Frees every arena once nobody uses it. */
void lanes_release(struct engine *engine);

#endif

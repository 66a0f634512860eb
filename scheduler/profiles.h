/*
 * profiles.h: what the policy and the cost model say of a job, as the scheduler's profiles: jobs
 * that may run on the same classes and take about the same there share one.
 *
 * Whoever gives jobs to the scheduler keeps a table of them: the coordinator, and the simulator.
 * Sizes are put together by quarters of an octave; what a job has more or less of than its
 * profile's picture is its effort.
 *
 *     profiles_init(&profiles, policy, cost, models, &tenants, 16384, &err);
 *     struct demand demand = demand_of(&job, &models[model], NULL);
 *     demand.model = model, demand.tenant = tenant;
 *     number = profiles_enter(&profiles, &demand, &effort, &fresh, &why);
 *     if (fresh.route_count > 0) ... EVENT_PROFILE ...
 *
 * Policy, cost model, models and tenants are borrowed. One thread at a time.
 */
#ifndef ATELIER_SCHEDULER_PROFILES_H
#define ATELIER_SCHEDULER_PROFILES_H

#include "common/buf.h"
#include "common/names.h"
#include "scheduler/cost.h"
#include "scheduler/policy.h"
#include "scheduler/scheduler.h"
#include "schema/catalogue.h"
#include "schema/job.h"

#include <stdbool.h>
#include <stdint.h>

#define DEMAND_SIDE 512 /* of a job that leaves its size to the model, and its steps */
#define DEMAND_STEPS 20

/* What a job may need of a worker and a worker offers, as the scheduler's bits. */
enum need {
    NEED_CONFIDENTIAL = 1,
    NEED_F32 = 2,
    NEED_BF16 = 4,
    NEED_PRECISION = NEED_F32 | NEED_BF16
};

/* The needs that a list of precisions, "f32,bf16", stands for; "auto" stands for none. */
uint32_t need_precisions(const char *list);

/* What a worker must have for a model: rounded up, so that few values differ. */
uint64_t need_memory(const struct catalogue_model *model);

/* What decides where a job may run and what that takes. */
struct demand {
    uint32_t model, tenant; /* numbers, in the profiles' models and tenants */
    const char *tier;       /* NULL: "standard" */
    int width, height;      /* pixels */
    int steps, images;
    bool guided;
    uint32_t needs;   /* enum need */
    double work;      /* of an evaluation beside the model's own, see cost_work */
    double max_price; /* -1: none */
};

/* Of a job and its model; `refiner` is the job's, or NULL. The numbers are left to the caller. */
struct demand demand_of(const struct job *job, const struct catalogue_model *model,
                        const struct catalogue_model *refiner);

/* Its priority as the scheduler's. */
enum job_class demand_class(const struct job *job);

struct profile;

struct profiles {
    const struct policy *policy; /* may be replaced: its classes keep their numbers */
    struct cost *cost;
    const struct catalogue_model *models;
    const struct names *tenants;
    struct names names;
    struct profile *items; /* by number */
};

int profiles_init(struct profiles *profiles, const struct policy *policy, struct cost *cost,
                  const struct catalogue_model *models, const struct names *tenants, uint32_t max,
                  struct err *err) must_check;
void profiles_release(struct profiles *profiles); /* a zeroed table is empty */

/* The number of the demand's profile and how many of its pictures the job amounts to. `fresh` is
 * what a new one says, which the scheduler is to be told; of a known one its route_count is 0.
 * NAMES_NONE: no class may draw it, and `why` says why not. */
uint32_t profiles_enter(struct profiles *profiles, const struct demand *demand, double *effort,
                        struct scheduler_profile *fresh, struct buf *why);

/* What a profile says by now: policy or cost model have changed. False when no class may draw its
 * jobs any more. */
bool profiles_make(struct profiles *profiles, uint32_t number, struct scheduler_profile *made);

/* The classes that may draw a profile's jobs now. */
void profiles_route(const struct profiles *profiles, uint32_t number, struct policy_route *route);

#endif

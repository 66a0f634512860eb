/*
 * sim.h: what a routing policy makes of a load on a fleet: a discrete-event simulation around the
 * scheduler library itself, which is told the same events as by the coordinator, with the same
 * profiles and a cost model that learns from the same reports. Only the workers are played, and the
 * clock.
 *
 * How long things really take is what the cost model says before it has learned (with a cost file:
 * what it has learned by then), over the pool's speed, with noise. A referee (referee.h) checks
 * every action against what the scheduler promises; what it finds is an error.
 *
 *     struct sim_options options = SIM_OPTIONS_INIT;
 *     options.policy = policy, options.fleet = &fleet, options.load = &load;
 *     if (sim_run(&options, &result, &err) != 0) ...
 *     sim_result_release(&result);
 *
 * The same options give the same result. Nothing is printed.
 */
#ifndef ATELIER_SIMULATOR_SIM_H
#define ATELIER_SIMULATOR_SIM_H

#include "scheduler/policy.h"
#include "scheduler/scheduler.h"
#include "simulator/fleet.h"
#include "simulator/load.h"

struct json;

struct sim_progress {
    uint64_t ended, jobs;
    double day; /* of the simulated time */
    uint32_t waiting, running;
};

struct sim_options {
    const struct policy *policy;
    const struct fleet *fleet;
    const struct load *load;
    const struct json *cost; /* what the cost model has learned, see cost_read; or NULL */
    uint64_t seed;
    uint32_t jobs_max;     /* in the scheduler at once; later ones wait before it, as in Kafka */
    uint32_t overtake_max; /* the starvation bound */
    double target_wait_s;  /* what the wanted workers follow from */
    double lease_s;        /* after which a crashed worker's jobs go to others */
    int crashes_max;       /* workers that one job may take with it */
    void (*progress)(void *user, const struct sim_progress *progress); /* now and then, or NULL */
    /* For tests of the referee: changes an action before anybody sees it, and the bound that the
     * scheduler is told. */
    void (*tamper)(void *user, struct scheduler_action *action);
    uint32_t tampered_overtake_max;
    void *user;
};
#define SIM_OPTIONS_INIT                                                                           \
    {                                                                                              \
        .seed = 1, .jobs_max = 1000000, .overtake_max = 100000, .target_wait_s = 300,              \
        .lease_s = 10, .crashes_max = 3                                                            \
    }

struct sim_spread {
    double mean, p50, p95, p99, max;
};

/* All jobs, or those of a priority or of a tenant. */
struct sim_group {
    const char *name; /* the fleet's and the load's */
    uint64_t jobs, pictures;
    uint64_t done, expired, dead; /* dead: too many failures or crashes */
    uint64_t refused;             /* by a quota, a price or the policy */
    uint64_t left;                /* waited for ever: no worker could take them */
    uint64_t missed;              /* of those with a deadline: expired, late or left */
    double weight;                /* of a tenant */
    double work_s;                /* of workers */
    double price;                 /* of these seconds */
    double slowdown;              /* mean of (waiting + drawing) / drawing */
    struct sim_spread wait_s;     /* from when it could have begun to its last beginning */
    struct sim_spread whole_s;    /* to its end, of those done */
};

struct sim_pool {
    const char *name;
    double workers_mean, workers_max;
    double paid_s, busy_s; /* of workers */
    double price;          /* paid, idle time included */
    uint64_t loads;        /* models that were loaded */
    double load_s;
    uint64_t jobs, pictures;
    uint64_t crashes, reclaims;
    struct sim_spread wanted; /* workers that the scheduler wished for, over time; of the class */
};

/* A step of time: means over `step_s`. */
struct sim_sample {
    float busy[FLEET_POOLS_MAX], workers[FLEET_POOLS_MAX];
    float queued[FLEET_POOLS_MAX], wanted[FLEET_POOLS_MAX]; /* of the pool's class, at its end */
};

struct sim_result {
    double span_s; /* until the last job ended */
    double price;
    uint64_t steps;  /* events that the scheduler was told */
    uint64_t checks; /* of the referee */
    double fairness; /* of the tenants' slowdowns: 1: alike; see tally.c */
    struct sim_group all, classes[CLASS_COUNT];
    struct sim_group *tenants; /* by work, the largest first */
    uint32_t tenant_count;
    struct sim_pool pools[FLEET_POOLS_MAX];
    uint32_t pool_count;
    struct sim_sample *samples;
    uint32_t sample_count;
    double step_s; /* of a sample */
};

/* Errors: a pool's class that the policy does not have; memory; ERR_CONFLICT (ERR_FATAL): the
 * scheduler broke one of its promises, which is a bug. On error there is no result. */
int sim_run(const struct sim_options *options, struct sim_result *result,
            struct err *err) must_check;
void sim_result_release(struct sim_result *result);

#endif

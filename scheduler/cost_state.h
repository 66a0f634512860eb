/* cost_state.h: what the two files of the cost model share; nobody else includes it. */
#ifndef ATELIER_SCHEDULER_COST_STATE_H
#define ATELIER_SCHEDULER_COST_STATE_H

#include "scheduler/cost.h"

#define COST_WAYS 8
#define COST_REPORTS_MAX 1000000u

struct cost_ratio {
    uint64_t key;     /* 0: free */
    uint64_t used;    /* the clock when last asked for */
    float log_mean;   /* of measured over guessed */
    uint32_t reports; /* that made it */
};

struct cost {
    struct cost_options options;
    struct cost_ratio *ratios; /* sets of COST_WAYS */
    uint32_t set_mask;
    uint64_t clock;
};

/* The key's ratio, a new one in the place of the least recently used if need be. */
struct cost_ratio *cost_claim(struct cost *cost, uint64_t key);

#endif

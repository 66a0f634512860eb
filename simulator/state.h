/*
 * state.h: what the simulator's own files share; nobody else includes it.
 *
 * DESIGN
 *
 * Time jumps from event to event: arrivals, which are sorted; and timers in a heap: two for each
 * worker (its drawing; its life), and one each for the scheduler's own wake, for scaling, for
 * refreshing predictions and for samples.
 *
 * A worker draws all its pictures at once, as the engine does, each with the same share of it. So a
 * worker keeps one number, `drawn`: seconds of work that each of its pictures has had since the
 * worker began. It grows by rate / pictures a second; a job that begins when it is x and takes w
 * seconds a picture ends when it is x + w, whatever comes and goes meanwhile. Models are loaded one
 * after the other beside that; the least recently used ones that nobody draws with make room.
 *
 * What the scheduler orders is done at once; what a worker has to tell in answer (other models in
 * memory) waits in a list until the event is over, so that the scheduler is never stepped from
 * within a step.
 */
#ifndef ATELIER_SIMULATOR_STATE_H
#define ATELIER_SIMULATOR_STATE_H

#include "scheduler/cost.h"
#include "scheduler/explain.h"
#include "scheduler/heap.h"
#include "simulator/dice.h"
#include "simulator/referee.h"
#include "simulator/sim.h"

#define NS_PER_S 1000000000
#define NONE UINT32_MAX

enum timer_kind { TIMER_DRAW, TIMER_LIFE, TIMER_WAKE, TIMER_SCALE, TIMER_REFRESH, TIMER_SAMPLE };

struct timer {
    struct heap_node node;
    int64_t at_ns;
    uint32_t number; /* breaks ties: the same run every time */
    uint32_t worker;
    uint8_t kind; /* enum timer_kind */
    bool set;
};

/* A job in the scheduler; its slot is the scheduler's. */
struct flight {
    uint32_t job;
    uint32_t worker;     /* NONE: it waits */
    uint32_t next, prev; /* slots on the same worker */
    int attempt;
    bool drawing;       /* else it waits for its model */
    float left;         /* of its work, 0 … 1: what a hand-back saved */
    double ends;        /* when the worker's `drawn` is that */
    double picture_s;   /* of work, of this attempt */
    double shared;      /* the worker's when drawing began */
    int64_t drawing_ns; /* since when */
};

enum life {
    LIFE_ABSENT,
    LIFE_STARTING,
    LIFE_UP,
    LIFE_LEAVING, /* takes nothing new; leaves when empty, or when its notice ends */
    LIFE_CRASHED, /* nobody has noticed yet */
};

/* What comes next in a worker's life. */
enum fate_kind { FATE_CRASH, FATE_RECLAIM };

struct machine {
    struct timer draw, life_timer;
    uint32_t pool;
    uint8_t life;   /* enum life */
    uint8_t next;   /* enum fate_kind */
    bool reclaimed; /* is leaving by order of its owner */
    bool dirty;     /* in the list of those with something to tell */
    uint32_t next_dirty;
    uint32_t births;
    int64_t caught_up_ns;
    double drawn, shared; /* see above; seconds of the worker's time that each picture has had */
    uint32_t drawing;     /* pictures of jobs that are drawn now */
    uint32_t first, jobs; /* in flight */
    uint32_t models[SCHEDULER_RESIDENT_MAX]; /* in memory, the latest used last */
    uint32_t model_count;
    uint64_t model_bytes;
    uint32_t loading; /* model; NONE */
    int64_t loading_ns, load_begun_ns;
};

struct pool_state {
    const struct fleet_pool *is;
    uint32_t class, first, size; /* machines */
    double price_per_hour;
    uint32_t busy, paid; /* machines now */
    int64_t surplus_ns;  /* since when there are too many; INT64_MAX: there are not */
};

/* An integral of a count over time. */
struct integral {
    double sum; /* count × seconds */
    int64_t ns;
};

/* What is kept of a job until the end. */
struct record {
    float wait_s, whole_s, work_s, price;
    float slowdown;
    uint8_t end; /* enum record_end */
    bool late;
};

enum record_end { END_LEFT, END_DONE, END_EXPIRED, END_DEAD, END_REFUSED };

struct sim {
    const struct sim_options *options;
    const struct load *load;
    const struct fleet *fleet;
    struct scheduler *scheduler;
    struct cost *truth, *known; /* how long it takes; what the scheduler has learned */
    struct profiles profiles;
    struct referee *referee;
    struct err *err;
    bool failed;
    bool hopeless; /* scaling has helped nobody since anything could still happen */
    int64_t now_ns;
    struct heap timers;
    struct timer wake, scale, refresh, sample;
    struct machine *machines;
    uint32_t machine_count;
    uint32_t first_dirty;
    struct pool_state pools[FLEET_POOLS_MAX];
    struct flight *flights; /* by slot */
    uint32_t *free_slots, free_count;
    uint32_t *slot_of; /* by job */
    uint32_t next_arrival;
    uint32_t *tenant_live;
    uint32_t running, starting, ended;
    uint32_t reports; /* since predictions were refreshed */
    struct record *records;
    struct buf why;
    /* ---- tally.c ---- */
    struct sim_result *result;
    struct integral busy[FLEET_POOLS_MAX], paid[FLEET_POOLS_MAX];
    struct integral sampled_busy[FLEET_POOLS_MAX], sampled_paid[FLEET_POOLS_MAX];
    int64_t sample_ns, last_end_ns;
};

/* ---- sim.c ---- */

void timer_set(struct sim *sim, struct timer *timer, int64_t at_ns); /* again, if it was set */
void timer_stop(struct sim *sim, struct timer *timer);

/* Steps the scheduler and has done what it says. */
void sim_step(struct sim *sim, struct scheduler_event event);

/* The job in a slot is over and the slot free. */
void sim_end(struct sim *sim, uint32_t slot, enum record_end end);

static inline int64_t after(const struct sim *sim, double seconds)
{
    return sim->now_ns + (int64_t)(seconds * NS_PER_S);
}

static inline const struct load_job *job_of(const struct sim *sim, const struct flight *flight)
{
    return &sim->load->jobs[flight->job];
}

/* ---- machines.c ---- */

void machine_start(struct sim *sim, struct machine *machine, bool at_once);
void machine_leave(struct sim *sim, struct machine *machine); /* once it has nothing more to do */
void machine_assign(struct sim *sim, struct machine *machine, uint32_t slot);
void machine_draw(struct sim *sim, struct machine *machine); /* its timer has fired */
void machine_live(struct sim *sim, struct machine *machine); /* the other one has */
void machine_tell(struct sim *sim, struct machine *machine); /* what it is now */

static inline uint32_t machine_number(const struct sim *sim, const struct machine *machine)
{
    return (uint32_t)(machine - sim->machines);
}

/* ---- scale.c ---- */

/* Starts and ends workers as the scheduler wishes; true when it has started one. */
bool scale_pools(struct sim *sim);

/* ---- tally.c ---- */

int tally_begin(struct sim *sim, struct err *err) must_check;
void tally_pool(struct sim *sim, uint32_t pool, int busy, int paid); /* so many more from now on */
void tally_sample(struct sim *sim);
int tally_finish(struct sim *sim, struct err *err) must_check;

#endif

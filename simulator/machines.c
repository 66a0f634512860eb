/* machines.c: a played worker: its life, the models that it loads, the pictures that it draws. */
#include "simulator/state.h"

#define DRAWN_EPSILON_S 1e-6
#define BYTES_UNKNOWN (2ull << 30)
#define REFRESH_S 10 /* as the coordinator's ... */
#define REPORTS_SHARE                                                                              \
    16 /* ... but only once a 16th as many jobs as there are profiles are done                     \
        */

static struct pool_state *pool_of(struct sim *sim, const struct machine *machine)
{
    return &sim->pools[machine->pool];
}

static const char *class_name(const struct sim *sim, const struct machine *machine)
{
    return policy_class(sim->options->policy, sim->pools[machine->pool].class)->name;
}

/* ---- telling ---- */

void machine_tell(struct sim *sim, struct machine *machine)
{
    const struct pool_state *pool = pool_of(sim, machine);
    struct scheduler_worker is = {.device_class = pool->class,
                                  .pictures_max = (int)pool->is->pictures_max,
                                  .memory_bytes = pool->is->memory_bytes,
                                  .offers = pool->is->offers,
                                  .price_per_hour = (float)pool->price_per_hour,
                                  .draining = machine->life == LIFE_LEAVING,
                                  .resident_count = machine->model_count};
    if (machine->life != LIFE_UP && machine->life != LIFE_LEAVING)
        return;
    for (uint32_t i = 0; i < machine->model_count; i++)
        is.resident[i] = machine->models[i];
    referee_worker(sim->referee, machine_number(sim, machine), &is);
    sim_step(sim, (struct scheduler_event){.type = EVENT_WORKER,
                                           .worker = machine_number(sim, machine),
                                           .worker_is = is});
}

static void tell_later(struct sim *sim, struct machine *machine)
{
    if (machine->dirty)
        return;
    machine->dirty = true;
    machine->next_dirty = sim->first_dirty;
    sim->first_dirty = machine_number(sim, machine);
}

/* ---- drawing ---- */

/* Seconds of work a second, with so many pictures at once. */
static double rate_of(const struct sim *sim, const struct machine *machine)
{
    const struct fleet_pool *pool = sim->pools[machine->pool].is;
    double full = pool->pictures_max > 1
                      ? (double)(machine->drawing - 1) / (double)(pool->pictures_max - 1)
                      : 0;
    return 1 + (pool->batch_speed - 1) * (full < 1 ? full : 1);
}

static void catch_up(struct sim *sim, struct machine *machine)
{
    double seconds = (double)(sim->now_ns - machine->caught_up_ns) / NS_PER_S;
    machine->caught_up_ns = sim->now_ns;
    if (machine->drawing == 0)
        return;
    machine->shared += seconds / machine->drawing;
    machine->drawn += seconds * rate_of(sim, machine) / machine->drawing;
}

static struct cost_query query_of(const struct sim *sim, const struct machine *machine,
                                  const struct load_job *job)
{
    const struct catalogue_model *model = &sim->fleet->models[job->model];
    return (struct cost_query){.class = class_name(sim, machine),
                               .family = model->family,
                               .model = model->name,
                               .width = job->width,
                               .height = job->height,
                               .steps = job->steps,
                               .images = job->images,
                               .guidance = job->guided,
                               .work = (double)job->work};
}

/* What the whole job really takes here. */
static double true_seconds(struct sim *sim, const struct machine *machine, uint32_t number)
{
    struct cost_query query = query_of(sim, machine, &sim->load->jobs[number]);
    double noise = 1, seed_u = dice_uniform(sim->options->seed, DICE_TIME, number, 0);
    if (sim->fleet->noise > 0)
        noise = dice_lognormal(sim->fleet->noise, seed_u,
                               dice_uniform(sim->options->seed, DICE_TIME, number, 1));
    return cost_predict(sim->truth, &query) * noise / pool_of(sim, machine)->is->speed;
}

static void begin_drawing(struct sim *sim, struct machine *machine, struct flight *flight)
{
    const struct load_job *job = job_of(sim, flight);
    catch_up(sim, machine);
    flight->picture_s = true_seconds(sim, machine, flight->job) / job->images;
    flight->drawing = true;
    flight->drawing_ns = sim->now_ns;
    flight->shared = machine->shared;
    flight->ends = machine->drawn + flight->picture_s * (double)flight->left;
    machine->drawing += job->images;
}

/* ---- models ---- */

static int find_model(const struct machine *machine, uint32_t model)
{
    for (uint32_t i = 0; i < machine->model_count; i++)
        if (machine->models[i] == model)
            return (int)i;
    return -1;
}

static uint32_t drop_model(struct machine *machine, uint32_t at)
{
    uint32_t model = machine->models[at];
    machine->model_count--;
    for (uint32_t i = at; i < machine->model_count; i++)
        machine->models[i] = machine->models[i + 1];
    return model;
}

static void use_model(struct machine *machine, uint32_t at)
{
    uint32_t model = drop_model(machine, at);
    machine->models[machine->model_count++] = model;
}

static bool is_in_use(const struct sim *sim, const struct machine *machine, uint32_t model)
{
    for (uint32_t slot = machine->first; slot != NONE; slot = sim->flights[slot].next)
        if (job_of(sim, &sim->flights[slot])->model == model)
            return true;
    return false;
}

/* Lets go of models that nobody draws with, the least recently used first, until one more fits. */
static bool make_room(struct sim *sim, struct machine *machine, uint64_t bytes)
{
    uint64_t memory = pool_of(sim, machine)->is->memory_bytes;
    for (uint32_t i = 0;
         i < machine->model_count && (machine->model_count == SCHEDULER_RESIDENT_MAX ||
                                      machine->model_bytes + bytes > memory);) {
        if (is_in_use(sim, machine, machine->models[i])) {
            i++;
            continue;
        }
        machine->model_bytes -= sim->fleet->models[drop_model(machine, i)].bytes;
        tell_later(sim, machine);
    }
    return machine->model_count < SCHEDULER_RESIDENT_MAX && machine->model_bytes + bytes <= memory;
}

/* For the job that has waited longest for its model. */
static void begin_loading(struct sim *sim, struct machine *machine)
{
    uint32_t slot = machine->first;
    while (slot != NONE && sim->flights[slot].drawing)
        slot = sim->flights[slot].next;
    if (machine->loading != NONE || slot == NONE)
        return;
    uint32_t number = job_of(sim, &sim->flights[slot])->model;
    uint64_t bytes = sim->fleet->models[number].bytes;
    if (!make_room(sim, machine, bytes))
        return;
    double seconds =
        cost_switch(sim->truth, class_name(sim, machine), bytes ? bytes : BYTES_UNKNOWN);
    machine->loading = number;
    machine->load_begun_ns = sim->now_ns;
    machine->loading_ns = after(sim, seconds);
    machine->model_bytes += bytes;
    struct sim_pool *counts = &sim->result->pools[machine->pool];
    counts->loads++;
    counts->load_s += seconds;
}

static void end_loading(struct sim *sim, struct machine *machine)
{
    uint32_t model = machine->loading;
    uint64_t bytes = sim->fleet->models[model].bytes;
    double seconds = (double)(sim->now_ns - machine->load_begun_ns) / NS_PER_S;
    machine->loading = NONE;
    machine->models[machine->model_count++] = model;
    if (bytes > 0)
        cost_learn_switch(sim->known, class_name(sim, machine), bytes, seconds);
    for (uint32_t slot = machine->first; slot != NONE; slot = sim->flights[slot].next) {
        struct flight *flight = &sim->flights[slot];
        if (!flight->drawing && job_of(sim, flight)->model == model)
            begin_drawing(sim, machine, flight);
    }
    tell_later(sim, machine);
}

/* ---- what comes next ---- */

static void plan(struct sim *sim, struct machine *machine)
{
    int64_t next_ns = INT64_MAX;
    catch_up(sim, machine);
    for (uint32_t slot = machine->first; slot != NONE; slot = sim->flights[slot].next) {
        const struct flight *flight = &sim->flights[slot];
        if (!flight->drawing)
            continue;
        double seconds = (flight->ends - machine->drawn) * machine->drawing / rate_of(sim, machine);
        int64_t end_ns = after(sim, seconds > 0 ? seconds : 0) + 1;
        if (end_ns < next_ns)
            next_ns = end_ns;
    }
    begin_loading(sim, machine);
    if (machine->loading != NONE && machine->loading_ns < next_ns)
        next_ns = machine->loading_ns;
    if (next_ns == INT64_MAX)
        timer_stop(sim, &machine->draw);
    else
        timer_set(sim, &machine->draw, next_ns);
}

/* ---- jobs come and go ---- */

static void put_in(struct sim *sim, struct machine *machine, uint32_t slot)
{
    struct flight *flight = &sim->flights[slot];
    uint32_t *link = &machine->first;
    flight->prev = NONE;
    while (*link != NONE) {
        flight->prev = *link;
        link = &sim->flights[*link].next;
    }
    *link = slot;
    flight->next = NONE;
    flight->worker = machine_number(sim, machine);
    if (++machine->jobs == 1 && machine->life != LIFE_CRASHED)
        tally_pool(sim, machine->pool, 1, 0);
}

/* Out of the worker; what it has had so far is kept by the caller. */
static void take_out(struct sim *sim, struct machine *machine, uint32_t slot)
{
    struct flight *flight = &sim->flights[slot];
    catch_up(sim, machine);
    *(flight->prev == NONE ? &machine->first : &sim->flights[flight->prev].next) = flight->next;
    if (flight->next != NONE)
        sim->flights[flight->next].prev = flight->prev;
    if (flight->drawing)
        machine->drawing -= job_of(sim, flight)->images;
    flight->drawing = false;
    flight->worker = NONE;
    sim->running--;
    if (--machine->jobs == 0 && machine->life != LIFE_CRASHED)
        tally_pool(sim, machine->pool, -1, 0);
}

void machine_assign(struct sim *sim, struct machine *machine, uint32_t slot)
{
    struct flight *flight = &sim->flights[slot];
    int model = find_model(machine, job_of(sim, flight)->model);
    put_in(sim, machine, slot);
    if (machine->life == LIFE_CRASHED)
        return;
    if (model >= 0) {
        use_model(machine, (uint32_t)model);
        begin_drawing(sim, machine, flight);
    }
    plan(sim, machine);
}

static void finish(struct sim *sim, uint32_t slot, enum outcome outcome)
{
    uint32_t job = sim->flights[slot].job;
    if (outcome == OUTCOME_DONE)
        sim_end(sim, slot, END_DONE);
    else if (referee_waits(sim->referee, job, sim->now_ns, true, sim->err) != 0)
        sim->failed = true;
    sim_step(sim, (struct scheduler_event){.type = EVENT_FINISH, .slot = slot, .outcome = outcome});
}

static bool fails(const struct sim *sim, const struct flight *flight)
{
    return sim->fleet->failures > 0 &&
           dice_uniform(sim->options->seed, DICE_FAIL, flight->job, (uint64_t)flight->attempt) <
               sim->fleet->failures;
}

static void learn(struct sim *sim, const struct machine *machine, const struct flight *flight,
                  double seconds)
{
    struct cost_query query = query_of(sim, machine, job_of(sim, flight));
    cost_learn(sim->known, &query, seconds);
    if (++sim->reports * REPORTS_SHARE >= sim->profiles.names.count && !sim->refresh.set)
        timer_set(sim, &sim->refresh, after(sim, REFRESH_S));
}

/* Its pictures are drawn. `seconds` of the worker's time were its own. */
static void book(struct sim *sim, const struct machine *machine, const struct flight *flight,
                 double seconds)
{
    const struct load_job *job = job_of(sim, flight);
    struct record *record = &sim->records[flight->job];
    struct sim_pool *counts = &sim->result->pools[machine->pool];
    int64_t from_ns = job->not_before_ns > job->arrival_ns ? job->not_before_ns : job->arrival_ns;
    double alone = flight->picture_s * job->images;
    record->wait_s = (float)((double)(flight->drawing_ns - from_ns) / NS_PER_S);
    record->whole_s = (float)((double)(sim->now_ns - from_ns) / NS_PER_S);
    record->slowdown = (float)((double)record->whole_s / alone);
    record->work_s = (float)seconds;
    record->price = (float)(seconds * sim->pools[machine->pool].price_per_hour / 3600);
    counts->jobs++;
    counts->pictures += job->images;
}

static void end_flight(struct sim *sim, struct machine *machine, uint32_t slot)
{
    struct flight *flight = &sim->flights[slot];
    double seconds = (machine->shared - flight->shared) * job_of(sim, flight)->images;
    take_out(sim, machine, slot);
    if (fails(sim, flight)) {
        flight->left = 1;
        finish(sim, slot, OUTCOME_RETRY);
        return;
    }
    if (flight->left == 1) /* a report of a part says nothing of the whole */
        learn(sim, machine, flight, seconds);
    book(sim, machine, flight, seconds);
    finish(sim, slot, OUTCOME_DONE);
}

void machine_draw(struct sim *sim, struct machine *machine)
{
    uint32_t slots[SCHEDULER_WORKER_JOBS_MAX], count = 0;
    catch_up(sim, machine);
    if (machine->loading != NONE && machine->loading_ns <= sim->now_ns)
        end_loading(sim, machine);
    for (uint32_t slot = machine->first; slot != NONE; slot = sim->flights[slot].next)
        if (sim->flights[slot].drawing &&
            sim->flights[slot].ends <= machine->drawn + DRAWN_EPSILON_S)
            slots[count++] = slot;
    for (uint32_t i = 0; i < count && !sim->failed; i++)
        end_flight(sim, machine, slots[i]);
    plan(sim, machine);
    if (machine->life == LIFE_LEAVING && machine->jobs == 0)
        machine_leave(sim, machine);
}

/* ---- a life ---- */

static void draw_fate(struct sim *sim, struct machine *machine)
{
    const struct fleet_pool *pool = pool_of(sim, machine)->is;
    uint32_t number = machine_number(sim, machine);
    double crash_h = INFINITY, reclaim_h = INFINITY;
    if (pool->crashes_per_hour > 0)
        crash_h =
            dice_exponential(pool->crashes_per_hour,
                             dice_uniform(sim->options->seed, DICE_CRASH, number, machine->births));
    if (pool->reclaims_per_hour > 0)
        reclaim_h =
            dice_exponential(pool->reclaims_per_hour, dice_uniform(sim->options->seed, DICE_RECLAIM,
                                                                   number, machine->births));
    double first_h = fmin(crash_h, reclaim_h);
    machine->next = crash_h < reclaim_h ? FATE_CRASH : FATE_RECLAIM;
    if (isfinite(first_h))
        timer_set(sim, &machine->life_timer, after(sim, fmin(first_h * 3600, 1e9)));
}

static void come_up(struct sim *sim, struct machine *machine)
{
    sim->starting--;
    machine->life = LIFE_UP;
    machine->births++;
    machine->reclaimed = false;
    machine->drawing = machine->model_count = 0;
    machine->model_bytes = 0;
    machine->loading = NONE;
    machine->caught_up_ns = sim->now_ns;
    draw_fate(sim, machine);
    machine_tell(sim, machine);
}

static void await_start(struct sim *sim, struct machine *machine)
{
    machine->life = LIFE_STARTING;
    timer_set(sim, &machine->life_timer, after(sim, pool_of(sim, machine)->is->start_s));
}

void machine_start(struct sim *sim, struct machine *machine, bool at_once)
{
    sim->starting++;
    tally_pool(sim, machine->pool, 0, 1);
    if (at_once)
        come_up(sim, machine);
    else
        await_start(sim, machine);
}

static void depart(struct sim *sim, struct machine *machine)
{
    uint32_t number = machine_number(sim, machine);
    bool comes_back = machine->reclaimed && pool_of(sim, machine)->is->scale_max == 0;
    timer_stop(sim, &machine->life_timer);
    timer_stop(sim, &machine->draw);
    machine->life = LIFE_ABSENT;
    tally_pool(sim, machine->pool, 0, -1);
    referee_worker_gone(sim->referee, number, sim->now_ns);
    sim_step(sim, (struct scheduler_event){.type = EVENT_WORKER_LEFT, .worker = number});
    if (comes_back)
        machine_start(sim, machine, false);
}

void machine_leave(struct sim *sim, struct machine *machine)
{
    if (machine->life == LIFE_STARTING) {
        sim->starting--;
        timer_stop(sim, &machine->life_timer);
        machine->life = LIFE_ABSENT;
        tally_pool(sim, machine->pool, 0, -1);
        return;
    }
    if (machine->life == LIFE_UP) {
        timer_stop(sim, &machine->life_timer);
        machine->life = LIFE_LEAVING;
        machine_tell(sim, machine);
    }
    if (machine->jobs == 0)
        depart(sim, machine);
}

/* Its owner wants it back: what is done within the notice is done. */
static void be_reclaimed(struct sim *sim, struct machine *machine)
{
    sim->result->pools[machine->pool].reclaims++;
    machine->reclaimed = true;
    machine_leave(sim, machine);
    if (machine->life == LIFE_LEAVING)
        timer_set(sim, &machine->life_timer, after(sim, pool_of(sim, machine)->is->notice_s));
}

/* The notice is over: jobs go on elsewhere from the step that they had reached. */
static void hand_back(struct sim *sim, struct machine *machine)
{
    catch_up(sim, machine);
    while (machine->first != NONE && !sim->failed) {
        uint32_t slot = machine->first;
        struct flight *flight = &sim->flights[slot];
        if (flight->drawing)
            flight->left = (float)fmax(0, (flight->ends - machine->drawn) / flight->picture_s);
        take_out(sim, machine, slot);
        finish(sim, slot, OUTCOME_RETURN);
    }
    depart(sim, machine);
}

/* It stops, and nobody knows until its lease has ended. */
static void crash(struct sim *sim, struct machine *machine)
{
    sim->result->pools[machine->pool].crashes++;
    sim->starting++;
    timer_stop(sim, &machine->draw);
    if (machine->jobs > 0)
        tally_pool(sim, machine->pool, -1, 0);
    machine->life = LIFE_CRASHED;
    timer_set(sim, &machine->life_timer, after(sim, sim->options->lease_s));
}

static void be_missed(struct sim *sim, struct machine *machine)
{
    uint32_t number = machine_number(sim, machine);
    while (machine->first != NONE) {
        uint32_t slot = machine->first;
        sim->flights[slot].left = 1;
        take_out(sim, machine, slot);
    }
    referee_worker_gone(sim->referee, number, sim->now_ns);
    sim_step(sim, (struct scheduler_event){.type = EVENT_WORKER_GONE, .worker = number});
    await_start(sim, machine);
}

void machine_live(struct sim *sim, struct machine *machine)
{
    switch (machine->life) {
    case LIFE_STARTING:
        come_up(sim, machine);
        break;
    case LIFE_UP:
        if (machine->next == FATE_CRASH)
            crash(sim, machine);
        else
            be_reclaimed(sim, machine);
        break;
    case LIFE_LEAVING:
        hand_back(sim, machine);
        break;
    case LIFE_CRASHED:
        be_missed(sim, machine);
        break;
    case LIFE_ABSENT:
        break;
    }
}

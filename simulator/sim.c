/* sim.c: the loop: what happens next, what the scheduler is told of it, and what it orders. */
#include "simulator/state.h"

#include <stdlib.h>
#include <string.h>

#define PROFILES_MAX 65535
#define PROGRESS_EVENTS 4096

/* ---- timers ---- */

static bool fires_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct timer *x = (const struct timer *)a, *y = (const struct timer *)b;
    return x->at_ns < y->at_ns || (x->at_ns == y->at_ns && x->number < y->number);
}

void timer_stop(struct sim *sim, struct timer *timer)
{
    if (timer->set)
        heap_remove(&sim->timers, &timer->node);
    timer->set = false;
}

void timer_set(struct sim *sim, struct timer *timer, int64_t at_ns)
{
    if (timer->set && timer->at_ns == at_ns)
        return;
    timer_stop(sim, timer);
    timer->at_ns = at_ns > sim->now_ns ? at_ns : sim->now_ns;
    timer->set = true;
    heap_insert(&sim->timers, &timer->node);
}

/* ---- the scheduler ---- */

static void fail(struct sim *sim)
{
    sim->failed = true;
}

static bool is_promised(void *user, uint32_t job)
{
    struct sim *sim = user;
    struct scheduler_explanation explanation;
    scheduler_explain(sim->scheduler, sim->slot_of[job], &explanation);
    return explanation.why == WAITING_ROOM;
}

static void assign(struct sim *sim, const struct scheduler_action *action)
{
    struct flight *flight = &sim->flights[action->slot];
    if (referee_assigned(sim->referee, flight->job, action->worker, action->alone, sim->now_ns,
                         is_promised, sim, sim->err) != 0) {
        fail(sim);
        return;
    }
    flight->attempt = action->attempt;
    sim->running++;
    machine_assign(sim, &sim->machines[action->worker], action->slot);
}

static void act(struct sim *sim, const struct scheduler_action *action)
{
    switch (action->type) {
    case ACTION_ASSIGN:
        assign(sim, action);
        break;
    case ACTION_EXPIRE:
        sim_end(sim, action->slot, END_EXPIRED);
        break;
    case ACTION_GIVE_UP:
        sim_end(sim, action->slot, END_DEAD);
        break;
    }
}

void sim_step(struct sim *sim, struct scheduler_event event)
{
    struct scheduler_actions actions;
    do {
        event.now_ns = sim->now_ns;
        scheduler_step(sim->scheduler, &event, &actions);
        sim->result->steps++;
        for (size_t i = 0; i < actions.count && !sim->failed; i++) {
            struct scheduler_action action = actions.items[i];
            if (sim->options->tamper)
                sim->options->tamper(sim->options->user, &action);
            act(sim, &action);
        }
        event = (struct scheduler_event){.type = EVENT_TICK};
    } while (actions.more && !sim->failed);
    if (actions.wake_ns == SCHEDULER_TIME_NONE)
        timer_stop(sim, &sim->wake);
    else
        timer_set(sim, &sim->wake, actions.wake_ns);
}

/* ---- jobs ---- */

static void free_slot(struct sim *sim, uint32_t slot)
{
    sim->slot_of[sim->flights[slot].job] = NONE;
    sim->free_slots[sim->free_count++] = slot;
}

static void count_end(struct sim *sim, uint32_t job, enum record_end end)
{
    const struct load_job *is = &sim->load->jobs[job];
    struct record *record = &sim->records[job];
    record->end = (uint8_t)end;
    record->late =
        is->deadline_ns != LOAD_TIME_NONE && (end != END_DONE || sim->now_ns > is->deadline_ns);
    sim->ended++;
    sim->last_end_ns = sim->now_ns;
    if (referee_ended(sim->referee, job, sim->now_ns, sim->err) != 0)
        fail(sim);
}

void sim_end(struct sim *sim, uint32_t slot, enum record_end end)
{
    uint32_t job = sim->flights[slot].job;
    sim->tenant_live[sim->load->jobs[job].tenant]--;
    count_end(sim, job, end);
    free_slot(sim, slot);
}

static bool is_over_quota(const struct sim *sim, uint32_t tenant)
{
    struct policy_tenant is = policy_tenant(sim->options->policy, sim->load->tenants.names[tenant]);
    return is.queued_max > 0 && sim->tenant_live[tenant] >= is.queued_max;
}

static void submit(struct sim *sim, uint32_t number, uint32_t profile, double effort)
{
    const struct load_job *job = &sim->load->jobs[number];
    uint32_t slot = sim->free_slots[--sim->free_count];
    sim->flights[slot] = (struct flight){.job = number, .worker = NONE, .left = 1};
    sim->slot_of[number] = slot;
    sim->tenant_live[job->tenant]++;
    if (referee_waits(sim->referee, number, sim->now_ns, false, sim->err) != 0)
        fail(sim);
    sim_step(sim, (struct scheduler_event){.type = EVENT_SUBMIT,
                                           .slot = slot,
                                           .job = {.model = job->model,
                                                   .width = job->width,
                                                   .height = job->height,
                                                   .pictures = job->images,
                                                   .profile = profile,
                                                   .effort = effort,
                                                   .class = job->class,
                                                   .tenant = job->tenant,
                                                   .not_before_ns = job->not_before_ns,
                                                   .deadline_ns = job->deadline_ns,
                                                   .attempts_max = job->attempts_max,
                                                   .bytes = 1}});
}

static void arrive(struct sim *sim, uint32_t number)
{
    struct demand demand = load_demand(&sim->load->jobs[number]);
    struct scheduler_profile fresh;
    double effort;
    uint32_t profile = profiles_enter(&sim->profiles, &demand, &effort, &fresh, &sim->why);
    if (fresh.route_count > 0)
        sim_step(sim, (struct scheduler_event){
                          .type = EVENT_PROFILE, .number = profile, .profile = fresh});
    if (profile == NAMES_NONE || is_over_quota(sim, demand.tenant))
        count_end(sim, number, END_REFUSED);
    else
        submit(sim, number, profile, effort);
}

/* ---- the loop ---- */

static void refresh_profiles(struct sim *sim)
{
    struct scheduler_profile made;
    sim->reports = 0;
    for (uint32_t i = 0; i < sim->profiles.names.count; i++)
        if (profiles_make(&sim->profiles, i, &made))
            sim_step(sim,
                     (struct scheduler_event){.type = EVENT_PROFILE, .number = i, .profile = made});
}

static void tell_dirty(struct sim *sim)
{
    while (sim->first_dirty != NONE && !sim->failed) {
        struct machine *machine = &sim->machines[sim->first_dirty];
        sim->first_dirty = machine->next_dirty;
        machine->dirty = false;
        machine_tell(sim, machine);
    }
}

/* Whether anything can still happen to a job. */
static bool is_alive(const struct sim *sim)
{
    bool comes = sim->next_arrival < sim->load->count && sim->free_count > 0;
    return comes || sim->running > 0 || sim->starting > 0 || sim->wake.set;
}

static void fire(struct sim *sim, struct timer *timer)
{
    timer_stop(sim, timer);
    switch (timer->kind) {
    case TIMER_DRAW:
        machine_draw(sim, &sim->machines[timer->worker]);
        break;
    case TIMER_LIFE:
        machine_live(sim, &sim->machines[timer->worker]);
        break;
    case TIMER_WAKE:
        sim_step(sim, (struct scheduler_event){.type = EVENT_TICK});
        break;
    case TIMER_SCALE:
        sim->hopeless = !scale_pools(sim);
        break;
    case TIMER_REFRESH:
        refresh_profiles(sim);
        break;
    case TIMER_SAMPLE:
        tally_sample(sim);
        break;
    }
}

static bool next_is_arrival(const struct sim *sim)
{
    const struct timer *top = (const struct timer *)sim->timers.top;
    if (sim->next_arrival == sim->load->count || sim->free_count == 0)
        return false;
    return !top || sim->load->jobs[sim->next_arrival].arrival_ns <= top->at_ns;
}

static void show_progress(struct sim *sim, uint64_t events)
{
    if (!sim->options->progress || events % PROGRESS_EVENTS != 0)
        return;
    struct scheduler_count count = scheduler_count(sim->scheduler);
    struct sim_progress progress = {.ended = sim->ended,
                                    .jobs = sim->load->count,
                                    .day = (double)sim->now_ns / NS_PER_S / 86400,
                                    .waiting = count.ready + count.delayed,
                                    .running = count.running};
    sim->options->progress(sim->options->user, &progress);
}

static void run(struct sim *sim)
{
    for (uint64_t events = 1; sim->ended < sim->load->count && !sim->failed; events++) {
        if (is_alive(sim))
            sim->hopeless = false;
        else if (sim->hopeless || !sim->scale.set)
            return; /* who still waits has nobody to wait for */
        if (next_is_arrival(sim)) {
            const struct load_job *job = &sim->load->jobs[sim->next_arrival];
            if (job->arrival_ns > sim->now_ns)
                sim->now_ns = job->arrival_ns;
            arrive(sim, sim->next_arrival++);
        } else {
            struct timer *timer = (struct timer *)sim->timers.top;
            sim->now_ns = timer->at_ns;
            fire(sim, timer);
        }
        tell_dirty(sim);
        show_progress(sim, events);
    }
}

/* ---- beginning and end ---- */

static int find_classes(struct sim *sim, struct err *err)
{
    uint32_t first = 0;
    for (uint32_t i = 0; i < sim->fleet->pool_count; i++) {
        const struct fleet_pool *pool = &sim->fleet->pools[i];
        int class = policy_class_find(sim->options->policy, pool->class);
        if (class < 0)
            return err_set(err, ERR_NOT_FOUND, ERR_FATAL,
                           "%s: pools.%s: the routing policy has no device class \"%s\"; add it "
                           "there, or give the pool another \"class\"",
                           sim->fleet->file, pool->name, pool->class);
        double price = policy_class(sim->options->policy, (uint32_t) class)->price_per_hour;
        sim->pools[i] = (struct pool_state){
            .is = pool,
            .class = (uint32_t) class,
            .first = first,
            .size = (uint32_t)(pool->scale_max > 0 ? pool->scale_max : pool->workers),
            .price_per_hour = pool->price_per_hour >= 0 ? pool->price_per_hour : price,
            .surplus_ns = INT64_MAX};
        first += sim->pools[i].size;
    }
    sim->machine_count = first;
    return 0;
}

static int make_models(struct sim *sim, struct err *err)
{
    struct cost **models[] = {&sim->truth, &sim->known};
    for (int i = 0; i < 2; i++)
        if (cost_create(models[i], NULL, err) != 0 ||
            (sim->options->cost && cost_read(*models[i], sim->options->cost, err) != 0))
            return -1;
    return profiles_init(&sim->profiles, sim->options->policy, sim->known, sim->fleet->models,
                         &sim->load->tenants, PROFILES_MAX, err);
}

static int make_scheduler(struct sim *sim, uint32_t window, struct err *err)
{
    const struct sim_options *o = sim->options;
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    options.jobs_max = window;
    options.bytes_max = SIZE_MAX;
    options.workers_max = sim->machine_count ? sim->machine_count : 1;
    options.tenants_max = sim->load->tenants.count;
    options.classes_max = policy_class_count(o->policy);
    options.profiles_max = PROFILES_MAX;
    options.overtake_max = o->tampered_overtake_max ? o->tampered_overtake_max : o->overtake_max;
    options.crashes_max = o->crashes_max;
    options.waiting_per_hour = policy_waiting_per_hour(o->policy);
    options.lateness_per_hour = policy_lateness_per_hour(o->policy);
    options.target_wait_s = o->target_wait_s;
    struct referee_options rules = {o->policy, sim->load, options.workers_max, o->overtake_max};
    if (scheduler_create(&sim->scheduler, &options, err) != 0)
        return -1;
    return referee_create(&sim->referee, &rules, err);
}

static int make_tables(struct sim *sim, uint32_t window, struct err *err)
{
    uint32_t jobs = sim->load->count;
    sim->machines = calloc(sim->machine_count + 1, sizeof(*sim->machines));
    sim->flights = calloc(window, sizeof(*sim->flights));
    sim->free_slots = calloc(window, sizeof(*sim->free_slots));
    sim->slot_of = malloc(jobs * sizeof(*sim->slot_of));
    sim->tenant_live = calloc(sim->load->tenants.count, sizeof(*sim->tenant_live));
    sim->records = calloc(jobs, sizeof(*sim->records));
    if (!sim->machines || !sim->flights || !sim->free_slots || !sim->slot_of || !sim->tenant_live ||
        !sim->records)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for %u jobs", jobs);
    memset(sim->slot_of, 0xff, jobs * sizeof(*sim->slot_of));
    for (uint32_t slot = window; slot-- > 0;)
        sim->free_slots[sim->free_count++] = slot;
    return 0;
}

static void number_timers(struct sim *sim)
{
    struct timer *const own[] = {&sim->wake, &sim->scale, &sim->refresh, &sim->sample};
    uint32_t number = 0;
    sim->timers.before = fires_before;
    for (int i = 0; i < 4; i++)
        *own[i] = (struct timer){.number = number++, .kind = (uint8_t)(TIMER_WAKE + i)};
    for (uint32_t i = 0; i < sim->machine_count; i++) {
        struct timer timer = {.number = number++, .worker = i, .kind = TIMER_DRAW};
        sim->machines[i].draw = timer;
        timer.number = number++;
        timer.kind = TIMER_LIFE;
        sim->machines[i].life_timer = timer;
    }
}

static void begin(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->load->tenants.count; i++) {
        struct policy_tenant is = policy_tenant(sim->options->policy, sim->load->tenants.names[i]);
        sim_step(sim, (struct scheduler_event){.type = EVENT_TENANT,
                                               .tenant = i,
                                               .weight = is.weight,
                                               .running_max = is.running_max});
    }
    for (uint32_t p = 0; p < sim->fleet->pool_count; p++)
        for (uint32_t i = 0; i < sim->pools[p].size; i++) {
            struct machine *machine = &sim->machines[sim->pools[p].first + i];
            machine->pool = p;
            machine->loading = machine->first = NONE;
            if (i < sim->pools[p].is->workers)
                machine_start(sim, machine, true);
        }
    for (uint32_t p = 0; p < sim->fleet->pool_count; p++)
        if (sim->pools[p].is->scale_max > 0)
            timer_set(sim, &sim->scale, sim->now_ns);
}

static void release(struct sim *sim)
{
    scheduler_free(sim->scheduler);
    referee_free(sim->referee);
    profiles_release(&sim->profiles);
    cost_free(sim->truth);
    cost_free(sim->known);
    free(sim->machines);
    free(sim->flights);
    free(sim->free_slots);
    free(sim->slot_of);
    free(sim->tenant_live);
    free(sim->records);
    buf_release(&sim->why);
}

int sim_run(const struct sim_options *options, struct sim_result *result, struct err *err)
{
    uint32_t jobs = options->load->count;
    uint32_t window = jobs < options->jobs_max ? jobs : options->jobs_max;
    struct sim sim = {.options = options,
                      .load = options->load,
                      .fleet = options->fleet,
                      .err = err,
                      .first_dirty = NONE,
                      .result = result};
    *result = (struct sim_result){0};
    buf_init(&sim.why, 4096);
    int rc = -1;
    if (find_classes(&sim, err) != 0 || make_models(&sim, err) != 0 ||
        make_scheduler(&sim, window, err) != 0 || make_tables(&sim, window, err) != 0)
        goto out;
    number_timers(&sim);
    if (tally_begin(&sim, err) != 0)
        goto out;
    begin(&sim);
    run(&sim);
    struct scheduler_count count = scheduler_count(sim.scheduler);
    uint32_t left = count.ready + count.delayed + count.held + (jobs - sim.next_arrival);
    if (sim.failed || referee_finish(sim.referee, left, sim.now_ns, &result->checks, err) != 0)
        goto out;
    rc = tally_finish(&sim, err);
out:
    if (rc != 0)
        sim_result_release(result);
    release(&sim);
    return rc;
}

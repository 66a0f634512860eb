/*
 * The scheduler for a fleet, at random: nobody starves in any class, and in a soak of 10,000
 * workers and 200,000 jobs every job ends once, on its route, within its worker's room. With
 * ATELIER_BENCH set it also prints decisions per second and bytes per job with a million jobs
 * queued.
 */
#include "tests/unit/fleet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Whatever the classes and routes, on a worker that could take it no job is overtaken by more than
 * overtake_max younger ones of its home. (One picture each, so that nothing is promised.) */
static void starve(unsigned seed)
{
    enum { MACHINES = 9 };
    static struct {
        bool waits, runs;
        uint32_t order, overtaken, profile, home;
    } jobs[FEW];
    struct scheduler_options options = few();
    struct scheduler_profile kinds[6];
    struct scheduler_worker is[MACHINES];
    uint32_t orders = 0;
    srandom(seed);
    options.overtake_max = 3 + (uint32_t)random() % 12;
    options.waiting_per_hour = (double)(random() % 3);
    start(options);
    memset(jobs, 0, sizeof(jobs));
    for (uint32_t i = 0; i < 6; i++) {
        kinds[i] = sdxl();
        kinds[i].route[0] = (uint8_t)(i % 3);
        kinds[i].route[1] = (uint8_t)((i + 1 + i / 3) % 3);
        kinds[i].seconds[G8I] = 40;
        kinds[i].needs = random() % 3 == 0;
        set_profile(i, kinds[i]);
    }
    for (uint32_t i = 0; i < MACHINES; i++) {
        is[i] = machine(i % 3, 1 + (int)(random() % 3));
        is[i].offers = i < 3 || random() % 2;
        set_worker(i, is[i]);
    }
    for (int i = 0; i < 3000; i++) {
        uint32_t slot = (uint32_t)random() % FEW;
        if (jobs[slot].runs) {
            jobs[slot].runs = false;
            finish(slot, OUTCOME_DONE);
        } else if (!jobs[slot].waits) {
            struct scheduler_job job = plain();
            job.model = (uint32_t)random() % 5;
            job.tenant = (uint32_t)random() % 3;
            job.class = random() % CLASS_COUNT;
            job.profile = (uint32_t)random() % 6;
            jobs[slot].waits = true;
            jobs[slot].order = ++orders;
            jobs[slot].overtaken = 0;
            jobs[slot].profile = job.profile;
            jobs[slot].home = kinds[job.profile].route[0];
            submit(slot, job);
        } else {
            continue;
        }
        for (size_t a = 0; a < actions.count; a++) {
            uint32_t taken = actions.items[a].slot;
            const struct scheduler_worker *worker = &is[actions.items[a].worker];
            jobs[taken].waits = false;
            jobs[taken].runs = true;
            for (uint32_t j = 0; j < FEW; j++) {
                if (!jobs[j].waits || jobs[j].order > jobs[taken].order ||
                    jobs[j].home != jobs[taken].home)
                    continue;
                if (worker->device_class == jobs[j].home &&
                    (kinds[jobs[j].profile].needs & ~worker->offers) == 0)
                    assert_true(jobs[j].overtaken < options.overtake_max);
                jobs[j].overtaken++;
            }
        }
    }
    scheduler_free(s);
}

static void test_nobody_starves_in_any_class(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 40; seed++)
        starve(seed);
}

/* ---- many ---- */

#define WORKERS 10000
#define JOBS 200000
#define WINDOW 50000
#define PROFILES 12
#define TENANTS 20

enum fate { NEVER, WAITS, RUNS, ENDED };

struct shadow {
    enum fate fate;
    uint32_t number; /* of the job */
    uint32_t worker, profile, tenant;
    int pictures;
    int attempt;
    bool alone;
};

static struct shadow *shadows;
static uint32_t *running, running_count, *place_of;
static uint8_t *ends; /* by job */
static struct {
    struct scheduler_worker is;
    bool present;
    int pictures, jobs, alone;
} machines[WORKERS];
static uint32_t tenant_runs[TENANTS];
static struct scheduler_profile profiles[PROFILES];

static uint32_t pick(uint32_t below)
{
    return (uint32_t)random() % below;
}

static void stop_running(uint32_t slot)
{
    struct shadow *shadow = &shadows[slot];
    machines[shadow->worker].pictures -= shadow->pictures;
    machines[shadow->worker].jobs--;
    machines[shadow->worker].alone -= shadow->alone;
    tenant_runs[shadow->tenant]--;
    uint32_t last = running[--running_count];
    running[place_of[slot]] = last;
    place_of[last] = place_of[slot];
}

static void end_job(uint32_t slot, uint32_t *free_slots, uint32_t *free_count)
{
    assert_int_equal(ends[shadows[slot].number], 0);
    ends[shadows[slot].number] = 1;
    shadows[slot].fate = ENDED;
    free_slots[(*free_count)++] = slot;
}

static bool on_route(const struct scheduler_profile *profile, uint32_t class)
{
    for (int i = 0; i < profile->route_count; i++)
        if (profile->route[i] == class)
            return true;
    return false;
}

static void take_actions(uint32_t *free_slots, uint32_t *free_count)
{
    for (size_t i = 0; i < actions.count; i++) {
        const struct scheduler_action *action = &actions.items[i];
        struct shadow *shadow = &shadows[action->slot];
        assert_int_equal(shadow->fate, WAITS);
        if (action->type != ACTION_ASSIGN) {
            end_job(action->slot, free_slots, free_count);
            continue;
        }
        assert_true(action->attempt > shadow->attempt);
        shadow->attempt = action->attempt;
        shadow->alone = action->alone;
        shadow->fate = RUNS;
        shadow->worker = action->worker;
        assert_true(machines[action->worker].present);
        assert_false(machines[action->worker].is.draining);
        assert_true(on_route(&profiles[shadow->profile], machines[action->worker].is.device_class));
        assert_true((profiles[shadow->profile].needs & ~machines[action->worker].is.offers) == 0);
        assert_true(profiles[shadow->profile].memory_bytes <=
                    machines[action->worker].is.memory_bytes);
        machines[action->worker].pictures += shadow->pictures;
        machines[action->worker].jobs++;
        machines[action->worker].alone += shadow->alone;
        assert_true(
            machines[action->worker].jobs == 1 ||
            (machines[action->worker].alone == 0 &&
             machines[action->worker].pictures <= machines[action->worker].is.pictures_max));
        if (shadow->tenant == 0)
            assert_true(++tenant_runs[0] <= 500);
        else
            tenant_runs[shadow->tenant]++;
        place_of[action->slot] = running_count;
        running[running_count++] = action->slot;
    }
}

static void soak_step(struct scheduler_event event, uint32_t *free_slots, uint32_t *free_count)
{
    step(event);
    take_actions(free_slots, free_count);
    while (actions.more) {
        step((struct scheduler_event){.type = EVENT_TICK});
        take_actions(free_slots, free_count);
    }
}

static struct scheduler_worker random_machine(void)
{
    struct scheduler_worker is = machine(pick(3), 1 + (int)pick(8));
    is.memory_bytes = 16u << pick(3);
    is.offers = pick(4) ? 1 : 3;
    for (uint32_t n = pick(4); is.resident_count < n;)
        is.resident[is.resident_count++] = pick(30);
    return is;
}

static struct scheduler_profile random_profile(void)
{
    struct scheduler_profile profile = {.route = {A100, A10, G8I}, .route_count = 1 + pick(3)};
    for (int i = 0; i < 3; i++) {
        uint8_t swap = profile.route[i];
        uint32_t with = pick(3);
        profile.route[i] = profile.route[with];
        profile.route[with] = swap;
        profile.seconds[i] = 1 + (float)pick(60);
        profile.switch_s[i] = (float)pick(20);
    }
    profile.memory_bytes = 8u << pick(4);
    profile.needs = pick(6) ? 0 : 2;
    return profile;
}

static void random_job(uint32_t slot, uint32_t number, struct scheduler_event *event)
{
    struct scheduler_job job = plain();
    job.model = pick(30);
    job.width = 512 + 128 * (int)pick(4);
    job.pictures = pick(10) ? 1 : 1 + (int)pick(12);
    job.class = pick(CLASS_COUNT);
    job.tenant = pick(TENANTS);
    job.profile = pick(PROFILES);
    job.effort = 0.5 + pick(10);
    if (pick(20) == 0)
        job.not_before_ns = now + (int64_t)pick(1000) * SECOND;
    if (pick(20) == 0)
        job.deadline_ns = now + (int64_t)pick(3000) * SECOND;
    shadows[slot] = (struct shadow){.fate = WAITS,
                                    .number = number,
                                    .profile = job.profile,
                                    .tenant = job.tenant,
                                    .pictures = job.pictures};
    *event = (struct scheduler_event){.type = EVENT_SUBMIT, .slot = slot, .job = job};
}

static void lose(uint32_t worker, bool crash, uint32_t *free_slots, uint32_t *free_count)
{
    for (uint32_t i = running_count; i-- > 0;) {
        uint32_t slot = running[i];
        if (shadows[slot].worker != worker)
            continue;
        stop_running(slot);
        shadows[slot].fate = WAITS;
    }
    machines[worker].present = false;
    soak_step((struct scheduler_event){.type = crash ? EVENT_WORKER_GONE : EVENT_WORKER_LEFT,
                                       .worker = worker},
              free_slots, free_count);
}

static void test_soak(void **state)
{
    (void)state;
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    uint32_t *free_slots = calloc(WINDOW, sizeof(*free_slots)), free_count = 0;
    shadows = calloc(WINDOW, sizeof(*shadows));
    running = calloc(WINDOW, sizeof(*running));
    place_of = calloc(WINDOW, sizeof(*place_of));
    ends = calloc(JOBS, 1);
    srandom(7);
    options.jobs_max = WINDOW;
    options.workers_max = WORKERS;
    options.tenants_max = TENANTS;
    options.profiles_max = PROFILES;
    options.overtake_max = 200;
    start(options);
    for (uint32_t i = 0; i < PROFILES; i++)
        set_profile(i, profiles[i] = random_profile());
    step((struct scheduler_event){
        .type = EVENT_TENANT, .tenant = 0, .weight = 1, .running_max = 500});
    for (uint32_t i = WINDOW; i-- > 0;)
        free_slots[free_count++] = i;
    uint32_t submitted = 0, workers = 0;
    for (uint64_t i = 0; submitted < JOBS || free_count < WINDOW; i++) {
        struct scheduler_event event = {.type = EVENT_TICK};
        uint32_t what = pick(1000), worker = pick(WORKERS);
        now += (int64_t)pick(20000000);
        if (workers < WORKERS && what < 300) {
            machines[workers].is = random_machine();
            machines[workers].present = true;
            event = (struct scheduler_event){
                .type = EVENT_WORKER, .worker = workers, .worker_is = machines[workers].is};
            workers++;
        } else if (submitted < JOBS && what < 650 && free_count > 0) {
            random_job(free_slots[--free_count], submitted++, &event);
        } else if (what < 980 && running_count > 0) {
            uint32_t slot = running[pick(running_count)];
            uint32_t how = pick(50);
            stop_running(slot);
            shadows[slot].fate = WAITS;
            event = (struct scheduler_event){.type = EVENT_FINISH, .slot = slot};
            event.outcome = how == 0 ? OUTCOME_RETRY : how == 1 ? OUTCOME_RETURN : OUTCOME_DONE;
            if (event.outcome == OUTCOME_DONE)
                end_job(slot, free_slots, &free_count);
        } else if (what < 984 && worker < workers && machines[worker].present) {
            lose(worker, pick(2) != 0, free_slots, &free_count);
        } else if (what < 996 && worker < workers) {
            if (!machines[worker].present || machines[worker].jobs == 0)
                machines[worker].is = random_machine();
            machines[worker].is.draining = submitted < JOBS && pick(4) == 0;
            machines[worker].present = true;
            event = (struct scheduler_event){
                .type = EVENT_WORKER, .worker = worker, .worker_is = machines[worker].is};
        } else if (what < 998) {
            uint32_t slot = pick(WINDOW);
            if (shadows[slot].fate != WAITS)
                continue;
            end_job(slot, free_slots, &free_count);
            event = (struct scheduler_event){.type = EVENT_CANCEL, .slot = slot};
        } else if (pick(10) == 0) {
            uint32_t number = pick(PROFILES);
            float faster = (float)(1 + pick(60));
            if (pick(4) == 0 && scheduler_count(s).ready < 5000)
                profiles[number] = random_profile();
            profiles[number].seconds[pick(3)] = faster;
            event = (struct scheduler_event){
                .type = EVENT_PROFILE, .number = number, .profile = profiles[number]};
        } else if (submitted == JOBS && running_count == 0) {
            now += 1000 * SECOND; /* what is left may wait for a retry, or find no worker */
            uint32_t slot = pick(WINDOW);
            if (shadows[slot].fate == WAITS && explain(slot).why == WAITING_WORKER) {
                end_job(slot, free_slots, &free_count);
                event = (struct scheduler_event){.type = EVENT_CANCEL, .slot = slot};
            }
        }
        soak_step(event, free_slots, &free_count);
    }
    struct scheduler_count count = scheduler_count(s);
    assert_int_equal(count.ready + count.delayed + count.held + count.running, 0);
    struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
    scheduler_pools(s, pools);
    for (int c = 0; c < 3; c++) {
        assert_int_equal(pools[c].queued + pools[c].running, 0);
        assert_near(pools[c].queued_s + pools[c].running_s, 0);
    }
    for (uint32_t i = 0; i < JOBS; i++)
        assert_int_equal(ends[i], 1);
    scheduler_free(s);
    free(free_slots);
    free(shadows);
    free(running);
    free(place_of);
    free(ends);
}

/* ---- how fast ---- */

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static size_t resident_bytes(void)
{
    size_t pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%zu %zu", &pages, &resident), 2);
    fclose(file);
    return resident * 4096;
}

static void bench(const char *name, uint32_t jobs, uint32_t workers, uint32_t tenants,
                  uint32_t sizes, bool idle_elsewhere)
{
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    size_t before = resident_bytes();
    options.jobs_max = jobs + 100;
    options.bytes_max = SIZE_MAX;
    options.workers_max = workers;
    options.tenants_max = tenants;
    start(options);
    for (uint32_t i = 0; i < 64; i++) {
        struct scheduler_profile profile = {.route = {i % 3, (i + 1) % 3},
                                            .route_count = 2,
                                            .memory_bytes = i % 4,
                                            .seconds = {10, 20, 30},
                                            .switch_s = {5, 5, 5}};
        if (idle_elsewhere) { /* asked at every step, and never cheap enough */
            profile.route[0] = A100;
            profile.route[1] = G8I;
            profile.seconds[G8I] = 1e9f;
        }
        set_profile(i, profile);
    }
    for (uint32_t i = 0; i < workers; i++) {
        struct scheduler_worker is = machine(i % 3, 4);
        is.memory_bytes = 16;
        is.resident_count = 3;
        for (uint32_t m = 0; m < 3; m++)
            is.resident[m] = (i + m) % 50;
        set_worker(i, is);
    }
    size_t empty = resident_bytes();
    uint32_t *queue = calloc(2 * jobs + 100, sizeof(*queue)), head = 0, tail = 0;
    double begun = seconds_now();
    for (uint32_t i = 0; i < jobs; i++) {
        struct scheduler_job job = plain();
        job.model = pick(50);
        job.profile = pick(64);
        job.width = 512 + 8 * (int)pick(sizes);
        job.tenant = pick(tenants);
        job.class = pick(CLASS_COUNT);
        submit(i, job);
        for (size_t a = 0; a < actions.count; a++)
            queue[tail++] = actions.items[a].slot;
    }
    double queued = seconds_now();
    size_t full = resident_bytes();
    uint32_t done = 0, rounds = jobs < 300000 ? jobs : 300000;
    double worst = 0;
    for (; done < rounds && head < tail; done++) {
        double t = seconds_now();
        now += SECOND / 1000;
        finish(queue[head++], OUTCOME_DONE);
        for (size_t a = 0; a < actions.count; a++)
            queue[tail++] = actions.items[a].slot;
        t = seconds_now() - t;
        worst = t > worst ? t : worst;
    }
    double drained = seconds_now();
    printf("%s: %u jobs, %u workers, %u tenants: submit %.0f/s, complete+assign %.0f/s (worst "
           "%.2f ms), %.0f bytes a job resident, %.0f reserved, %.1f MB for workers\n",
           name, jobs, workers, tenants, jobs / (queued - begun), done / (drained - queued),
           worst * 1e3, (double)(full - empty) / jobs,
           (double)scheduler_memory_bytes(s) / options.jobs_max, (double)(empty - before) * 1e-6);
    struct scheduler_event gone = {.type = EVENT_WORKER_GONE};
    double t = seconds_now();
    for (gone.worker = 0; gone.worker < workers; gone.worker += 3)
        step(gone);
    printf("  all workers of a class gone: %.1f ms\n", (seconds_now() - t) * 1e3);
    free(queue);
    scheduler_free(s);
}

static void test_bench(void **state)
{
    (void)state;
    if (!getenv("ATELIER_BENCH"))
        skip();
    bench("usual", 1000000, 10000, 20, 4, false);
    bench("many groups", 1000000, 10000, 500, 32, false);
    bench("idle workers that would cost too much", 1000000, 10000, 20, 4, true);
    bench("small", 20000, 100, 20, 4, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody_starves_in_any_class),
        cmocka_unit_test(test_soak),
        cmocka_unit_test(test_bench),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

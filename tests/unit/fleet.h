/* fleet.h: a scheduler under test, with words for what happens to it; for one test program each. */
#ifndef ATELIER_TESTS_UNIT_FLEET_H
#define ATELIER_TESTS_UNIT_FLEET_H

#include "scheduler/explain.h"
#include "scheduler/scheduler.h"
#include "tests/unit/unit.h"

#include <math.h>

#define SECOND 1000000000LL
#define FEW 64

enum { A100, A10, G8I };

static struct scheduler *s;
static struct scheduler_actions actions;
static int64_t now;

static inline void step(struct scheduler_event event)
{
    event.now_ns = now;
    scheduler_step(s, &event, &actions);
}

static inline struct scheduler_options few(void)
{
    struct scheduler_options options = SCHEDULER_OPTIONS_INIT;
    options.jobs_max = options.workers_max = FEW;
    options.tenants_max = 4;
    options.profiles_max = 16;
    options.retry_jitter = 0;
    return options;
}

static inline void start(struct scheduler_options options)
{
    struct err err;
    now = 1000 * SECOND;
    assert_int_equal(scheduler_create(&s, &options, &err), 0);
}

static inline void set_profile(uint32_t number, struct scheduler_profile profile)
{
    step((struct scheduler_event){.type = EVENT_PROFILE, .number = number, .profile = profile});
}

/* Prefers an A100, 10 s at 3.6 an hour: 0.01; or an A10, 30 s at 1.2 an hour: 0.01 too. */
static inline struct scheduler_profile sdxl(void)
{
    return (struct scheduler_profile){.route = {A100, A10},
                                      .route_count = 2,
                                      .seconds = {[A100] = 10, [A10] = 30},
                                      .switch_s = {[A100] = 5, [A10] = 15}};
}

static inline struct scheduler_worker machine(uint32_t class, int pictures)
{
    static const float prices[] = {3.6f, 1.2f, 0.9f};
    return (struct scheduler_worker){
        .device_class = class, .pictures_max = pictures, .price_per_hour = prices[class]};
}

static inline void set_worker(uint32_t worker, struct scheduler_worker is)
{
    step((struct scheduler_event){.type = EVENT_WORKER, .worker = worker, .worker_is = is});
}

static inline struct scheduler_job plain(void)
{
    return (struct scheduler_job){.width = 512,
                                  .height = 512,
                                  .pictures = 1,
                                  .class = CLASS_NORMAL,
                                  .attempts_max = 3,
                                  .not_before_ns = SCHEDULER_TIME_NONE,
                                  .deadline_ns = SCHEDULER_TIME_NONE};
}

static inline void submit(uint32_t slot, struct scheduler_job job)
{
    step((struct scheduler_event){.type = EVENT_SUBMIT, .slot = slot, .job = job});
}

static inline void finish(uint32_t slot, enum outcome outcome)
{
    step((struct scheduler_event){.type = EVENT_FINISH, .slot = slot, .outcome = outcome});
}

static inline void tell(enum event_type type, uint32_t slot, uint32_t worker)
{
    step((struct scheduler_event){.type = type, .slot = slot, .worker = worker});
}

static inline struct scheduler_explanation explain(uint32_t slot)
{
    struct scheduler_explanation explanation;
    scheduler_explain(s, slot, &explanation);
    return explanation;
}

static inline void assert_near(double value, double expected)
{
    if (fabs(value - expected) > 1e-6 + 1e-6 * fabs(expected))
        fail_msg("%.9g instead of %.9g", value, expected);
}

static inline void assert_assigned(uint32_t slot, uint32_t worker)
{
    assert_int_equal(actions.count, 1);
    assert_int_equal(actions.items[0].type, ACTION_ASSIGN);
    assert_int_equal(actions.items[0].slot, slot);
    assert_int_equal(actions.items[0].worker, worker);
}

#endif

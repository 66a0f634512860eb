#include "scheduler/profiles.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_BUCKETS_PER_OCTAVE 4 /* of pixels */
#define BYTES_UNKNOWN (2ull << 30)
#define MEMORY_ROUND (256ull << 20)

/* What a scheduler_profile was made of, so that it can be made again. */
struct profile {
    uint32_t model, tenant;
    int side;          /* pixels of the square that stands for its sizes in predictions */
    int width, height; /* of its first job; all its jobs have the same route */
    bool guided;
    uint32_t needs;  /* enum need */
    uint32_t barred; /* classes that cost more than its jobs may, as bits of their numbers */
    char tier[16];
};

/* ---- demands ---- */

uint32_t need_precisions(const char *list)
{
    uint32_t needs = 0;
    if (strstr(list, "bf16"))
        needs |= NEED_BF16;
    if (strstr(list, "f32"))
        needs |= NEED_F32;
    return needs;
}

uint64_t need_memory(const struct catalogue_model *model)
{
    return (model->bytes + MEMORY_ROUND - 1) / MEMORY_ROUND * MEMORY_ROUND;
}

enum job_class demand_class(const struct job *job)
{
    return strcmp(job->priority, "interactive") == 0 ? CLASS_INTERACTIVE
           : strcmp(job->priority, "bulk") == 0      ? CLASS_BULK
                                                     : CLASS_NORMAL;
}

/* How much longer a second pass makes the job. */
static double hires_work(const struct job *job, const struct demand *demand)
{
    return job_pixel_steps(job, demand->width, demand->height, demand->steps) /
           ((double)demand->width * demand->height * demand->steps);
}

/* Hints of one ControlNet-Union, which alone have a mode, go through it together. */
static bool goes_along(const struct job *job, size_t i)
{
    const struct job_controlnet *c = &job->controlnets[i];
    for (size_t j = 0; j < i && c->mode >= 0; j++)
        if (strcmp(job->controlnets[j].name, c->name) == 0)
            return true;
    return false;
}

/* What ControlNets, a refiner and a second pass make of the job's evaluations. */
static double work_of(const struct job *job, const struct demand *demand,
                      const struct catalogue_model *model, const struct catalogue_model *refiner)
{
    double controls = 0;
    for (size_t i = 0; i < job->controlnet_count; i++)
        if (!goes_along(job, i))
            controls += job->controlnets[i].end - job->controlnets[i].start;
    return hires_work(job, demand) * cost_work(model->family, controls,
                                               refiner ? refiner->family : NULL,
                                               refiner ? 1 - job->refiner.switch_at : 0);
}

struct demand demand_of(const struct job *job, const struct catalogue_model *model,
                        const struct catalogue_model *refiner)
{
    struct demand demand = {.tier = job->tier,
                            .width = job->width ? job->width : DEMAND_SIDE,
                            .height = job->height ? job->height : DEMAND_SIDE,
                            .steps = job->steps ? job->steps : DEMAND_STEPS,
                            .images = job->images,
                            .guided = job->guidance_scale > 1 || job->guidance_scale < 0,
                            .needs = need_precisions(job->precision),
                            .max_price = job->max_price};
    demand.needs |= job->confidential ? NEED_CONFIDENTIAL : 0;
    demand.work = work_of(job, &demand, model, refiner);
    return demand;
}

/* ---- one profile ---- */

static struct policy_facts facts_of(const struct profiles *p, const struct profile *profile)
{
    const struct catalogue_model *model = &p->models[profile->model];
    return (struct policy_facts){.tier = profile->tier,
                                 .family = model->family,
                                 .model = model->name,
                                 .tenant = p->tenants->names[profile->tenant],
                                 .width = profile->width,
                                 .height = profile->height,
                                 .confidential = profile->needs & NEED_CONFIDENTIAL,
                                 .memory_gb = (double)model->bytes / (1u << 30)};
}

static double predict(struct profiles *p, const struct profile *profile, const char *class)
{
    const struct catalogue_model *model = &p->models[profile->model];
    struct cost_query query = {.class = class,
                               .family = model->family,
                               .model = model->name,
                               .width = profile->side,
                               .height = profile->side,
                               .steps = DEMAND_STEPS,
                               .images = 1,
                               .guidance = profile->guided};
    return cost_predict(p->cost, &query);
}

static void leave_out(struct policy_route *route, uint32_t barred)
{
    int kept = 0;
    for (int i = 0; i < route->count; i++)
        if (!(barred >> route->classes[i] & 1))
            route->classes[kept++] = route->classes[i];
    route->count = (uint8_t)kept;
}

static void find_route(const struct profiles *p, const struct profile *profile,
                       struct policy_route *route)
{
    struct policy_facts facts = facts_of(p, profile);
    policy_route(p->policy, &facts, route);
    leave_out(route, profile->barred);
}

static bool make(struct profiles *p, const struct profile *from, struct scheduler_profile *to)
{
    const struct catalogue_model *model = &p->models[from->model];
    struct policy_route route;
    find_route(p, from, &route);
    *to = (struct scheduler_profile){.route_count = route.count, .needs = from->needs};
    to->memory_bytes = need_memory(model);
    for (int i = 0; i < route.count; i++) {
        uint8_t number = route.classes[i];
        const char *class = policy_class(p->policy, number)->name;
        to->route[i] = number;
        to->seconds[number] = (float)predict(p, from, class);
        to->switch_s[number] =
            (float)cost_switch(p->cost, class, model->bytes ? model->bytes : BYTES_UNKNOWN);
    }
    return route.count > 0;
}

/* ---- a job's ---- */

static int side_of(const struct demand *demand)
{
    double pixels = (double)demand->width * demand->height;
    double bucket = round(log2(pixels) * SIZE_BUCKETS_PER_OCTAVE) / SIZE_BUCKETS_PER_OCTAVE;
    return (int)lround(sqrt(exp2(bucket)));
}

static double effort_of(const struct demand *demand, int side)
{
    double own = (double)demand->width * demand->height / ((double)side * side);
    return demand->images * own * demand->steps / DEMAND_STEPS * demand->work;
}

/* The classes of the route where the job is predicted to cost more than it may, as bits. */
static uint32_t too_dear(struct profiles *p, const struct profile *profile,
                         const struct policy_route *route, double effort, double max_price,
                         double *cheapest)
{
    uint32_t barred = 0;
    for (int i = 0; i < route->count; i++) {
        const struct policy_class *class = policy_class(p->policy, route->classes[i]);
        double price = predict(p, profile, class->name) * effort * class->price_per_hour / 3600;
        if (price > max_price)
            barred |= 1u << route->classes[i];
        if (price < *cheapest)
            *cheapest = price;
    }
    return barred;
}

/* The classes that may draw it at its price; false, and why, when there is none. */
static bool find_classes(struct profiles *p, struct profile *profile, const struct demand *demand,
                         double effort, struct policy_route *route, struct buf *why)
{
    char text[512];
    double cheapest = INFINITY;
    buf_clear(why);
    find_route(p, profile, route);
    if (route->count == 0) {
        struct policy_facts facts = facts_of(p, profile);
        policy_why_not(p->policy, &facts, text, sizeof(text));
        buf_str(why, text);
        return false;
    }
    if (demand->max_price >= 0)
        profile->barred = too_dear(p, profile, route, effort, demand->max_price, &cheapest);
    leave_out(route, profile->barred);
    if (route->count == 0)
        buf_printf(why, "max_price: %g is less than the %.3g that it would cost at least",
                   demand->max_price, cheapest);
    return route->count > 0;
}

/* Jobs that may cost anything share no profile with those that may not: a policy that is read
 * again gives only the former new classes. */
static void name_of(const struct profile *profile, const struct policy_route *route, char *name,
                    size_t size)
{
    char classes[SCHEDULER_CLASSES_MAX + 1] = "";
    for (int i = 0; i < route->count; i++)
        classes[i] = (char)('a' + route->classes[i]);
    snprintf(name, size, "%u %d %d %u %s %u %s %x", profile->model, profile->side, profile->guided,
             profile->needs, profile->tier, profile->tenant, classes, profile->barred);
}

uint32_t profiles_enter(struct profiles *p, const struct demand *demand, double *effort,
                        struct scheduler_profile *fresh, struct buf *why)
{
    char name[256];
    struct policy_route route;
    struct profile profile = {.model = demand->model,
                              .tenant = demand->tenant,
                              .side = side_of(demand),
                              .width = demand->width,
                              .height = demand->height,
                              .guided = demand->guided,
                              .needs = demand->needs};
    snprintf(profile.tier, sizeof(profile.tier), "%s", demand->tier ? demand->tier : "standard");
    *effort = effort_of(demand, profile.side);
    *fresh = (struct scheduler_profile){.route_count = 0};
    /* Predictions may be of a size nearby; the policy's limits are exact. */
    if (!find_classes(p, &profile, demand, *effort, &route, why))
        return NAMES_NONE;
    name_of(&profile, &route, name, sizeof(name));
    uint32_t number = names_find(&p->names, name);
    if (number != NAMES_NONE)
        return number;
    number = names_enter(&p->names, name);
    if (number == NAMES_NONE) {
        buf_str(why, "too many different models, sizes and tenants at once");
        return NAMES_NONE;
    }
    p->items[number] = profile;
    bool made = make(p, &profile, fresh);
    ASSERT(made);
    return number;
}

bool profiles_make(struct profiles *p, uint32_t number, struct scheduler_profile *made)
{
    return make(p, &p->items[number], made);
}

void profiles_route(const struct profiles *p, uint32_t number, struct policy_route *route)
{
    find_route(p, &p->items[number], route);
}

int profiles_init(struct profiles *p, const struct policy *policy, struct cost *cost,
                  const struct catalogue_model *models, const struct names *tenants, uint32_t max,
                  struct err *err)
{
    *p = (struct profiles){.policy = policy, .cost = cost, .models = models, .tenants = tenants};
    names_init(&p->names, max);
    p->items = calloc(max, sizeof(*p->items));
    if (!p->items)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for %u profiles", max);
    return 0;
}

void profiles_release(struct profiles *p)
{
    names_release(&p->names);
    free(p->items);
    *p = (struct profiles){0};
}

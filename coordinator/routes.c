/* What the policy and the cost model say of a job, as the scheduler's profiles. */
#include "coordinator/cell.h"

#include "common/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PROFILE_STEPS 20
#define PROFILE_SIDE 512          /* of a job that leaves its size to the model */
#define SIZE_BUCKETS_PER_OCTAVE 4 /* of pixels */
#define BYTES_UNKNOWN (2ull << 30)
#define MEMORY_ROUND (256ull << 20)

static struct policy_facts facts_of(const struct cell *cell, const struct profile *profile)
{
    const struct catalogue_model *model = &cell->catalogue.models[profile->model];
    return (struct policy_facts){.tier = profile->tier,
                                 .family = model->family,
                                 .model = model->name,
                                 .tenant = cell->tenants.names[profile->tenant],
                                 .width = profile->width,
                                 .height = profile->height,
                                 .confidential = profile->needs & NEED_CONFIDENTIAL,
                                 .memory_gb = (double)model->bytes / (1u << 30)};
}

static double predict(struct cell *cell, const struct profile *profile, const char *class)
{
    const struct catalogue_model *model = &cell->catalogue.models[profile->model];
    struct cost_query query = {.class = class,
                               .family = model->family,
                               .model = model->name,
                               .width = profile->side,
                               .height = profile->side,
                               .steps = PROFILE_STEPS,
                               .images = 1,
                               .guidance = profile->guided};
    return cost_predict(cell->cost, &query);
}

static void leave_out(struct policy_route *route, uint32_t barred)
{
    int kept = 0;
    for (int i = 0; i < route->count; i++)
        if (!(barred >> route->classes[i] & 1))
            route->classes[kept++] = route->classes[i];
    route->count = (uint8_t)kept;
}

/* False when no class may draw it, whatever it costs. */
static bool find_route(struct cell *cell, const struct profile *from, struct policy_route *route)
{
    struct policy_facts facts = facts_of(cell, from);
    char text[512];
    policy_route(cell->policy, &facts, route);
    if (route->count > 0)
        return true;
    policy_why_not(cell->policy, &facts, text, sizeof(text));
    buf_clear(&cell->scratch);
    buf_str(&cell->scratch, text);
    return false;
}

static bool make(struct cell *cell, const struct profile *from, struct scheduler_profile *to)
{
    const struct catalogue_model *model = &cell->catalogue.models[from->model];
    struct policy_route route;
    if (!find_route(cell, from, &route))
        return false;
    leave_out(&route, from->barred);
    if (route.count == 0)
        return false;
    *to = (struct scheduler_profile){.route_count = route.count, .needs = from->needs};
    to->memory_bytes = (model->bytes + MEMORY_ROUND - 1) / MEMORY_ROUND * MEMORY_ROUND;
    for (int i = 0; i < route.count; i++) {
        uint8_t number = route.classes[i];
        const char *class = policy_class(cell->policy, number)->name;
        to->route[i] = number;
        to->seconds[number] = (float)predict(cell, from, class);
        to->switch_s[number] =
            (float)cost_switch(cell->cost, class, model->bytes ? model->bytes : BYTES_UNKNOWN);
    }
    return true;
}

void cell_route(const struct cell *cell, const struct entry *entry, struct policy_route *route)
{
    struct policy_facts facts = facts_of(cell, &cell->profiles[entry->profile]);
    policy_route(cell->policy, &facts, route);
    leave_out(route, cell->profiles[entry->profile].barred);
}

/* The classes of the route where the job is predicted to cost more than it may, as bits. */
static uint32_t too_dear(struct cell *cell, const struct profile *profile,
                         const struct policy_route *route, double effort, double max_price,
                         double *cheapest)
{
    uint32_t barred = 0;
    for (int i = 0; i < route->count; i++) {
        const struct policy_class *class = policy_class(cell->policy, route->classes[i]);
        double price = predict(cell, profile, class->name) * effort * class->price_per_hour / 3600;
        if (price > max_price)
            barred |= 1u << route->classes[i];
        if (price < *cheapest)
            *cheapest = price;
    }
    return barred;
}

static int side_of(const struct job *job)
{
    double pixels = (double)(job->width ? job->width : PROFILE_SIDE) *
                    (job->height ? job->height : PROFILE_SIDE);
    double bucket = round(log2(pixels) * SIZE_BUCKETS_PER_OCTAVE) / SIZE_BUCKETS_PER_OCTAVE;
    return (int)lround(sqrt(exp2(bucket)));
}

static void tell(struct cell *cell, uint32_t number, const struct scheduler_profile *profile)
{
    struct scheduler_event event = {.type = EVENT_PROFILE, .number = number, .profile = *profile};
    cell_step(cell, &event);
}

/* How much longer a second pass makes the job. */
static double hires_work(const struct job *job)
{
    int width = job->width ? job->width : PROFILE_SIDE;
    int height = job->height ? job->height : PROFILE_SIDE;
    int steps = job->steps ? job->steps : PROFILE_STEPS;
    return job_pixel_steps(job, width, height, steps) / ((double)width * height * steps);
}

double cell_work(const struct cell *cell, const struct job *job, uint32_t model)
{
    int refiner = job->refiner.model ? catalogue_find(&cell->catalogue, job->refiner.model) : -1;
    const char *refines = refiner >= 0 ? cell->catalogue.models[refiner].family : NULL;
    double controls = 0;
    for (size_t i = 0; i < job->controlnet_count; i++)
        controls += job->controlnets[i].end - job->controlnets[i].start;
    return hires_work(job) * cost_work(cell->catalogue.models[model].family, controls, refines,
                                       refines ? 1 - job->refiner.switch_at : 0);
}

uint32_t cell_profile(struct cell *cell, const struct job *job, uint32_t model, double *effort)
{
    char name[256], classes[SCHEDULER_CLASSES_MAX + 1] = "";
    struct policy_route route;
    struct scheduler_profile made;
    struct profile profile = {.model = model,
                              .side = side_of(job),
                              .guided = job->guidance_scale > 1 || job->guidance_scale < 0,
                              .needs = fleet_precisions(job->precision),
                              .width = job->width ? job->width : PROFILE_SIDE,
                              .height = job->height ? job->height : PROFILE_SIDE};
    profile.needs |= job->confidential ? NEED_CONFIDENTIAL : 0;
    double pixels = (double)profile.side * profile.side;
    double own = (double)(job->width ? job->width : PROFILE_SIDE) *
                 (job->height ? job->height : PROFILE_SIDE);
    double cheapest = INFINITY;
    int steps = job->steps ? job->steps : PROFILE_STEPS;
    profile.tenant = names_enter(&cell->tenants, job->tenant);
    snprintf(profile.tier, sizeof(profile.tier), "%s", job->tier ? job->tier : "standard");
    *effort = job->images * (own / pixels) * steps / PROFILE_STEPS * cell_work(cell, job, model);
    /* Predictions may be of a size nearby; the policy's limits are exact. */
    if (!find_route(cell, &profile, &route))
        return NAMES_NONE;
    if (job->max_price >= 0)
        profile.barred = too_dear(cell, &profile, &route, *effort, job->max_price, &cheapest);
    leave_out(&route, profile.barred);
    if (route.count == 0) {
        buf_clear(&cell->scratch);
        buf_printf(&cell->scratch,
                   "max_price: %g is less than the %.3g that it would cost at least",
                   job->max_price, cheapest);
        return NAMES_NONE;
    }
    for (int i = 0; i < route.count; i++)
        classes[i] = (char)('a' + route.classes[i]);
    /* Jobs that may cost anything share no profile with those that may not: a policy that is read
     * again gives only the former new classes. */
    snprintf(name, sizeof(name), "%u %d %d %u %s %u %s %x", model, profile.side, profile.guided,
             profile.needs, profile.tier, profile.tenant, classes, profile.barred);
    uint32_t known = cell->profile_names.count;
    uint32_t number = names_find(&cell->profile_names, name);
    if (number != NAMES_NONE)
        return number;
    if (!make(cell, &profile, &made))
        return NAMES_NONE;
    number = names_enter(&cell->profile_names, name);
    if (number == NAMES_NONE) {
        buf_clear(&cell->scratch);
        buf_str(&cell->scratch, "too many different models, sizes and tenants at once");
        return NAMES_NONE;
    }
    ASSERT(number == known);
    cell->profiles[number] = profile;
    tell(cell, number, &made);
    return number;
}

void cell_refresh_profiles(struct cell *cell)
{
    struct scheduler_profile made;
    cell->learned = false;
    for (uint32_t i = 0; i < cell->profile_names.count; i++)
        if (make(cell, &cell->profiles[i], &made))
            tell(cell, i, &made);
}

/* ---- files ---- */

static int64_t changed_ns(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0
               ? (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec
               : 0;
}

/* Numbers of classes are in use all over: they must go on to mean the same. */
static int compare_classes(const struct policy *old, const struct policy *new, struct err *err)
{
    for (uint32_t i = 0; i < policy_class_count(old); i++) {
        const char *name = policy_class(old, i)->name;
        if (i >= policy_class_count(new) || strcmp(policy_class(new, i)->name, name) != 0)
            return err_set(
                err, ERR_CONFLICT, ERR_REJECT,
                "classes.%s was removed or moved; add classes at the end, or restart the "
                "coordinators for another order",
                name);
    }
    return 0;
}

int cell_read_policy(struct cell *cell, struct err *err)
{
    struct policy *fresh;
    cell->policy_ns = changed_ns(cell->policy_path);
    if (policy_read(&fresh, cell->policy_path, err) != 0)
        return -1;
    if (cell->policy && compare_classes(cell->policy, fresh, err) != 0) {
        policy_free(fresh);
        return -1;
    }
    policy_free(cell->policy);
    cell->policy = fresh;
    return 0;
}

void cell_check_policy(struct cell *cell)
{
    struct err err;
    int64_t changed = changed_ns(cell->policy_path);
    if (changed == 0 || changed == cell->policy_ns)
        return;
    if (cell_read_policy(cell, &err) != 0) {
        log_event(cell->log, LOG_ERROR, "policy_refused", "file", cell->policy_path, "problem",
                  err.message, NULL);
        return;
    }
    log_event(cell->log, LOG_INFO, "policy_read", "file", cell->policy_path, NULL);
    cell_refresh_profiles(cell);
    for (uint32_t i = 0; i < cell->tenants.count; i++)
        cell_know_tenant(cell, i);
}

int cell_read_cost(struct cell *cell, struct err *err)
{
    struct json_doc *doc;
    const char *path = cell->options->cost_file;
    if (!path || !file_exists(path))
        return 0;
    if (json_parse_file(&doc, path, NULL, err) != 0)
        return -1;
    int rc = cost_read(cell->cost, json_root(doc), err);
    json_doc_free(doc);
    return rc == 0 ? 0 : err_prefix(err, "%s", path);
}

void cell_write_cost(struct cell *cell)
{
    struct buf text;
    struct err err;
    if (!cell->options->cost_file)
        return;
    buf_init(&text, 64u << 20);
    cost_write(cell->cost, &text);
    if (file_write(cell->options->cost_file, text.data, text.len, FILE_REPLACE, &err) != 0)
        log_event(cell->log, LOG_WARN, "cost_not_kept", "problem", err.message, NULL);
    buf_release(&text);
}

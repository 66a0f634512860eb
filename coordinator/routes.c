/* What the policy and the cost model say of a job, as the scheduler's profiles. */
#include "coordinator/cell.h"

#include "common/json.h"

#include <string.h>
#include <sys/stat.h>

void cell_route(const struct cell *cell, const struct entry *entry, struct policy_route *route)
{
    profiles_route(&cell->profiles, entry->profile, route);
}

static void tell(struct cell *cell, uint32_t number, const struct scheduler_profile *profile)
{
    struct scheduler_event event = {.type = EVENT_PROFILE, .number = number, .profile = *profile};
    cell_step(cell, &event);
}

struct demand cell_demand(struct cell *cell, const struct job *job, uint32_t model)
{
    const struct catalogue_model *models = cell->catalogue.models;
    int refiner = job->refiner.model ? catalogue_find(&cell->catalogue, job->refiner.model) : -1;
    struct demand demand = demand_of(job, &models[model], refiner >= 0 ? &models[refiner] : NULL);
    demand.model = model;
    demand.tenant = names_enter(&cell->tenants, job->tenant);
    return demand;
}

uint32_t cell_profile(struct cell *cell, const struct demand *demand, double *effort)
{
    struct scheduler_profile fresh;
    uint32_t number = profiles_enter(&cell->profiles, demand, effort, &fresh, &cell->scratch);
    if (fresh.route_count > 0)
        tell(cell, number, &fresh);
    return number;
}

void cell_refresh_profiles(struct cell *cell)
{
    struct scheduler_profile made;
    cell->learned = false;
    for (uint32_t i = 0; i < cell->profiles.names.count; i++)
        if (profiles_make(&cell->profiles, i, &made))
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
    cell->profiles.policy = fresh;
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

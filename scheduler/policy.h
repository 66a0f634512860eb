/*
 * policy.h: the routing policy: which device classes may draw a job, the preferred one first.
 *
 * A JSON file (docs/routing.md; the shipped one is deploy/routing.json) gives the classes with
 * their prices, rules that are tried in order until one fits, pools that confine confidential jobs,
 * and the tenants' shares. The last rule has no condition, so that every job has a route. Errors
 * name the place in the file and say what to do.
 *
 * A policy never changes: to reload is to parse anew and to free the old one. It owns its strings.
 * Reading from any number of threads is fine.
 *
 *     if (policy_read(&policy, "deploy/routing.json", &err) != 0) ...
 *     struct policy_facts facts = {.tier = "fast", .family = "sd15", .width = 512, .height = 512};
 *     policy_route(policy, &facts, &route);
 *     policy_free(policy);
 */
#ifndef ATELIER_SCHEDULER_POLICY_H
#define ATELIER_SCHEDULER_POLICY_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define POLICY_CLASSES_MAX 16 /* SCHEDULER_CLASSES_MAX */
#define POLICY_RULES_MAX 256
#define POLICY_NAMES_MAX 64 /* of one condition */
#define POLICY_NAME_MAX_BYTES 128
#define POLICY_TENANTS_MAX 65536

struct policy;

struct policy_class {
    const char *name;
    double price_per_hour;
    double memory_gb; /* 0: not said */
};

struct policy_tenant {
    const char *name;     /* "*": of every tenant that is not named */
    double weight;        /* 1 where not said */
    uint32_t running_max; /* jobs; 0: no limit */
    uint32_t queued_max;  /* jobs; 0: no limit */
};

/* What rules ask about. A NULL name fits no condition on it. */
struct policy_facts {
    const char *tier, *family, *model, *tenant;
    int width, height;
    bool confidential;
    double memory_gb; /* that the job needs; classes that say they have less are left out */
};

struct policy_route {
    uint8_t classes[POLICY_CLASSES_MAX]; /* numbers, the preferred one first */
    uint8_t count;                       /* 0: nothing may draw it; see policy_why_not */
    uint32_t rule;                       /* number in the file, from 0 */
};

/* ERR_FORMAT, ERR_INVALID, ERR_LIMIT (ERR_FATAL) for what the text says; `name` stands for it in
 * errors. */
int policy_parse(struct policy **policy, const char *text, size_t len, const char *name,
                 struct err *err) must_check;
int policy_read(struct policy **policy, const char *path, struct err *err) must_check;
void policy_free(struct policy *policy);

/* The route that the first fitting rule gives, less the classes with too little memory. A
 * confidential job's is confined to the confidential pool, and is the whole pool where the rule
 * names none of it. */
void policy_route(const struct policy *policy, const struct policy_facts *facts,
                  struct policy_route *route);

/* One sentence for a job whose route is empty. */
void policy_why_not(const struct policy *policy, const struct policy_facts *facts, char *out,
                    size_t size);

/* Classes are numbered as the file orders them. */
uint32_t policy_class_count(const struct policy *policy);
const struct policy_class *policy_class(const struct policy *policy, uint32_t number);
int policy_class_find(const struct policy *policy, const char *name); /* or -1 */

/* What holds for a tenant: its own entry, that of "*", or weight 1 without limits. */
struct policy_tenant policy_tenant(const struct policy *policy, const char *name);

/* Money; the scheduler's waiting_per_hour and lateness_per_hour. */
double policy_waiting_per_hour(const struct policy *policy);
double policy_lateness_per_hour(const struct policy *policy);

#endif

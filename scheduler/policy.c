/*
 * policy.c: the file becomes arrays; names stay in the parsed document, which the policy owns.
 *
 * Every value is read through one of the readers below, each of which names its place in the file
 * ("rules[3].if.tier[1]") when it refuses, so that no check is without a place.
 */
#include "scheduler/policy.h"

#include "common/file.h"
#include "common/json_read.h"
#include "common/nearest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLICY_MAX_BYTES (8u << 20)

struct names {
    const char **items; /* NULL: no condition */
    size_t count;
};

struct rule {
    struct names tiers, families, models, tenants;
    int64_t min_pixels, max_pixels;
    enum { EITHER, ONLY_CONFIDENTIAL, NOT_CONFIDENTIAL } confidential;
    uint8_t route[POLICY_CLASSES_MAX], route_count;
};

struct policy {
    struct json_doc *doc;
    struct policy_class classes[POLICY_CLASSES_MAX];
    uint32_t class_count;
    struct rule rules[POLICY_RULES_MAX];
    uint32_t rule_count;
    struct policy_tenant *tenants; /* by name */
    uint32_t tenant_count;
    struct policy_tenant others;
    uint8_t confidential[POLICY_CLASSES_MAX], confidential_count;
    double waiting_per_hour, lateness_per_hour;
};

struct reader {
    struct policy *policy;
    struct json_reader json;
};

/* ---- classes ---- */

static int read_classes(const struct reader *r, const struct json *classes)
{
    static const char *const known[] = {"price_per_hour", "memory_gb"};
    struct policy *policy = r->policy;
    if (!classes || classes->type != JSON_OBJECT || classes->count == 0)
        return json_refuse(&r->json, "classes",
                           "must be an object with at least one class of devices, such as "
                           "{\"a10\": {\"price_per_hour\": 1.2, \"memory_gb\": 24}}");
    if (classes->count > POLICY_CLASSES_MAX)
        return json_refuse(&r->json, "classes", "holds %zu classes; at most %d", classes->count,
                           POLICY_CLASSES_MAX);
    for (const struct json *value = classes->child; value; value = value->next) {
        char place[JSON_PLACE_MAX_BYTES];
        struct policy_class class = {.name = value->key};
        snprintf(place, sizeof(place), "classes.%.128s", value->key);
        if (value->key[0] == '\0' || strlen(value->key) > POLICY_NAME_MAX_BYTES)
            return json_refuse(&r->json, place, "a name has 1 … %d bytes", POLICY_NAME_MAX_BYTES);
        if (JSON_CHECK_OBJECT(&r->json, value, place, known) != 0 ||
            json_read_number(&r->json, value, place, "price_per_hour", 0, &class.price_per_hour) !=
                0 ||
            json_read_number(&r->json, value, place, "memory_gb", 0, &class.memory_gb) != 0)
            return -1;
        if (!json_get(value, "price_per_hour"))
            return json_refuse(&r->json, place, "needs \"price_per_hour\": routing compares money");
        policy->classes[policy->class_count++] = class;
    }
    return 0;
}

static int refuse_class(const struct reader *r, const char *place, const char *name)
{
    const char *known[POLICY_CLASSES_MAX];
    char hint[NEAREST_HINT_BYTES];
    for (uint32_t i = 0; i < r->policy->class_count; i++)
        known[i] = r->policy->classes[i].name;
    nearest_hint(hint, name, known, r->policy->class_count);
    return json_refuse(&r->json, place, "\"%.80s\" is not under \"classes\"%s", name,
                       hint[0] ? hint : "; add it there with its price, or name another");
}

static int read_route(const struct reader *r, const struct json *route, const char *place,
                      uint8_t out[], uint8_t *count)
{
    if (!route || route->type != JSON_ARRAY || route->count == 0)
        return json_refuse(&r->json, place,
                           "must be a list of classes, the preferred one first, such as "
                           "[\"a10\", \"a100\"]");
    uint32_t seen = 0;
    int i = 0;
    for (const struct json *value = route->child; value; value = value->next, i++) {
        char at[JSON_PLACE_MAX_BYTES];
        snprintf(at, sizeof(at), "%s[%d]", place, i);
        if (value->type != JSON_STRING)
            return json_refuse(&r->json, at, "must be the name of a class");
        int class = policy_class_find(r->policy, value->text);
        if (class < 0)
            return refuse_class(r, at, value->text);
        if (seen & 1u << class)
            return json_refuse(&r->json, at, "\"%.80s\" is in the list already; take one out",
                               value->text);
        seen |= 1u << class;
        out[(*count)++] = (uint8_t) class;
    }
    return 0;
}

/* ---- rules ---- */

/* One name or a list of them; `choices` ends in NULL, or is NULL where any name may be. */
static int read_names(const struct reader *r, const struct json *conditions, const char *place,
                      const char *key, const char *const choices[], struct names *names)
{
    char at[JSON_PLACE_MAX_BYTES];
    const struct json *value = json_get(conditions, key);
    if (!value)
        return 0;
    snprintf(at, sizeof(at), "%s.%s", place, key);
    bool list = value->type == JSON_ARRAY;
    size_t count = list ? value->count : 1, choice_count = 0;
    if (count == 0 || count > POLICY_NAMES_MAX)
        return json_refuse(&r->json, at, "must be a name or a list of 1 … %d names",
                           POLICY_NAMES_MAX);
    names->items = calloc(count, sizeof(*names->items));
    if (!names->items)
        return err_set(r->json.err, ERR_MEMORY, ERR_FATAL, "out of memory for the routing policy");
    while (choices && choices[choice_count])
        choice_count++;
    for (const struct json *name = list ? value->child : value; name;
         name = list ? name->next : NULL) {
        bool good = !choices;
        if (list)
            snprintf(at, sizeof(at), "%s.%s[%zu]", place, key, names->count);
        if (name->type != JSON_STRING || name->text_len == 0 ||
            name->text_len > POLICY_NAME_MAX_BYTES)
            return json_refuse(&r->json, at, "must be a name of 1 … %d bytes",
                               POLICY_NAME_MAX_BYTES);
        for (size_t i = 0; i < choice_count; i++)
            good = good || strcmp(choices[i], name->text) == 0;
        if (!good) {
            char hint[NEAREST_HINT_BYTES];
            nearest_hint(hint, name->text, choices, choice_count);
            return json_refuse(&r->json, at, "\"%.80s\" is none of fast, standard, premium%s",
                               name->text, hint);
        }
        names->items[names->count++] = name->text;
    }
    return 0;
}

static int read_conditions(const struct reader *r, const struct json *conditions, const char *place,
                           struct rule *rule)
{
    static const char *const known[] = {"tier",       "family",     "model",       "tenant",
                                        "min_pixels", "max_pixels", "confidential"};
    static const char *const tiers[] = {"fast", "standard", "premium", NULL};
    if (JSON_CHECK_OBJECT(&r->json, conditions, place, known) != 0 ||
        read_names(r, conditions, place, "tier", tiers, &rule->tiers) != 0 ||
        read_names(r, conditions, place, "family", NULL, &rule->families) != 0 ||
        read_names(r, conditions, place, "model", NULL, &rule->models) != 0 ||
        read_names(r, conditions, place, "tenant", NULL, &rule->tenants) != 0 ||
        json_read_count(&r->json, conditions, place, "min_pixels", 1, INT32_MAX,
                        &rule->min_pixels) != 0 ||
        json_read_count(&r->json, conditions, place, "max_pixels", 1, INT32_MAX,
                        &rule->max_pixels) != 0)
        return -1;
    if (conditions->count == 0)
        return json_refuse(&r->json, place,
                           "is empty; leave \"if\" out for a rule that fits every job");
    if (rule->min_pixels > rule->max_pixels)
        return json_refuse(&r->json, place,
                           "no picture has both min_pixels and max_pixels; swap them");
    const struct json *confidential = json_get(conditions, "confidential");
    if (confidential && confidential->type != JSON_BOOL)
        return json_refuse(&r->json, place, "\"confidential\" must be true or false");
    if (confidential)
        rule->confidential = confidential->boolean ? ONLY_CONFIDENTIAL : NOT_CONFIDENTIAL;
    return 0;
}

static int read_rules(const struct reader *r, const struct json *rules)
{
    static const char *const known[] = {"if", "route"};
    struct policy *policy = r->policy;
    bool last = false;
    if (!rules || rules->type != JSON_ARRAY || rules->count == 0)
        return json_refuse(&r->json, "rules",
                           "must be a list of rules; the shortest is "
                           "[{\"route\": [\"CLASS\"]}]");
    if (rules->count > POLICY_RULES_MAX)
        return json_refuse(&r->json, "rules", "holds %zu rules; at most %d", rules->count,
                           POLICY_RULES_MAX);
    for (const struct json *value = rules->child; value; value = value->next) {
        char place[JSON_PLACE_MAX_BYTES], at[JSON_PLACE_MAX_BYTES + 8];
        struct rule *rule = &policy->rules[policy->rule_count];
        snprintf(place, sizeof(place), "rules[%u]", policy->rule_count++);
        if (last)
            return json_refuse(&r->json, place,
                               "is never tried, as the rule before it fits every job; move it "
                               "up, or give that one an \"if\"");
        *rule = (struct rule){.max_pixels = INT64_MAX};
        if (JSON_CHECK_OBJECT(&r->json, value, place, known) != 0)
            return -1;
        const struct json *conditions = json_get(value, "if");
        snprintf(at, sizeof(at), "%s.if", place);
        if (conditions && read_conditions(r, conditions, at, rule) != 0)
            return -1;
        snprintf(at, sizeof(at), "%s.route", place);
        if (read_route(r, json_get(value, "route"), at, rule->route, &rule->route_count) != 0)
            return -1;
        last = !conditions;
    }
    if (!last)
        return json_refuse(&r->json, "rules",
                           "the last rule must fit every job; add {\"route\": […]} without "
                           "\"if\" at the end");
    return 0;
}

/* ---- tenants and pools ---- */

static int by_name(const void *a, const void *b)
{
    const struct policy_tenant *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int read_tenant(const struct reader *r, const struct json *value)
{
    static const char *const known[] = {"weight", "running_max", "queued_max"};
    struct policy_tenant tenant = {.name = value->key, .weight = 1};
    struct policy *policy = r->policy;
    char place[JSON_PLACE_MAX_BYTES];
    int64_t running = 0, queued = 0;
    snprintf(place, sizeof(place), "tenants.%.128s", value->key);
    if (value->key[0] == '\0' || strlen(value->key) > POLICY_NAME_MAX_BYTES)
        return json_refuse(&r->json, place, "a name has 1 … %d bytes", POLICY_NAME_MAX_BYTES);
    if (JSON_CHECK_OBJECT(&r->json, value, place, known) != 0 ||
        json_read_number(&r->json, value, place, "weight", 0.001, &tenant.weight) != 0 ||
        json_read_count(&r->json, value, place, "running_max", 1, UINT32_MAX, &running) != 0 ||
        json_read_count(&r->json, value, place, "queued_max", 1, UINT32_MAX, &queued) != 0)
        return -1;
    tenant.running_max = (uint32_t)running;
    tenant.queued_max = (uint32_t)queued;
    if (strcmp(value->key, "*") == 0)
        policy->others = tenant;
    else
        policy->tenants[policy->tenant_count++] = tenant;
    return 0;
}

static int read_tenants(const struct reader *r, const struct json *tenants)
{
    struct policy *policy = r->policy;
    policy->others = (struct policy_tenant){.name = "*", .weight = 1};
    if (!tenants)
        return 0;
    if (tenants->type != JSON_OBJECT)
        return json_refuse(&r->json, "tenants", "must be an object, {\"name\": {\"weight\": 2}}");
    if (tenants->count > POLICY_TENANTS_MAX)
        return json_refuse(&r->json, "tenants", "holds %zu tenants; at most %d", tenants->count,
                           POLICY_TENANTS_MAX);
    policy->tenants = calloc(tenants->count + 1, sizeof(*policy->tenants));
    if (!policy->tenants)
        return err_set(r->json.err, ERR_MEMORY, ERR_FATAL, "out of memory for the routing policy");
    for (const struct json *value = tenants->child; value; value = value->next)
        if (read_tenant(r, value) != 0)
            return -1;
    qsort(policy->tenants, policy->tenant_count, sizeof(*policy->tenants), by_name);
    return 0;
}

static int read_pools(const struct reader *r, const struct json *pools)
{
    static const char *const known[] = {"confidential"};
    struct policy *policy = r->policy;
    if (!pools)
        return 0;
    if (JSON_CHECK_OBJECT(&r->json, pools, "pools", known) != 0)
        return -1;
    const struct json *confidential = json_get(pools, "confidential");
    if (!confidential)
        return 0;
    return read_route(r, confidential, "pools.confidential", policy->confidential,
                      &policy->confidential_count);
}

/* ---- the whole ---- */

static int read_policy(const struct reader *r)
{
    static const char *const known[] = {
        "classes", "value_of_waiting_per_hour", "value_of_lateness_per_hour", "rules", "tenants",
        "pools"};
    struct policy *policy = r->policy;
    const struct json *root = json_root(policy->doc);
    policy->waiting_per_hour = 1;
    policy->lateness_per_hour = 10;
    if (JSON_CHECK_OBJECT(&r->json, root, "", known) != 0 ||
        json_read_number(&r->json, root, "", "value_of_waiting_per_hour", 0,
                         &policy->waiting_per_hour) != 0 ||
        json_read_number(&r->json, root, "", "value_of_lateness_per_hour", 0,
                         &policy->lateness_per_hour) != 0 ||
        read_classes(r, json_get(root, "classes")) != 0 ||
        read_rules(r, json_get(root, "rules")) != 0 ||
        read_tenants(r, json_get(root, "tenants")) != 0)
        return -1;
    return read_pools(r, json_get(root, "pools"));
}

int policy_parse(struct policy **out, const char *text, size_t len, const char *name,
                 struct err *err)
{
    struct json_limits limits = JSON_LIMITS_INIT;
    struct policy *policy = calloc(1, sizeof(*policy));
    struct reader reader = {policy, {name, err}};
    *out = NULL;
    limits.bytes = POLICY_MAX_BYTES;
    if (!policy)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the routing policy");
    if (json_parse(&policy->doc, text, len, &limits, err) != 0) {
        policy_free(policy);
        if (err)
            err->class = ERR_FATAL;
        return err_prefix(err, "%s", name);
    }
    if (read_policy(&reader) != 0) {
        policy_free(policy);
        return -1;
    }
    *out = policy;
    return 0;
}

int policy_read(struct policy **policy, const char *path, struct err *err)
{
    struct buf text;
    *policy = NULL;
    buf_init(&text, POLICY_MAX_BYTES);
    int rc = file_read(&text, path, err);
    if (rc == 0)
        rc = policy_parse(policy, text.data, text.len, path, err);
    else if (err)
        err->class = ERR_FATAL;
    buf_release(&text);
    return rc;
}

void policy_free(struct policy *policy)
{
    if (!policy)
        return;
    for (uint32_t i = 0; i < policy->rule_count; i++) {
        struct rule *rule = &policy->rules[i];
        free(rule->tiers.items);
        free(rule->families.items);
        free(rule->models.items);
        free(rule->tenants.items);
    }
    free(policy->tenants);
    json_doc_free(policy->doc);
    free(policy);
}

/* ---- asking ---- */

static bool names_fit(const struct names *names, const char *name)
{
    if (!names->items)
        return true;
    for (size_t i = 0; name && i < names->count; i++)
        if (strcmp(names->items[i], name) == 0)
            return true;
    return false;
}

static bool rule_fits(const struct rule *rule, const struct policy_facts *facts)
{
    int64_t pixels = (int64_t)facts->width * facts->height;
    return pixels >= rule->min_pixels && pixels <= rule->max_pixels &&
           (rule->confidential == EITHER ||
            facts->confidential == (rule->confidential == ONLY_CONFIDENTIAL)) &&
           names_fit(&rule->tiers, facts->tier) && names_fit(&rule->families, facts->family) &&
           names_fit(&rule->models, facts->model) && names_fit(&rule->tenants, facts->tenant);
}

static bool contains(const uint8_t *classes, int count, uint8_t class)
{
    return memchr(classes, class, (size_t)count) != NULL;
}

static bool has_memory(const struct policy_class *class, const struct policy_facts *facts)
{
    return class->memory_gb == 0 || facts->memory_gb <= class->memory_gb;
}

/* The rule's classes; of a confidential job those in the confidential pool, or all of the pool. */
static void wish(const struct policy *policy, const struct policy_facts *facts,
                 struct policy_route *route)
{
    *route = (struct policy_route){0};
    while (!rule_fits(&policy->rules[route->rule], facts))
        route->rule++;
    const struct rule *rule = &policy->rules[route->rule];
    for (int i = 0; i < rule->route_count; i++)
        if (!facts->confidential ||
            contains(policy->confidential, policy->confidential_count, rule->route[i]))
            route->classes[route->count++] = rule->route[i];
    if (route->count > 0)
        return;
    memcpy(route->classes, policy->confidential, policy->confidential_count);
    route->count = policy->confidential_count;
}

void policy_route(const struct policy *policy, const struct policy_facts *facts,
                  struct policy_route *route)
{
    uint8_t kept = 0;
    wish(policy, facts, route);
    for (int i = 0; i < route->count; i++)
        if (has_memory(&policy->classes[route->classes[i]], facts))
            route->classes[kept++] = route->classes[i];
    route->count = kept;
}

void policy_why_not(const struct policy *policy, const struct policy_facts *facts, char *out,
                    size_t size)
{
    struct policy_route route;
    const struct policy_class *largest = NULL;
    wish(policy, facts, &route);
    for (int i = 0; i < route.count; i++) {
        const struct policy_class *class = &policy->classes[route.classes[i]];
        if (!largest || class->memory_gb > largest->memory_gb)
            largest = class;
    }
    if (largest)
        snprintf(out, size,
                 "needs %.1f GB of device memory; of the classes that rules[%u] of the routing "
                 "policy allows, %s has most, %g GB",
                 facts->memory_gb, route.rule, largest->name, largest->memory_gb);
    else
        snprintf(out, size, "is confidential, and the routing policy has no pools.confidential");
}

uint32_t policy_class_count(const struct policy *policy)
{
    return policy->class_count;
}

const struct policy_class *policy_class(const struct policy *policy, uint32_t number)
{
    ASSERT(number < policy->class_count);
    return &policy->classes[number];
}

int policy_class_find(const struct policy *policy, const char *name)
{
    for (uint32_t i = 0; i < policy->class_count; i++)
        if (strcmp(policy->classes[i].name, name) == 0)
            return (int)i;
    return -1;
}

struct policy_tenant policy_tenant(const struct policy *policy, const char *name)
{
    struct policy_tenant key = {.name = name};
    const struct policy_tenant *found = NULL;
    if (policy->tenant_count > 0)
        found =
            bsearch(&key, policy->tenants, policy->tenant_count, sizeof(*policy->tenants), by_name);
    return found ? *found : policy->others;
}

double policy_waiting_per_hour(const struct policy *policy)
{
    return policy->waiting_per_hour;
}

double policy_lateness_per_hour(const struct policy *policy)
{
    return policy->lateness_per_hour;
}

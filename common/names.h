/*
 * names.h: numbers for names: batches, tenants, workers, models. A name keeps its number for good;
 * numbers are dense from 0.
 */
#ifndef ATELIER_COMMON_NAMES_H
#define ATELIER_COMMON_NAMES_H

#include <stdint.h>

#define NAMES_NONE UINT32_MAX

struct names {
    char **names; /* by number */
    uint32_t count, cap, max;
    uint32_t *table; /* number + 1 by hash; 0: free */
    uint32_t table_cap;
};

void names_init(struct names *names, uint32_t max);
void names_release(struct names *names);

/* The name's number, a new one where it has none; NAMES_NONE over the maximum or out of memory. */
uint32_t names_enter(struct names *names, const char *name);

/* The number, or NAMES_NONE. */
uint32_t names_find(const struct names *names, const char *name);

#endif

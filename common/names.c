#include "common/names.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAP 64

/* FNV-1a. */
static uint32_t hash_of(const char *name)
{
    uint32_t hash = 2166136261u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 16777619u;
    return hash;
}

static uint32_t *place_of(const struct names *names, const char *name)
{
    uint32_t i = hash_of(name) & (names->table_cap - 1);
    while (names->table[i] && strcmp(names->names[names->table[i] - 1], name) != 0)
        i = (i + 1) & (names->table_cap - 1);
    return &names->table[i];
}

static int grow(struct names *names)
{
    uint32_t cap = names->cap ? names->cap * 2 : FIRST_CAP;
    char **bigger = realloc(names->names, cap * sizeof(*bigger));
    uint32_t *table = calloc(cap * 2, sizeof(*table));
    if (bigger)
        names->names = bigger;
    if (!bigger || !table) {
        free(table);
        return -1;
    }
    free(names->table);
    names->cap = cap;
    names->table = table;
    names->table_cap = cap * 2;
    for (uint32_t i = 0; i < names->count; i++)
        *place_of(names, names->names[i]) = i + 1;
    return 0;
}

void names_init(struct names *names, uint32_t max)
{
    *names = (struct names){.max = max};
}

void names_release(struct names *names)
{
    for (uint32_t i = 0; i < names->count; i++)
        free(names->names[i]);
    free(names->names);
    free(names->table);
    *names = (struct names){0};
}

uint32_t names_find(const struct names *names, const char *name)
{
    if (names->count == 0)
        return NAMES_NONE;
    uint32_t number = *place_of(names, name);
    return number ? number - 1 : NAMES_NONE;
}

uint32_t names_enter(struct names *names, const char *name)
{
    uint32_t number = names_find(names, name);
    if (number != NAMES_NONE || names->count == names->max)
        return number;
    if (names->count == names->cap && grow(names) != 0)
        return NAMES_NONE;
    char *copy = strdup(name);
    if (!copy)
        return NAMES_NONE;
    names->names[names->count] = copy;
    *place_of(names, name) = ++names->count; /* copy has the same text */
    return names->count - 1;
}

#include "engine/arena.h"

#include "common/err.h"

#include <stdint.h>
#include <string.h>

#define PLAN_BASE 4096 /* never mapped, never NULL */

void arena_init_plan(struct arena *arena)
{
    *arena = (struct arena){.memory = (char *)(uintptr_t)PLAN_BASE, .size_bytes = SIZE_MAX / 2};
}

void arena_init(struct arena *arena, void *memory, size_t size_bytes)
{
    *arena = (struct arena){.memory = memory, .size_bytes = size_bytes};
}

void *arena_take(struct arena *arena, size_t bytes)
{
    size_t need = (bytes + ARENA_ALIGN_BYTES) & ~(size_t)(ARENA_ALIGN_BYTES - 1);
    size_t begin = 0;
    int at = 0;

    if (arena->count == ARENA_RANGES_MAX || need < bytes)
        return NULL;
    while (at < arena->count && arena->ranges[at].begin - begin < need)
        begin = arena->ranges[at++].end;
    if (arena->size_bytes < begin || arena->size_bytes - begin < need)
        return NULL;
    memmove(&arena->ranges[at + 1], &arena->ranges[at],
            (size_t)(arena->count - at) * sizeof(arena->ranges[0]));
    arena->ranges[at].begin = begin;
    arena->ranges[at].end = begin + need;
    arena->count++;
    if (begin + need > arena->peak_bytes)
        arena->peak_bytes = begin + need;
    return (char *)((uintptr_t)arena->memory + begin);
}

void arena_give(struct arena *arena, const void *taken)
{
    size_t offset = (uintptr_t)taken - (uintptr_t)arena->memory;
    int at = 0;

    if (taken == NULL)
        return;
    while (at < arena->count && arena->ranges[at].begin != offset)
        at++;
    ASSERT(at < arena->count);
    arena->count--;
    memmove(&arena->ranges[at], &arena->ranges[at + 1],
            (size_t)(arena->count - at) * sizeof(arena->ranges[0]));
}

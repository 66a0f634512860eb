/*
 * arena.h: one block of memory that hands out ranges first fit, without malloc.
 *
 * An arena without memory plans: it hands out addresses that nobody may read and grows without
 * limit, and its peak says how large the real one must be. Since allocation is deterministic, a
 * pass that was planned never runs out. Not thread-safe.
 *
 *     arena_init_plan(&plan);  ... run the pass ...  bytes = plan.peak_bytes;
 *     arena_init(&arena, memory, bytes);
 */
#ifndef ATELIER_ENGINE_ARENA_H
#define ATELIER_ENGINE_ARENA_H

#include <stddef.h>

#define ARENA_ALIGN_BYTES 64
#define ARENA_RANGES_MAX 128 /* live ranges at once */

struct arena {
    char *memory; /* a plan's is no memory at all */
    size_t size_bytes;
    size_t peak_bytes; /* highest end of any range so far */
    int count;
    struct {
        size_t begin, end;
    } ranges[ARENA_RANGES_MAX]; /* live, by address */
};

void arena_init_plan(struct arena *arena);

/* `memory` is borrowed, ARENA_ALIGN_BYTES aligned. */
void arena_init(struct arena *arena, void *memory, size_t size_bytes);

/* NULL when there is no room or there are too many ranges. Zero bytes take a range, too. */
void *arena_take(struct arena *arena, size_t bytes);

/* Gives back what arena_take returned and is live; NULL is fine. */
void arena_give(struct arena *arena, const void *taken);

#endif

/*
 * pool.h: memory for weights and activations, in large pages where the system gives them.
 *
 * Layers lie one after another in slabs, so that nearly all of a model lies in pages of 2 MiB,
 * which the system hands out ten times as fast as as much in 4 KiB pages and which matrix products
 * read with fewer misses of the TLB. What is given back goes to the system at once; a slab's
 * addresses are free when its last piece is.
 *
 * Any thread may call at any time.
 */
#ifndef ATELIER_ENGINE_CPU_POOL_H
#define ATELIER_ENGINE_CPU_POOL_H

#include <pthread.h>
#include <stddef.h>

struct slab;

struct pool {
    pthread_mutex_t lock;
    struct slab *current; /* where the next piece goes; NULL: in a new one */
};

void pool_init(struct pool *pool);
/* Every piece has been given back. */
void pool_release(struct pool *pool);

/* `bytes` > 0 at an address that ARENA_ALIGN_BYTES divides, unset; NULL: there is no memory. */
void *pool_alloc(struct pool *pool, size_t bytes);

/* memory NULL: nothing. `bytes` as it was allocated. */
void pool_free(struct pool *pool, void *memory, size_t bytes);

#endif

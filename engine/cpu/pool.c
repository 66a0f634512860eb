#include "engine/cpu/pool.h"

#include "engine/arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE ((size_t)4 << 10)
#define SLAB_BYTES ((size_t)64 << 20)   /* also what a slab's address is a multiple of */
#define SMALL_BYTES ((size_t)128 << 10) /* less is malloc's */

/* At the beginning of its memory. A piece of more than SLAB_BYTES has a longer one to itself. */
struct slab {
    size_t bytes, used; /* the header included */
    size_t pieces;      /* that are out */
};

#define HEADER_BYTES ARENA_ALIGN_BYTES

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#endif

static size_t round_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

/* A gap between pieces lets AddressSanitizer see what runs over a piece's end. */
static size_t piece_bytes(size_t bytes)
{
#if defined(__SANITIZE_ADDRESS__)
    return round_up(bytes, ARENA_ALIGN_BYTES) + ARENA_ALIGN_BYTES;
#else
    return round_up(bytes, ARENA_ALIGN_BYTES);
#endif
}

/* Pages are the system's until they are touched. */
static struct slab *slab_open(size_t bytes)
{
    size_t asked = bytes + SLAB_BYTES, before;
    char *memory = mmap(NULL, asked, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct slab *slab;

    if (memory == MAP_FAILED)
        return NULL;
    before = round_up((uintptr_t)memory, SLAB_BYTES) - (uintptr_t)memory;
    if (before > 0)
        munmap(memory, before);
    if (asked > before + bytes)
        munmap(memory + before + bytes, asked - before - bytes);
    slab = (struct slab *)(memory + before);
    madvise(slab, bytes, MADV_HUGEPAGE); /* a wish; small pages do as well */
    *slab = (struct slab){.bytes = bytes, .used = HEADER_BYTES};
    ASAN_POISON_MEMORY_REGION((char *)slab + HEADER_BYTES, bytes - HEADER_BYTES);
    return slab;
}

static void slab_close(struct slab *slab)
{
    size_t bytes = slab->bytes;

    ASAN_UNPOISON_MEMORY_REGION(slab, bytes);
    munmap(slab, bytes);
}

static struct slab *slab_of(void *piece)
{
    return (struct slab *)((uintptr_t)piece / SLAB_BYTES * SLAB_BYTES);
}

void pool_init(struct pool *pool)
{
    pthread_mutex_init(&pool->lock, NULL);
    pool->current = NULL;
}

void pool_release(struct pool *pool)
{
    if (pool->current != NULL)
        slab_close(pool->current);
    pthread_mutex_destroy(&pool->lock);
}

static void *take(struct slab *slab, size_t bytes)
{
    char *piece = (char *)slab + slab->used;

    slab->used += piece_bytes(bytes);
    slab->pieces++;
    ASAN_UNPOISON_MEMORY_REGION(piece, bytes);
    return piece;
}

/* The current slab if the piece fits it, or a new one. */
static struct slab *find_slab(struct pool *pool, size_t piece)
{
    struct slab *slab = pool->current;

    if (slab != NULL && slab->bytes - slab->used >= piece)
        return slab;
    if (HEADER_BYTES + piece > SLAB_BYTES)
        return slab_open(round_up(HEADER_BYTES + piece, PAGE));
    if (slab != NULL && slab->pieces == 0)
        slab_close(slab);
    pool->current = slab_open(SLAB_BYTES);
    return pool->current;
}

void *pool_alloc(struct pool *pool, size_t bytes)
{
    struct slab *slab;
    void *piece = NULL;

    if (bytes < SMALL_BYTES)
        return aligned_alloc(ARENA_ALIGN_BYTES, round_up(bytes, ARENA_ALIGN_BYTES));
    pthread_mutex_lock(&pool->lock);
    slab = find_slab(pool, piece_bytes(bytes));
    if (slab != NULL)
        piece = take(slab, bytes);
    pthread_mutex_unlock(&pool->lock);
    return piece;
}

/* The whole pages of a piece go back to the system. */
static void forget(void *piece, size_t bytes)
{
    uintptr_t begin = round_up((uintptr_t)piece, PAGE);
    uintptr_t end = ((uintptr_t)piece + bytes) / PAGE * PAGE;

    if (end > begin)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
    ASAN_POISON_MEMORY_REGION(piece, bytes);
}

void pool_free(struct pool *pool, void *memory, size_t bytes)
{
    struct slab *slab;

    if (bytes < SMALL_BYTES || memory == NULL) {
        free(memory);
        return;
    }
    slab = slab_of(memory);
    pthread_mutex_lock(&pool->lock);
    if (--slab->pieces > 0)
        forget(memory, bytes);
    else if (slab != pool->current)
        slab_close(slab);
    else {
        forget((char *)slab + HEADER_BYTES, slab->used - HEADER_BYTES);
        slab->used = HEADER_BYTES;
    }
    pthread_mutex_unlock(&pool->lock);
}

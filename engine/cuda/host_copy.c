#include "engine/cuda/host_copy.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct host_copier {
    pthread_t threads[HOST_COPY_THREADS_MAX];
    int count; /* of threads, the caller not counted */
    char *to;
    const char *from;
    size_t bytes;
    _Atomic size_t next;  /* byte that nobody copies yet */
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t begun; /* a copy, or the end */
    pthread_cond_t ended; /* the last thread's part */
    unsigned long copies; /* begun so far */
    int working;
    bool closing;
};

static void copy_chunks(struct host_copier *c)
{
    size_t at;

    while ((at = atomic_fetch_add(&c->next, HOST_COPY_CHUNK_BYTES)) < c->bytes) {
        size_t left = c->bytes - at;
        memcpy(c->to + at, c->from + at,
               left < HOST_COPY_CHUNK_BYTES ? left : HOST_COPY_CHUNK_BYTES);
    }
}

static void *help(void *user)
{
    struct host_copier *c = user;
    unsigned long seen = 0;

    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (c->copies == seen && !c->closing)
            pthread_cond_wait(&c->begun, &c->lock);
        if (c->closing)
            break;
        seen = c->copies;
        pthread_mutex_unlock(&c->lock);
        copy_chunks(c);
        pthread_mutex_lock(&c->lock);
        if (--c->working == 0)
            pthread_cond_signal(&c->ended);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static int processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

struct host_copier *host_copier_create(void)
{
    struct host_copier *c = calloc(1, sizeof(*c));
    int wanted = processors() - 1;

    if (c == NULL)
        return NULL;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->begun, NULL);
    pthread_cond_init(&c->ended, NULL);
    wanted = wanted < HOST_COPY_THREADS_MAX - 1 ? wanted : HOST_COPY_THREADS_MAX - 1;
    while (c->count < wanted && pthread_create(&c->threads[c->count], NULL, help, c) == 0)
        c->count++;
    return c;
}

void host_copier_free(struct host_copier *c)
{
    if (c == NULL)
        return;
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_cond_broadcast(&c->begun);
    pthread_mutex_unlock(&c->lock);
    for (int i = 0; i < c->count; i++)
        pthread_join(c->threads[i], NULL);
    pthread_cond_destroy(&c->ended);
    pthread_cond_destroy(&c->begun);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void host_copy(struct host_copier *c, void *to, const void *from, size_t bytes)
{
    if (bytes < HOST_COPY_SHARED_BYTES || c->count == 0) {
        memcpy(to, from, bytes);
        return;
    }
    pthread_mutex_lock(&c->lock);
    c->to = to;
    c->from = from;
    c->bytes = bytes;
    c->next = 0;
    c->working = c->count;
    c->copies++;
    pthread_cond_broadcast(&c->begun);
    pthread_mutex_unlock(&c->lock);
    copy_chunks(c);
    pthread_mutex_lock(&c->lock);
    while (c->working > 0)
        pthread_cond_wait(&c->ended, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

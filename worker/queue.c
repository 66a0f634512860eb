#include "worker/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

int queue_init(struct queue *queue, size_t max, struct err *err)
{
    pthread_condattr_t attributes;
    *queue = (struct queue){.max = max};
    queue->items = calloc(max, sizeof(*queue->items));
    if (!queue->items)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a queue of %zu", max);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    return 0;
}

void queue_release(struct queue *queue)
{
    if (!queue->items)
        return;
    pthread_mutex_destroy(&queue->lock);
    pthread_cond_destroy(&queue->changed);
    free(queue->items);
    *queue = (struct queue){0};
}

bool queue_put(struct queue *queue, void *item)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->count == queue->max && !queue->closed)
        pthread_cond_wait(&queue->changed, &queue->lock);
    bool open = !queue->closed;
    if (open) {
        queue->items[(queue->first + queue->count++) % queue->max] = item;
        pthread_cond_broadcast(&queue->changed);
    }
    pthread_mutex_unlock(&queue->lock);
    return open;
}

static void *take_locked(struct queue *queue)
{
    if (queue->count == 0)
        return NULL;
    void *item = queue->items[queue->first];
    queue->first = (queue->first + 1) % queue->max;
    queue->count--;
    pthread_cond_broadcast(&queue->changed);
    return item;
}

void *queue_take(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->count == 0 && !queue->closed)
        pthread_cond_wait(&queue->changed, &queue->lock);
    void *item = take_locked(queue);
    pthread_mutex_unlock(&queue->lock);
    return item;
}

void *queue_take_within(struct queue *queue, int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    pthread_mutex_lock(&queue->lock);
    while (queue->count == 0 && !queue->closed && timeout_ms > 0)
        if (pthread_cond_timedwait(&queue->changed, &queue->lock, &until) == ETIMEDOUT)
            break;
    void *item = take_locked(queue);
    pthread_mutex_unlock(&queue->lock);
    return item;
}

void queue_close(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->closed = true;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

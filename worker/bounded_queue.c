#include "worker/bounded_queue.h"

#include "common/clock.h"

#include <errno.h>
#include <stdlib.h>

int bounded_queue_init(struct bounded_queue *queue, size_t max, struct err *err)
{
    pthread_condattr_t attributes;
    *queue = (struct bounded_queue){.max = max};
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

void bounded_queue_release(struct bounded_queue *queue)
{
    if (!queue->items)
        return;
    pthread_mutex_destroy(&queue->lock);
    pthread_cond_destroy(&queue->changed);
    free(queue->items);
    *queue = (struct bounded_queue){0};
}

bool bounded_queue_put(struct bounded_queue *queue, void *item)
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

static void *take_locked(struct bounded_queue *queue)
{
    if (queue->count == 0)
        return NULL;
    void *item = queue->items[queue->first];
    queue->first = (queue->first + 1) % queue->max;
    queue->count--;
    pthread_cond_broadcast(&queue->changed);
    return item;
}

void *bounded_queue_take(struct bounded_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->count == 0 && !queue->closed)
        pthread_cond_wait(&queue->changed, &queue->lock);
    void *item = take_locked(queue);
    pthread_mutex_unlock(&queue->lock);
    return item;
}

void *bounded_queue_take_within(struct bounded_queue *queue, int timeout_ms)
{
    struct timespec until = clock_deadline(timeout_ms);
    pthread_mutex_lock(&queue->lock);
    while (queue->count == 0 && !queue->closed && timeout_ms > 0)
        if (pthread_cond_timedwait(&queue->changed, &queue->lock, &until) == ETIMEDOUT)
            break;
    void *item = take_locked(queue);
    pthread_mutex_unlock(&queue->lock);
    return item;
}

void bounded_queue_close(struct bounded_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->closed = true;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

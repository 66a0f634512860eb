/*
 * bounded_queue.h: a bounded queue of pointers between threads, which closes.
 *
 *     bounded_queue_init(&queue, 16, &err);
 *     while ((item = bounded_queue_take(&queue)) != NULL) ...      // NULL: closed and empty
 */
#ifndef ATELIER_WORKER_BOUNDED_QUEUE_H
#define ATELIER_WORKER_BOUNDED_QUEUE_H

#include "common/err.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct bounded_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    void **items;
    size_t first, count, max;
    bool closed;
};

int bounded_queue_init(struct bounded_queue *queue, size_t max, struct err *err) must_check;
void bounded_queue_release(
    struct bounded_queue *queue); /* no thread may be in it; items are not freed */

/* Waits for room. False when the queue is closed: the item stays the caller's. */
bool bounded_queue_put(struct bounded_queue *queue, void *item) must_check;

/* Waits for an item; NULL when the queue is closed and empty. */
void *bounded_queue_take(struct bounded_queue *queue);

/* Waits at most `timeout_ms`, not at all for 0; NULL when there is none by then. */
void *bounded_queue_take_within(struct bounded_queue *queue, int timeout_ms);

/* Nothing more is put; takers get what is left. */
void bounded_queue_close(struct bounded_queue *queue);

#endif

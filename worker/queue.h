/*
 * queue.h: a bounded queue of pointers between threads, which closes.
 *
 *     queue_init(&queue, 16, &err);
 *     while ((item = queue_take(&queue)) != NULL) ...      // NULL: closed and empty
 */
#ifndef ATELIER_WORKER_QUEUE_H
#define ATELIER_WORKER_QUEUE_H

#include "common/err.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    void **items;
    size_t first, count, max;
    bool closed;
};

int queue_init(struct queue *queue, size_t max, struct err *err) must_check;
void queue_release(struct queue *queue); /* no thread may be in it; items are not freed */

/* Waits for room. False when the queue is closed: the item stays the caller's. */
bool queue_put(struct queue *queue, void *item) must_check;

/* Waits for an item; NULL when the queue is closed and empty. */
void *queue_take(struct queue *queue);

/* Waits at most `timeout_ms`, not at all for 0; NULL when there is none by then. */
void *queue_take_within(struct queue *queue, int timeout_ms);

/* Nothing more is put; takers get what is left. */
void queue_close(struct queue *queue);

#endif

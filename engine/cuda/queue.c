#include "engine/cuda/queue.h"

#include <stdlib.h>
#include <string.h>

static size_t padded(size_t bytes)
{
    return (bytes + 15) & ~(size_t)15;
}

static bool make_room(struct queue *q, size_t bytes)
{
    size_t capacity = q->capacity ? q->capacity : 1u << 16;
    char *grown;

    while (capacity - q->length < bytes && capacity < QUEUE_MAX_BYTES)
        capacity *= 2;
    if (capacity - q->length < bytes)
        return false;
    if (capacity == q->capacity)
        return true;
    grown = realloc(q->bytes, capacity);
    if (grown == NULL)
        return false;
    q->bytes = grown;
    q->capacity = capacity;
    return true;
}

void queue_push(struct queue *q, const struct command *command, const void *args, size_t bytes)
{
    size_t header = padded(sizeof(*command)), whole = header + padded(bytes);
    struct command *to;

    if (q->failed || !make_room(q, whole)) {
        q->failed = true;
        return;
    }
    to = (struct command *)(q->bytes + q->length);
    memset(to, 0, whole);
    to->run = command->run;
    to->bytes = (uint32_t)whole;
    memcpy(to->grid, command->grid, sizeof(to->grid));
    to->threads = command->threads;
    to->shared_bytes = command->shared_bytes;
    memcpy((char *)to + header, args, bytes);
    q->length += whole;
    q->count++;
}

const struct command *queue_next(const struct queue *q, const struct command *command)
{
    size_t at = command == NULL ? 0 : (size_t)((const char *)command - q->bytes) + command->bytes;

    return at < q->length ? (const struct command *)(q->bytes + at) : NULL;
}

void queue_clear(struct queue *q)
{
    q->length = 0;
    q->count = 0;
    q->failed = false;
}

void queue_release(struct queue *q)
{
    free(q->bytes);
    *q = (struct queue){0};
}

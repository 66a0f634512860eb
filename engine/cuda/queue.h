/*
 * queue.h: what a pass asks of the card, written down before any of it is done.
 *
 * Operators only append commands; the card sees them when a result is wanted. A command's bytes say
 * everything about it: the function that launches it, the grid, the arguments with every address.
 * So a list of the same bytes does the same thing, and a CUDA graph captured from one list is right
 * for every equal one, whatever model, size or batch it came from, and can never be out of date.
 * Arguments must have no padding, whose bytes would differ from one list to the next: their structs
 * name it `gap` (test_cuda graphs).
 *
 *     queue_push(queue, &(struct command){.run = …, .threads = 256}, &args, sizeof(args));
 *     device_run(device, lane, queue);
 *     queue_clear(queue);
 *
 * One thread at a time.
 */
#ifndef ATELIER_ENGINE_CUDA_QUEUE_H
#define ATELIER_ENGINE_CUDA_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QUEUE_MAX_BYTES (64u << 20)

#ifdef __cplusplus
extern "C" {
#endif

struct command {
    /* Gives the command to a stream; 0, the card's error code, or minus a cublasStatus_t. */
    int (*run)(const struct command *command, void *stream);
    uint32_t bytes; /* of this and its arguments, a multiple of 16 */
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
};

struct queue {
    char *bytes;
    size_t length, capacity;
    int count;
    bool failed; /* a command was lost for want of memory: nothing may run */
};

/* Copies the command and its arguments. */
void queue_push(struct queue *queue, const struct command *command, const void *args, size_t bytes);

/* The first command, or the one after `command`; NULL at the end. */
const struct command *queue_next(const struct queue *queue, const struct command *command);

static inline const void *command_args(const struct command *command)
{
    return (const char *)command + ((sizeof(struct command) + 15) & ~(size_t)15);
}

void queue_clear(struct queue *queue);
void queue_release(struct queue *queue);

#ifdef __cplusplus
}
#endif
#endif

/*
 * device.h: one card: memory, streams, and running a list of commands on it.
 *
 * The only file that includes the CUDA runtime's header is device.cu; everything else of the back
 * end stands on this one, and tests put another implementation under it, one that runs the kernels
 * on the host (tests/cuda/).
 *
 * Three streams. Each of two lanes runs the commands of one pass at a time, beside the other's.
 * Weights come in on the copy stream through pinned buffers, so that a model is read while another
 * one computes; a run waits for what was sent before it, on the card, never on the host.
 *
 * One thread runs commands in a lane, and one may send meanwhile; allocating and freeing is for
 * any. Memory is freed when no run uses it any more, which is for the caller to know.
 */
#ifndef ATELIER_ENGINE_CUDA_DEVICE_H
#define ATELIER_ENGINE_CUDA_DEVICE_H

#include "engine/cuda/queue.h"

#define DEVICE_MESSAGE_MAX_BYTES 256
#if defined(ATELIER_CUDA_EMULATED)
#define DEVICE_SEND_MAX_BYTES (16u << 10) /* so that small models come in pieces, too */
#else
#define DEVICE_SEND_MAX_BYTES (32u << 20) /* one piece of weights */
#endif
#define DEVICE_LANES 2
#define DEVICE_GRAPHS_MAX 32 /* captured lists kept of a lane; the one used longest ago goes */
#define DEVICE_FULL (-2)     /* the card has no room to launch something, and is well otherwise */

#ifdef __cplusplus
extern "C" {
#endif

struct device;

struct device_info {
    char name[96];
    char isa[16]; /* "sm_90" */
    int sm;       /* 90 */
    int multiprocessors;
    size_t memory_bytes, free_bytes;
    size_t shared_max_bytes; /* of one block */
};

/* How many cards CUDA_VISIBLE_DEVICES shows. */
int device_count(void);

/* Opens one of them, from 0. On failure NULL, and `why` is a sentence. */
struct device *device_open(int number, struct device_info *info,
                           char why[DEVICE_MESSAGE_MAX_BYTES]);
void device_close(struct device *device);

/* 256-byte aligned; NULL when the card has no room, even with all that was freed given back. */
void *device_alloc(struct device *device, size_t bytes);
void device_free(struct device *device, void *memory);

/* Host memory that kernels read and write in place; NULL when there is none. */
void *device_host_alloc(struct device *device, size_t bytes);
void device_host_free(struct device *device, void *memory);

/* A buffer of DEVICE_SEND_MAX_BYTES on the card for the next device_send. */
void *device_landing(struct device *device);

/* Copies `count` bytes (at most DEVICE_SEND_MAX_BYTES) of any host memory to `to` on the card and
 * then runs `commands` (may be NULL), all on the copy stream; the host memory is free to use on
 * return. 0, or as device_start. */
int device_send(struct device *device, void *to, const void *bytes, size_t count,
                const struct queue *commands);

/* Gives the list to a lane, which is idle; the queue is the caller's again. A list that the lane
 * ran before goes as a graph. 0, or -1: the card failed and device_error says how; nothing more can
 * be done with it. DEVICE_FULL: a part of the list may have run, the lane is idle, and what could
 * be given back of the card's memory was: others share it. */
int device_start(struct device *device, int lane, const struct queue *queue);
/* Returns when what was given to the lane is done. 0, or -1: the card failed. */
int device_wait(struct device *device, int lane);

static inline int device_run(struct device *device, int lane, const struct queue *queue)
{
    int rc = device_start(device, lane, queue);
    return rc != 0 ? rc : device_wait(device, lane);
}

/* Bytes per second from pinned memory to the card, for measurements while nobody sends; 0: the card
 * failed. */
double device_bus_rate(struct device *device);

const char *device_error(const struct device *device);

/* Makes it the card that the calling thread's libraries work on. */
void device_use(const struct device *device);

/* How many lists ran as graphs and how many were captured so far. */
void device_graphs(const struct device *device, long *launched, long *captured);

#ifdef __cplusplus
}
#endif
#endif

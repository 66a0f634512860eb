/*
 * device.h: one card: memory, streams, and running a list of commands on it.
 *
 * The only file that includes the CUDA runtime's header is device.cu; everything else of the back
 * end stands on this one, and tests put another implementation under it, one that runs the kernels
 * on the host (tests/cuda/).
 *
 * Two streams. Commands run on the compute stream. Weights come in on the copy stream through
 * pinned buffers, so that a model is read while another one computes; a run waits for what was sent
 * before it, on the card, never on the host.
 *
 * One thread runs commands, and one may send meanwhile; allocating and freeing is for any.
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
#define DEVICE_GRAPHS_MAX 32 /* captured lists kept; the one used longest ago goes */

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

/* Opens the card that CUDA_VISIBLE_DEVICES puts first. On failure NULL, and `why` is a sentence. */
struct device *device_open(struct device_info *info, char why[DEVICE_MESSAGE_MAX_BYTES]);
void device_close(struct device *device);

/* 256-byte aligned; NULL when the card has no room. */
void *device_alloc(struct device *device, size_t bytes);
void device_free(struct device *device, void *memory);

/* Host memory that kernels read and write in place; NULL when there is none. */
void *device_host_alloc(struct device *device, size_t bytes);
void device_host_free(struct device *device, void *memory);

/* A buffer of DEVICE_SEND_MAX_BYTES on the card for the next device_send. */
void *device_landing(struct device *device);

/* Copies `count` bytes (at most DEVICE_SEND_MAX_BYTES) of any host memory to `to` on the card and
 * then runs `commands` (may be NULL), all on the copy stream; the host memory is free to use on
 * return. 0, or -1 as device_run. */
int device_send(struct device *device, void *to, const void *bytes, size_t count,
                const struct queue *commands);

/* Runs the list and returns when it is done. A list that was run before goes as a graph. 0, or -1:
 * the card failed and device_error says how; nothing more can be done with it. */
int device_run(struct device *device, const struct queue *queue);
const char *device_error(const struct device *device);

/* The stream that runs are on, for libraries: a cudaStream_t. */
void *device_stream(struct device *device);

/* How many lists ran as graphs and how many were captured so far. */
void device_graphs(const struct device *device, long *launched, long *captured);

#ifdef __cplusplus
}
#endif
#endif

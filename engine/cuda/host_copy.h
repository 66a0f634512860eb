/*
 * host_copy.h: copies from mapped files into pinned memory by several threads.
 *
 * A bus takes 25 to 60 GB/s, one thread copies 10, and of pages that the process has not seen yet
 * less. Short copies are the caller's alone.
 */
#ifndef ATELIER_ENGINE_CUDA_HOST_COPY_H
#define ATELIER_ENGINE_CUDA_HOST_COPY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(ATELIER_CUDA_EMULATED)
#define HOST_COPY_CHUNK_BYTES ((size_t)1 << 10) /* so that small models are shared, too */
#else
#define HOST_COPY_CHUNK_BYTES ((size_t)256 << 10)
#endif
#define HOST_COPY_SHARED_BYTES (4 * HOST_COPY_CHUNK_BYTES) /* from here on threads are woken */
#define HOST_COPY_THREADS_MAX 8

struct host_copier;

/* As many threads as the process may use, the caller among them. NULL: there is no memory. */
struct host_copier *host_copier_create(void);
void host_copier_free(struct host_copier *copier); /* NULL is fine */

/* Returns when all is copied. One caller at a time. */
void host_copy(struct host_copier *copier, void *to, const void *from, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif

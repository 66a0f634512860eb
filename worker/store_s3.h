/*
 * store_s3.h: an S3-compatible object store as the place of results and checkpoints.
 *
 * Keys are those of store.h, below the prefix that the store was opened with. Any thread may call,
 * on any number of workers at once. Other attempts of a job may be at work: so nothing is removed
 * before a manifest is there, and then only what it does not name; pictures of the same bytes share
 * a name, and an attempt that gives up must not take another's away.
 */
#ifndef ATELIER_WORKER_STORE_S3_H
#define ATELIER_WORKER_STORE_S3_H

#include "net/s3.h"
#include "worker/store.h"

/* Borrows the object store. */
struct store store_s3(struct s3 *s3);

#endif

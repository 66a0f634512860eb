/*
 * cache.h: models that are fetched, in a directory with a limit.
 *
 *     DIR/<model>-<key>/          a whole model: a folder, or one .safetensors file in it
 *     DIR/.part-<model>-<key>/    one that is being fetched, and goes on after an interruption
 *     DIR/.lock                   held while fetching or removing, so that workers may share DIR
 *
 * The key is made of source and checksum, so that a model that changes in the catalogue is fetched
 * anew. A model comes into sight whole, by a rename. When the limit is passed, what was used
 * longest ago goes; files that are mapped live on until they are unloaded.
 *
 * Sources: https://… and s3://bucket/key of a .safetensors file, s3://bucket/prefix/ of a folder,
 * file:///path of either, which is used where it is.
 */
#ifndef ATELIER_WORKER_CACHE_H
#define ATELIER_WORKER_CACHE_H

#include "common/err.h"
#include "common/file.h"
#include "common/log.h"
#include "net/fetch.h"
#include "schema/catalogue.h"

#include <stdint.h>

struct cache_options {
    const char *dir; /* NULL: only file:// sources */
    uint64_t max_bytes;
    const struct fetch *fetch;
    struct s3_options s3; /* endpoint and credentials, for folders in any bucket; borrowed */
    const struct log *log;
};

struct cache {
    struct cache_options options;
    _Atomic uint64_t bytes; /* as of the latest fetch */
};

/* Makes the directory where it is missing. */
int cache_open(struct cache *cache, const struct cache_options *options,
               struct err *err) must_check;

/* The path of a model, fetched if it is not there. One thread. Errors are ERR_RETRY: another worker
 * may reach what this one cannot. */
int cache_locate(struct cache *cache, const struct catalogue_model *model,
                 char path[FILE_PATH_MAX_BYTES], struct err *err) must_check;

/* Bytes in the cache, as of this worker's latest fetch. Any thread. */
uint64_t cache_bytes(const struct cache *cache);

#endif

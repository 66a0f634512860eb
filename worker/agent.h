/*
 * agent.h: a worker of the fleet: orders from Redis into the pipeline, results as reports back.
 *
 *     at-link   one thread for Redis: takes orders, beats once a second, repeats reports until they
 *               are acknowledged
 *     main      owns the pipeline: puts tasks in, takes them back, cancels, drains
 *
 * A worker that cannot reach Redis goes on drawing what it has: the store creates a manifest only
 * once, so the worst is that a picture is drawn twice and kept once. It drops a job when it is told
 * that the job is another's.
 */
#ifndef ATELIER_WORKER_AGENT_H
#define ATELIER_WORKER_AGENT_H

#include "common/conf.h"
#include "common/err.h"
#include "common/log.h"
#include "net/services.h"

#include <stdint.h>

struct agent_options {
    struct service_options services;
    const char *name; /* NULL: see agents.h */
    const char *device_class;
    const char *models;
    const char *device, *isa, *precision;
    int64_t threads;
    uint64_t memory_bytes;
    int64_t batch_max; /* 0: by device */
    int64_t ahead;   /* jobs beyond the batch, so that preparing and publishing overlap computing */
    int64_t grace_s; /* for what is in hand, after SIGTERM or a drain */
    bool confidential;
    bool private_inputs;
    const char *cache; /* directory of fetched models; NULL: none are fetched */
    uint64_t cache_max_bytes;
    const char *metrics_host;
    int64_t metrics_port; /* 0: none */
    const char *log_level;
};

extern const struct conf_table agent_table;

/* Works with one device and a name until it is told to drain, or `*stop` is set; then drains. 0, or
 * -1 for what ended it. */
int agent_run(const struct agent_options *options, const struct log *log, const volatile int *stop,
              struct err *err) must_check;

#endif

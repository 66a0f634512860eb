/* agent_parts.h: what the agent's two threads share; for agent*.c only. */
#ifndef ATELIER_WORKER_AGENT_PARTS_H
#define ATELIER_WORKER_AGENT_PARTS_H

#include "net/fetch.h"
#include "net/redis.h"
#include "net/s3.h"
#include "net/serve.h"
#include "schema/wire.h"
#include "worker/agent.h"
#include "worker/cache.h"
#include "worker/models.h"
#include "worker/pipeline.h"
#include "worker/store_s3.h"

#include <pthread.h>
#include <stdbool.h>

#define AGENT_NAME_BYTES 128
#define AGENT_BOOT_BYTES 40

/* A job that this worker has, from the order to the acknowledgement of its report. */
struct held {
    struct held *next;
    struct task task; /* the pipeline's while `drawing` */
    char id[JOB_NAME_MAX_BYTES + 1];
    char traceparent[64];
    char checkpoint[64]; /* blob that it began from, or "" */
    uint64_t epoch;
    int attempt;
    bool drawing;        /* in the pipeline */
    bool cancelled;      /* as ordered */
    char *report;        /* repeated until it is acknowledged; NULL while there is none */
    int64_t reported_ns; /* monotonic; 0: not yet */
};

/* An order that has come in, as text. */
struct letter {
    struct letter *next;
    size_t len;
    char text[];
};

struct agent {
    const struct agent_options *options;
    const struct log *log;
    const struct clock *clock;
    char name[AGENT_NAME_BYTES], boot[AGENT_BOOT_BYTES];
    struct catalogue catalogue;
    struct engine *engine;
    struct models *models;
    struct pipeline *pipeline;
    struct http *http, *input_http; /* models'; what jobs name */
    struct s3 *s3;
    struct fetch fetch, input_fetch;
    struct store store;
    struct cache cache;
    const char *device_class;
    int pictures_max;
    struct serve *serve; /* NULL: none */

    pthread_t link;
    bool has_link;
    int wake_fd;                                                      /* wakes at-link */
    char adapter_names[WIRE_ADAPTERS_MAX][MODELS_ADAPTER_NAME_BYTES]; /* at-link's, for a beat */

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    uint64_t done, failed, returned, cancelled; /* jobs */
    bool woken;                                 /* a task is through, a letter has come */
    struct letter *letters, **letters_end;
    struct held *held;      /* main adds and removes; at-link reads and stamps reported_ns */
    uint64_t epoch;         /* the latest that was heard of */
    bool draining, leaving; /* leaving: one last beat, then at-link ends */
};

/* at-link: agent_link.c */
void *link_main(void *agent);
void link_wake(struct agent *agent);

/* What it answers over HTTP; any thread. agent_metrics.c */
int agent_answer(void *agent, const char *path, struct buf *out, const char **type);

/* Wakes main. */
void agent_wake(struct agent *agent);

#endif

/*
 * options.h: what a coordinator is told: one table (options.c) for flags, environment, file and
 * docs/configuration.md.
 */
#ifndef ATELIER_COORDINATOR_OPTIONS_H
#define ATELIER_COORDINATOR_OPTIONS_H

#include "common/conf.h"
#include "net/kafka.h"
#include "net/services.h"

#include <stdbool.h>
#include <stdint.h>

struct coordinator_options {
    struct service_options services;
    const char *name;      /* of this coordinator; NULL: host and process */
    const char *models;    /* catalogue directory; NULL: found like the others' */
    const char *policy;    /* routing policy file; NULL: found */
    const char *cost_file; /* what the cost model has learned; NULL: not kept */
    int64_t jobs_max;      /* live jobs in memory */
    uint64_t jobs_bytes;   /* of their requests */
    int64_t workers_max;
    int64_t partitions;  /* of topics that are created */
    int64_t session_s;   /* election: how long a silent leader leads on */
    int64_t lease_s;     /* a worker that is silent for so long is lost */
    int64_t crashes_max; /* workers that one job may take with it */
    int64_t keep_s;      /* finished jobs stay in Redis for so long */
    int64_t remember_s;  /* ids are known as repeats for so long */
    int64_t target_wait_s;
    const char *callback_secrets; /* lines of whsec_…; NULL: no job may have a callback */
    const char *callback_allow;   /* hosts that may be private, and called by http; NULL: none */
    const char *callback_ca_file;
    int64_t callback_timeout_s, callback_give_up_s;
    uint64_t callback_bytes; /* of callbacks that wait */
    const char *metrics_host;
    int64_t metrics_port; /* 0: a free one; -1: none */
    const char *log_level;
};

extern const struct conf_table coordinator_table;

#endif

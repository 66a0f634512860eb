/*
 * metrics.h: metrics in Prometheus' text format: a family's head, then its samples.
 *
 *     metrics_family(out, "atelier_jobs_total", "counter", "jobs that ended, by how");
 *     metrics_sample(out, "atelier_jobs_total", "state", "succeeded", 12);
 *
 * Source: prometheus.io, "Exposition formats", text format 0.0.4.
 */
#ifndef ATELIER_COMMON_METRICS_H
#define ATELIER_COMMON_METRICS_H

#include "common/buf.h"

#define METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* `type` is "counter" or "gauge". */
void metrics_family(struct buf *out, const char *name, const char *type, const char *help);

/* `label` may be NULL: none. */
void metrics_sample(struct buf *out, const char *name, const char *label, const char *value,
                    double number);

/* A family with one sample without labels. */
void metrics_single(struct buf *out, const char *name, const char *type, const char *help,
                    double number);

#endif

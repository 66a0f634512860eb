/*
 * log.h: one line per event, key=value, for programs; libraries never print.
 *
 * A line is time, level, event, then the pairs given; a value with blanks, quotes or control
 * characters is quoted. A line is written with one call, so that threads do not mix.
 *
 *     struct log log = {.out = stderr, .level = LOG_INFO, .clock = clock_system()};
 *     log_event(&log, LOG_WARN, "job_failed", "job", id, "error", err.message, NULL);
 */
#ifndef ATELIER_COMMON_LOG_H
#define ATELIER_COMMON_LOG_H

#include "common/clock.h"

#include <stdio.h>

#define LOG_LINE_MAX_BYTES 8192

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* "error", "warn", "info", "debug"; LOG_INFO for anything else. */
enum log_level log_level_by_name(const char *name);

struct log {
    FILE *out;            /* borrowed; NULL drops everything */
    enum log_level level; /* the least important that is written */
    const struct clock *clock;
    const char *worker; /* whose events they are, where a process has several; NULL: one */
};

/* Pairs of strings, ended by NULL. A NULL value drops its pair. */
void log_event(const struct log *log, enum log_level level, const char *event, ...)
    __attribute__((sentinel));

#endif

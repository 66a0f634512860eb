/*
 * report.h: rejected.jsonl and failed.jsonl of one run. They are written under temporary names and
 * take their own when the run ends, so that they are whole.
 */
#ifndef ATELIER_CLI_REPORT_H
#define ATELIER_CLI_REPORT_H

#include "common/err.h"
#include "common/file.h"
#include "schema/job.h"

#include <stdint.h>
#include <stdio.h>

struct report {
    FILE *out; /* NULL until the first record */
    uint64_t count;
    char path[FILE_PATH_MAX_BYTES], temp[FILE_PATH_MAX_BYTES];
};

int report_open(struct report *report, const char *dir, const char *name,
                struct err *err) must_check;

/* A line that is no job, with everything that is wrong. `text` is its beginning. */
int report_rejected(struct report *report, uint64_t line, const char *id, const char *text,
                    size_t len, const struct job_problems *problems, struct err *err) must_check;

/* A job that was not drawn. */
int report_failed(struct report *report, uint64_t line, const char *id, int attempts,
                  const struct err *reason, struct err *err) must_check;

/* Gives the file its name; one of an earlier run is replaced, or removed when there is nothing to
 * report. */
int report_close(struct report *report, struct err *err) must_check;

#endif

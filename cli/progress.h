/*
 * progress.h: how a run shows where it is: a bar on a terminal, a line every few seconds elsewhere,
 * JSON lines on standard output for programs.
 */
#ifndef ATELIER_CLI_PROGRESS_H
#define ATELIER_CLI_PROGRESS_H

#include "common/clock.h"
#include "worker/pipeline.h"

#include <stdbool.h>
#include <stdint.h>

struct tally {
    uint64_t total;                 /* lines of the file; 0: unknown */
    uint64_t lines;                 /* read */
    uint64_t rejected;              /* lines that are no job */
    uint64_t repeated;              /* lines with an id and content seen before */
    uint64_t skipped;               /* jobs that an earlier run finished */
    uint64_t done, failed, expired; /* jobs of this run */
    uint64_t pictures;
    int model_loads;
};

struct progress {
    const struct clock *clock;
    bool json, terminal;
    int64_t begun_ns, shown_ns;
    uint64_t shown_pictures; /* of the rate's window */
    int64_t window_ns;
    double pictures_per_s;
    bool bar_is_up;
};

void progress_begin(struct progress *progress, const struct clock *clock, bool json);

/* Shows, if it is time to. `loading` names the model that is being loaded, or is NULL; `left_s` is
 * negative when unknown. */
void progress_show(struct progress *progress, const struct tally *tally,
                   const struct pipeline_progress *now, const char *loading, double left_s);

/* Takes the bar off the terminal, so that something else can be printed. */
void progress_clear(struct progress *progress);

/* Writes the last line of a run; `status` is "complete", "interrupted", "failed". */
void progress_end(struct progress *progress, const struct tally *tally, const char *status,
                  const char *dir);

/* "3m20s". */
void progress_format_time(double seconds, char out[32]);

#endif

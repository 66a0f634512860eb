/*
 * runner.h: the embedded run: lines become jobs, the scheduler orders them, the stations' pipelines
 * draw them, the journal remembers. One thread, in a loop that never waits for long:
 *
 *     read lines while the scheduler's window has room
 *     do what the scheduler says
 *     take finished jobs from the pipelines, or wait for one for a moment
 *     show progress
 */
#ifndef ATELIER_CLI_RUNNER_H
#define ATELIER_CLI_RUNNER_H

#include "cli/lines.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/stations.h"
#include "common/ledger.h"
#include "scheduler/scheduler.h"
#include "worker/journal.h"
#include "worker/store_dir.h"

#include <stdbool.h>
#include <stdint.h>

#define RUNNER_TENANTS 256
#define RUNNER_WINDOW 4096              /* jobs that wait or run */
#define RUNNER_WINDOW_BYTES (16u << 20) /* of their requests */

struct run_options {
    struct setup_options setup;
    const char *jobs; /* path or "-" */
    const char *out;
    const char *dump_stages;
    bool dry_run, json;
    int64_t batch_max; /* 0: by size and device */
};

/* What a finished job of a model has taught. */
struct model_rate {
    double rate; /* seconds per step and pixel; 0: unknown yet */
    int width, height, steps;
};

struct runner {
    const struct run_options *options;
    const struct clock *clock;
    struct catalogue catalogue;
    struct model_rate *rates; /* as many as the catalogue has */
    struct stations stations;
    struct store_dir out;
    struct store store; /* the same */
    struct ledger ledger;
    struct journal journal;
    struct scheduler *scheduler;
    struct lines lines;
    struct report rejected, failed;
    struct progress progress;
    struct tally tally;
    struct task **tasks;  /* by slot; NULL: free */
    uint32_t *free_slots; /* a stack */
    uint32_t free_count;
    uint32_t in_flight; /* in a pipeline */
    bool at_end;        /* no more lines, or none wanted */
    bool stopping;
    bool fatal;
    struct err fatal_err;
    char base_dir[FILE_PATH_MAX_BYTES];
    struct job_problems problems; /* of the latest line */
};

/* Opens everything; on error what was opened is the caller's to release all the same. */
int runner_open(struct runner *runner, const struct run_options *options,
                struct err *err) must_check;
void runner_release(struct runner *runner);

/* Runs to the end, an interruption or a fatal error, writes reports and contact sheet and says how
 * it went. Returns the exit status. */
int runner_run(struct runner *runner);

/* Takes one line: judges it, and submits it where it is a new job. -1 only for what ends the run.
 */
int runner_feed(struct runner *runner, const struct line *line, struct err *err) must_check;

/* Reads and judges a line as a job for this run: everything that is wrong is in runner->problems.
 * 0: a job with the catalogue's defaults, `model` its number; 1: rejected; -1: out of memory. */
int runner_judge(struct runner *runner, const struct line *line, struct job *job, int *model,
                 struct err *err) must_check;

/* Hands a job to the scheduler. */
void runner_submit(struct runner *runner, struct task *task);

/* Steps the scheduler and does what it says. */
int runner_step(struct runner *runner, struct scheduler_event *event, struct err *err) must_check;

/* Records a job that was not drawn. */
int runner_fail(struct runner *runner, struct task *task, const struct err *reason,
                struct err *err) must_check;

/* How often the user asked to stop. */
int runner_interrupts(void);
void runner_watch_signals(void);

/* Reads the whole file, says what is wrong with it and what it would take. */
int dry_run(const struct run_options *options);

#endif

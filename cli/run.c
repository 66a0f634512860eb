/* atelier run: the options, and the way into the runner. */
#include "cli/command.h"
#include "cli/runner.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define AT(member) offsetof(struct run_options, member)

static const struct conf_row rows[] = {
    {"out", CONF_STRING, AT(out), "DIR", NULL, 0, 0, NULL,
     "where results, journal, reports and index.html go; the same directory again resumes"},
    SETUP_ROWS(struct run_options, setup),
    {"batch-max", CONF_INT, AT(batch_max), "N", "0", 0, ENGINE_SESSIONS_MAX, NULL,
     "pictures in one step; 0: as many small ones as fill the device (512×512 pixels on a "
     "processor, 16 times that on a card), at most 16"},
    {"dump-stages", CONF_STRING, AT(dump_stages), "DIR", NULL, 0, 0, NULL,
     "write every stage's tensors, one safetensors file per picture"},
    {"dry-run", CONF_FLAG, AT(dry_run), NULL, NULL, 0, 0, NULL,
     "check every line, with its model and its pictures, and estimate time and memory; draw "
     "nothing"},
    {"json", CONF_FLAG, AT(json), NULL, NULL, 0, 0, NULL,
     "progress and result as JSON lines on standard output"},
};

const struct conf_table run_table = {
    .command = "atelier run",
    .family = cli_tables,
    .usage = "atelier run JOBS.jsonl --out DIR [options]",
    .summary =
        "Draws every job of a file, one JSON object a line (- is standard input). Exit status: "
        "0 all done, 3 lines were rejected, 4 jobs failed, 5 the run could not go on, "
        "6 the card is absent or has failed, 130 interrupted.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "JOBS.jsonl",
    .positional_offset = AT(jobs),
};

static int fail(const char *message, int status)
{
    fprintf(stderr, "atelier run: %s\n", message);
    return status;
}

int command_run(int argc, char **argv)
{
    struct run_options options = {0};
    struct err err;
    struct buf help;
    int rc = conf_parse(&run_table, &options, argc, argv, &err);
    if (rc < 0)
        return fail(err.message, EXIT_USAGE);
    if (rc > 0) {
        buf_init(&help, 1 << 20);
        conf_help(&run_table, &help);
        fputs(help.data, stdout);
        buf_release(&help);
        return EXIT_ALL_DONE;
    }
    if (!options.jobs)
        return fail("which jobs file? usage: atelier run JOBS.jsonl --out DIR", EXIT_USAGE);
    if (!options.out && !options.dry_run)
        return fail("where to? name a directory with --out DIR", EXIT_USAGE);
    runner_watch_signals();
    if (options.dry_run)
        return dry_run(&options);
    struct runner *runner = malloc(sizeof(*runner));
    if (!runner)
        return fail("out of memory", EXIT_FATAL);
    int status = EXIT_FATAL;
    if (runner_open(runner, &options, &err) == 0)
        status = runner_run(runner);
    else
        status = fail(err.message, exit_status_of(&err));
    runner_release(runner);
    free(runner);
    return status;
}

/* command.h: the subcommands: each takes the words after its name and returns the exit status. */
#ifndef ATELIER_CLI_COMMAND_H
#define ATELIER_CLI_COMMAND_H

#include "common/err.h"

struct conf_table;

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const struct conf_table *table; /* of its options; NULL: takes none */
    const char *words;              /* that may follow, parted by spaces; NULL: none of its own */
    const char *help;
};

/* All commands, ended by one without a name. */
extern const struct command cli_commands[];

enum exit_status {
    EXIT_ALL_DONE = 0,
    EXIT_ABSENT = 1,    /* what was asked for is not known, or did not come about in time */
    EXIT_USAGE = 2,     /* a wrong option or word */
    EXIT_REJECTED = 3,  /* some lines were rejected, all others are done */
    EXIT_FAILED = 4,    /* some jobs failed or expired */
    EXIT_FATAL = 5,     /* the run could not begin or go on */
    EXIT_NO_DEVICE = 6, /* the card is absent, does not start or was lost */
    EXIT_INTERRUPTED = 130,
};

/* Of a command whose engine did not open or go on. */
static inline int exit_status_of(const struct err *err)
{
    return err->code == ERR_DEVICE ? EXIT_NO_DEVICE : EXIT_FATAL;
}

int command_run(int argc, char **argv);
int command_generate(int argc, char **argv);
int command_model(int argc, char **argv);
int command_simulate(int argc, char **argv);
int command_schema(int argc, char **argv);
int command_version(int argc, char **argv);
int command_help(int argc, char **argv);
int command_bench(int argc, char **argv);
int bench_fleet(int argc, char **argv); /* its second half, with the word `fleet` */
int command_completion(int argc, char **argv);

/* With ATELIER_FLEET. */
int command_submit(int argc, char **argv);
int command_status(int argc, char **argv);
int command_watch(int argc, char **argv);
int command_explain(int argc, char **argv);
int command_cancel(int argc, char **argv);
int command_pause(int argc, char **argv);
int command_resume(int argc, char **argv);
int command_drain(int argc, char **argv);
int command_redrive(int argc, char **argv);
int command_workers(int argc, char **argv);
int command_get(int argc, char **argv);

/* The tables of the commands that take options: all of them, ended by NULL, and each. */
extern const struct conf_table *const cli_tables[];
extern const struct conf_table run_table, generate_table, model_table, bench_table, simulate_table;
extern const struct conf_table submit_table, status_table, watch_table, explain_table, cancel_table,
    pause_table, resume_table, drain_table, redrive_table, workers_table, get_table,
    bench_fleet_table;

#endif

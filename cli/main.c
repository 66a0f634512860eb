/* atelier: one table of subcommands. */
#include "cli/command.h"
#include "common/buf.h"
#include "common/conf.h"
#include "common/nearest.h"
#include "schema/job.h"
#ifdef ATELIER_FLEET
#include "coordinator/options.h"
#include "worker/agent.h"
#endif

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct command cli_commands[] = {
    {"run", command_run, &run_table, NULL, "draw every job of a file"},
    {"generate", command_generate, &generate_table, NULL, "draw one picture"},
    {"model", command_model, &model_table, "inspect", "inspect PATH: say what a model is"},
#ifdef ATELIER_FLEET
    {"submit", command_submit, &submit_table, NULL, "send every job of a file to the fleet"},
    {"status", command_status, &status_table, NULL, "how a job, a batch or the cell is doing"},
    {"watch", command_watch, &watch_table, NULL, "the same again and again, with the workers"},
    {"explain", command_explain, &explain_table, NULL, "why a job waits or runs where it does"},
    {"get", command_get, &get_table, NULL, "fetch the results of a job or a batch"},
    {"cancel", command_cancel, &cancel_table, NULL, "cancel a job or a batch"},
    {"pause", command_pause, &pause_table, NULL, "hold a batch"},
    {"resume", command_resume, &resume_table, NULL, "let a held batch go on"},
    {"redrive", command_redrive, &redrive_table, NULL,
     "send jobs without success, or dead letters, again"},
    {"workers", command_workers, &workers_table, NULL, "list the workers"},
    {"drain", command_drain, &drain_table, NULL, "make a worker leave in good order"},
#endif
    {"simulate", command_simulate, &simulate_table, NULL,
     "what a routing policy would make of a load"},
    {"schema", command_schema, NULL, "job", "job: print the JSON Schema of a job"},
    {"bench", command_bench, &bench_table, "engine", "engine: measure this machine"},
    {"completion", command_completion, NULL, "bash zsh",
     "print what teaches a shell the commands and options"},
    {"version", command_version, NULL, NULL, "print the version"},
    {"help", command_help, NULL, "--markdown",
     "this text; --markdown: all options, as docs/configuration.md has them"},
    {.name = NULL},
};

const struct conf_table *const cli_tables[] = {
    &run_table,    &generate_table,    &model_table,  &bench_table,   &simulate_table,
#ifdef ATELIER_FLEET
    &submit_table, &status_table,      &watch_table,  &explain_table, &get_table,
    &cancel_table, &pause_table,       &resume_table, &redrive_table, &workers_table,
    &drain_table,  &bench_fleet_table,
#endif
    NULL,
};

#define COMMAND_COUNT (sizeof(cli_commands) / sizeof(cli_commands[0]) - 1)

int command_schema(int argc, char **argv)
{
    struct buf out;
    if (argc != 1 || strcmp(argv[0], "job") != 0) {
        fprintf(stderr, "usage: atelier schema job\n");
        return EXIT_USAGE;
    }
    buf_init(&out, 1 << 20);
    job_schema_write(&out);
    fputs(out.data, stdout);
    buf_release(&out);
    return EXIT_ALL_DONE;
}

int command_version(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    puts("atelier " ATELIER_VERSION);
    return EXIT_ALL_DONE;
}

static void write_markdown(void)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    buf_str(
        &out,
        "# Configuration\n\nWritten by `atelier help --markdown`; a test keeps it current.\n\n"
        "A value comes from the flag, else from the environment, else from the configuration "
        "file, else from the default. The file is named by `--config FILE` or `ATELIER_CONFIG`; "
        "every program reads the same one:\n\n"
        "    # for all programs: only keys that all of them have, such as those of the services\n"
        "    cell = paris\n"
        "    redis-url-file = /run/secrets/redis\n\n"
        "    [atelier-worker]\n"
        "    threads = 8\n\n"
        "    [atelier]\n"
        "    out = results\n\n"
        "Lines are `key = value`, the keys those of the flags; `#` at a line's beginning makes "
        "it a comment. Sections are `[atelier]`, `[atelier-coordinator]` and "
        "`[atelier-worker]`, and a program passes over those of the others. A key that the "
        "program does not have is an error that names the line; `atelier` takes the keys of "
        "all its commands.\n\n"
        "Secrets stay out of flags and of this file: `redis-url-file` and "
        "`callback-secrets-file` name files, a VALUE in `kafka-properties` may be `@FILE`, and the "
        "object store's keys come from "
        "`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.\n\n");
    for (size_t i = 0; cli_tables[i]; i++)
        conf_markdown(cli_tables[i], &out);
#ifdef ATELIER_FLEET
    conf_markdown(&coordinator_table, &out);
    conf_markdown(&agent_table, &out);
#endif
    out.len -= out.len > 0; /* one newline at the end, not two */
    fwrite(out.data, 1, out.len, stdout);
    buf_release(&out);
}

static void write_help(FILE *to)
{
    fputs("Atelier draws pictures in bulk with Stable Diffusion models.\n\n"
          "usage: atelier COMMAND …\n\n",
          to);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(to, "  %-10s %s\n", cli_commands[i].name, cli_commands[i].help);
    fputs("\natelier COMMAND --help says more.\n", to);
}

int command_help(int argc, char **argv)
{
    if (argc == 1 && strcmp(argv[0], "--markdown") == 0)
        write_markdown();
    else
        write_help(stdout);
    return EXIT_ALL_DONE;
}

static int fail_unknown(const char *name)
{
    const char *names[COMMAND_COUNT];
    char hint[NEAREST_HINT_BYTES];
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        names[i] = cli_commands[i].name;
    nearest_hint(hint, name, names, COMMAND_COUNT);
    fprintf(stderr, "atelier: unknown command \"%s\"%s\n", name, hint);
    return EXIT_USAGE;
}

/* GNU's OpenMP runtime lets idle threads spin for milliseconds, which on a busy machine costs far
 * more than it saves, and reads its limit before main: set it and begin again, once. */
static void limit_spinning(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") != NULL || getenv("GOMP_SPINCOUNT") != NULL)
        return;
    if (setenv("GOMP_SPINCOUNT", "20000", 0) == 0)
        execv("/proc/self/exe", argv); /* goes on as it is if that fails */
}

int main(int argc, char **argv)
{
    limit_spinning(argv);
    pthread_setname_np(pthread_self(), "atelier"); /* the second exec has lost it */
    if (argc < 2) {
        write_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return command_help(0, NULL);
    if (strcmp(argv[1], "--version") == 0)
        return command_version(0, NULL);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(cli_commands[i].name, argv[1]) == 0)
            return cli_commands[i].run(argc - 2, argv + 2);
    return fail_unknown(argv[1]);
}

/* atelier-worker. */
#include "worker/agents.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXIT_OPTIONS 2
#define EXIT_BROKEN 5
#define EXIT_NO_DEVICE 6 /* the card is absent, does not start or has failed */

static volatile int stopping;

static void on_signal(int number)
{
    if (stopping)
        _exit(128 + number);
    stopping = 1;
}

/* GNU's OpenMP runtime lets idle threads spin for milliseconds and reads its limit before main. */
static void limit_spinning(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") != NULL || getenv("GOMP_SPINCOUNT") != NULL)
        return;
    if (setenv("GOMP_SPINCOUNT", "20000", 0) == 0)
        execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    struct agent_options options = {0};
    struct log log = {.out = stderr, .level = LOG_INFO, .clock = clock_system()};
    struct sigaction action = {.sa_handler = on_signal};
    struct err err;
    struct buf help;
    limit_spinning(argv);
    pthread_setname_np(pthread_self(), "atelier-worker"); /* the second exec has lost it */
    int rc = conf_parse(&agent_table, &options, argc - 1, argv + 1, &err);
    if (rc > 0) {
        buf_init(&help, 1 << 20);
        conf_help(&agent_table, &help);
        fputs(help.data, stdout);
        buf_release(&help);
        return 0;
    }
    if (rc < 0) {
        fprintf(stderr, "atelier-worker: %s\n", err.message);
        return EXIT_OPTIONS;
    }
    log.level = log_level_by_name(options.log_level);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (agents_run(&options, &log, &stopping, &err) != 0) {
        log_event(&log, LOG_ERROR, "stopped", "why", err.message, NULL);
        return err.code == ERR_DEVICE ? EXIT_NO_DEVICE : EXIT_BROKEN;
    }
    log_event(&log, LOG_INFO, "stopped", NULL);
    return 0;
}

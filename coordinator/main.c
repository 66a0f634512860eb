/* atelier-coordinator: stands for election, leads while it is elected. */
#include "coordinator/cell.h"

#include "common/conf.h"
#include "common/file.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXIT_OPTIONS 2
#define EXIT_BROKEN 5
#define STANDBY_MS 200
#define AGAIN_S 1
#define TOPICS_TIMEOUT_MS 60000
#define REFUSED_MAX 3 /* terms in a row that an error ended before they began */

static volatile int stopping;

static void on_signal(int number)
{
    (void)number;
    if (stopping)
        _exit(128 + number);
    stopping = 1;
}

/* ---- opening ---- */

static int find_file(char out[FILE_PATH_MAX_BYTES], const char *given, const char *name,
                     const char *flag, struct err *err)
{
    if (given && strlen(given) < FILE_PATH_MAX_BYTES) {
        strcpy(out, given);
        return 0;
    }
    if (file_find(out, name))
        return 0;
    return err_set(err, ERR_NOT_FOUND, ERR_FATAL, "no %s beside the program or here; give --%s",
                   name, flag);
}

static int name_all(struct cell *cell, struct err *err)
{
    static const char *const topics[] = {TOPIC_JOBS, TOPIC_INTERACTIVE, TOPIC_CONTROL, TOPIC_STATE,
                                         TOPIC_DLQ};
    const struct service_options *services = &cell->options->services;
    char host[64] = "coordinator";
    for (int i = 0; i < 5; i++)
        if (service_topic(services, topics[i], cell->topics[i], err) != 0)
            return -1;
    (void)gethostname(host, sizeof(host) - 1);
    if (cell->options->name)
        snprintf(cell->name, sizeof(cell->name), "%s", cell->options->name);
    else
        snprintf(cell->name, sizeof(cell->name), "%s-%d", host, (int)getpid());
    if (service_topic(services, GROUP_LEADER, cell->group_leader, err) != 0 ||
        service_topic(services, GROUP_INGEST, cell->group_ingest, err) != 0)
        return -1;
    return service_topic(services, TRANSACTIONAL_ID, cell->transactional_id, err);
}

static int ensure_topics(const struct cell *cell, struct err *err)
{
    static const char journal[] = "cleanup.policy=compact;min.cleanable.dirty.ratio=0.1;"
                                  "max.message.bytes=2097152";
    static const char plain[] = "max.message.bytes=2097152";
    /* A dead letter is the largest request with the reasons added. */
    static const char large[] = "max.message.bytes=4194304";
    int partitions = (int)cell->options->partitions;
    const struct kafka_topic topics[] = {
        {cell->topics[0], partitions, plain}, {cell->topics[1], 1, plain},
        {cell->topics[2], 1, plain},          {cell->topics[3], partitions, journal},
        {cell->topics[4], partitions, large},
    };
    return kafka_topics_ensure(&cell->kafka, topics, 5, TOPICS_TIMEOUT_MS, err);
}

/* Where others find it: a machine's name in place of all addresses. */
static int open_serve(struct cell *cell, struct err *err)
{
    char host[64] = "127.0.0.1";
    struct serve_options options = {.host = cell->options->metrics_host,
                                    .port = (int)cell->options->metrics_port,
                                    .answer = cell_answer,
                                    .user = cell};
    if (options.port < 0)
        return 0;
    if (serve_create(&cell->serve, &options, err) != 0)
        return -1;
    if (strcmp(options.host, "0.0.0.0") == 0)
        (void)gethostname(host, sizeof(host) - 1);
    else
        snprintf(host, sizeof(host), "%s", options.host);
    snprintf(cell->api, sizeof(cell->api), "%s:%d", host, serve_port(cell->serve));
    return 0;
}

/* A URL that can never work is an error now, not once this one leads. */
static int check_redis(const struct cell *cell, struct err *err)
{
    struct redis_options options = {.url = cell->options->services.redis_url,
                                    .ca_file = cell->options->services.redis_ca_file,
                                    .clock = cell->clock};
    struct redis *redis;
    if (redis_create(&redis, &options, err) != 0)
        return -1;
    redis_free(redis);
    return 0;
}

static int open_cell(struct cell *cell, struct err *err)
{
    char models[FILE_PATH_MAX_BYTES];
    const struct service_options *services = &cell->options->services;
    if (name_all(cell, err) != 0 || check_redis(cell, err) != 0 || callback_open(cell, err) != 0 ||
        find_file(models, cell->options->models, "models", "models", err) != 0 ||
        catalogue_open(&cell->catalogue, models, err) != 0 ||
        find_file(cell->policy_path, cell->options->policy, "deploy/routing.json", "policy", err) !=
            0 ||
        cell_read_policy(cell, err) != 0 || cost_create(&cell->cost, NULL, err) != 0 ||
        cell_read_cost(cell, err) != 0)
        return -1;
    cell->kafka = (struct kafka_options){.brokers = services->brokers,
                                         .client_id = cell->name,
                                         .properties = services->kafka_properties,
                                         .log = cell->log};
    buf_init(&cell->scratch, 8 << 20);
    buf_init(&cell->message, 8 << 20);
    return open_serve(cell, err) != 0 ? -1 : ensure_topics(cell, err);
}

static void close_cell(struct cell *cell)
{
    serve_free(cell->serve);
    catalogue_release(&cell->catalogue);
    policy_free(cell->policy);
    cost_free(cell->cost);
    buf_release(&cell->scratch);
    buf_release(&cell->message);
}

/* ---- standing by and leading ---- */

static void pause_a_second(void)
{
    if (!stopping)
        sleep(AGAIN_S);
}

static int stand(struct cell *cell, struct kafka_member **member, struct err *err)
{
    kafka_member_free(*member);
    if (kafka_member_create(member, &cell->kafka, cell->group_leader, cell->topics[SOURCE_CONTROL],
                            (int)cell->options->session_s * 1000, err) != 0)
        return -1;
    log_event(cell->log, LOG_INFO, "standing_by", "name", cell->name, NULL);
    return 0;
}

static int serve(struct cell *cell, struct err *err)
{
    struct kafka_member *member = NULL;
    int refused = 0, rc = stand(cell, &member, err);
    while (!stopping && rc == 0) {
        if (cell->serve)
            serve_run(cell->serve);
        bool more = cell_follow(cell);
        if (!kafka_member_poll(member, more ? 0 : STANDBY_MS))
            continue;
        uint64_t terms = cell->stats.terms;
        log_event(cell->log, LOG_INFO, "elected", "name", cell->name, NULL);
        if (cell_lead(cell, member, &stopping, err) == 0)
            break;
        log_event(cell->log, LOG_WARN, "lead_lost", "why", err->message, NULL);
        bool began = cell->stats.terms > terms;
        refused = !began && err->class == ERR_FATAL && err->code != ERR_CONFLICT ? refused + 1 : 0;
        if (refused == REFUSED_MAX)
            rc = -1;
        pause_a_second();
        /* Who was overtaken does not know yet that the group has put it out, and would overtake in
         * turn, for ever: it joins anew, and holds what it is given then. */
        if (rc == 0 && err->code == ERR_CONFLICT)
            rc = stand(cell, &member, err);
    }
    kafka_member_free(member);
    return rc;
}

int main(int argc, char **argv)
{
    static struct coordinator_options options;
    static struct cell cell;
    struct log log = {.out = stderr, .clock = clock_system()};
    struct sigaction action = {.sa_handler = on_signal};
    struct err err;
    struct buf help;
    int rc = conf_parse(&coordinator_table, &options, argc - 1, argv + 1, &err);
    if (rc > 0) {
        buf_init(&help, 1 << 20);
        conf_help(&coordinator_table, &help);
        fputs(help.data, stdout);
        buf_release(&help);
        return 0;
    }
    if (rc < 0) {
        fprintf(stderr, "atelier-coordinator: %s\n", err.message);
        return EXIT_OPTIONS;
    }
    log.level = log_level_by_name(options.log_level);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    cell.options = &options;
    cell.clock = log.clock;
    cell.log = &log;
    cell.steady_from_ns = clock_wall_ns(log.clock) - clock_monotonic_ns(log.clock);
    rc = open_cell(&cell, &err);
    if (rc == 0)
        rc = serve(&cell, &err);
    if (rc != 0)
        log_event(&log, LOG_ERROR, "stopped", "why", err.message, NULL);
    else
        log_event(&log, LOG_INFO, "stopped", NULL);
    cell_forget(&cell);
    close_cell(&cell);
    return rc == 0 ? 0 : EXIT_BROKEN;
}

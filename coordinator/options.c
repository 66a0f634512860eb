#include "coordinator/options.h"

#define AT(member) offsetof(struct coordinator_options, member)

static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};

static const struct conf_row rows[] = {
    SERVICE_ROWS(struct coordinator_options, services),
    SERVICE_S3_ROWS(struct coordinator_options, services),
    {"name", CONF_STRING, AT(name), "NAME", NULL, 0, 0, NULL,
     "of this coordinator, in logs and in Redis; by default host and process number"},
    {"models", CONF_STRING, AT(models), "DIR", NULL, 0, 0, NULL,
     "directory with catalogue.json and models, as the workers have it (by default `models` beside "
     "the program, its checkout or the working directory)"},
    {"policy", CONF_STRING, AT(policy), "FILE", NULL, 0, 0, NULL,
     "routing policy, read again when it changes (by default deploy/routing.json beside the "
     "program's checkout)"},
    {"cost-file", CONF_STRING, AT(cost_file), "FILE", NULL, 0, 0, NULL,
     "where to keep what has been learned of how long jobs take"},
    {"jobs-max", CONF_INT, AT(jobs_max), "N", "1000000", 16, 16000000, NULL,
     "live jobs in memory; a longer backlog stays in Kafka"},
    {"jobs-bytes", CONF_BYTES, AT(jobs_bytes), "SIZE", "768M", 0, 0, NULL, "of their requests"},
    {"workers-max", CONF_INT, AT(workers_max), "N", "10000", 1, 100000, NULL,
     "workers of the cell"},
    {"partitions", CONF_INT, AT(partitions), "N", "4", 1, KAFKA_PARTITIONS_MAX, NULL,
     "of the jobs and state topics, when they are created"},
    {"session", CONF_INT, AT(session_s), "SECONDS", "6", 6, 300, NULL,
     "after how long a silent leader is replaced"},
    {"lease", CONF_INT, AT(lease_s), "SECONDS", "10", 3, 600, NULL,
     "after how long a silent worker's jobs go to others"},
    {"crashes-max", CONF_INT, AT(crashes_max), "N", "3", 1, 100, NULL,
     "workers that may crash while they have a job before it is dead"},
    {"keep", CONF_INT, AT(keep_s), "SECONDS", "86400", 1, 31536000, NULL,
     "how long finished jobs and batches stay in Redis"},
    {"remember", CONF_INT, AT(remember_s), "SECONDS", "2592000", 60, 315360000, NULL,
     "how long a finished job's id is known as a repeat"},
    {"target-wait", CONF_INT, AT(target_wait_s), "SECONDS", "300", 1, 864000, NULL,
     "in which the work at hand should be done: what the wanted workers follow from"},
    {"callback-secrets-file", CONF_FILE, AT(callback_secrets), "FILE", NULL, 0, 0, NULL,
     "secrets that callbacks are signed with, one a line, `whsec_` and base64 of 24 to 64 bytes; "
     "the first is the newest; without any, jobs with a callback are refused"},
    {"callback-allow", CONF_STRING, AT(callback_allow), "HOST,…", NULL, 0, 0, NULL,
     "hosts that callbacks may reach at private addresses, and without TLS"},
    {"callback-ca-file", CONF_STRING, AT(callback_ca_file), "FILE", NULL, 0, 0, NULL,
     "certificate authorities of callbacks; default: the system's"},
    {"callback-timeout", CONF_INT, AT(callback_timeout_s), "SECONDS", "10", 1, 300, NULL,
     "of one try"},
    {"callback-give-up", CONF_INT, AT(callback_give_up_s), "SECONDS", "86400", 1, 2592000, NULL,
     "after a job's end, if its callback's receiver still fails"},
    {"callback-bytes", CONF_BYTES, AT(callback_bytes), "SIZE", "256M", 0, 0, NULL,
     "of callbacks that wait; beyond it, the first of the receiver with the most is given up"},
    {"metrics-host", CONF_STRING, AT(metrics_host), "ADDRESS", "127.0.0.1", 0, 0, NULL,
     "where to serve /metrics, /healthz, /readyz and /explain; 0.0.0.0: on all of the machine's"},
    {"metrics-port", CONF_INT, AT(metrics_port), "PORT", "0", -1, 65535, NULL,
     "of that; 0: a free one, told in Redis; -1: none"},
    {"log-level", CONF_CHOICE, AT(log_level), "LEVEL", "info", 0, 0, log_levels,
     "the least important that is written"},
};

const struct conf_table coordinator_table = {
    .command = "atelier-coordinator",
    .usage = "atelier-coordinator [options]",
    .summary = "Leads a cell, or stands by to: takes jobs from Kafka, gives them to workers, keeps "
               "the journal. Start several; one leads.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
};

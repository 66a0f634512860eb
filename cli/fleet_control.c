/*
 * atelier cancel, pause, resume, drain: one record on the control topic, then a look at Redis for
 * what came of it. The order is durable once Kafka has it, whether or not its effect shows in time.
 */
#include "cli/fleet.h"
#include "common/json.h"
#include "common/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LOOK_MS 100

#define CONTROL_EXITS                                                                              \
    "Exit status: 0 done (with --no-wait: sent), 1 no effect was seen in time, 5 the cell could "  \
    "not be reached."

static const struct conf_row job_rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_BATCH_ROW("every live job of the batch instead of one job"),
    FLEET_NO_WAIT_ROW,
    FLEET_JSON_ROW,
};
static const struct conf_row batch_rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_BATCH_ROW("the batch"),
    FLEET_NO_WAIT_ROW,
    FLEET_JSON_ROW,
};
static const struct conf_row worker_rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_NO_WAIT_ROW,
    FLEET_JSON_ROW,
};

#define ROWS(rows) rows, sizeof(rows) / sizeof(rows[0])

const struct conf_table cancel_table = {
    "atelier cancel",
    "atelier cancel JOB | --batch NAME [options]",
    "Cancels a job, or all live jobs of a batch, wherever they are; one that has ended stays as it "
    "is. " CONTROL_EXITS,
    ROWS(job_rows),
    "JOB",
    FLEET_AT(word),
    cli_tables,
};
const struct conf_table pause_table = {
    "atelier pause",
    "atelier pause --batch NAME [options]",
    "Holds a batch: its waiting jobs, and those still to come, are not given to workers; what runs "
    "is finished. " CONTROL_EXITS,
    ROWS(batch_rows),
    NULL,
    0,
    cli_tables,
};
const struct conf_table resume_table = {
    "atelier resume",
    "atelier resume --batch NAME [options]",
    "Lets a paused batch go on. " CONTROL_EXITS,
    ROWS(batch_rows),
    NULL,
    0,
    cli_tables,
};
const struct conf_table drain_table = {
    "atelier drain",
    "atelier drain WORKER [options]",
    "Makes a worker leave in good order: it takes nothing new, finishes or checkpoints what it "
    "has, "
    "and exits. " CONTROL_EXITS,
    ROWS(worker_rows),
    "WORKER",
    FLEET_AT(word),
    cli_tables,
};

/* Looks at what the order is about: whether it has come about, and says so in `said`. */
typedef bool effect_fn(const struct hash *before, const struct hash *now, char said[160]);

struct order_kind {
    const char *action, *what, *prefix;
    effect_fn *effect;
};

#define UNKNOWN_BATCH "no job of this batch has been accepted yet"

static bool is_ended(const char *status)
{
    for (int i = STATE_SUCCEEDED; i < STATE_COUNT; i++)
        if (strcmp(status, state_name((enum state_kind)i)) == 0)
            return true;
    return false;
}

static bool job_cancelled(const struct hash *before, const struct hash *now, char said[160])
{
    const char *status = hash_get(now, "status");
    if (now->count == 0)
        snprintf(said, 160,
                 "Redis knows no such job; should it be waiting in Kafka still, the "
                 "order comes before it and does nothing: send it again then");
    else if (is_ended(hash_get(before, "status")))
        snprintf(said, 160, "it had ended before: %s", status);
    else
        snprintf(said, 160, "%s", status);
    return is_ended(status);
}

static bool is_known(const struct hash *batch)
{
    return hash_number(batch, "jobs") > 0;
}

static bool batch_cancelled(const struct hash *before, const struct hash *now, char said[160])
{
    uint64_t all = hash_number(now, "cancelled"), live = hash_number(now, "live");
    uint64_t mine = all - hash_number(before, "cancelled");
    if (!is_known(now))
        snprintf(said, 160, UNKNOWN_BATCH "; jobs that come under this name later are drawn");
    else if (live > 0)
        snprintf(said, 160, "%" PRIu64 " job%s cancelled, %" PRIu64 " still to be", mine,
                 plural(mine), live);
    else if (mine == 0)
        snprintf(said, 160, "nothing was left to cancel: all its jobs had ended");
    else
        snprintf(said, 160, "%" PRIu64 " job%s cancelled; of the batch, none is live any more",
                 mine, plural(mine));
    return is_known(now) && live == 0;
}

static bool batch_paused(const struct hash *before, const struct hash *now, char said[160])
{
    uint64_t live = hash_number(now, "live");
    (void)before;
    if (!is_known(now))
        snprintf(said, 160, "paused; " UNKNOWN_BATCH ", those that come under this name will wait");
    else
        snprintf(said, 160, "paused; %" PRIu64 " live job%s: what runs is finished, the rest waits",
                 live, plural(live));
    return strcmp(hash_get(now, "paused"), "true") == 0;
}

static bool batch_resumed(const struct hash *before, const struct hash *now, char said[160])
{
    uint64_t live = hash_number(now, "live");
    (void)before;
    if (!is_known(now))
        snprintf(said, 160, UNKNOWN_BATCH);
    else
        snprintf(said, 160, "it goes on with %" PRIu64 " live job%s", live, plural(live));
    return now->count > 0 && hash_get(now, "paused")[0] == '\0';
}

static bool worker_drained(const struct hash *before, const struct hash *now, char said[160])
{
    const char *state = hash_get(now, "state");
    if (before->count == 0)
        snprintf(said, 160, "Redis knows no such worker; see: atelier workers");
    else
        snprintf(said, 160, "%s", now->count == 0 ? "it has left" : state);
    return before->count > 0 &&
           (now->count == 0 || strcmp(state, "draining") == 0 || strcmp(state, "left") == 0);
}

static const struct order_kind cancel_job = {"cancel", "job", REDIS_JOB, job_cancelled};
static const struct order_kind cancel_batch = {"cancel", "batch", REDIS_BATCH, batch_cancelled};
static const struct order_kind pause_batch = {"pause", "batch", REDIS_BATCH, batch_paused};
static const struct order_kind resume_batch = {"resume", "batch", REDIS_BATCH, batch_resumed};
static const struct order_kind drain_worker = {"drain", "worker", REDIS_WORKER, worker_drained};

static void tell(const struct fleet *fleet, const struct order_kind *kind, const char *name,
                 bool done, const char *said)
{
    struct buf out;
    if (!fleet->options.json) {
        printf("%s %s %s: %s%s\n", kind->action, kind->what, name,
               done || fleet->options.no_wait ? "" : "no effect yet: ", said);
        return;
    }
    buf_init(&out, 1 << 16);
    buf_printf(&out, "{\"action\":\"%s\",\"%s\":", kind->action, kind->what);
    json_write_string(&out, name, strlen(name));
    buf_printf(&out, ",\"done\":%s,\"said\":", done ? "true" : "false");
    json_write_string(&out, said, strlen(said));
    printf("%s}\n", out.data);
    buf_release(&out);
}

/* Redis is looked at before the order goes out, so that what was so before is told apart. */
static int look(struct fleet *fleet, const struct order_kind *kind, const char *name,
                struct hash *before, struct hash *now, bool *done, struct err *err)
{
    char said[160] = "sent";
    int64_t until = clock_monotonic_ns(fleet->clock) + FLEET_EFFECT_MS * 1000000ll;
    if (fleet_hash(fleet, kind->prefix, name, before, err) != 0 ||
        fleet_order(fleet, kind->action, kind->what, name, err) != 0)
        return -1;
    while (!fleet->options.no_wait && !*done && !fleet_interrupted() &&
           clock_monotonic_ns(fleet->clock) < until) {
        fleet_sleep_ms(LOOK_MS);
        if (fleet_hash(fleet, kind->prefix, name, now, err) != 0)
            return -1;
        *done = kind->effect(before, now, said);
    }
    tell(fleet, kind, name, *done, said);
    return 0;
}

static int give(struct fleet *fleet, const struct order_kind *kind, const char *name)
{
    struct hash before, now;
    struct err err;
    bool done = false;
    hash_init(&before);
    hash_init(&now);
    int rc = look(fleet, kind, name, &before, &now, &done, &err);
    hash_release(&before);
    hash_release(&now);
    if (rc != 0)
        return fleet_fail(fleet, &err);
    return done || fleet->options.no_wait ? EXIT_ALL_DONE
           : fleet_interrupted()          ? EXIT_INTERRUPTED
                                          : EXIT_ABSENT;
}

int command_cancel(int argc, char **argv)
{
    struct fleet fleet;
    int status;
    if (!fleet_begin(&fleet, &cancel_table, argc, argv, &status))
        return status;
    if (!fleet_one_of(&fleet, "job"))
        return EXIT_USAGE;
    status = fleet.options.word ? give(&fleet, &cancel_job, fleet.options.word)
                                : give(&fleet, &cancel_batch, fleet.options.batch);
    return fleet_end(&fleet, status);
}

static int for_batch(const struct conf_table *table, const struct order_kind *kind, int argc,
                     char **argv)
{
    struct fleet fleet;
    int status;
    if (!fleet_begin(&fleet, table, argc, argv, &status))
        return status;
    if (!fleet.options.batch)
        return fleet_usage(&fleet, "which batch? name it with --batch NAME");
    return fleet_end(&fleet, give(&fleet, kind, fleet.options.batch));
}

int command_pause(int argc, char **argv)
{
    return for_batch(&pause_table, &pause_batch, argc, argv);
}

int command_resume(int argc, char **argv)
{
    return for_batch(&resume_table, &resume_batch, argc, argv);
}

int command_drain(int argc, char **argv)
{
    struct fleet fleet;
    int status;
    if (!fleet_begin(&fleet, &drain_table, argc, argv, &status))
        return status;
    if (!fleet.options.word)
        return fleet_usage(&fleet, "which worker? atelier workers lists them");
    return fleet_end(&fleet, give(&fleet, &drain_worker, fleet.options.word));
}

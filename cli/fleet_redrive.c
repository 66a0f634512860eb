/*
 * atelier redrive: jobs that ended without a picture, again. The journal has their requests: the
 * state topic is read to its end, the last record of an id counts. A redriven job begins with no
 * attempts behind it, under its old id.
 * With --dlq it is dead letters that go, see fleet_letters.c.
 */
#include "cli/fleet.h"
#include "common/json.h"
#include "common/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_MS 100

static const struct conf_row rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_BATCH_ROW("every job of the batch that ended without a picture"),
    {"dlq", CONF_FLAG, FLEET_AT(dlq), NULL, NULL, 0, 0, NULL,
     "dead letters instead: all, or those whose key is JOB, back to where they came from"},
    {"dry-run", CONF_FLAG, FLEET_AT(dry_run), NULL, NULL, 0, 0, NULL,
     "say what would be sent, and send nothing"},
    FLEET_NO_WAIT_ROW,
    FLEET_JSON_ROW,
};

const struct conf_table redrive_table = {
    .command = "atelier redrive",
    .family = cli_tables,
    .usage = "atelier redrive JOB | --batch NAME | --dlq [JOB] [options]",
    .summary = "Sends jobs that failed, died, expired or were cancelled on their way again, with "
               "all attempts before them; or dead letters. Exit status: 0 sent and taken up (with "
               "--dry-run: listed), 1 there is nothing to send or it was not taken up in time, 3 "
               "dead letters were refused again, 5 the cell could not be reached.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "JOB",
    .positional_offset = FLEET_AT(word),
};

/* A job whose last record says that it ended without a picture. */
struct lost {
    char *id, *request;                 /* NULL: a later record says otherwise */
    char accepted[CLOCK_RFC3339_BYTES]; /* then, so that the new life is told from the old one */
    enum state_kind kind;
};

struct redrive {
    struct fleet fleet;
    struct ledger ledger; /* of ids: card is the place in `lost` + 1 */
    struct lost *lost;
    size_t count, cap;
    uint64_t sent;
    char control[TOPIC_NAME_BYTES];
};

static const struct fleet_options *options_of(const struct redrive *redrive)
{
    return &redrive->fleet.options;
}

/* ---- the journal ---- */

static struct lost *place_for(struct redrive *redrive, const char *id, struct err *err)
{
    bool fresh;
    struct ledger_entry *entry = ledger_enter(&redrive->ledger, id, &fresh, err);
    if (!entry)
        return NULL;
    if (entry->card > 0)
        return &redrive->lost[entry->card - 1];
    if (redrive->count == redrive->cap) {
        size_t cap = redrive->cap ? redrive->cap * 2 : 256;
        struct lost *bigger = realloc(redrive->lost, cap * sizeof(*bigger));
        if (!bigger) {
            err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the jobs to send again");
            return NULL;
        }
        redrive->lost = bigger;
        redrive->cap = cap;
    }
    redrive->lost[redrive->count] = (struct lost){0};
    entry->card = ++redrive->count;
    return &redrive->lost[redrive->count - 1];
}

static void forget(struct lost *lost)
{
    free(lost->id);
    free(lost->request);
    *lost = (struct lost){0};
}

static bool is_asked_for(const struct redrive *redrive, const struct state *state)
{
    const char *batch = options_of(redrive)->batch;
    return batch ? state->batch && strcmp(state->batch, batch) == 0
                 : strcmp(state->id, options_of(redrive)->word) == 0;
}

static int keep(struct redrive *redrive, const struct state *state, struct err *err)
{
    struct buf request;
    struct lost *lost = place_for(redrive, state->id, err);
    if (!lost)
        return -1;
    forget(lost);
    if (!state_is_terminal(state->kind) || state->kind == STATE_SUCCEEDED || !state->request_json)
        return 0;
    buf_init(&request, 4 * JOB_MAX_BYTES);
    json_write_canonical(&request, state->request_json);
    lost->id = strdup(state->id);
    lost->request = request.failed ? NULL : strdup(request.data);
    lost->kind = state->kind;
    clock_format_rfc3339(state->accepted_ns, lost->accepted);
    buf_release(&request);
    return lost->id && lost->request ? 0 : err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory");
}

static int take_state(void *user, const struct kafka_message *message, struct err *err)
{
    struct redrive *redrive = user;
    struct state state;
    if (!message->key || message->key_len == 0 || message->key[0] == '@' || !message->value)
        return 0;
    if (state_read(&state, message->value, message->value_len, err) != 0)
        return 0; /* of another version; not ours to judge */
    int rc = is_asked_for(redrive, &state) ? keep(redrive, &state, err) : 0;
    state_release(&state);
    return rc;
}

static void list_job(const struct redrive *redrive, const struct lost *lost)
{
    const char *verb = options_of(redrive)->dry_run ? "would send" : "sent";
    if (options_of(redrive)->json)
        printf("{\"event\":\"%s\",\"job\":\"%s\",\"was\":\"%s\"}\n",
               options_of(redrive)->dry_run ? "listed" : "sent", lost->id, state_name(lost->kind));
    else
        printf("%s %s, which was %s\n", verb, lost->id, state_name(lost->kind));
}

static int send_job(struct redrive *redrive, const struct lost *lost, struct err *err)
{
    struct buf text;
    list_job(redrive, lost);
    redrive->sent++;
    if (options_of(redrive)->dry_run)
        return 0;
    buf_init(&text, 8 * JOB_MAX_BYTES);
    buf_printf(&text, "{\"action\":\"redrive\",\"job\":\"%s\",\"request\":", lost->id);
    buf_str(&text, lost->request);
    buf_char(&text, '}');
    const struct kafka_record record = {.topic = redrive->control,
                                        .key = lost->id,
                                        .key_len = strlen(lost->id),
                                        .value = text.data,
                                        .value_len = text.len};
    int rc = fleet_send(&redrive->fleet, &record, err);
    buf_release(&text);
    return rc;
}

/* Whether Redis shows the job's new life. */
static int is_taken_up(struct redrive *redrive, const struct lost *lost, bool *taken,
                       struct err *err)
{
    struct hash hash;
    hash_init(&hash);
    int rc = fleet_hash(&redrive->fleet, REDIS_JOB, lost->id, &hash, err);
    *taken = hash.count > 0 && strcmp(hash_get(&hash, "accepted"), lost->accepted) != 0;
    hash_release(&hash);
    return rc;
}

/* 0: all are taken up; EXIT_ABSENT: not in time. */
static int look(struct redrive *redrive, struct err *err)
{
    int64_t until = clock_monotonic_ns(redrive->fleet.clock) + FLEET_EFFECT_MS * 1000000ll;
    size_t at = 0;
    while (at < redrive->count) {
        bool taken = !redrive->lost[at].id;
        if (!taken && is_taken_up(redrive, &redrive->lost[at], &taken, err) != 0)
            return -1;
        at += taken;
        if (!taken && clock_monotonic_ns(redrive->fleet.clock) > until)
            break;
        if (!taken)
            fleet_sleep_ms(LOOK_MS);
        if (fleet_interrupted())
            return err_set(err, ERR_CANCELLED, ERR_FATAL, "interrupted");
    }
    if (at == redrive->count)
        return 0;
    fprintf(stderr,
            "%s: %s was not taken up within %d s; atelier status says whether a coordinator leads, "
            "and the coordinator's log why it refused (redrive_refused)\n",
            redrive->fleet.table->command, redrive->lost[at].id, FLEET_EFFECT_MS / 1000);
    return EXIT_ABSENT;
}

static int redrive_jobs(struct redrive *redrive, struct err *err)
{
    if (fleet_read_topic(&redrive->fleet, TOPIC_STATE, take_state, redrive, err) != 0)
        return -1;
    for (size_t i = 0; i < redrive->count; i++)
        if (redrive->lost[i].id && send_job(redrive, &redrive->lost[i], err) != 0)
            return -1;
    if (fleet_deliver(&redrive->fleet, err) != 0)
        return -1;
    if (redrive->sent > 0 && !options_of(redrive)->dry_run && !options_of(redrive)->no_wait)
        return look(redrive, err);
    return 0;
}

/* ---- the command ---- */

static int run(struct redrive *redrive, struct err *err)
{
    if (fleet_topic(&redrive->fleet, TOPIC_CONTROL, redrive->control, err) != 0)
        return -1;
    return options_of(redrive)->dlq ? letters_redrive(&redrive->fleet, &redrive->sent, err)
                                    : redrive_jobs(redrive, err);
}

static int sum_up(const struct redrive *redrive, int rc)
{
    if (options_of(redrive)->json)
        printf("{\"event\":\"end\",\"count\":%" PRIu64 ",\"taken_up\":%s}\n", redrive->sent,
               rc == 0 ? "true" : "false");
    else if (redrive->sent == 0)
        fprintf(stderr, "%s: there is nothing to send again\n", redrive->fleet.table->command);
    else
        printf("%" PRIu64 " %s%s %s\n", redrive->sent,
               options_of(redrive)->dlq ? "dead letter" : "job", plural(redrive->sent),
               options_of(redrive)->dry_run ? "would be sent" : "sent");
    return rc > 0 ? rc : redrive->sent > 0 ? EXIT_ALL_DONE : EXIT_ABSENT;
}

int command_redrive(int argc, char **argv)
{
    struct redrive redrive = {0};
    struct err err;
    int status;
    if (!fleet_begin(&redrive.fleet, &redrive_table, argc, argv, &status))
        return status;
    if (redrive.fleet.options.dlq && redrive.fleet.options.batch)
        return fleet_usage(&redrive.fleet, "a dead letter has no batch; name a JOB, or neither");
    if (!redrive.fleet.options.dlq && !fleet_one_of(&redrive.fleet, "job"))
        return EXIT_USAGE;
    int rc = run(&redrive, &err);
    status = rc < 0 ? fleet_fail(&redrive.fleet, &err) : sum_up(&redrive, rc);
    for (size_t i = 0; i < redrive.count; i++)
        forget(&redrive.lost[i]);
    free(redrive.lost);
    ledger_release(&redrive.ledger);
    return fleet_end(&redrive.fleet, status);
}

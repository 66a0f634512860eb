/*
 * Waiting for jobs by their ids: a batch's counters cannot tell a job that was rejected from one
 * that is still to come. What is not known to have ended is asked for in rounds, pipelined; what
 * was rejected comes back on the topic of dead letters, which is read from its start, since only
 * ids of ours count.
 */
#include "cli/fleet.h"
#include "cli/progress.h"
#include "common/json.h"
#include "common/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROUND_JOBS 2000
#define ROUND_MS 200
#define LINE_MS 5000
#define BAR_MS 200
#define UNKNOWN_MS 60000 /* after which what Redis does not know is worth a word */

int follow_add(struct follow *follow, const char *id, uint64_t line, struct err *err)
{
    bool fresh;
    struct ledger_entry *entry = ledger_enter(follow->ledger, id, &fresh, err);
    if (!entry)
        return -1;
    if (follow->count == follow->cap) {
        size_t cap = follow->cap ? follow->cap * 2 : 1024;
        struct followed *bigger = realloc(follow->jobs, cap * sizeof(*bigger));
        if (!bigger)
            return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to follow so many jobs");
        follow->jobs = bigger;
        follow->cap = cap;
    }
    char *copy = strdup(id);
    if (!copy)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to follow so many jobs");
    follow->jobs[follow->count] = (struct followed){.id = copy, .line = line};
    entry->card = ++follow->count;
    return 0;
}

void follow_release(struct follow *follow)
{
    for (size_t i = 0; i < follow->count; i++)
        free(follow->jobs[i].id);
    free(follow->jobs);
    *follow = (struct follow){0};
}

/* ---- one job ---- */

static void tell_ended(const struct follow *follow, const struct followed *job, const char *status,
                       const char *error)
{
    struct buf out;
    if (!follow->fleet->options.json) {
        if (strcmp(status, state_name(STATE_SUCCEEDED)) != 0)
            fprintf(stderr, "%s%s: %s%s%s; see: atelier status %s\n",
                    isatty(STDERR_FILENO) ? "\r\033[K" : "", job->id, status, *error ? ": " : "",
                    error, job->id);
        return;
    }
    buf_init(&out, 1 << 20);
    buf_printf(&out, "{\"event\":\"ended\",\"id\":\"%s\",\"status\":\"%s\"", job->id, status);
    if (*error) {
        buf_str(&out, ",\"error\":");
        json_write_string(&out, error, strlen(error));
    }
    printf("%s}\n", out.data);
    buf_release(&out);
}

static void end_job(struct follow *follow, struct followed *job, const char *status,
                    const char *error)
{
    for (int i = STATE_SUCCEEDED; i < STATE_COUNT; i++) {
        if (strcmp(state_name((enum state_kind)i), status) != 0)
            continue;
        follow->live -= job->is == FOLLOW_LIVE;
        follow->ended[i]++;
        job->is = FOLLOW_ENDED;
        tell_ended(follow, job, status, error);
        return;
    }
    follow->live += job->is == FOLLOW_UNKNOWN;
    job->is = FOLLOW_LIVE;
}

struct asked {
    struct follow *follow;
    size_t job;
};

static void on_status(void *user, const struct redis_value *reply)
{
    struct asked *asked = user;
    if (!reply || reply->type != REDIS_ARRAY || reply->count < 2)
        return;
    struct redis_value status = redis_item(reply, 0), error = redis_item(reply, 1);
    if (status.type == REDIS_STRING)
        end_job(asked->follow, &asked->follow->jobs[asked->job], status.text,
                error.type == REDIS_STRING ? error.text : "");
}

/* ---- dead letters ---- */

static void tell_rejected(const struct follow *follow, const struct followed *job,
                          const struct kafka_message *message)
{
    const struct kafka_header *problems = NULL;
    struct json_doc *doc = NULL;
    for (size_t i = 0; i < message->header_count; i++)
        if (strcmp(message->headers[i].name, "atelier-problems") == 0)
            problems = &message->headers[i];
    if (!problems || json_parse(&doc, problems->value, problems->len, NULL, NULL) != 0)
        return;
    if (follow->fleet->options.json)
        printf("{\"event\":\"rejected\",\"line\":%" PRIu64 ",\"id\":\"%s\",\"problems\":%.*s}\n",
               job->line, job->id, (int)problems->len, (const char *)problems->value);
    for (const struct json *at = json_root(doc)->child; at; at = at->next)
        if (!follow->fleet->options.json)
            fprintf(stderr, "line %" PRIu64 ", %s: dead letter: %s%s%s\n", job->line, job->id,
                    json_string_or(json_get(at, "field"), ""),
                    json_string_or(json_get(at, "field"), "")[0] ? ": " : "",
                    json_string_or(json_get(at, "problem"), ""));
    json_doc_free(doc);
}

static void take_letter(struct follow *follow, const struct kafka_message *message)
{
    char id[JOB_NAME_MAX_BYTES + 1] = "", topic[TOPIC_NAME_BYTES], control[TOPIC_NAME_BYTES];
    struct err err;
    if (!message->key || message->key_len >= sizeof(id) || message->time_ms < follow->since_ms ||
        fleet_topic(follow->fleet, TOPIC_CONTROL, control, &err) != 0)
        return;
    const char *from = fleet_header(message, "atelier-topic", topic, sizeof(topic));
    memcpy(id, message->key, message->key_len);
    const struct ledger_entry *entry = ledger_find(follow->ledger, id);
    if (!entry || entry->card == 0 || (from && strcmp(from, control) == 0))
        return;
    struct followed *job = &follow->jobs[entry->card - 1];
    if (job->is == FOLLOW_ENDED)
        return;
    follow->live -= job->is == FOLLOW_LIVE;
    follow->rejected++;
    job->is = FOLLOW_ENDED;
    tell_rejected(follow, job, message);
}

static int open_letters(struct follow *follow, struct kafka_reader **letters, struct err *err)
{
    struct kafka_options options = fleet_kafka(follow->fleet);
    char topic[TOPIC_NAME_BYTES];
    struct kafka_reader_options which = {.topic = topic, .committed_only = true};
    if (fleet_topic(follow->fleet, TOPIC_DLQ, topic, err) != 0)
        return -1;
    return kafka_reader_create(letters, &options, &which, err);
}

static int read_letters(struct follow *follow, struct kafka_reader *letters, struct err *err)
{
    struct kafka_message message;
    int rc;
    while ((rc = kafka_reader_next(letters, &message, 0, err)) > 0)
        take_letter(follow, &message);
    return rc;
}

/* ---- rounds ---- */

static uint64_t all_ended(const struct follow *follow)
{
    uint64_t sum = follow->rejected;
    for (int i = 0; i < STATE_COUNT; i++)
        sum += follow->ended[i];
    return sum;
}

/* Asks for the next jobs that have not ended, beginning at `at`; returns where to go on. `asked`
 * has room for a round. */
static size_t ask(struct follow *follow, struct asked *asked, size_t at, struct err *err)
{
    char key[sizeof(REDIS_JOB) + JOB_NAME_MAX_BYTES];
    size_t count = 0;
    if (fleet_redis_open(follow->fleet, err) != 0)
        return SIZE_MAX;
    for (size_t looked = 0; looked < follow->count && count < ROUND_JOBS; looked++) {
        const struct followed *job = &follow->jobs[at];
        if (job->is != FOLLOW_ENDED) {
            asked[count] = (struct asked){follow, at};
            snprintf(key, sizeof(key), REDIS_JOB "%s", job->id);
            const struct redis_arg args[] = {redis_text("HMGET"), redis_text(key),
                                             redis_text("status"), redis_text("error")};
            redis_send(follow->fleet->redis, on_status, &asked[count++], 4, args);
        }
        at = at + 1 < follow->count ? at + 1 : 0;
    }
    if (fleet_redis_drain(follow->fleet, err) != 0)
        err->code = ERR_NONE; /* away for a while: those that had no answer are asked for again */
    return at;
}

static void show(const struct follow *follow, int64_t *shown, bool last)
{
    bool terminal = isatty(STDERR_FILENO) && !follow->fleet->options.json;
    int64_t now = clock_monotonic_ns(follow->fleet->clock) / 1000000;
    uint64_t bad = all_ended(follow) - follow->ended[STATE_SUCCEEDED];
    if (!last && now - *shown < (terminal ? BAR_MS : LINE_MS))
        return;
    *shown = now;
    if (follow->fleet->options.json)
        printf("{\"event\":\"progress\",\"jobs\":%zu,\"succeeded\":%" PRIu64 ",\"live\":%" PRIu64
               ",\"unsuccessful\":%" PRIu64 "}\n",
               follow->count, follow->ended[STATE_SUCCEEDED], follow->live, bad);
    else
        fprintf(stderr,
                "%s%" PRIu64 "/%zu succeeded, %" PRIu64 " live, %" PRIu64 " without success%s",
                terminal ? "\r\033[K" : "", follow->ended[STATE_SUCCEEDED], follow->count,
                follow->live, bad, terminal && !last ? "" : "\n");
    fflush(stdout);
}

static void hint_unknown(const struct follow *follow, int64_t since, bool *told)
{
    int64_t now = clock_monotonic_ns(follow->fleet->clock) / 1000000;
    uint64_t unknown = follow->count - all_ended(follow) - follow->live;
    if (*told || unknown == 0 || follow->live > 0 || now - since < UNKNOWN_MS)
        return;
    *told = true;
    fprintf(stderr,
            "not in Redis: %" PRIu64
            " job%s, still waiting in Kafka (atelier status says whether a "
            "coordinator leads), or forgotten there long after the end (atelier get finds those)\n",
            unknown, plural(unknown));
}

static int finish(const struct follow *follow)
{
    if (fleet_interrupted())
        return EXIT_INTERRUPTED;
    if (follow->ended[STATE_SUCCEEDED] + follow->rejected < follow->count)
        return EXIT_FAILED;
    return follow->rejected > 0 ? EXIT_REJECTED : EXIT_ALL_DONE;
}

int follow_wait(struct follow *follow, const char *name)
{
    struct kafka_reader *letters = NULL;
    int64_t begin = clock_monotonic_ns(follow->fleet->clock) / 1000000, shown = begin;
    size_t at = 0;
    bool told = false;
    struct err err;
    struct asked *asked = calloc(ROUND_JOBS, sizeof(*asked));
    int rc = asked ? 0 : err_set(&err, ERR_MEMORY, ERR_FATAL, "out of memory to wait");
    if (rc == 0 && follow->count > 0)
        rc = open_letters(follow, &letters, &err);
    while (rc == 0 && all_ended(follow) < follow->count && !fleet_interrupted()) {
        rc = read_letters(follow, letters, &err);
        at = ask(follow, asked, at, &err);
        if (at == SIZE_MAX)
            rc = -1;
        show(follow, &shown, false);
        hint_unknown(follow, begin, &told);
        if (all_ended(follow) < follow->count)
            fleet_sleep_ms(ROUND_MS);
    }
    kafka_reader_free(letters);
    free(asked);
    if (rc != 0)
        return fleet_fail(follow->fleet, &err);
    show(follow, &shown, true);
    if (fleet_interrupted())
        fprintf(stderr, "interrupted: %s goes on; the same command waits for it again\n", name);
    return finish(follow);
}

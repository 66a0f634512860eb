/*
 * Redis as dashboards see it. Every write carries the epoch and is refused by the script where a
 * later leader has written; that is how this one learns that its term is over, should Kafka not
 * have told it first.
 *
 * Nothing that is sent to Redis is kept to be sent again. Instead, all of it is written anew after
 * every takeover, lost connection and loss of Redis' data: live jobs from memory, ended ones from
 * the journal, a few in each turn of the loop.
 */
#include "coordinator/cell.h"

#include "common/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FIELDS_MAX 48
#define SWEEP_AGAIN_NS (3600 * 1000000000ll)
#define RESTORE_MESSAGES 256 /* in one turn */

/* Fields and values of a hash; texts live in a buffer until they are sent. */
struct fields {
    struct redis_arg args[2 * FIELDS_MAX + 4];
    size_t count;
    char numbers[FIELDS_MAX][32];
    size_t number_count;
};

static void field(struct fields *fields, const char *name, const char *value)
{
    if (!value || fields->count + 2 > 2 * FIELDS_MAX)
        return;
    fields->args[fields->count++] = redis_text(name);
    fields->args[fields->count++] = redis_text(value);
}

static void field_number(struct fields *fields, const char *name, double value)
{
    if (value < 0 || fields->number_count == FIELDS_MAX)
        return;
    char *text = fields->numbers[fields->number_count++];
    snprintf(text, sizeof(fields->numbers[0]), "%.10g", value);
    field(fields, name, text);
}

static void on_written(void *user, const struct redis_value *reply)
{
    struct cell *cell = user;
    struct err err;
    if (!reply || reply->type != REDIS_INTEGER || reply->integer >= 0)
        return;
    cell->stats.stale++;
    err_set(&err, ERR_CONFLICT, ERR_FATAL, "Redis has been written by a later leader");
    cell_over(cell, &err);
}

/* KEYS cell, hash    ARGV epoch, the script's own, fields */
static void write_by(struct cell *cell, enum redis_script script, const char *prefix,
                     const char *name, const char *const *own, size_t own_count,
                     const struct fields *fields)
{
    struct redis_arg args[2 * FIELDS_MAX + 8];
    char key[sizeof(REDIS_WORKER) + 2 * CELL_NAME_BYTES], epoch[24];
    size_t count = 0;
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    snprintf(epoch, sizeof(epoch), "%" PRIu64, cell->epoch);
    args[count++] = redis_text(REDIS_CELL);
    args[count++] = redis_text(key);
    args[count++] = redis_text(epoch);
    for (size_t i = 0; i < own_count; i++)
        args[count++] = redis_text(own[i]);
    memcpy(args + count, fields->args, fields->count * sizeof(*args));
    redis_eval(cell->redis, script, on_written, cell, 2, count + fields->count, args);
}

static void write_hash(struct cell *cell, const char *prefix, const char *name, int64_t keep_s,
                       const struct fields *fields)
{
    char keep[24];
    snprintf(keep, sizeof(keep), "%" PRId64, keep_s);
    write_by(cell, SCRIPT_STATUS, prefix, name, (const char *[]){keep}, 1, fields);
}

/* ---- jobs ---- */

static const char *const priorities[CLASS_COUNT] = {"interactive", "normal", "bulk"};

/* What does not change in a job's life; `accepted` outlives the fields. */
static void put_job(const struct cell *cell, const struct entry *entry, const char *status,
                    char accepted[CLOCK_RFC3339_BYTES], struct fields *fields)
{
    clock_format_rfc3339(entry->accepted_ns, accepted);
    field(fields, "status", status);
    field(fields, "model", cell->catalogue.models[entry->model].name);
    field(fields, "tenant", cell->tenants.names[entry->tenant]);
    if (entry->batch != NAMES_NONE)
        field(fields, "batch", cell->batches.names[entry->batch]);
    field(fields, "priority", priorities[entry->priority]);
    field(fields, "accepted", accepted);
}

/* The worker's next beats say how far it is. */
void view_running(struct cell *cell, struct entry *entry)
{
    struct fields fields = {.count = 0};
    char accepted[CLOCK_RFC3339_BYTES], attempt[16], epoch[24];
    const struct worker *worker = &cell->worker_table[entry->worker];
    snprintf(attempt, sizeof(attempt), "%d", entry->attempts);
    snprintf(epoch, sizeof(epoch), "%" PRIu64, cell->epoch);
    put_job(cell, entry, "assigned", accepted, &fields);
    field(&fields, "epoch", epoch);
    field(&fields, "device_class", policy_class(cell->policy, worker->device_class)->name);
    field_number(&fields, "predicted_s", entry->predicted_s);
    field_number(&fields, "price", entry->price);
    entry->shown = true;
    write_by(cell, SCRIPT_RESTORE, REDIS_JOB, entry_id(entry),
             (const char *[]){cell->workers.names[entry->worker], attempt}, 2, &fields);
}

void view_waiting(struct cell *cell, struct entry *entry)
{
    struct fields fields = {.count = 0};
    char accepted[CLOCK_RFC3339_BYTES];
    put_job(cell, entry, entry->attempts > 0 ? "retrying" : "queued", accepted, &fields);
    if (entry->attempts > 0)
        field_number(&fields, "attempt", entry->attempts);
    if (entry->crashes > 0)
        field_number(&fields, "crashes", entry->crashes);
    entry->shown = true;
    write_hash(cell, REDIS_JOB, entry_id(entry), 0, &fields);
}

/* From the state record, which is what lasts. */
void view_ended(struct cell *cell, const struct journal_note *note)
{
    static const char *const texts[] = {"batch",  "tenant",       "accepted", "finished",
                                        "worker", "device_class", "manifest", "error"};
    struct fields fields = {.count = 0};
    struct json_doc *doc;
    struct err err;
    if (json_parse(&doc, note->text, strlen(note->text), NULL, &err) != 0)
        return;
    const struct json *root = json_root(doc);
    field(&fields, "status", state_name((enum state_kind)note->slot));
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        field(&fields, texts[i], json_string_or(json_get(root, texts[i]), NULL));
    field_number(&fields, "attempt", json_double_or(json_get(root, "attempts"), -1));
    field_number(&fields, "seconds", json_double_or(json_get(root, "seconds"), -1));
    field_number(&fields, "price", json_double_or(json_get(root, "price"), -1));
    write_hash(cell, REDIS_JOB, note->id, cell->options->keep_s, &fields);
    json_doc_free(doc);
}

/* ---- batches ---- */

static void write_batch(struct cell *cell, uint32_t number)
{
    struct batch_counts *batch = &cell->batch_counts[number];
    struct fields fields = {.count = 0};
    uint32_t ended =
        batch->succeeded + batch->failed + batch->dead + batch->cancelled + batch->expired;
    field(&fields, "status", batch->live == 0 ? "complete" : batch->paused ? "paused" : "live");
    field_number(&fields, "jobs", (double)batch->live + ended);
    field_number(&fields, "live", batch->live);
    field_number(&fields, "succeeded", batch->succeeded);
    field_number(&fields, "failed", batch->failed);
    field_number(&fields, "dead", batch->dead);
    field_number(&fields, "cancelled", batch->cancelled);
    field_number(&fields, "expired", batch->expired);
    field_number(&fields, "repeated", batch->repeated);
    field(&fields, "paused", batch->paused ? "true" : NULL);
    batch->dirty = false;
    write_hash(cell, REDIS_BATCH, cell->batches.names[number],
               batch->live == 0 ? cell->options->keep_s : 0, &fields);
}

void view_batches(struct cell *cell)
{
    if (!redis_connected(cell->redis))
        return;
    for (uint32_t i = 0; i < cell->batches.count && i < cell->batch_counts_cap; i++)
        if (cell->batch_counts[i].dirty)
            write_batch(cell, i);
}

/* ---- the cell ---- */

/* What is there now; then what has happened since this coordinator started. */
void view_counts(struct cell *cell)
{
    const struct cell_stats *stats = &cell->stats;
    struct fields fields = {.count = 0};
    uint64_t live = (uint64_t)cell->options->jobs_max - cell->free_count, running = 0;
    for (uint32_t i = 0; i < cell->workers.count; i++)
        running += cell->worker_table[i].present ? cell->worker_table[i].running : 0;
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {
        {"waiting", live - running},     {"running", running},
        {"accepted", stats->accepted},   {"repeated", stats->repeated},
        {"rejected", stats->rejected},   {"assigned", stats->assigned},
        {"succeeded", stats->succeeded}, {"failed", stats->failed},
        {"dead", stats->dead},           {"cancelled", stats->cancelled},
        {"expired", stats->expired},     {"retries", stats->retries},
        {"crashes", stats->crashes},     {"returned", stats->returned},
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        field_number(&fields, counts[i].name, (double)counts[i].value);
    write_hash(cell, REDIS_COUNTS, "", 0, &fields);
}

/* ---- the whole ---- */

/* What is not committed yet is not told; its note will. */
static void restore_live(struct cell *cell)
{
    for (uint32_t i = 0; i < cell->slots_used; i++) {
        struct entry *entry = &cell->entries[i];
        if (entry->state == ENTRY_RUNNING)
            view_running(cell, entry);
        else if (entry->state == ENTRY_WAITING && entry->accepted)
            view_waiting(cell, entry);
    }
    for (uint32_t i = 0; i < cell->batches.count && i < cell->batch_counts_cap; i++)
        cell->batch_counts[i].dirty = true;
    view_batches(cell);
}

/* From now on a repeat of it is a new job. */
static void forget_id(struct cell *cell, struct ledger_entry *known, const char *id)
{
    known->card = 0;
    journal_put(cell->journal, cell->topics[SOURCE_COUNT], id, NULL, 0);
}

static void restore_ended(struct cell *cell, const struct kafka_message *message)
{
    struct state state;
    struct err err;
    int64_t now = clock_wall_ns(cell->clock);
    if (!message->value || !message->key || message->key_len == 0 || message->key[0] == '@' ||
        state_read(&state, message->value, message->value_len, &err) != 0)
        return;
    int64_t kept_ns = cell->options->keep_s * 1000000000;
    struct ledger_entry *known = ledger_find(&cell->ledger, state.id);
    bool ended = known && known->card >= LEDGER_ENDED;
    if (ended && now - ledger_finished_ns(known) > cell->options->remember_s * 1000000000) {
        forget_id(cell, known, state.id);
    } else if (ended && state_is_terminal(state.kind) && now - state.finished_ns < kept_ns) {
        buf_clear(&cell->scratch);
        buf_append(&cell->scratch, message->value, message->value_len);
        view_ended(cell, &(struct journal_note){.id = state.id,
                                                .text = cell->scratch.data,
                                                .slot = (uint32_t)state.kind});
        /* The order to sweep may have been lost together with what Redis knew. */
        if (state.kind != STATE_SUCCEEDED && state.attempts > 0 &&
            now - state.finished_ns < SWEEP_AGAIN_NS)
            fleet_sweep(cell, state.id, NULL);
    }
    state_release(&state);
}

static void end_restoring(struct cell *cell)
{
    kafka_reader_free(cell->past);
    cell->past = NULL;
}

static void begin_restoring(struct cell *cell)
{
    struct kafka_reader_options which = {
        .topic = cell->topics[SOURCE_COUNT], .committed_only = true, .queue_bytes = 4u << 20};
    struct err err;
    end_restoring(cell);
    cell->forgotten = false;
    log_event(cell->log, LOG_INFO, "redis_rebuilt", NULL);
    restore_live(cell);
    if (kafka_reader_create(&cell->past, &cell->kafka, &which, &err) != 0) {
        cell->past = NULL;
        cell->forgotten = true;
        log_event(cell->log, LOG_WARN, "redis_not_rebuilt", "problem", err.message, NULL);
    }
}

void view_restore(struct cell *cell)
{
    struct kafka_message message;
    struct err err;
    if (!redis_connected(cell->redis))
        return;
    if (cell->forgotten)
        begin_restoring(cell);
    for (int i = 0; cell->past && i < RESTORE_MESSAGES; i++) {
        int rc = kafka_reader_next(cell->past, &message, 0, &err);
        if (rc > 0)
            restore_ended(cell, &message);
        else if (rc < 0 || kafka_reader_caught_up(cell->past))
            end_restoring(cell);
        else
            return;
    }
}

static void on_lead(void *user, const struct redis_value *reply)
{
    struct cell *cell = user;
    struct err err;
    if (!reply || reply->type != REDIS_INTEGER)
        return;
    if (reply->integer < 0) {
        err_set(&err, ERR_CONFLICT, ERR_FATAL, "Redis knows a later leader");
        cell_over(cell, &err);
    } else if (reply->integer == 0) {
        cell->forgotten = true;
    }
}

void view_lead(struct cell *cell)
{
    char epoch[24], time[CLOCK_RFC3339_BYTES];
    snprintf(epoch, sizeof(epoch), "%" PRIu64, cell->epoch);
    clock_format_rfc3339(clock_wall_ns(cell->clock), time);
    const struct redis_arg args[] = {redis_text(REDIS_CELL), redis_text(epoch),
                                     redis_text(cell->name), redis_text(cell->nonce),
                                     redis_text(time),       redis_text(cell->api)};
    redis_eval(cell->redis, SCRIPT_LEAD, on_lead, cell, 1, 6, args);
}

/*
 * The state topic read from its start, by the newly elected leader that has fenced every other:
 * nothing is added to it meanwhile. The last record of an id counts; so live jobs are gathered
 * first and handed to the scheduler when all is read.
 */
#include "coordinator/cell.h"

#include "common/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_MS 200

struct past {
    char *value; /* the record, while it is live */
    size_t len;
};

struct replay {
    struct cell *cell;
    struct past *lives; /* by ledger card - 1 */
    size_t count, cap;
    size_t records;
    int64_t forget_ns; /* what ended before is forgotten */
};

static int keep(struct replay *replay, struct ledger_entry *known, const char *value, size_t len,
                struct err *err)
{
    if (!ledger_is_live(known)) {
        if (replay->count == replay->cap) {
            size_t cap = replay->cap ? replay->cap * 2 : 4096;
            struct past *bigger = realloc(replay->lives, cap * sizeof(*bigger));
            if (!bigger)
                return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to replay the journal");
            replay->lives = bigger;
            replay->cap = cap;
        }
        replay->lives[replay->count] = (struct past){0};
        known->card = ++replay->count;
    }
    struct past *past = &replay->lives[known->card - 1];
    free(past->value);
    past->value = malloc(len);
    past->len = len;
    if (!past->value)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to replay the journal");
    memcpy(past->value, value, len);
    return 0;
}

static void drop(struct replay *replay, struct ledger_entry *known, enum state_kind kind)
{
    if (ledger_is_live(known)) {
        free(replay->lives[known->card - 1].value);
        replay->lives[known->card - 1].value = NULL;
    }
    known->card = ledger_ended(kind);
}

static int take_special(struct replay *replay, const struct kafka_message *message, struct err *err)
{
    struct cell *cell = replay->cell;
    struct json_doc *doc = NULL;
    char key[CELL_NAME_BYTES + 16] = "";
    if (message->key_len >= sizeof(key))
        return 0;
    memcpy(key, message->key, message->key_len);
    if (message->value && json_parse(&doc, message->value, message->value_len, NULL, err) != 0)
        return err_prefix(err, "the journal's record %s", key);
    if (strcmp(key, STATE_KEY_EPOCH) == 0) {
        uint64_t epoch = (uint64_t)json_int_or(json_get(json_root(doc), "epoch"), 0);
        cell->epoch = epoch > cell->epoch ? epoch : cell->epoch;
    } else if (strncmp(key, STATE_KEY_PAUSED, sizeof(STATE_KEY_PAUSED) - 1) == 0) {
        uint32_t number = names_enter(&cell->batches, key + sizeof(STATE_KEY_PAUSED) - 1);
        struct batch_counts *batch = cell_batch(cell, number);
        if (batch)
            batch->paused = message->value != NULL;
    }
    json_doc_free(doc);
    return 0;
}

static void count_ended(struct cell *cell, const struct state *state, enum state_kind kind, int by)
{
    if (state->batch)
        batch_count(cell_batch(cell, names_enter(&cell->batches, state->batch)), kind, by);
}

static int take(struct replay *replay, const struct kafka_message *message, struct err *err)
{
    struct cell *cell = replay->cell;
    struct state state;
    bool fresh;
    replay->records++;
    if (!message->key || message->key_len == 0)
        return 0;
    if (message->key[0] == '@')
        return take_special(replay, message, err);
    if (!message->value) /* a tombstone: forgotten */
        return 0;
    if (state_read(&state, message->value, message->value_len, err) != 0) {
        err->class = ERR_FATAL;
        return -1;
    }
    struct ledger_entry *known = ledger_enter(&cell->ledger, state.id, &fresh, err);
    int rc = known ? 0 : -1;
    if (known) {
        known->content = state.content;
        if (known->card >= LEDGER_ENDED) /* driven again: a batch counts it once, as it is now */
            count_ended(cell, &state, (enum state_kind)(known->card - LEDGER_ENDED), -1);
        if (!state_is_terminal(state.kind)) {
            rc = keep(replay, known, message->value, message->value_len, err);
        } else {
            drop(replay, known, state.kind);
            count_ended(cell, &state, state.kind, 1);
            if (state.finished_ns < replay->forget_ns) /* from now on a repeat is a new job */
                journal_put(cell->journal, cell->topics[SOURCE_COUNT], state.id, NULL, 0);
        }
    }
    state_release(&state);
    return rc;
}

static int revive(struct cell *cell, const struct past *past, struct err *err)
{
    struct state state;
    struct job job = {0};
    struct buf text;
    int model = -1, rc = 0;
    if (state_read(&state, past->value, past->len, err) != 0)
        return -1;
    buf_init(&text, 4 * JOB_MAX_BYTES);
    json_write_canonical(&text, state.request_json);
    if (cell->free_count == 0) {
        rc = err_set(err, ERR_LIMIT, ERR_FATAL,
                     "the journal holds more live jobs than jobs-max allows; raise it");
    } else if (cell_read(cell, text.data, text.len, &job, &model) == 0) {
        cell_accept(cell, &job, model, text.data, text.len, &state, state.traceparent);
    } else {
        /* A model left the catalogue, or the policy has no class for it any more. */
        struct state dead = state;
        dead.kind = STATE_FAILED;
        dead.epoch = cell->epoch;
        dead.finished_ns = clock_wall_ns(cell->clock);
        dead.error = cell->problems.items[0].problem;
        dead.request = text.data;
        buf_clear(&cell->message);
        state_write(&dead, &cell->message);
        struct ledger_entry *known = ledger_find(&cell->ledger, state.id);
        if (known)
            known->card = ledger_ended(STATE_FAILED);
        count_ended(cell, &dead, STATE_FAILED, 1);
        journal_put(cell->journal, cell->topics[SOURCE_COUNT], state.id, cell->message.data,
                    cell->message.len);
    }
    job_release(&job);
    buf_release(&text);
    state_release(&state);
    return rc;
}

static int read_all(struct replay *replay, struct err *err)
{
    struct cell *cell = replay->cell;
    struct kafka_reader *reader;
    struct kafka_reader_options which = {
        .topic = cell->topics[SOURCE_COUNT], .committed_only = true, .queue_bytes = 64u << 20};
    struct kafka_message message;
    int rc = 0;
    if (kafka_reader_create(&reader, &cell->kafka, &which, err) != 0)
        return -1;
    while (rc == 0 && !kafka_reader_caught_up(reader)) {
        int got = kafka_reader_next(reader, &message, WAIT_MS, err);
        if (got > 0)
            rc = take(replay, &message, err);
        else
            rc = got;
    }
    kafka_reader_free(reader);
    return rc;
}

int cell_replay(struct cell *cell, struct err *err)
{
    struct replay replay = {.cell = cell};
    char records[32], lives[32];
    replay.forget_ns = clock_wall_ns(cell->clock) - cell->options->remember_s * 1000000000;
    int rc = read_all(&replay, err);
    cell->epoch++;
    for (size_t i = 0; i < replay.count; i++) {
        if (rc == 0 && replay.lives[i].value)
            rc = revive(cell, &replay.lives[i], err);
        free(replay.lives[i].value);
    }
    free(replay.lives);
    snprintf(records, sizeof(records), "%zu", replay.records);
    snprintf(lives, sizeof(lives), "%u", (uint32_t)cell->options->jobs_max - cell->free_count);
    log_event(cell->log, LOG_INFO, "replayed", "records", records, "live", lives, NULL);
    return rc;
}

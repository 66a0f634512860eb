/*
 * The state topic, read from its start and followed while standing by, so that whoever is elected
 * has only the rest to read. The last record of an id counts; so live jobs are gathered as they are
 * and handed to the scheduler once the lead is taken and all is read.
 */
#include "coordinator/cell.h"

#include "common/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_MS 200
#define QUEUE_BYTES (64u << 20) /* read ahead */
#define FOLLOW_RECORDS 5000     /* in one turn */
#define NONE SIZE_MAX

struct past {
    char *value; /* the record; NULL: it has ended, or the place is free */
    size_t len;
    size_t next_free;
};

struct replay {
    struct kafka_reader *reader;
    struct past *lives; /* by ledger card - 1 */
    size_t count, cap, first_free;
    size_t records;
};

static struct past *new_past(struct replay *replay, struct ledger_entry *known)
{
    size_t at = replay->first_free;
    if (at != NONE) {
        replay->first_free = replay->lives[at].next_free;
    } else {
        if (replay->count == replay->cap) {
            size_t cap = replay->cap ? replay->cap * 2 : 4096;
            struct past *bigger = realloc(replay->lives, cap * sizeof(*bigger));
            if (!bigger)
                return NULL;
            replay->lives = bigger;
            replay->cap = cap;
        }
        at = replay->count++;
    }
    replay->lives[at] = (struct past){0};
    known->card = at + 1;
    return &replay->lives[at];
}

static int keep(struct replay *replay, struct ledger_entry *known, const char *value, size_t len,
                struct err *err)
{
    char *copy = malloc(len);
    struct past *past = !copy                   ? NULL
                        : ledger_is_live(known) ? &replay->lives[known->card - 1]
                                                : new_past(replay, known);
    if (!past) {
        free(copy);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to replay the journal");
    }
    memcpy(copy, value, len);
    free(past->value);
    past->value = copy;
    past->len = len;
    return 0;
}

/* Its place in `lives`, if it has one, is free again. */
static void drop(struct replay *replay, struct ledger_entry *known, uint64_t card)
{
    if (ledger_is_live(known)) {
        size_t at = known->card - 1;
        free(replay->lives[at].value);
        replay->lives[at] = (struct past){.next_free = replay->first_free};
        replay->first_free = at;
    }
    known->card = card;
}

static int take_special(struct cell *cell, const struct kafka_message *message, struct err *err)
{
    struct json_doc *doc = NULL;
    char key[CELL_NAME_BYTES + 16] = "";
    if (message->key_len >= sizeof(key))
        return 0;
    memcpy(key, message->key, message->key_len);
    if (strncmp(key, STATE_KEY_CALLBACK, sizeof(STATE_KEY_CALLBACK) - 1) == 0)
        return callback_follow(cell, key, message, err);
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

/* A tombstone: from here on the id is new. */
static void take_tombstone(struct cell *cell, const struct kafka_message *message)
{
    char id[JOB_NAME_MAX_BYTES + 1];
    if (message->key_len >= sizeof(id))
        return;
    memcpy(id, message->key, message->key_len);
    id[message->key_len] = '\0';
    struct ledger_entry *known = ledger_find(&cell->ledger, id);
    if (known)
        drop(cell->replay, known, 0);
}

static int take_state(struct cell *cell, const struct kafka_message *message,
                      const struct state *state, struct err *err)
{
    bool fresh;
    struct ledger_entry *known = ledger_enter(&cell->ledger, state->id, &fresh, err);
    if (!known)
        return -1;
    known->content = state->content;
    if (known->card >= LEDGER_ENDED) /* driven again: a batch counts it once, as it is now */
        count_ended(cell, state, ledger_kind(known), -1);
    if (!state_is_terminal(state->kind)) {
        if (known->card >= LEDGER_ENDED)
            known->card = 0;
        return keep(cell->replay, known, message->value, message->value_len, err);
    }
    drop(cell->replay, known, ledger_ended(state->kind, state->finished_ns));
    count_ended(cell, state, state->kind, 1);
    return 0;
}

static int take(struct cell *cell, const struct kafka_message *message, struct err *err)
{
    struct state state;
    cell->replay->records++;
    if (!message->key || message->key_len == 0)
        return 0;
    if (message->key[0] == '@')
        return take_special(cell, message, err);
    if (!message->value) {
        take_tombstone(cell, message);
        return 0;
    }
    if (state_read(&state, message->value, message->value_len, err) != 0) {
        err->class = ERR_FATAL;
        return -1;
    }
    int rc = take_state(cell, message, &state, err);
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
            known->card = ledger_ended(STATE_FAILED, dead.finished_ns);
        count_ended(cell, &dead, STATE_FAILED, 1);
        journal_put(cell->journal, cell->topics[SOURCE_COUNT], state.id, cell->message.data,
                    cell->message.len);
        callback_owe(cell, text.data, cell->message.data, cell->message.len);
    }
    job_release(&job);
    buf_release(&text);
    state_release(&state);
    return rc;
}

/* ---- following ---- */

static int open_replay(struct cell *cell, struct err *err)
{
    struct kafka_reader_options which = {
        .topic = cell->topics[SOURCE_COUNT], .committed_only = true, .queue_bytes = QUEUE_BYTES};
    struct replay *replay = calloc(1, sizeof(*replay));
    if (!replay)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to replay the journal");
    replay->first_free = NONE;
    cell->replay = replay;
    names_init(&cell->batches, CELL_BATCHES_MAX);
    if (callback_follow_begin(cell, err) != 0)
        return -1;
    return kafka_reader_create(&replay->reader, &cell->kafka, &which, err);
}

static void free_replay(struct cell *cell)
{
    if (!cell->replay)
        return;
    kafka_reader_free(cell->replay->reader);
    for (size_t i = 0; i < cell->replay->count; i++)
        free(cell->replay->lives[i].value);
    free(cell->replay->lives);
    free(cell->replay);
    cell->replay = NULL;
}

void cell_forget(struct cell *cell)
{
    free_replay(cell);
    senders_free(cell->senders);
    cell->senders = NULL;
    free(cell->batch_counts);
    cell->batch_counts = NULL;
    cell->batch_counts_cap = 0;
    ledger_release(&cell->ledger);
    cell->ledger = (struct ledger){0};
    names_release(&cell->batches);
    cell->epoch = 0;
}

/* 1: one record was taken; 0: none has come. */
static int take_next(struct cell *cell, int timeout_ms, struct err *err)
{
    struct kafka_message message;
    int got = kafka_reader_next(cell->replay->reader, &message, timeout_ms, err);
    return got > 0 && take(cell, &message, err) != 0 ? -1 : got;
}

bool cell_follow(struct cell *cell)
{
    struct err err;
    int rc = cell->replay ? 1 : open_replay(cell, &err);
    bool opened = rc == 0;
    for (int i = 0; rc > 0 && i < FOLLOW_RECORDS; i++)
        rc = take_next(cell, 0, &err);
    if (rc < 0) {
        log_event(cell->log, LOG_WARN, "not_following", "problem", err.message, NULL);
        cell_forget(cell);
    }
    return rc > 0 || opened;
}

/* ---- taking over ---- */

static int read_rest(struct cell *cell, struct err *err)
{
    int rc = cell->replay ? 0 : open_replay(cell, err);
    if (rc == 0)
        rc = kafka_reader_find_end(cell->replay->reader, err);
    while (rc >= 0 && !kafka_reader_caught_up(cell->replay->reader))
        rc = take_next(cell, WAIT_MS, err);
    return rc < 0 ? -1 : 0;
}

int cell_replay(struct cell *cell, struct err *err)
{
    char records[32], before[32], lives[32];
    size_t followed = cell->replay ? cell->replay->records : 0;
    int rc = read_rest(cell, err);
    cell->epoch++;
    snprintf(before, sizeof(before), "%zu", followed);
    snprintf(records, sizeof(records), "%zu", cell->replay ? cell->replay->records : 0);
    for (size_t i = 0; rc == 0 && i < cell->replay->count; i++)
        if (cell->replay->lives[i].value)
            rc = revive(cell, &cell->replay->lives[i], err);
    free_replay(cell);
    snprintf(lives, sizeof(lives), "%u", (uint32_t)cell->options->jobs_max - cell->free_count);
    log_event(cell->log, LOG_INFO, "replayed", "records", records, "followed", before, "live",
              lives, NULL);
    return rc;
}

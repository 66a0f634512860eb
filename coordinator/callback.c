/*
 * Callbacks: who is owed one follows from the journal alone. With the terminal record of a job that
 * asks for one goes, in the same transaction, the same record under STATE_KEY_CALLBACK and the
 * webhook's id, its URL in a header; once it is settled, that key gets a tombstone. So whoever
 * follows the journal knows what is still owed, in as many records as there are, and a leader that
 * dies before the tombstone is committed leaves a callback that is made again under the same id.
 */
#include "coordinator/cell.h"

#include "common/json.h"
#include "common/metrics.h"
#include "net/http.h"

#include <stdio.h>
#include <string.h>

#define KEY_BYTES (sizeof(STATE_KEY_CALLBACK) + WEBHOOK_ID_BYTES)

/* ---- settings ---- */

int callback_open(struct cell *cell, struct err *err)
{
    const struct coordinator_options *options = cell->options;
    if (webhook_rules_read(&cell->callback_rules, options->callback_secrets,
                           options->callback_allow, err) != 0)
        return err_prefix(err, "callback-secrets-file");
    return 0;
}

void callback_check(struct cell *cell, const struct job *job)
{
    struct err err;
    if (job->callback && webhook_url_check(&cell->callback_rules, job->callback, &err) != 0)
        job_problem_add(&cell->problems, "callback", job->callback, "%s", err.message);
}

/* ---- following ---- */

int callback_follow_begin(struct cell *cell, struct err *err)
{
    const struct coordinator_options *options = cell->options;
    const struct senders_options is = {.rules = &cell->callback_rules,
                                       .ca_file = options->callback_ca_file,
                                       .timeout_s = options->callback_timeout_s,
                                       .give_up_s = options->callback_give_up_s,
                                       .bytes_max = options->callback_bytes,
                                       .clock = cell->clock};
    return senders_create(&cell->senders, &is, err);
}

static int add(struct cell *cell, const char *id, const char *url, const char *record, size_t len,
               bool committed, struct err *err)
{
    struct state state;
    if (state_read(&state, record, len, err) != 0)
        return -1;
    struct owed what = {.id = id,
                        .job = state.id,
                        .url = url,
                        .body = record,
                        .body_len = len,
                        .ended_ns = state.finished_ns};
    int rc = senders_add(cell->senders, &what, committed, err);
    state_release(&state);
    return rc;
}

static bool read_url(const struct kafka_message *message, char *out, size_t size)
{
    for (size_t i = 0; i < message->header_count; i++) {
        const struct kafka_header *header = &message->headers[i];
        if (strcmp(header->name, HEADER_CALLBACK) != 0 || !header->value || header->len >= size)
            continue;
        memcpy(out, header->value, header->len);
        out[header->len] = '\0';
        return true;
    }
    return false;
}

int callback_follow(struct cell *cell, const char *key, const struct kafka_message *message,
                    struct err *err)
{
    char url[HTTP_URL_MAX_BYTES];
    const char *id = key + sizeof(STATE_KEY_CALLBACK) - 1;
    if (!message->value)
        senders_forget(cell->senders, id);
    else if (read_url(message, url, sizeof(url)))
        return add(cell, id, url, message->value, message->value_len, true, err);
    return 0;
}

/* ---- leading ---- */

static void put_marker(struct cell *cell, const char *id, const char *url, const char *record,
                       size_t len)
{
    char key[KEY_BYTES];
    struct kafka_header header = {HEADER_CALLBACK, url, url ? strlen(url) : 0};
    snprintf(key, sizeof(key), STATE_KEY_CALLBACK "%s", id);
    journal_put_record(cell->journal, &(struct kafka_record){.topic = cell->topics[SOURCE_COUNT],
                                                             .key = key,
                                                             .key_len = strlen(key),
                                                             .value = record,
                                                             .value_len = len,
                                                             .headers = &header,
                                                             .header_count = url ? 1 : 0});
}

void callback_owe(struct cell *cell, const char *request, const char *record, size_t len)
{
    char id[WEBHOOK_ID_BYTES];
    struct json_doc *doc = NULL;
    struct err err;
    if (json_parse(&doc, request, strlen(request), NULL, &err) != 0)
        return; /* cannot be: it was accepted */
    const char *url = json_string_or(json_get(json_root(doc), "callback"), NULL);
    if (url) {
        webhook_id(id, record, len);
        put_marker(cell, id, url, record, len);
        journal_after(cell->journal, &(struct journal_note){.what = NOTE_CALLBACK, .id = id});
        if (add(cell, id, url, record, len, false, &err) != 0)
            cell_over(cell, &err);
    }
    json_doc_free(doc);
}

void callback_settle(struct cell *cell)
{
    const struct owed *owed;
    char tries[16];
    while (!journal_is_full(cell->journal) && (owed = senders_next(cell->senders))) {
        bool delivered = owed->fate == OWED_DELIVERED;
        snprintf(tries, sizeof(tries), "%d", owed->tries);
        log_event(cell->log, delivered ? LOG_DEBUG : LOG_WARN,
                  delivered ? "callback_delivered" : "callback_given_up", "job", owed->job,
                  "webhook_id", owed->id, "tries", tries, "problem",
                  delivered ? NULL : owed->problem, NULL);
        put_marker(cell, owed->id, NULL, NULL, 0);
        senders_forget(cell->senders, owed->id);
    }
}

int callback_lead(struct cell *cell, struct err *err)
{
    char waiting[32];
    struct senders_stats stats = senders_stats(cell->senders);
    bool mute = cell->callback_rules.secret_count == 0;
    snprintf(waiting, sizeof(waiting), "%zu", stats.waiting);
    if (stats.waiting > 0)
        log_event(cell->log, mute ? LOG_WARN : LOG_INFO, "callbacks_waiting", "count", waiting,
                  "problem", mute ? "there is no callback-secrets-file to sign them with" : NULL,
                  NULL);
    return senders_start(cell->senders, err);
}

void callback_metrics(const struct cell *cell, struct buf *out)
{
    struct senders_stats stats = senders_stats(cell->senders);
    metrics_single(out, "atelier_callbacks_delivered_total", "counter",
                   "callbacks that were taken, in this term", (double)stats.delivered);
    metrics_single(out, "atelier_callback_retries_total", "counter",
                   "tries that failed and are repeated, in this term", (double)stats.retried);
    metrics_single(out, "atelier_callbacks_given_up_total", "counter",
                   "callbacks that their receivers refused or never took, in this term",
                   (double)stats.given_up);
    metrics_single(out, "atelier_callbacks_waiting", "gauge", "callbacks still to be made",
                   (double)stats.waiting);
}

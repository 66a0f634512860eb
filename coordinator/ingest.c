/*
 * Requests and operators' orders. Every message is settled by exactly one of: a live job, a repeat
 * that is counted, a dead letter; its offset is committed with what it led to.
 */
#include "coordinator/cell.h"

#include "common/json.h"
#include "common/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TURN_MESSAGES 512 /* before the loop looks elsewhere */

/* ---- requests ---- */

static void add(struct cell *cell, const char *field, const char *value, const char *problem)
{
    job_problem_add(&cell->problems, field, value, "%s", problem);
}

static void find_model(struct cell *cell, struct job *job, int *model)
{
    char hint[512];
    *model = catalogue_find(&cell->catalogue, job->model);
    if (*model < 0) {
        catalogue_hint(&cell->catalogue, job->model, hint, sizeof(hint));
        job_problem_add(&cell->problems, "model", job->model, "is not in the catalogue%s", hint);
    }
    if (job->refiner.model && catalogue_find(&cell->catalogue, job->refiner.model) < 0) {
        catalogue_hint(&cell->catalogue, job->refiner.model, hint, sizeof(hint));
        job_problem_add(&cell->problems, "refiner.model", job->refiner.model,
                        "is not in the catalogue%s", hint);
    }
}

static void check_route(struct cell *cell, const struct job *job, int model)
{
    static const char PRICE[] = "max_price: ";
    struct demand demand = cell_demand(cell, job, (uint32_t)model);
    double effort;
    if (cell_profile(cell, &demand, &effort) != NAMES_NONE)
        return;
    const char *why = cell->scratch.data;
    bool dear = strncmp(why, PRICE, strlen(PRICE)) == 0;
    add(cell, dear ? "max_price" : "", NULL, dear ? why + strlen(PRICE) : why);
}

/* Workers that are here say what they compute in; those that have yet to come are not guessed. */
static void check_precision(struct cell *cell, const struct job *job)
{
    uint32_t wanted = need_precisions(job->precision);
    uint32_t offered = fleet_offers(cell) & NEED_PRECISION;
    if (wanted != 0 && cell->settled && offered != 0 && (wanted & offered) == 0)
        job_problem_add(&cell->problems, "precision", job->precision,
                        "no worker computes in it; leave it out for %s, which those here do",
                        offered == NEED_BF16 ? "bf16" : "f32");
}

static void check_tenant(struct cell *cell, const struct job *job)
{
    uint32_t number = names_enter(&cell->tenants, job->tenant);
    if (number == NAMES_NONE)
        job_problem_add(&cell->problems, "tenant", job->tenant, "is one tenant more than %d",
                        CELL_TENANTS_MAX);
}

/* Of what is new: a job that was accepted keeps its place whatever the quota is by now. */
static void check_quota(struct cell *cell, const struct job *job)
{
    uint32_t number = names_find(&cell->tenants, job->tenant);
    struct policy_tenant is = policy_tenant(cell->policy, job->tenant);
    if (is.queued_max > 0 && cell->tenant_live[number] >= is.queued_max)
        job_problem_add(&cell->problems, "tenant", job->tenant,
                        "has its quota of %u live job%s; send this again when some have ended",
                        is.queued_max, plural(is.queued_max));
}

int cell_read(struct cell *cell, const char *text, size_t len, struct job *job, int *model)
{
    struct err err;
    if (job_parse(job, text, len, &cell->problems, &err) != 0) {
        if (cell->problems.count == 0)
            add(cell, "", NULL, err.message);
        return -1;
    }
    find_model(cell, job, model);
    if (strcmp(job->precision, "f16") == 0)
        add(cell, "precision", job->precision,
            "workers compute in f32 or bf16; name one of them, or leave it out");
    if (!job->id)
        add(cell, "id", NULL, "is missing: on Kafka every job needs one, as its idempotency key");
    if (cell->problems.count == 0 && job_identify(job, "", 0, &err) != 0)
        add(cell, "", NULL, err.message);
    if (cell->problems.count == 0) {
        catalogue_fill(&cell->catalogue, *model, job);
        job_check_sampling(job, &cell->problems);
        check_tenant(cell, job);
    }
    if (cell->problems.count == 0)
        check_route(cell, job, *model);
    return cell->problems.count == 0 ? 0 : -1;
}

/* The record's key is the id, so that all records of a job are in order. */
static void check_key(struct cell *cell, const struct job *job, const struct kafka_message *message)
{
    if (!message->key)
        add(cell, "", NULL, "the record has no key; its key must be the job's id");
    else if (job->id && (message->key_len != strlen(job->id) ||
                         memcmp(message->key, job->id, message->key_len) != 0))
        job_problem_add(&cell->problems, "id", job->id,
                        "is not the record's key; they must be the same");
}

static const struct ledger_entry *find_known(const struct cell *cell, const struct job *job)
{
    const struct ledger_entry *known = job->id ? ledger_find(&cell->ledger, job->id) : NULL;
    return known && known->card != 0 ? known : NULL;
}

static void check_repeat(struct cell *cell, const struct job *job, bool *repeat)
{
    const struct ledger_entry *known = find_known(cell, job);
    *repeat = known != NULL;
    if (known && known->content != job->content)
        add(cell, "id", job->id,
            "names a job that was accepted before with another content; use a new id");
}

/* ---- dead letters ---- */

static void put_header(struct kafka_record *record, struct kafka_header *headers, const char *name,
                       const char *value)
{
    if (record->header_count < KAFKA_HEADERS_MAX)
        headers[record->header_count++] = (struct kafka_header){name, value, strlen(value)};
}

/* The original bytes, key and headers, and why. */
static void dead_letter(struct cell *cell, const struct kafka_message *message, enum source source)
{
    struct kafka_header headers[KAFKA_HEADERS_MAX];
    struct kafka_record record = {.topic = cell->topics[SOURCE_COUNT + 1],
                                  .key = message->key,
                                  .key_len = message->key_len,
                                  .value = message->value,
                                  .value_len = message->value_len,
                                  .headers = headers};
    char where[32], offset[32], time[CLOCK_RFC3339_BYTES];
    buf_clear(&cell->scratch);
    job_problems_write(&cell->problems, &cell->scratch);
    snprintf(where, sizeof(where), "%d", message->partition);
    snprintf(offset, sizeof(offset), "%" PRId64, message->offset);
    clock_format_rfc3339(clock_wall_ns(cell->clock), time);
    put_header(&record, headers, "atelier-problems", cell->scratch.data);
    put_header(&record, headers, "atelier-topic", cell->topics[source]);
    put_header(&record, headers, "atelier-partition", where);
    put_header(&record, headers, "atelier-offset", offset);
    put_header(&record, headers, "atelier-time", time);
    for (size_t i = 0; i < message->header_count && record.header_count < KAFKA_HEADERS_MAX; i++)
        headers[record.header_count++] = message->headers[i];
    journal_put_record(cell->journal, &record);
    cell->stats.rejected++;
    log_event(cell->log, LOG_WARN, "rejected", "topic", cell->topics[source], "partition", where,
              "offset", offset, "field", cell->problems.count ? cell->problems.items[0].field : "",
              "problem", cell->problems.count ? cell->problems.items[0].problem : "", NULL);
}

/* ---- jobs ---- */

static bool read_trace(const struct kafka_message *message, char out[64])
{
    for (size_t i = 0; i < message->header_count; i++) {
        const struct kafka_header *header = &message->headers[i];
        if (strcmp(header->name, "traceparent") != 0 || !header->value || header->len >= 64)
            continue;
        memcpy(out, header->value, header->len);
        out[header->len] = '\0';
        return strspn(out, "0123456789abcdef-") == header->len;
    }
    return false;
}

static void take_job(struct cell *cell, const struct kafka_message *message, enum source source)
{
    struct job job = {0};
    char trace[64];
    int model;
    bool repeat = false;
    cell->problems.count = cell->problems.dropped = 0;
    if (!message->value)
        add(cell, "", NULL, "the record is empty");
    else
        (void)cell_read(cell, message->value, message->value_len, &job, &model);
    if (!find_known(cell, &job)) /* a repeat is one whatever the settings are by now */
        callback_check(cell, &job);
    check_key(cell, &job, message);
    if (cell->problems.count == 0)
        check_repeat(cell, &job, &repeat);
    if (cell->problems.count == 0 && !repeat) {
        check_quota(cell, &job);
        check_precision(cell, &job);
    }
    if (cell->problems.count > 0) {
        dead_letter(cell, message, source);
    } else if (repeat) {
        cell->stats.repeated++;
        struct batch_counts *batch =
            job.batch ? cell_batch(cell, names_enter(&cell->batches, job.batch)) : NULL;
        if (batch)
            batch->repeated++;
    } else {
        cell_accept(cell, &job, model, message->value, message->value_len, NULL,
                    read_trace(message, trace) ? trace : NULL);
    }
    job_release(&job);
}

/* ---- orders ---- */

static void for_batch(struct cell *cell, uint32_t batch,
                      void (*what)(struct cell *cell, struct entry *entry))
{
    for (uint32_t i = 0; i < cell->slots_used; i++)
        if (cell->entries[i].state != ENTRY_FREE && cell->entries[i].batch == batch)
            what(cell, &cell->entries[i]);
}

static void hold(struct cell *cell, struct entry *entry)
{
    struct scheduler_event event = {.type = EVENT_HOLD, .slot = cell_slot(cell, entry)};
    cell_step(cell, &event);
}

static void release(struct cell *cell, struct entry *entry)
{
    struct scheduler_event event = {.type = EVENT_RELEASE, .slot = cell_slot(cell, entry)};
    cell_step(cell, &event);
}

/* Kept in the journal, so that a batch stays paused under the next leader. */
static void pause_batch(struct cell *cell, const char *name, bool pause)
{
    static const char paused[] = "{\"paused\":true}";
    char key[sizeof(STATE_KEY_PAUSED) + CELL_NAME_BYTES + 8];
    uint32_t number = names_enter(&cell->batches, name);
    struct batch_counts *batch = cell_batch(cell, number);
    if (!batch || batch->paused == pause)
        return;
    batch->paused = pause;
    snprintf(key, sizeof(key), STATE_KEY_PAUSED "%s", name);
    journal_put(cell->journal, cell->topics[SOURCE_COUNT], key, pause ? paused : NULL,
                pause ? sizeof(paused) - 1 : 0);
    for_batch(cell, number, pause ? hold : release);
}

/* The order brings the request along; the ledger knows whether it is the same. A problem says what
 * is wrong with it. */
static void redrive(struct cell *cell, const struct json *order, const char *id)
{
    struct job job = {0};
    int model;
    bool ended;
    const struct json *request = json_get(order, "request");
    const struct ledger_entry *known = ledger_find(&cell->ledger, id);
    struct buf text;
    buf_init(&text, 4 * JOB_MAX_BYTES);
    if (request)
        json_write_canonical(&text, request);
    if (cell_find(cell, id, &ended) || !ended)
        add(cell, "job", id, "is live or unknown: only what has ended is driven again");
    else if (!request)
        add(cell, "request", NULL, "is missing: a redrive brings the job's request along");
    else if (!cell_has_room(cell, true))
        add(cell, "", NULL,
            "the window of live jobs is full; send this again when some have ended");
    else if (cell_read(cell, text.data, text.len, &job, &model) == 0 &&
             (known->content != job.content || strcmp(job.id, id) != 0))
        add(cell, "request", id, "is not the one that was accepted under this id");
    callback_check(cell, &job);
    if (cell->problems.count == 0)
        check_precision(cell, &job);
    if (cell->problems.count == 0)
        cell_accept(cell, &job, model, text.data, text.len, NULL, NULL);
    job_release(&job);
    buf_release(&text);
}

static void drain(struct cell *cell, const char *name)
{
    uint32_t number = names_find(&cell->workers, name);
    struct order order = {.type = ORDER_DRAIN};
    if (number == NAMES_NONE || !cell->worker_table[number].present)
        return;
    cell->worker_table[number].ordered_to_drain = true;
    fleet_order(cell, number, &order, NULL);
}

static bool follow(struct cell *cell, const struct json *order)
{
    const char *action = json_string_or(json_get(order, "action"), "");
    const char *id = json_string_or(json_get(order, "job"), NULL);
    const char *batch = json_string_or(json_get(order, "batch"), NULL);
    const char *worker = json_string_or(json_get(order, "worker"), NULL);
    struct entry *entry = id ? cell_find(cell, id, NULL) : NULL;
    uint32_t number = batch ? names_find(&cell->batches, batch) : NAMES_NONE;
    if (strcmp(action, "cancel") == 0 && id) {
        if (entry)
            cell_cancel(cell, entry);
    } else if (strcmp(action, "cancel") == 0 && batch) {
        if (number != NAMES_NONE)
            for_batch(cell, number, cell_cancel);
    } else if ((strcmp(action, "pause") == 0 || strcmp(action, "resume") == 0) && batch &&
               strlen(batch) <= JOB_NAME_MAX_BYTES) {
        pause_batch(cell, batch, action[0] == 'p');
    } else if (strcmp(action, "redrive") == 0 && id) {
        redrive(cell, order, id);
    } else if (strcmp(action, "drain") == 0 && worker) {
        drain(cell, worker);
    } else {
        return false;
    }
    log_event(cell->log, LOG_INFO, action, "job", id, "batch", batch, "worker", worker, NULL);
    return true;
}

static void take_order(struct cell *cell, const struct kafka_message *message)
{
    struct json_doc *doc = NULL;
    struct err err;
    cell->problems.count = cell->problems.dropped = 0;
    if (!message->value || json_parse(&doc, message->value, message->value_len, NULL, &err) != 0) {
        add(cell, "", NULL, message->value ? err.message : "the record is empty");
        dead_letter(cell, message, SOURCE_CONTROL);
        return;
    }
    if (!follow(cell, json_root(doc)))
        add(cell, "action", NULL,
            "must be cancel (job or batch), pause or resume (batch), redrive (job and request) or "
            "drain (worker)");
    if (cell->problems.count > 0)
        dead_letter(cell, message, SOURCE_CONTROL);
    json_doc_free(doc);
}

/* ---- a turn ---- */

/* Room for one more of the source; a window that is full stops the reading of plain jobs. */
static bool may_read(struct cell *cell, enum source source)
{
    if (journal_is_full(cell->journal))
        return false;
    if (source == SOURCE_CONTROL)
        return true;
    return cell_has_room(cell, source == SOURCE_INTERACTIVE);
}

static bool take(struct cell *cell, enum source source, struct err *err)
{
    struct kafka_message message;
    for (int i = 0; i < TURN_MESSAGES; i++) {
        if (!may_read(cell, source))
            return false;
        int rc =
            cell->readable[source] ? kafka_reader_next(cell->readers[source], &message, 0, err) : 0;
        if (rc < 0)
            cell_over(cell, err);
        if (rc <= 0) {
            cell->readable[source] = false;
            return false;
        }
        if (source == SOURCE_CONTROL)
            take_order(cell, &message);
        else
            take_job(cell, &message, source);
        journal_offset(cell->journal, source, message.partition, message.offset + 1);
    }
    return true;
}

bool cell_ingest(struct cell *cell, struct err *err)
{
    bool more = take(cell, SOURCE_CONTROL, err);
    more = take(cell, SOURCE_INTERACTIVE, err) || more;
    return take(cell, SOURCE_JOBS, err) || more;
}

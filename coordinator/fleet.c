/*
 * Workers. What they say comes through one stream, read by a link of its own that blocks on it;
 * what they are told goes to one list each. Nothing here is durable, so everything is repeated: a
 * worker repeats a report until it is acknowledged, and an order that no beat has confirmed within
 * a few seconds counts as never given.
 */
#include "coordinator/cell.h"

#include "common/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECOND_NS 1000000000ll
#define SETTLE_NS (3 * SECOND_NS)     /* for a worker's beats to come in */
#define ORDER_LOST_NS (6 * SECOND_NS) /* without a beat that names the job */
#define LISTEN_COUNT "512"
#define LISTEN_MS "500"
#define GRACE_NS (5 * SECOND_NS) /* after nobody could be heard, for beats to come in again */
#define DEAF_NS (3 * SECOND_NS)  /* without an answer to XREAD, or without looking */

static int64_t now(const struct cell *cell)
{
    return clock_monotonic_ns(cell->clock);
}

static void put_double(char out[32], double value)
{
    snprintf(out, 32, "%.6g", value);
}

/* ---- orders ---- */

static void on_ordered(void *user, const struct redis_value *reply)
{
    struct cell *cell = user;
    struct err err;
    if (reply && reply->type == REDIS_INTEGER && reply->integer < 0) {
        cell->stats.stale++;
        err_set(&err, ERR_CONFLICT, ERR_FATAL, "Redis has been written by a later leader");
        cell_over(cell, &err);
    }
}

/* With an entry, its hash is written as assigned in the same transition. */
void fleet_order(struct cell *cell, uint32_t worker, const struct order *order,
                 const struct entry *entry)
{
    char queue[sizeof(REDIS_QUEUE) + CELL_NAME_BYTES], job[sizeof(REDIS_JOB) + CELL_NAME_BYTES];
    char epoch[24], attempt[16], predicted[32], price[32], accepted[CLOCK_RFC3339_BYTES];
    struct redis_arg args[32];
    size_t count = 0;
    buf_clear(&cell->message);
    order_write(order, &cell->message);
    snprintf(queue, sizeof(queue), REDIS_QUEUE "%s", cell->workers.names[worker]);
    snprintf(job, sizeof(job), REDIS_JOB "%s", order->id ? order->id : "");
    snprintf(epoch, sizeof(epoch), "%" PRIu64, cell->epoch);
    args[count++] = redis_text(REDIS_CELL);
    args[count++] = redis_text(queue);
    args[count++] = redis_text(job);
    args[count++] = redis_text(epoch);
    args[count++] = (struct redis_arg){cell->message.data, cell->message.len};
    if (entry) {
        snprintf(attempt, sizeof(attempt), "%d", entry->attempts);
        put_double(predicted, entry->predicted_s);
        put_double(price, entry->price);
        clock_format_rfc3339(entry->accepted_ns, accepted);
        const char *pairs[][2] = {
            {"status", "assigned"},
            {"worker", cell->workers.names[worker]},
            {"attempt", attempt},
            {"epoch", epoch},
            {"device_class",
             policy_class(cell->policy, cell->worker_table[worker].device_class)->name},
            {"predicted_s", predicted},
            {"price", price},
            {"model", cell->catalogue.models[entry->model].name},
            {"tenant", cell->tenants.names[entry->tenant]},
            {"accepted", accepted},
            {"batch", entry->batch == NAMES_NONE ? NULL : cell->batches.names[entry->batch]},
        };
        for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]) && pairs[i][1]; i++) {
            args[count++] = redis_text(pairs[i][0]);
            args[count++] = redis_text(pairs[i][1]);
        }
    }
    redis_eval(cell->redis, SCRIPT_ASSIGN, on_ordered, cell, 3, count, args);
}

void fleet_assign(struct cell *cell, struct entry *entry, const struct scheduler_action *action)
{
    struct scheduler_explanation explanation;
    struct worker *worker = &cell->worker_table[action->worker];
    scheduler_explain(cell->scheduler, action->slot, &explanation);
    entry->state = ENTRY_RUNNING;
    entry->worker = action->worker;
    entry->attempts = action->attempt;
    entry->confirmed = false;
    entry->sent_ns = now(cell);
    entry->predicted_s = (float)explanation.seconds[worker->device_class];
    entry->price = (float)explanation.price;
    entry->shown = true;
    worker->running++;
    cell->stats.assigned++;
    struct order order = {.type = ORDER_JOB,
                          .id = entry_id(entry),
                          .epoch = cell->epoch,
                          .attempt = entry->attempts,
                          .request = entry_request(entry),
                          .accepted_ns = entry->accepted_ns,
                          .predicted_s = entry->predicted_s,
                          .price = entry->price,
                          .traceparent = entry_trace(entry),
                          .checkpoint = entry_checkpoint(entry),
                          .device_class = policy_class(cell->policy, worker->device_class)->name};
    fleet_order(cell, action->worker, &order, entry);
}

static void send_simple(struct cell *cell, uint32_t worker, enum order_type type, const char *id,
                        int attempt)
{
    struct order order = {.type = type, .id = id, .epoch = cell->epoch, .attempt = attempt};
    fleet_order(cell, worker, &order, NULL);
}

/* ---- losing workers and orders ---- */

static void stop_running(struct cell *cell, struct entry *entry)
{
    cell->worker_table[entry->worker].running--;
    entry->state = ENTRY_WAITING;
    entry->worker = NAMES_NONE;
}

/* What waits although it was to be cancelled goes now. */
static void settle_waiting(struct cell *cell, struct entry *entry)
{
    if (entry->state != ENTRY_WAITING)
        return;
    if (entry->cancelling)
        cell_cancel(cell, entry);
}

void fleet_sweep(struct cell *cell, const char *id, const char *checkpoint)
{
    struct order order = {
        .type = ORDER_SWEEP, .id = id, .epoch = cell->epoch, .checkpoint = checkpoint};
    for (uint32_t i = 0; i < cell->workers.count; i++) {
        if (cell->worker_table[i].present && !cell->worker_table[i].draining) {
            fleet_order(cell, i, &order, NULL);
            return;
        }
    }
}

void fleet_settle(struct cell *cell)
{
    for (uint32_t i = 0; i < cell->slots_used; i++)
        settle_waiting(cell, &cell->entries[i]);
}

static void lose_worker(struct cell *cell, uint32_t number, bool crashed, const char *why)
{
    struct worker *worker = &cell->worker_table[number];
    struct scheduler_event event = {.type = crashed ? EVENT_WORKER_GONE : EVENT_WORKER_LEFT,
                                    .worker = number};
    char jobs[16], epoch[24], key[sizeof(REDIS_WORKER) + CELL_NAME_BYTES];
    snprintf(jobs, sizeof(jobs), "%u", worker->running);
    log_event(cell->log, crashed ? LOG_WARN : LOG_INFO, crashed ? "worker_lost" : "worker_left",
              "worker", cell->workers.names[number], "jobs", jobs, "why", why, NULL);
    cell->stats.crashes += crashed;
    worker->present = false;
    for (uint32_t i = 0; i < cell->slots_used; i++) {
        struct entry *entry = &cell->entries[i];
        if (entry->state != ENTRY_RUNNING || entry->worker != number)
            continue;
        stop_running(cell, entry);
        entry->crashes += crashed;
        entry->returns += !crashed;
        cell_requeue(cell, entry);
    }
    cell_step(cell, &event);
    fleet_settle(cell);
    snprintf(key, sizeof(key), REDIS_WORKER "%s", cell->workers.names[number]);
    snprintf(epoch, sizeof(epoch), "%" PRIu64, cell->epoch);
    const struct redis_arg args[] = {redis_text(REDIS_CELL), redis_text(REDIS_WORKERS),
                                     redis_text(key), redis_text(epoch),
                                     redis_text(cell->workers.names[number])};
    redis_eval(cell->redis, SCRIPT_FORGET, on_ordered, cell, 3, 5, args);
}

static void take_back(struct cell *cell, struct entry *entry)
{
    struct scheduler_event event = {
        .type = EVENT_FINISH, .slot = cell_slot(cell, entry), .outcome = OUTCOME_RETURN};
    stop_running(cell, entry);
    entry->returns++;
    cell->stats.returned++;
    cell_requeue(cell, entry);
    cell_step(cell, &event);
    settle_waiting(cell, entry);
}

void fleet_check_leases(struct cell *cell)
{
    int64_t at = now(cell), lease = cell->options->lease_s * SECOND_NS;
    bool slept = at - cell->checked_ns > DEAF_NS;
    cell->checked_ns = at;
    /* A silence counts against a worker only while the leader could have heard it: Redis answers,
     * reports are read, and this process was not stopped itself. */
    if (slept || at - cell->heard_ns > DEAF_NS || !redis_connected(cell->redis) ||
        !redis_connected(cell->listen)) {
        cell->silent_until_ns = at + GRACE_NS + lease;
        return;
    }
    if (at < cell->silent_until_ns || !cell->settled)
        return;
    for (uint32_t i = 0; i < cell->workers.count; i++)
        if (cell->worker_table[i].present && at - cell->worker_table[i].beat_ns > lease)
            lose_worker(cell, i, true, "silent");
    for (uint32_t i = 0; i < cell->slots_used; i++) {
        struct entry *entry = &cell->entries[i];
        if (entry->state == ENTRY_RUNNING && at - entry->sent_ns > ORDER_LOST_NS &&
            cell->worker_table[entry->worker].beat_ns > entry->sent_ns + ORDER_LOST_NS / 2)
            take_back(cell, entry);
    }
}

/* ---- beats ---- */

uint32_t fleet_offers(const struct cell *cell)
{
    uint32_t offers = 0;
    for (uint32_t i = 0; i < cell->workers.count; i++)
        if (cell->worker_table[i].present)
            offers |= cell->worker_table[i].is.offers;
    return offers;
}

static uint32_t known_models(const struct cell *cell, const struct report_worker *from,
                             uint32_t out[SCHEDULER_RESIDENT_MAX])
{
    uint32_t count = 0;
    for (size_t i = 0; i < from->resident_count && count < SCHEDULER_RESIDENT_MAX; i++) {
        int model = catalogue_find(&cell->catalogue, from->resident[i]);
        if (model >= 0)
            out[count++] = (uint32_t)model;
    }
    return count;
}

static bool read_worker(struct cell *cell, const struct report *report, uint32_t number)
{
    const struct report_worker *from = &report->is;
    struct worker *worker = &cell->worker_table[number];
    int class = policy_class_find(cell->policy, from->device_class);
    if (class < 0) {
        if (!worker->present)
            log_event(cell->log, LOG_WARN, "worker_refused", "worker", report->worker, "class",
                      from->device_class, "problem",
                      "the routing policy has no such device class; add it there", NULL);
        return false;
    }
    worker->device_class = (uint32_t) class;
    worker->draining = from->draining;
    worker->is = (struct scheduler_worker){
        .device_class = (uint32_t) class,
        .pictures_max = from->pictures_max,
        .memory_bytes = from->memory_bytes,
        .offers = (from->confidential ? NEED_CONFIDENTIAL : 0) | need_precisions(from->precisions),
        .price_per_hour = (float)policy_class(cell->policy, (uint32_t) class)->price_per_hour,
        .draining = from->draining || worker->ordered_to_drain};
    worker->is.resident_count = known_models(cell, from, worker->is.resident);
    return true;
}

static void adopt(struct cell *cell, struct entry *entry, uint32_t worker, int attempt)
{
    struct scheduler_event event = {
        .type = EVENT_ADOPT, .slot = cell_slot(cell, entry), .worker = worker, .attempt = attempt};
    entry->state = ENTRY_RUNNING;
    entry->worker = worker;
    entry->attempts = attempt;
    cell->worker_table[worker].running++;
    cell_step(cell, &event);
    view_running(cell, entry);
}

/* A job that the worker has: as ordered, from before this leader's time, or by mistake. */
static void compare(struct cell *cell, uint32_t worker, const struct wire_job *job)
{
    bool ended;
    struct entry *entry = cell_find(cell, job->id, &ended);
    if (!entry && !ended)
        return; /* its request has not been read again yet */
    /* An attempt that the journal knows of has ended, whatever the worker still does. */
    if (entry && entry->state == ENTRY_WAITING && job->epoch < cell->epoch && !entry->cancelling &&
        job->attempt > entry->attempts)
        adopt(cell, entry, worker, job->attempt);
    if (entry && entry->state == ENTRY_RUNNING && entry->worker == worker &&
        entry->attempts == job->attempt) {
        entry->confirmed = true;
        entry->sent_ns = now(cell);
        if (entry->cancelling)
            send_simple(cell, worker, ORDER_CANCEL, job->id, job->attempt);
        return;
    }
    send_simple(cell, worker, ORDER_CANCEL, job->id, job->attempt);
}

static void take_beat(struct cell *cell, const struct report *report, uint32_t number)
{
    struct worker *worker = &cell->worker_table[number];
    struct wire_job job;
    if (worker->present && strcmp(worker->boot, report->is.boot) != 0)
        lose_worker(cell, number, true, "restarted");
    if (!read_worker(cell, report, number))
        return;
    if (!worker->present) {
        snprintf(worker->boot, sizeof(worker->boot), "%s", report->is.boot);
        worker->present = true;
        worker->running = 0;
        worker->ordered_to_drain = false;
        worker->is.draining = worker->draining;
        log_event(cell->log, LOG_INFO, "worker_joined", "worker", report->worker, "class",
                  report->is.device_class, NULL);
    }
    worker->beat_ns = now(cell);
    /* A beat of before the term may lack a job that was given just after it. */
    if (cell->report_ms > cell->term_ms)
        worker->expected = false;
    if (worker->ordered_to_drain && !worker->draining) /* it has not heard of it */
        send_simple(cell, number, ORDER_DRAIN, NULL, 0);
    struct scheduler_event event = {
        .type = EVENT_WORKER, .worker = number, .worker_is = worker->is};
    cell_step(cell, &event);
    for (const struct json *at = NULL; wire_next_job(report->jobs_json, &at, &job);)
        compare(cell, number, &job);
    if (report->is.pictures_max == 0) /* its last word: what it had not begun is free again */
        lose_worker(cell, number, false, "drained");
}

/* ---- the other reports ---- */

static void learn(struct cell *cell, const struct entry *entry, const struct report *report)
{
    const struct catalogue_model *model = &cell->catalogue.models[entry->model];
    const char *class = report->is.device_class;
    struct cost_query query = {.class = class,
                               .family = model->family,
                               .model = model->name,
                               .width = report->width,
                               .height = report->height,
                               .steps = report->steps,
                               .images = report->images,
                               .guidance = entry->guided,
                               .work = entry->work};
    if (!class || policy_class_find(cell->policy, class) < 0 || report->adopted ||
        report->width <= 0 || report->steps <= 0)
        return;
    cost_learn(cell->cost, &query, report->compute_s);
    if (report->load_s > 0 && model->bytes > 0)
        cost_learn_switch(cell->cost, class, model->bytes, report->load_s);
    cell->learned = true;
}

/* Out of the scheduler's hands, wherever it is. */
static void withdraw(struct cell *cell, struct entry *entry, uint32_t reporter)
{
    struct scheduler_event event = {.slot = cell_slot(cell, entry), .outcome = OUTCOME_DONE};
    event.type = entry->state == ENTRY_RUNNING ? EVENT_FINISH : EVENT_CANCEL;
    if (entry->state == ENTRY_RUNNING && entry->worker != reporter)
        send_simple(cell, entry->worker, ORDER_CANCEL, entry_id(entry), entry->attempts);
    cell_step(cell, &event);
}

/* The manifest exists: whichever attempt made it, the job is done. */
static void take_done(struct cell *cell, const struct report *report, struct entry *entry,
                      uint32_t worker)
{
    learn(cell, entry, report);
    uint32_t slot = cell_slot(cell, entry);
    struct scheduler_event event = {.slot = slot, .outcome = OUTCOME_DONE};
    event.type = entry->state == ENTRY_RUNNING ? EVENT_FINISH : EVENT_CANCEL;
    if (entry->state == ENTRY_RUNNING && entry->worker != worker)
        send_simple(cell, entry->worker, ORDER_CANCEL, entry_id(entry), entry->attempts);
    cell_end(cell, entry, STATE_SUCCEEDED, NULL, report);
    cell_step(cell, &event);
}

static void take_failed(struct cell *cell, const struct report *report, struct entry *entry,
                        uint32_t worker)
{
    struct scheduler_event event = {
        .type = EVENT_FINISH, .slot = cell_slot(cell, entry), .outcome = OUTCOME_DONE};
    if (report->cancelled && !entry->cancelling) { /* by a worker that was about to be lost */
        take_back(cell, entry);
    } else if (entry->cancelling || report->cancelled) {
        withdraw(cell, entry, worker);
        cell_end(cell, entry, STATE_CANCELLED, NULL, report);
    } else if (!report->retry) {
        cell_end(cell, entry, STATE_FAILED, report->error, report);
        cell_step(cell, &event);
    } else {
        event.outcome = OUTCOME_RETRY;
        cell->stats.retries++;
        stop_running(cell, entry);
        cell_requeue(cell, entry);
        cell->last_error = report->error;
        cell_step(cell, &event);
        cell->last_error = NULL;
    }
}

/* Whoever hands a job back has no room for it, whatever its latest beat said: else it would get the
 * same job again at once, hundreds of times before its next beat. */
static void spare(struct cell *cell, uint32_t number)
{
    struct worker *worker = &cell->worker_table[number];
    worker->is.draining = true;
    struct scheduler_event event = {
        .type = EVENT_WORKER, .worker = number, .worker_is = worker->is};
    cell_step(cell, &event);
}

static void take_returned(struct cell *cell, const struct report *report, struct entry *entry)
{
    spare(cell, entry->worker);
    if (report->checkpoint && entry_set_checkpoint(entry, report->checkpoint) != 0)
        log_event(cell->log, LOG_WARN, "checkpoint_dropped", "job", report->id, NULL);
    take_back(cell, entry);
}

/* Whether nothing is lost by keeping it: there is none, or the job begins from it. */
static bool is_checkpoint_of(const struct entry *entry, const char *name)
{
    const char *own = entry ? entry_checkpoint(entry) : NULL;
    return !name || (own && strcmp(own, name) == 0);
}

static void take_report(struct cell *cell, const struct report *report, uint32_t worker)
{
    bool ended;
    struct entry *entry = cell_find(cell, report->id, &ended);
    bool current = entry && entry->state == ENTRY_RUNNING && entry->worker == worker &&
                   entry->attempts == report->attempt;
    if (!entry && !ended)
        return; /* its request has not been read again yet; the worker will repeat this */
    if (entry && report->type == REPORT_DONE)
        take_done(cell, report, entry, worker);
    else if (current && report->type == REPORT_FAILED)
        take_failed(cell, report, entry, worker);
    else if (current && report->type == REPORT_RETURNED)
        take_returned(cell, report, entry);
    else if (report->type == REPORT_RETURNED && !is_checkpoint_of(entry, report->checkpoint))
        fleet_sweep(cell, report->id, entry ? report->checkpoint : NULL); /* it came too late */
    /* Once what it led to is safe; for a repeat that led to nothing, all the same. */
    journal_after(cell->journal, &(struct journal_note){.what = NOTE_ACK,
                                                        .id = report->id,
                                                        .worker = worker,
                                                        .attempt = report->attempt});
}

static void take(struct cell *cell, const char *text, size_t len)
{
    struct report report;
    struct err err;
    if (report_read(&report, text, len, &err) != 0) {
        log_event(cell->log, LOG_WARN, "report_dropped", "problem", err.message, NULL);
        return;
    }
    uint32_t worker = names_enter(&cell->workers, report.worker);
    if (worker == NAMES_NONE)
        log_event(cell->log, LOG_WARN, "worker_refused", "worker", report.worker, "problem",
                  "more workers than workers-max", NULL);
    else if (report.type == REPORT_BEAT)
        take_beat(cell, &report, worker);
    else
        take_report(cell, &report, worker);
    report_release(&report);
}

/* ---- listening ---- */

static void on_reports(void *user, const struct redis_value *reply)
{
    struct cell *cell = user;
    cell->listening = false;
    if (reply && reply->type != REDIS_ERROR)
        cell->heard_ns = now(cell);
    if (!reply || reply->type != REDIS_ARRAY || cell->over)
        return;
    struct redis_value stream = redis_item(reply, 0), entries = redis_item(&stream, 1);
    for (size_t i = 0; i < entries.count && !cell->over; i++) {
        struct redis_value entry = redis_item(&entries, i);
        struct redis_value id = redis_item(&entry, 0), pairs = redis_item(&entry, 1);
        struct redis_value text = redis_item(&pairs, 1);
        cell->report_ms = strtoull(id.text, NULL, 10);
        if (text.type == REDIS_STRING)
            take(cell, text.text, text.len);
        snprintf(cell->last_report, sizeof(cell->last_report), "%s", id.text);
    }
}

void fleet_listen(struct cell *cell)
{
    if (cell->listening || !redis_connected(cell->listen) || journal_is_full(cell->journal))
        return;
    const struct redis_arg args[] = {redis_text("XREAD"),       redis_text("COUNT"),
                                     redis_text(LISTEN_COUNT),  redis_text("BLOCK"),
                                     redis_text(LISTEN_MS),     redis_text("STREAMS"),
                                     redis_text(REDIS_REPORTS), redis_text(cell->last_report)};
    cell->listening = true;
    redis_send(cell->listen, on_reports, cell, sizeof(args) / sizeof(args[0]), args);
}

/* ---- after a commit ---- */

static void send_acks(struct cell *cell, uint32_t number)
{
    struct worker *worker = &cell->worker_table[number];
    struct wire_job jobs[ACKS_MAX];
    struct order order = {.type = ORDER_ACK, .jobs = jobs, .job_count = worker->ack_count};
    for (uint32_t i = 0; i < worker->ack_count; i++)
        jobs[i] = (struct wire_job){worker->acks[i].id, cell->epoch, worker->acks[i].attempt};
    if (worker->ack_count > 0)
        fleet_order(cell, number, &order, NULL);
    worker->ack_count = 0;
}

static void trim(struct cell *cell, const char *to)
{
    const struct redis_arg args[] = {redis_text("XTRIM"), redis_text(REDIS_REPORTS),
                                     redis_text("MINID"), redis_text(to)};
    redis_send(cell->redis, NULL, NULL, 4, args);
}

/* Gathered per worker, so that a commit costs each of them one message, not one a job. */
static void acknowledge(struct cell *cell, const struct journal_note *note)
{
    struct worker *worker = &cell->worker_table[note->worker];
    if (!worker->acks)
        worker->acks = calloc(ACKS_MAX, sizeof(*worker->acks));
    if (!worker->acks)
        return; /* the worker will ask again */
    struct ack *ack = &worker->acks[worker->ack_count++];
    snprintf(ack->id, sizeof(ack->id), "%s", note->id);
    ack->attempt = note->attempt;
    if (worker->ack_count == 1)
        cell->acked[cell->acked_count++] = note->worker;
    if (cell->acked_count == ACKED_MAX)
        fleet_send_acks(cell);
    if (worker->ack_count == ACKS_MAX)
        send_acks(cell, note->worker);
}

void fleet_send_acks(struct cell *cell)
{
    for (uint32_t i = 0; i < cell->acked_count; i++)
        send_acks(cell, cell->acked[i]);
    cell->acked_count = 0;
}

void fleet_note(struct cell *cell, const struct journal_note *note)
{
    struct entry *entry;
    switch (note->what) {
    case NOTE_ACCEPTED:
        entry = cell_find(cell, note->id, NULL);
        if (entry)
            entry->accepted = true;
        if (entry && !entry->shown)
            view_waiting(cell, entry);
        break;
    case NOTE_ENDED:
        view_ended(cell, note);
        break;
    case NOTE_ACK:
        acknowledge(cell, note);
        break;
    case NOTE_SWEEP:
        if (!cell_find(cell, note->id, NULL)) /* driven again, it is somebody's */
            fleet_sweep(cell, note->id, NULL);
        break;
    case NOTE_CALLBACK:
        senders_commit(cell->senders, note->id);
        break;
    case NOTE_TRIM:
        trim(cell, note->text);
        break;
    default:
        break;
    }
}

/* ---- a term's beginning ---- */

/* Orders of an earlier leader that no worker has taken are void: they are given anew. Workers that
 * Redis knows may have jobs: they are waited for. */
static void on_workers(void *user, const struct redis_value *reply)
{
    struct cell *cell = user;
    char key[sizeof(REDIS_QUEUE) + CELL_NAME_BYTES];
    for (size_t i = 0; reply->type == REDIS_ARRAY && i < reply->count; i++) {
        struct redis_value name = redis_item(reply, i);
        uint32_t number = names_enter(&cell->workers, name.text);
        if (number != NAMES_NONE)
            cell->worker_table[number].expected = true;
        snprintf(key, sizeof(key), REDIS_QUEUE "%s", name.text);
        const struct redis_arg args[] = {redis_text("DEL"), redis_text(key)};
        redis_send(cell->redis, NULL, NULL, 2, args);
    }
}

static void on_time(void *user, const struct redis_value *reply)
{
    struct cell *cell = user;
    struct redis_value seconds = redis_item(reply, 0), micros = redis_item(reply, 1);
    if (reply->type == REDIS_ARRAY && reply->count == 2)
        cell->term_ms = (uint64_t)strtoull(seconds.text, NULL, 10) * 1000 +
                        (uint64_t)strtoull(micros.text, NULL, 10) / 1000;
}

bool fleet_is_heard(const struct cell *cell)
{
    for (uint32_t i = 0; i < cell->workers.count; i++)
        if (cell->worker_table[i].expected)
            return false;
    return cell->term_ms > 0;
}

int fleet_begin(struct cell *cell, struct err *err)
{
    const struct redis_arg args[] = {redis_text("ZRANGE"), redis_text(REDIS_WORKERS),
                                     redis_text("0"), redis_text("-1")};
    const struct redis_arg time[] = {redis_text("TIME")};
    strcpy(cell->last_report, "0");
    cell->silent_until_ns = 0;
    cell->heard_ns = cell->checked_ns = now(cell);
    cell->settle_ns = now(cell) + SETTLE_NS;
    cell->term_ms = 0;
    /* Should Redis be away: whoever is there will be heard once it is back. */
    if (redis_call(cell->redis, 2000, on_workers, cell, 4, args, err) == 0 &&
        redis_call(cell->redis, 2000, on_time, cell, 1, time, err) != 0)
        cell->term_ms = 0;
    view_lead(cell);
    return 0;
}

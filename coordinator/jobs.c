/*
 * A job's life. Every change that must outlast this process goes to the journal first; what the
 * outside is told of it waits for the commit, as a note. An order to a worker may go out before its
 * job's record is committed: should the leader die in between, the request is read again, and the
 * manifest, which only one attempt can create, makes the repeat harmless.
 */
#include "coordinator/cell.h"

#include "common/json.h"
#include "common/plural.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INTERACTIVE_SHARE 16 /* of the window, kept for interactive jobs */
#define TEXT_MAX_BYTES (300u << 10)

/* ---- entries ---- */

uint32_t cell_slot(const struct cell *cell, const struct entry *entry)
{
    return (uint32_t)(entry - cell->entries);
}

const char *entry_id(const struct entry *entry)
{
    return entry->text;
}

const char *entry_request(const struct entry *entry)
{
    return entry->text + entry->request_at;
}

const char *entry_checkpoint(const struct entry *entry)
{
    return entry->checkpoint_at ? entry->text + entry->checkpoint_at : NULL;
}

const char *entry_trace(const struct entry *entry)
{
    return entry->trace_at ? entry->text + entry->trace_at : NULL;
}

static size_t lay(char *text, size_t at, const char *from, size_t len)
{
    memcpy(text + at, from, len);
    text[at + len] = '\0';
    return at + len + 1;
}

static int set_text(struct entry *entry, const char *id, const char *trace, const char *checkpoint,
                    const char *request, size_t request_len)
{
    size_t id_len = strlen(id), trace_len = trace ? strlen(trace) : 0;
    size_t checkpoint_len = checkpoint ? strlen(checkpoint) : 0;
    char *text = malloc(id_len + trace_len + checkpoint_len + request_len + 4);
    if (!text)
        return -1;
    size_t at = lay(text, 0, id, id_len);
    entry->trace_at = trace ? (uint16_t)at : 0;
    at = trace ? lay(text, at, trace, trace_len) : at;
    entry->checkpoint_at = checkpoint ? (uint16_t)at : 0;
    at = checkpoint ? lay(text, at, checkpoint, checkpoint_len) : at;
    entry->request_at = (uint32_t)at;
    (void)lay(text, at, request, request_len);
    free(entry->text);
    entry->text = text;
    return 0;
}

int entry_set_checkpoint(struct entry *entry, const char *checkpoint)
{
    return set_text(entry, entry_id(entry), entry_trace(entry), checkpoint, entry_request(entry),
                    strlen(entry_request(entry)));
}

static void out_of_memory(struct cell *cell)
{
    struct err err;
    err_set(&err, ERR_MEMORY, ERR_FATAL, "out of memory for live jobs; lower jobs-bytes");
    cell_over(cell, &err);
}

bool cell_has_room(const struct cell *cell, bool interactive)
{
    uint32_t reserve = interactive ? 0 : (uint32_t)(cell->options->jobs_max / INTERACTIVE_SHARE);
    return cell->free_count > reserve && scheduler_has_room(cell->scheduler, JOB_MAX_BYTES);
}

struct entry *cell_find(const struct cell *cell, const char *id, bool *ended)
{
    const struct ledger_entry *known = ledger_find(&cell->ledger, id);
    if (ended)
        *ended = known && known->card >= LEDGER_ENDED;
    return known && ledger_is_live(known) ? &cell->entries[known->card - 1] : NULL;
}

struct batch_counts *cell_batch(struct cell *cell, uint32_t batch)
{
    if (batch == NAMES_NONE)
        return NULL;
    if (batch >= cell->batch_counts_cap) {
        uint32_t cap = cell->batch_counts_cap ? cell->batch_counts_cap : 256;
        while (cap <= batch)
            cap *= 2;
        struct batch_counts *bigger = realloc(cell->batch_counts, cap * sizeof(*bigger));
        if (!bigger) {
            out_of_memory(cell);
            return NULL;
        }
        memset(bigger + cell->batch_counts_cap, 0,
               (cap - cell->batch_counts_cap) * sizeof(*bigger));
        cell->batch_counts = bigger;
        cell->batch_counts_cap = cap;
    }
    cell->batch_counts[batch].dirty = true;
    return &cell->batch_counts[batch];
}

/* ---- the journal ---- */

static struct state state_of(const struct cell *cell, const struct entry *entry,
                             enum state_kind kind)
{
    return (struct state){.kind = kind,
                          .id = entry_id(entry),
                          .batch =
                              entry->batch == NAMES_NONE ? NULL : cell->batches.names[entry->batch],
                          .tenant = cell->tenants.names[entry->tenant],
                          .content = entry->content,
                          .epoch = cell->epoch,
                          .attempts = entry->attempts,
                          .crashes = entry->crashes,
                          .returns = entry->returns,
                          .accepted_ns = entry->accepted_ns,
                          .request = entry_request(entry),
                          .traceparent = entry_trace(entry),
                          .not_before_ns = JOB_TIME_NONE,
                          .checkpoint = entry_checkpoint(entry),
                          .cancelling = entry->cancelling,
                          .seconds = -1,
                          .price = -1};
}

static void journal_state(struct cell *cell, const struct state *state)
{
    buf_clear(&cell->message);
    state_write(state, &cell->message);
    journal_put(cell->journal, cell->topics[SOURCE_COUNT], state->id, cell->message.data,
                cell->message.len);
}

/* ---- a life ---- */

int64_t cell_steady_ns(const struct cell *cell)
{
    return cell->steady_from_ns + clock_monotonic_ns(cell->clock);
}

/* A producer's time by the scheduler's clock: as far away as it is by the wall clock now. */
static int64_t steady(const struct cell *cell, int64_t wall_ns)
{
    if (wall_ns == JOB_TIME_NONE)
        return wall_ns;
    return wall_ns - clock_wall_ns(cell->clock) + cell_steady_ns(cell);
}

static void submit(struct cell *cell, struct entry *entry, const struct job *job, bool held,
                   int64_t not_before_ns)
{
    struct scheduler_event event = {
        .type = EVENT_SUBMIT,
        .slot = cell_slot(cell, entry),
        .job = {.model = entry->model,
                .width = job->width,
                .height = job->height,
                .pictures = job->images,
                .profile = entry->profile,
                .effort = entry->effort,
                .class = entry->priority,
                .tenant = entry->tenant,
                .not_before_ns = steady(cell, not_before_ns),
                .deadline_ns = steady(cell, job->deadline_ns),
                .attempts_max = job->max_attempts,
                .bytes = strlen(entry_request(entry)),
                .held = held,
                .attempts = entry->attempts,
                .crashes = entry->crashes,
                .returns = entry->returns},
    };
    cell_step(cell, &event);
}

void cell_know_tenant(struct cell *cell, uint32_t number)
{
    struct policy_tenant is = policy_tenant(cell->policy, cell->tenants.names[number]);
    struct scheduler_event event = {
        .type = EVENT_TENANT, .tenant = number, .weight = is.weight, .running_max = is.running_max};
    cell_step(cell, &event);
}

static struct entry *new_entry(struct cell *cell, const struct job *job, int model)
{
    ASSERT(cell->free_count > 0);
    struct entry *entry = &cell->entries[cell->free_slots[--cell->free_count]];
    uint32_t tenants = cell->tenants.count;
    struct demand demand = cell_demand(cell, job, (uint32_t)model);
    double effort;
    *entry = (struct entry){.model = (uint32_t)model,
                            .content = job->content,
                            .priority = (uint8_t)demand_class(job),
                            .guided = demand.guided,
                            .worker = NAMES_NONE,
                            .predicted_s = -1,
                            .price = -1,
                            .state = ENTRY_WAITING,
                            .calls_back = job->callback != NULL};
    uint32_t profile = cell_profile(cell, &demand, &effort);
    ASSERT(profile != NAMES_NONE); /* cell_read has seen to it */
    entry->profile = (uint16_t)profile;
    entry->effort = (float)effort;
    entry->work = (float)demand.work;
    entry->tenant = demand.tenant;
    entry->batch = job->batch ? names_enter(&cell->batches, job->batch) : NAMES_NONE;
    if (cell->tenants.count > tenants)
        cell_know_tenant(cell, entry->tenant);
    if (cell_slot(cell, entry) >= cell->slots_used)
        cell->slots_used = cell_slot(cell, entry) + 1;
    return entry;
}

void cell_accept(struct cell *cell, const struct job *job, int model, const char *request,
                 size_t request_len, const struct state *past, const char *traceparent)
{
    struct err err;
    bool fresh;
    struct entry *entry = new_entry(cell, job, model);
    struct ledger_entry *known = ledger_enter(&cell->ledger, job->id, &fresh, &err);
    const char *checkpoint = past ? past->checkpoint : NULL;
    if (!known || set_text(entry, job->id, traceparent, checkpoint, request, request_len) != 0) {
        out_of_memory(cell);
        return;
    }
    known->content = job->content;
    if (known->card >= LEDGER_ENDED) /* driven again: a batch counts it once, as it is now */
        batch_count(cell_batch(cell, entry->batch), ledger_kind(known), -1);
    known->card = cell_slot(cell, entry) + 1;
    entry->accepted_ns = past ? past->accepted_ns : clock_wall_ns(cell->clock);
    entry->attempts = past ? past->attempts : 0;
    entry->crashes = past ? (uint16_t)past->crashes : 0;
    entry->returns = past ? (uint16_t)past->returns : 0;
    entry->accepted = past != NULL;
    entry->cancelling = past && past->cancelling;
    cell->tenant_live[entry->tenant]++;
    struct batch_counts *batch = cell_batch(cell, entry->batch);
    if (batch)
        batch->live++;
    if (!past) {
        struct state state = state_of(cell, entry, STATE_QUEUED);
        journal_state(cell, &state);
        journal_after(cell->journal, &(struct journal_note){.what = NOTE_ACCEPTED, .id = job->id});
        cell->stats.accepted++;
    }
    int64_t not_before = job->not_before_ns;
    if (past && past->not_before_ns != JOB_TIME_NONE)
        not_before = past->not_before_ns;
    submit(cell, entry, job, batch && batch->paused, not_before);
}

void batch_count(struct batch_counts *batch, enum state_kind kind, int by)
{
    if (!batch)
        return;
    uint32_t *const counts[STATE_COUNT] = {[STATE_SUCCEEDED] = &batch->succeeded,
                                           [STATE_FAILED] = &batch->failed,
                                           [STATE_DEAD] = &batch->dead,
                                           [STATE_CANCELLED] = &batch->cancelled,
                                           [STATE_EXPIRED] = &batch->expired};
    ASSERT(counts[kind]);
    *counts[kind] += (uint32_t)by;
}

static void count_end(struct cell *cell, struct entry *entry, enum state_kind kind)
{
    struct batch_counts *batch = cell_batch(cell, entry->batch);
    struct cell_stats *stats = &cell->stats;
    batch_count(batch, kind, 1);
    if (batch)
        batch->live--;
    stats->succeeded += kind == STATE_SUCCEEDED;
    stats->failed += kind == STATE_FAILED;
    stats->dead += kind == STATE_DEAD;
    stats->cancelled += kind == STATE_CANCELLED;
    stats->expired += kind == STATE_EXPIRED;
    cell->tenant_live[entry->tenant]--;
}

static void free_entry(struct cell *cell, struct entry *entry, const struct state *end)
{
    struct ledger_entry *known = ledger_find(&cell->ledger, entry_id(entry));
    if (known)
        known->card = ledger_ended(end->kind, end->finished_ns);
    if (entry->state == ENTRY_RUNNING)
        cell->worker_table[entry->worker].running--;
    free(entry->text);
    *entry = (struct entry){0};
    cell->free_slots[cell->free_count++] = cell_slot(cell, entry);
}

void cell_end(struct cell *cell, struct entry *entry, enum state_kind kind, const char *error,
              const struct report *report)
{
    struct state state = state_of(cell, entry, kind);
    struct buf *files = &cell->scratch;
    state.finished_ns = clock_wall_ns(cell->clock);
    state.error = error;
    state.checkpoint = NULL;
    if (report) {
        state.worker = report->worker;
        state.device_class = report->is.device_class;
        state.seconds = report->total_s;
        state.price = entry->price;
    }
    if (kind == STATE_SUCCEEDED) {
        buf_clear(files);
        if (report->files_json)
            json_write_canonical(files, report->files_json);
        state.files = files->len ? files->data : NULL;
        state.manifest = report->manifest;
        state.request = NULL; /* the manifest has it */
    }
    journal_state(cell, &state);
    journal_after(cell->journal, &(struct journal_note){.what = NOTE_ENDED,
                                                        .id = state.id,
                                                        .text = cell->message.data,
                                                        .slot = (uint32_t)kind});
    if (entry->calls_back)
        callback_owe(cell, entry_request(entry), cell->message.data, cell->message.len);
    if (kind != STATE_SUCCEEDED && entry->attempts > 0) /* else the last worker has seen to it */
        journal_after(cell->journal, &(struct journal_note){.what = NOTE_SWEEP, .id = state.id});
    count_end(cell, entry, kind);
    free_entry(cell, entry, &state);
}

void cell_requeue(struct cell *cell, struct entry *entry)
{
    struct state state = state_of(cell, entry, STATE_RETRYING);
    journal_state(cell, &state);
    view_waiting(cell, entry);
}

void cell_cancel(struct cell *cell, struct entry *entry)
{
    if (entry->state == ENTRY_RUNNING) {
        struct order order = {.type = ORDER_CANCEL,
                              .id = entry_id(entry),
                              .epoch = cell->epoch,
                              .attempt = entry->attempts};
        if (!entry->cancelling) { /* the next leader has to know */
            entry->cancelling = true;
            struct state state = state_of(cell, entry, STATE_RETRYING);
            journal_state(cell, &state);
        }
        fleet_order(cell, entry->worker, &order, NULL);
        return;
    }
    struct scheduler_event event = {.type = EVENT_CANCEL, .slot = cell_slot(cell, entry)};
    cell_end(cell, entry, STATE_CANCELLED, NULL, NULL);
    cell_step(cell, &event);
}

/* ---- the scheduler's actions ---- */

static void act(struct cell *cell, const struct scheduler_action *action)
{
    char text[ERR_MESSAGE_MAX_BYTES];
    struct entry *entry = &cell->entries[action->slot];
    switch (action->type) {
    case ACTION_ASSIGN:
        fleet_assign(cell, entry, action);
        break;
    case ACTION_EXPIRE:
        cell_end(cell, entry, STATE_EXPIRED, "its deadline passed before it could start", NULL);
        break;
    case ACTION_GIVE_UP:
        if (action->reason == GIVE_UP_CRASHES)
            snprintf(text, sizeof(text), "%d worker%s crashed with it in hand", entry->crashes,
                     plural((uint64_t)entry->crashes));
        else
            snprintf(text, sizeof(text), "%d attempt%s failed; the last: %s", entry->attempts,
                     plural((uint64_t)entry->attempts),
                     cell->last_error ? cell->last_error : "not said");
        cell_end(cell, entry, STATE_DEAD, text, NULL);
        break;
    }
}

void cell_step(struct cell *cell, struct scheduler_event *event)
{
    struct scheduler_actions actions;
    struct scheduler_action items[SCHEDULER_ACTIONS_MAX];
    size_t count;
    do {
        event->now_ns = cell_steady_ns(cell);
        scheduler_step(cell->scheduler, event, &actions);
        /* Copied: an action's doing may step the scheduler again. */
        count = actions.count;
        memcpy(items, actions.items, count * sizeof(*items));
        for (size_t i = 0; i < count; i++)
            act(cell, &items[i]);
        *event = (struct scheduler_event){.type = EVENT_TICK};
    } while (actions.more && !cell->over);
}

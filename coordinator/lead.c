/*
 * A term: fence whoever led before, read the rest of the journal, take the next epoch, hear from
 * the workers what runs, then lead until the partition, the transactional id or the epoch is
 * another's.
 */
#include "coordinator/cell.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECOND_NS 1000000000ll
#define TURN_MS 50
#define REFRESH_NS (10 * SECOND_NS)
#define BATCHES_NS (SECOND_NS / 5)
#define MEMBER_NS (SECOND_NS / 10)
#define COST_NS (60 * SECOND_NS)

void cell_over(struct cell *cell, const struct err *why)
{
    if (!cell->over)
        cell->why = *why;
    cell->over = true;
}

/* ---- opening and closing a term ---- */

/* By it Redis shows whether it still has what this term has written. */
static void make_nonce(struct cell *cell)
{
    snprintf(cell->nonce, sizeof(cell->nonce), "%016" PRIx64,
             (uint64_t)clock_wall_ns(cell->clock) ^ (uint64_t)clock_monotonic_ns(cell->clock)
                                                        << 20);
}

static void on_redis(void *user, bool connected, const char *why)
{
    struct cell *cell = user;
    if (!connected) /* what was under way may be lost: everything is written anew */
        make_nonce(cell);
    log_event(cell->log, connected ? LOG_INFO : LOG_WARN, "redis", "connected",
              connected ? "yes" : "no", "why", why, NULL);
}

static int open_tables(struct cell *cell, struct err *err)
{
    size_t jobs = (size_t)cell->options->jobs_max, workers = (size_t)cell->options->workers_max;
    struct scheduler_options window = SCHEDULER_OPTIONS_INIT;
    window.jobs_max = (uint32_t)jobs;
    window.bytes_max = cell->options->jobs_bytes;
    window.workers_max = (uint32_t)workers;
    window.tenants_max = CELL_TENANTS_MAX;
    window.profiles_max = CELL_PROFILES_MAX;
    window.overtake_max = (uint32_t)(jobs < 100000 ? jobs : 100000);
    window.crashes_max = (int)cell->options->crashes_max;
    window.waiting_per_hour = policy_waiting_per_hour(cell->policy);
    window.lateness_per_hour = policy_lateness_per_hour(cell->policy);
    window.target_wait_s = (double)cell->options->target_wait_s;
    names_init(&cell->tenants, CELL_TENANTS_MAX);
    names_init(&cell->workers, (uint32_t)workers);
    cell->entries = calloc(jobs, sizeof(*cell->entries));
    cell->free_slots = calloc(jobs, sizeof(*cell->free_slots));
    cell->worker_table = calloc(workers, sizeof(*cell->worker_table));
    cell->acked = calloc(ACKED_MAX, sizeof(*cell->acked));
    cell->tenant_live = calloc(CELL_TENANTS_MAX, sizeof(*cell->tenant_live));
    if (!cell->entries || !cell->free_slots || !cell->worker_table || !cell->acked ||
        !cell->tenant_live)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for %zu live jobs", jobs);
    for (size_t i = jobs; i-- > 0;)
        cell->free_slots[cell->free_count++] = (uint32_t)i;
    if (profiles_init(&cell->profiles, cell->policy, cell->cost, cell->catalogue.models,
                      &cell->tenants, CELL_PROFILES_MAX, err) != 0)
        return -1;
    return scheduler_create(&cell->scheduler, &window, err);
}

static int open_readers(struct cell *cell, struct err *err)
{
    for (int i = 0; i < SOURCE_COUNT; i++) {
        struct kafka_reader_options which = {.topic = cell->topics[i],
                                             .group = cell->group_ingest,
                                             .committed_only = true,
                                             .queue_bytes = 16u << 20};
        if (kafka_reader_create(&cell->readers[i], &cell->kafka, &which, err) != 0)
            return -1;
    }
    return 0;
}

static int open_redis(struct cell *cell, struct err *err)
{
    struct redis_options options = {.url = cell->options->services.redis_url,
                                    .ca_file = cell->options->services.redis_ca_file,
                                    .clock = cell->clock,
                                    .on_state = on_redis,
                                    .user = cell};
    if (redis_create(&cell->redis, &options, err) != 0)
        return -1;
    options.on_state = NULL;
    return redis_create(&cell->listen, &options, err);
}

static void write_epoch(struct cell *cell)
{
    char text[128];
    snprintf(text, sizeof(text), "{\"epoch\":%" PRIu64 ",\"leader\":\"%.80s\"}", cell->epoch,
             cell->name);
    journal_put(cell->journal, cell->topics[SOURCE_COUNT], STATE_KEY_EPOCH, text, strlen(text));
}

/* The epoch counts once it is committed: only then may anyone be told of it. */
static int wait_for_commit(struct cell *cell, struct err *err)
{
    struct journal_note note;
    uint64_t before = journal_stats(cell->journal).batches;
    journal_kick(cell->journal);
    while (journal_stats(cell->journal).batches == before) {
        struct pollfd fd = {.fd = journal_fd(cell->journal), .events = POLLIN};
        if (journal_failed(cell->journal, err))
            return -1;
        (void)poll(&fd, 1, 100);
    }
    while (journal_next(cell->journal, &note))
        fleet_note(cell, &note);
    return 0;
}

static int open_term(struct cell *cell, struct err *err)
{
    const char *sources[SOURCE_COUNT];
    struct kafka_producer *producer;
    struct scheduler_event pause = {.type = EVENT_PAUSE};
    for (int i = 0; i < SOURCE_COUNT; i++)
        sources[i] = cell->topics[i];
    make_nonce(cell);
    if (open_tables(cell, err) != 0 || open_redis(cell, err) != 0 ||
        kafka_producer_create(&producer, &cell->kafka, cell->transactional_id, err) != 0 ||
        journal_create(&cell->journal, producer, cell->group_ingest, sources, SOURCE_COUNT, err) !=
            0)
        return -1;
    cell_step(cell, &pause);
    if (cell_replay(cell, err) != 0)
        return -1;
    write_epoch(cell);
    if (wait_for_commit(cell, err) != 0 || open_readers(cell, err) != 0 ||
        callback_lead(cell, err) != 0)
        return -1;
    return fleet_begin(cell, err);
}

static void close_term(struct cell *cell)
{
    for (int i = 0; i < SOURCE_COUNT; i++) {
        kafka_reader_free(cell->readers[i]);
        cell->readers[i] = NULL;
    }
    kafka_reader_free(cell->past);
    cell->past = NULL;
    journal_free(cell->journal);
    redis_free(cell->redis);
    redis_free(cell->listen);
    scheduler_free(cell->scheduler);
    for (uint32_t i = 0; cell->entries && i < cell->slots_used; i++)
        free(cell->entries[i].text);
    free(cell->entries);
    free(cell->free_slots);
    for (uint32_t i = 0; cell->worker_table && i < cell->workers.count; i++)
        free(cell->worker_table[i].acks);
    free(cell->worker_table);
    free(cell->acked);
    cell->acked = NULL;
    cell->acked_count = 0;
    free(cell->tenant_live);
    profiles_release(&cell->profiles);
    cell_forget(cell);
    names_release(&cell->tenants);
    names_release(&cell->workers);
    cell->journal = NULL;
    cell->redis = cell->listen = NULL;
    cell->scheduler = NULL;
    cell->entries = NULL;
    cell->free_slots = NULL;
    cell->worker_table = NULL;
    cell->tenant_live = NULL;
    cell->free_count = cell->slots_used = 0;
    cell->settled = cell->over = cell->listening = false;
    cell->forgotten = false;
}

/* ---- the loop ---- */

static void settle(struct cell *cell)
{
    struct scheduler_event resume = {.type = EVENT_RESUME};
    if (cell->settled)
        return;
    if (!redis_connected(cell->listen)) {
        cell->settle_ns = clock_monotonic_ns(cell->clock) + 3 * SECOND_NS;
        return;
    }
    if (clock_monotonic_ns(cell->clock) < cell->settle_ns && !fleet_is_heard(cell))
        return;
    cell->settled = true;
    log_event(cell->log, LOG_INFO, "assigning", NULL);
    fleet_settle(cell);
    cell_step(cell, &resume);
}

static void take_notes(struct cell *cell)
{
    struct journal_note note;
    struct err err;
    while (journal_next(cell->journal, &note))
        fleet_note(cell, &note);
    fleet_send_acks(cell);
    if (journal_failed(cell->journal, &err))
        cell_over(cell, &err);
}

struct timers {
    int64_t member_ns, second_ns, batches_ns, refresh_ns, cost_ns;
    char trimmed[64];
};

static bool is_due(int64_t *at, int64_t now, int64_t every)
{
    if (now < *at)
        return false;
    *at = now + every;
    return true;
}

static void keep_time(struct cell *cell, struct timers *timers)
{
    struct scheduler_event tick = {.type = EVENT_TICK};
    int64_t now = clock_monotonic_ns(cell->clock);
    cell_step(cell, &tick);
    if (is_due(&timers->batches_ns, now, BATCHES_NS)) {
        view_batches(cell);
        for (int i = 0; i < SOURCE_COUNT; i++) /* should a wake-up have been missed */
            cell->readable[i] = true;
    }
    if (is_due(&timers->cost_ns, now, COST_NS))
        cell_write_cost(cell);
    if (cell->settled) /* by then it is known what runs */
        view_restore(cell);
    if (is_due(&timers->second_ns, now, SECOND_NS)) {
        cell_check_policy(cell);
        if (redis_connected(cell->redis)) {
            view_lead(cell);
            view_counts(cell);
        }
        fleet_check_leases(cell);
        if (strcmp(timers->trimmed, cell->last_report) != 0) {
            snprintf(timers->trimmed, sizeof(timers->trimmed), "%s", cell->last_report);
            journal_after(cell->journal,
                          &(struct journal_note){.what = NOTE_TRIM, .text = timers->trimmed});
        }
    }
    if (cell->learned && is_due(&timers->refresh_ns, now, REFRESH_NS))
        cell_refresh_profiles(cell);
}

static void wait_for_work(struct cell *cell, bool busy)
{
    struct pollfd fds[SOURCE_COUNT + 4];
    size_t count = 0;
    bool full = journal_is_full(cell->journal) || !cell_has_room(cell, false);
    for (int i = 0; i < SOURCE_COUNT; i++) {
        bool waits = i == SOURCE_JOBS && full;
        fds[count++] =
            (struct pollfd){.fd = waits ? -1 : kafka_reader_fd(cell->readers[i]), .events = POLLIN};
    }
    fds[count++] = (struct pollfd){.fd = journal_fd(cell->journal), .events = POLLIN};
    fds[count++] =
        (struct pollfd){.fd = cell->serve ? serve_fd(cell->serve) : -1, .events = POLLIN};
    fds[count++] = redis_pollfd(cell->redis);
    fds[count++] = redis_pollfd(cell->listen);
    int timeout = redis_timeout_ms(cell->redis, redis_timeout_ms(cell->listen, TURN_MS));
    if (poll(fds, count, busy ? 0 : timeout) < 0)
        return;
    for (int i = 0; i < SOURCE_COUNT; i++)
        cell->readable[i] = cell->readable[i] || fds[i].revents != 0;
    if (fds[count - 3].revents)
        serve_run(cell->serve);
    redis_service(cell->redis, fds[count - 2].revents);
    redis_service(cell->listen, fds[count - 1].revents);
}

static int loop(struct cell *cell, struct kafka_member *member, const volatile int *stop,
                struct err *err)
{
    struct timers timers = {0};
    bool busy = false;
    while (!*stop && !cell->over) {
        if (is_due(&timers.member_ns, clock_monotonic_ns(cell->clock), MEMBER_NS) &&
            !kafka_member_poll(member, 0))
            return err_set(err, ERR_CONFLICT, ERR_RETRY, "the control partition is another's");
        busy = cell_ingest(cell, err);
        settle(cell);
        fleet_listen(cell);
        take_notes(cell);
        callback_settle(cell);
        keep_time(cell, &timers);
        journal_kick(cell->journal);
        wait_for_work(cell, busy);
    }
    if (cell->over)
        *err = cell->why;
    return cell->over ? -1 : 0;
}

int cell_lead(struct cell *cell, struct kafka_member *member, const volatile int *stop,
              struct err *err)
{
    char epoch[24];
    int rc = open_term(cell, err);
    if (rc == 0) {
        cell->stats.terms++;
        snprintf(epoch, sizeof(epoch), "%" PRIu64, cell->epoch);
        log_event(cell->log, LOG_INFO, "leading", "leader", cell->name, "epoch", epoch, NULL);
        rc = loop(cell, member, stop, err);
        cell_write_cost(cell);
    }
    close_term(cell);
    return rc;
}

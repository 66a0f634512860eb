/*
 * cell.h: what a leader knows and does, in one thread: the parts of the coordinator share it.
 *
 *     replay.c   the state topic → jobs, ids, paused batches: followed while standing by
 *     ingest.c   requests and operators' orders → jobs, dead letters
 *     jobs.c     a job's life: accepted, assigned, ended; each change journalled
 *     routes.c   what the policy and the cost model say of a job, as the scheduler's profiles
 *     fleet.c    workers: beats, reports, leases, orders
 *     callback.c who is to be told of a job's end, by HTTP: owed.c, senders.c
 *     view.c     Redis, as dashboards see it
 *     api.c      HTTP: metrics, health, explanations
 *     lead.c     the loop
 *
 * The truth is the journal: what is here follows from it, and Redis follows from what is here. An
 * assignment is not journalled: a new leader learns what runs from the workers' beats, and a job
 * that two workers draw all the same has one manifest, which the store creates only once.
 */
#ifndef ATELIER_COORDINATOR_CELL_H
#define ATELIER_COORDINATOR_CELL_H

#include "common/clock.h"
#include "common/file.h"
#include "common/ledger.h"
#include "common/log.h"
#include "common/names.h"
#include "coordinator/journal.h"
#include "coordinator/options.h"
#include "coordinator/senders.h"
#include "net/kafka.h"
#include "net/redis.h"
#include "net/serve.h"
#include "net/webhook.h"
#include "scheduler/cost.h"
#include "scheduler/explain.h"
#include "scheduler/policy.h"
#include "scheduler/profiles.h"
#include "scheduler/scheduler.h"
#include "schema/catalogue.h"
#include "schema/job.h"
#include "schema/state.h"
#include "schema/wire.h"

#include <stdbool.h>
#include <stdint.h>

#define CELL_BATCHES_MAX (1u << 20)
#define CELL_TENANTS_MAX 4096
#define CELL_PROFILES_MAX 16384
#define CELL_NAME_BYTES 128
#define CELL_BOOT_BYTES 40

enum source { SOURCE_JOBS, SOURCE_INTERACTIVE, SOURCE_CONTROL, SOURCE_COUNT };

enum entry_state { ENTRY_FREE, ENTRY_WAITING, ENTRY_RUNNING };

/* A live job; its slot is the scheduler's. */
struct entry {
    char *text; /* id, then traceparent, checkpoint and request at their offsets; owned */
    uint32_t request_at;
    uint16_t trace_at, checkpoint_at;
    uint32_t batch, tenant; /* numbers; a batch may be NAMES_NONE */
    uint32_t model;         /* in the catalogue */
    uint32_t worker;        /* RUNNING */
    uint64_t content;
    int64_t accepted_ns;
    int64_t sent_ns; /* RUNNING: monotonic, when the order went out or was last seen in a beat */
    int attempts;
    uint16_t crashes, returns;
    float effort;             /* in pictures of its profile */
    float work;               /* of an evaluation, see cost_work */
    float predicted_s, price; /* RUNNING; negative: unknown */
    uint16_t profile;
    uint8_t state;    /* enum entry_state */
    uint8_t priority; /* enum job_class */
    bool guided, accepted /* its record is committed */, cancelling, confirmed /* seen in a beat */;
    bool shown;      /* in Redis */
    bool calls_back; /* its request has a callback */
};

/* What an id's ledger entry holds: a live job's slot + 1, or how and in which minute it has ended;
 * 0: nothing, or no longer anything. */
#define LEDGER_ENDED (1ull << 32)
#define MINUTE_NS (60 * 1000000000ll)
static inline uint64_t ledger_ended(enum state_kind kind, int64_t finished_ns)
{
    return (uint64_t)(finished_ns / MINUTE_NS) << 33 | LEDGER_ENDED | (uint64_t)kind;
}
static inline enum state_kind ledger_kind(const struct ledger_entry *ended)
{
    return (enum state_kind)(ended->card & 0xff);
}
static inline int64_t ledger_finished_ns(const struct ledger_entry *ended)
{
    return (int64_t)(ended->card >> 33) * MINUTE_NS;
}
static inline bool ledger_is_live(const struct ledger_entry *known)
{
    return known->card != 0 && known->card < LEDGER_ENDED;
}

struct batch_counts {
    uint32_t live, succeeded, failed, dead, cancelled, expired, repeated;
    bool paused, dirty;
};

#define ACKS_MAX 128   /* of one message */
#define ACKED_MAX 4096 /* workers */

struct ack {
    char id[JOB_NAME_MAX_BYTES + 1];
    int attempt;
};

struct worker {
    struct ack *acks; /* to be sent; room for ACKS_MAX, or NULL */
    uint32_t ack_count;
    bool present, draining, ordered_to_drain;
    bool expected; /* Redis knew it when the term began: it may have jobs */
    char boot[CELL_BOOT_BYTES];
    uint32_t device_class;
    int64_t beat_ns; /* monotonic */
    uint32_t running;
    struct scheduler_worker is;
};

struct cell_stats {
    uint64_t accepted, repeated, rejected, assigned, succeeded, failed, dead, cancelled, expired;
    uint64_t crashes, retries, returned, stale, terms;
};

struct cell {
    const struct coordinator_options *options;
    const struct clock *clock;
    const struct log *log;
    struct kafka_options kafka;
    char topics[5][TOPIC_NAME_BYTES]; /* sources first, then state, dlq */
    char group_leader[TOPIC_NAME_BYTES], group_ingest[TOPIC_NAME_BYTES];
    char transactional_id[TOPIC_NAME_BYTES];
    char name[CELL_NAME_BYTES];
    struct catalogue catalogue;
    char policy_path[FILE_PATH_MAX_BYTES];
    int64_t policy_ns; /* its file's time of change */
    struct policy *policy;
    struct cost *cost;
    struct webhook_rules callback_rules;
    struct serve *serve;           /* NULL: none */
    char api[CELL_NAME_BYTES + 8]; /* "host:port" of it, as others reach it; or "" */
    int64_t steady_from_ns;        /* see cell_steady_ns */

    /* ---- followed while standing by, then the term's ---- */
    struct replay *replay;
    struct senders *senders; /* of callbacks; they call only while leading */
    struct ledger ledger;
    struct names batches;
    struct batch_counts *batch_counts;
    uint32_t batch_counts_cap;

    /* ---- of a term ---- */
    uint64_t epoch;
    char nonce[CELL_BOOT_BYTES];
    bool settled;      /* workers have had time to say what runs: assigning has begun */
    int64_t settle_ns; /* when that is at the latest, monotonic */
    struct scheduler *scheduler;
    struct journal *journal;
    struct kafka_reader *readers[SOURCE_COUNT];
    bool readable[SOURCE_COUNT]; /* may have messages: librdkafka is not asked in vain */
    struct redis *redis;         /* orders and status */
    bool forgotten;              /* Redis may lack anything: it is written anew */
    struct kafka_reader *past;   /* the journal, read again for the jobs that have ended; or NULL */
    struct redis *listen;        /* blocks on the reports */
    bool listening;
    char last_report[64], trim_to[64]; /* stream ids */
    uint64_t term_ms;                  /* Redis' time when the term began; 0: it could not say */
    uint64_t report_ms;                /* of the report that is being taken */
    int64_t silent_until_ns;           /* leases do not end before: nobody could be heard */
    int64_t heard_ns, checked_ns; /* monotonic: Redis' latest answer; the latest look at leases */
    struct entry *entries;
    uint32_t *free_slots, free_count, slots_used;
    struct names tenants, workers;
    struct worker *worker_table;  /* by number */
    uint32_t *acked, acked_count; /* workers with acknowledgements to send; may name one twice */
    uint32_t *tenant_live;        /* by number */
    struct profiles profiles;
    bool learned;           /* since the profiles were made */
    const char *last_error; /* of the job whose event the scheduler is told */
    struct cell_stats stats;
    struct job_problems problems;
    struct buf scratch, message;
    bool over; /* the term has ended; `why` says so */
    struct err why;
};

/* ---- jobs.c ---- */

/* Whether one more request may be taken; interactive ones have some room of their own. */
bool cell_has_room(const struct cell *cell, bool interactive);

/* A new live job from a judged request, whose text is copied; `past` is its state record when it is
 * replayed, NULL when it is new. Ends the term when memory is out. */
void cell_accept(struct cell *cell, const struct job *job, int model, const char *request,
                 size_t request_len, const struct state *past, const char *traceparent);

/* The scheduler's clock: reads as the wall clock did when the program started, and never jumps. */
int64_t cell_steady_ns(const struct cell *cell);

/* The live job of an id, or NULL. `ended` (may be NULL) says whether the id is known and over. */
struct entry *cell_find(const struct cell *cell, const char *id, bool *ended);

uint32_t cell_slot(const struct cell *cell, const struct entry *entry);
const char *entry_id(const struct entry *entry);
const char *entry_request(const struct entry *entry);
const char *entry_checkpoint(const struct entry *entry); /* or NULL */
const char *entry_trace(const struct entry *entry);      /* or NULL */
int entry_set_checkpoint(struct entry *entry, const char *checkpoint);

/* Journals the end, tells the view once that is safe, frees the entry. The scheduler's slot must be
 * free already. `report` may be NULL. */
void cell_end(struct cell *cell, struct entry *entry, enum state_kind kind, const char *error,
              const struct report *report);

/* Journals a job that waits again. */
void cell_requeue(struct cell *cell, struct entry *entry);

/* Steps the scheduler and does what it says. */
void cell_step(struct cell *cell, struct scheduler_event *event);

/* Orders a job away from wherever it is. */
void cell_cancel(struct cell *cell, struct entry *entry);

/* What a job of a model in the catalogue asks; its tenant has a number then. */
struct demand cell_demand(struct cell *cell, const struct job *job, uint32_t model);

/* The number of its profile, registered with the scheduler. NAMES_NONE: no class may draw it, and
 * cell->scratch says why not. */
uint32_t cell_profile(struct cell *cell, const struct demand *demand, double *effort);

/* The classes that may draw it now. */
void cell_route(const struct cell *cell, const struct entry *entry, struct policy_route *route);

/* The policy has been read again, or the cost model has learned: profiles follow. */
void cell_refresh_profiles(struct cell *cell);

/* Reads the policy. Classes have numbers, so a later reading may add some at the end but not remove
 * or reorder them. */
int cell_read_policy(struct cell *cell, struct err *err) must_check;

/* Reads it again if the file has changed; one with an error is logged and the old one stays. */
void cell_check_policy(struct cell *cell);

/* What the cost model has learned, from and to the file of the options, if there is one. */
int cell_read_cost(struct cell *cell, struct err *err) must_check;
void cell_write_cost(struct cell *cell);

/* Tells the scheduler the policy's weight and quota of a tenant. */
void cell_know_tenant(struct cell *cell, uint32_t number);

struct batch_counts *cell_batch(struct cell *cell, uint32_t batch);

/* Adds `by` to the batch's count of jobs that ended so. The batch may be NULL. */
void batch_count(struct batch_counts *batch, enum state_kind kind, int by);

/* ---- replay.c ---- */

/* While standing by: takes in what the journal has by now, up to a bound; true if there is more. A
 * Kafka that is away is waited for; on any other error all is let go and begun again later. */
bool cell_follow(struct cell *cell);

/* The rest of the journal, which nobody but this one can add to any more; then the live jobs. */
int cell_replay(struct cell *cell, struct err *err) must_check;

/* Lets go of what was read and of what it became. */
void cell_forget(struct cell *cell);

/* ---- ingest.c ---- */

/* Takes what has come, up to a bound; true if there may be more at once. */
bool cell_ingest(struct cell *cell, struct err *err);

/* Reads a request: 0: a job of `model` in the catalogue, the catalogue's defaults filled in; -1:
 * cell->problems says what is wrong. The job is the caller's to release in either case. */
int cell_read(struct cell *cell, const char *text, size_t len, struct job *job, int *model);

/* ---- fleet.c ---- */

/* What is offered by any worker that is here. */
uint32_t fleet_offers(const struct cell *cell);

enum note { NOTE_ACCEPTED, NOTE_ENDED, NOTE_ACK, NOTE_TRIM, NOTE_SWEEP, NOTE_CALLBACK };

void fleet_listen(struct cell *cell); /* asks for more reports where none are asked for */
void fleet_order(struct cell *cell, uint32_t worker, const struct order *order,
                 const struct entry *entry);
void fleet_assign(struct cell *cell, struct entry *entry, const struct scheduler_action *action);
void fleet_check_leases(struct cell *cell);
/* Has a worker, any, remove what a job that has ended left in the store; or, of one that has not,
 * the checkpoint that nobody will begin from (else NULL). */
void fleet_sweep(struct cell *cell, const char *id, const char *checkpoint);

bool fleet_is_heard(const struct cell *cell); /* every worker that Redis knew has beaten */
void fleet_settle(struct cell *cell);         /* ends what was to be cancelled and runs nowhere */
void fleet_note(struct cell *cell, const struct journal_note *note);
void fleet_send_acks(struct cell *cell); /* after the notes of a commit */
int fleet_begin(struct cell *cell, struct err *err) must_check;

/* ---- callback.c ---- */

/* Secrets and permissions from the options. Errors name the option. */
int callback_open(struct cell *cell, struct err *err) must_check;

/* Adds a problem where a new job's callback could never be made. */
void callback_check(struct cell *cell, const struct job *job);

/* While following the journal: nothing owed yet; then each record whose key says it is about one.
 */
int callback_follow_begin(struct cell *cell, struct err *err) must_check;
int callback_follow(struct cell *cell, const char *key, const struct kafka_message *message,
                    struct err *err) must_check;

/* Begins to call. */
int callback_lead(struct cell *cell, struct err *err) must_check;

/* Journals, beside the terminal record, that it is owed to the request's callback, if it has one;
 * it is made once that is committed. */
void callback_owe(struct cell *cell, const char *request, const char *record, size_t len);

/* Journals what was delivered or given up. */
void callback_settle(struct cell *cell);

void callback_metrics(const struct cell *cell, struct buf *out);

/* ---- view.c ---- */
void view_waiting(struct cell *cell, struct entry *entry);
void view_ended(struct cell *cell, const struct journal_note *note);
void view_batches(struct cell *cell); /* those that changed */
void view_counts(struct cell *cell);
void view_running(struct cell *cell, struct entry *entry);
void view_restore(struct cell *cell); /* goes on writing what Redis has forgotten */
void view_lead(struct cell *cell);    /* keeps the lead in Redis, and sees whether it forgot */

/* ---- api.c ---- */
int cell_answer(void *cell, const char *path, struct buf *out, const char **type);

/* ---- lead.c ---- */

/* Leads until the lead is lost or the program is to stop. */
int cell_lead(struct cell *cell, struct kafka_member *member, const volatile int *stop,
              struct err *err) must_check;
void cell_over(struct cell *cell, const struct err *why);

#endif

/* What a coordinator answers over HTTP, from its own thread: metrics, health, explanations. */
#include "coordinator/cell.h"

#include "common/json.h"
#include "common/metrics.h"
#include "schema/fields.h"

#include <stdio.h>
#include <string.h>

/* ---- metrics ---- */

static void put_counts(const struct cell *cell, struct buf *out)
{
    const struct cell_stats *stats = &cell->stats;
    const struct {
        const char *state;
        uint64_t count;
    } ends[] = {{"succeeded", stats->succeeded},
                {"failed", stats->failed},
                {"dead", stats->dead},
                {"cancelled", stats->cancelled},
                {"expired", stats->expired}};
    metrics_single(out, "atelier_jobs_accepted_total", "counter",
                   "requests that became jobs, in this process", (double)stats->accepted);
    metrics_single(out, "atelier_jobs_repeated_total", "counter",
                   "requests whose id was known, with the same content", (double)stats->repeated);
    metrics_single(out, "atelier_jobs_rejected_total", "counter",
                   "records that went to the dead-letter topic", (double)stats->rejected);
    metrics_family(out, "atelier_jobs_ended_total", "counter", "jobs that ended, by how");
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        metrics_sample(out, "atelier_jobs_ended_total", "state", ends[i].state,
                       (double)ends[i].count);
    metrics_single(out, "atelier_assignments_total", "counter", "jobs given to a worker",
                   (double)stats->assigned);
    metrics_single(out, "atelier_retries_total", "counter", "attempts that failed and were retried",
                   (double)stats->retries);
    metrics_single(out, "atelier_returns_total", "counter",
                   "jobs that workers handed back or never received", (double)stats->returned);
    metrics_single(out, "atelier_worker_crashes_total", "counter",
                   "workers that fell silent or restarted with jobs in hand",
                   (double)stats->crashes);
}

static void put_queue(struct cell *cell, struct buf *out)
{
    struct scheduler_count count = scheduler_count(cell->scheduler);
    const struct {
        const char *state;
        uint32_t count;
    } states[] = {{"ready", count.ready},
                  {"delayed", count.delayed},
                  {"held", count.held},
                  {"running", count.running}};
    metrics_family(out, "atelier_jobs_live", "gauge", "jobs that have not ended, by what they do");
    for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
        metrics_sample(out, "atelier_jobs_live", "state", states[i].state, states[i].count);
    metrics_family(out, "atelier_topic_lag_records", "gauge", "records not read yet");
    for (int i = 0; i < SOURCE_COUNT; i++)
        metrics_sample(out, "atelier_topic_lag_records", "topic", cell->topics[i],
                       (double)kafka_reader_lag(cell->readers[i]));
}

/* One family of the pools, a sample a class. */
static void put_pool(const struct cell *cell, struct buf *out, const struct scheduler_pool *pools,
                     const char *name, const char *help,
                     double (*of)(const struct scheduler_pool *pool))
{
    metrics_family(out, name, "gauge", help);
    for (uint32_t i = 0; i < policy_class_count(cell->policy); i++)
        metrics_sample(out, name, "class", policy_class(cell->policy, i)->name, of(&pools[i]));
}

static double pool_workers(const struct scheduler_pool *pool)
{
    return pool->workers;
}

static double pool_idle(const struct scheduler_pool *pool)
{
    return pool->idle;
}

static double pool_queued_s(const struct scheduler_pool *pool)
{
    return pool->queued_s;
}

static double pool_running_s(const struct scheduler_pool *pool)
{
    return pool->running_s;
}

static double pool_wait_s(const struct scheduler_pool *pool)
{
    return pool->wait_s;
}

static double pool_wanted(const struct scheduler_pool *pool)
{
    return pool->wanted;
}

static void put_pools(const struct cell *cell, struct buf *out)
{
    struct scheduler_pool pools[SCHEDULER_CLASSES_MAX];
    scheduler_pools(cell->scheduler, pools);
    put_pool(cell, out, pools, "atelier_pool_workers", "live workers that take jobs", pool_workers);
    put_pool(cell, out, pools, "atelier_pool_idle_workers", "of these, with nothing in hand",
             pool_idle);
    put_pool(cell, out, pools, "atelier_pool_queued_work_seconds",
             "predicted work of ready jobs that prefer the class", pool_queued_s);
    put_pool(cell, out, pools, "atelier_pool_running_work_seconds",
             "predicted work of the jobs on its workers", pool_running_s);
    put_pool(cell, out, pools, "atelier_pool_expected_wait_seconds",
             "that a new job of the lowest priority waits there", pool_wait_s);
    put_pool(cell, out, pools, "atelier_pool_wanted_workers",
             "workers that would do the work at hand in target-wait", pool_wanted);
}

static void put_journal(const struct cell *cell, struct buf *out)
{
    struct journal_stats stats = journal_stats(cell->journal);
    metrics_single(out, "atelier_journal_records_total", "counter", "records committed",
                   (double)stats.records);
    metrics_single(out, "atelier_journal_commits_total", "counter", "transactions committed",
                   (double)stats.batches);
    metrics_single(out, "atelier_journal_commit_seconds", "gauge", "the latest transaction took",
                   stats.commit_s);
    metrics_single(out, "atelier_ids_known", "gauge", "job ids that count as repeats",
                   (double)cell->ledger.count);
    metrics_single(out, "atelier_redis_connected", "gauge", "1 while Redis answers",
                   redis_connected(cell->redis));
}

static void put_metrics(struct cell *cell, struct buf *out)
{
    metrics_single(out, "atelier_leading", "gauge", "1 on the leader", cell->scheduler != NULL);
    put_counts(cell, out);
    if (!cell->readers[SOURCE_COUNT - 1])
        return;
    metrics_single(out, "atelier_epoch", "gauge", "of the leader's term", (double)cell->epoch);
    put_queue(cell, out);
    put_pools(cell, out);
    put_journal(cell, out);
    callback_metrics(cell, out);
}

/* ---- explanations ---- */

static const char *class_name(const struct cell *cell, uint32_t class)
{
    return class < policy_class_count(cell->policy) ? policy_class(cell->policy, class)->name
                                                    : NULL;
}

static void put_route(struct cell *cell, const struct entry *entry,
                      const struct scheduler_explanation *why, struct buf *out)
{
    struct policy_route route;
    cell_route(cell, entry, &route);
    put_integer(out, "rule", route.rule);
    buf_str(out, ",\"route\":[");
    for (int i = 0; i < route.count; i++) {
        const struct policy_class *class = policy_class(cell->policy, route.classes[i]);
        double seconds = why->seconds[route.classes[i]];
        buf_printf(out, "%s{\"class\":\"%s\"", i ? "," : "", class->name);
        put_number(out, "price_per_hour", class->price_per_hour);
        put_number(out, "predicted_s", seconds);
        put_number(out, "predicted_price", seconds * class->price_per_hour / 3600);
        buf_char(out, '}');
    }
    buf_char(out, ']');
}

static void put_explanation(struct cell *cell, const struct entry *entry, struct buf *out)
{
    struct scheduler_explanation why;
    scheduler_explain(cell->scheduler, cell_slot(cell, entry), &why);
    buf_str(out, "{\"version\":1");
    put_text(out, "job", entry_id(entry));
    put_text(out, "why", waiting_name(why.why));
    put_integer(out, "ahead", why.ahead);
    put_number(out, "start_s", why.start_s);
    put_text(out, "preferred", class_name(cell, why.preferred));
    put_text(out, "home", class_name(cell, why.home));
    put_integer(out, "attempts", entry->attempts);
    put_integer(out, "crashes", entry->crashes);
    put_true(out, "alone", why.alone);
    put_number(out, "price", why.price);
    if (why.worker != SCHEDULER_WORKER_NONE)
        put_text(out, "worker", cell->workers.names[why.worker]);
    put_text(out, "class", class_name(cell, why.class));
    if (why.placement != PLACEMENT_NONE) {
        put_text(out, "placement", placement_name(why.placement));
        put_number(out, "cost_here", why.cost_here);
        put_number(out, "cost_waiting", why.cost_waiting);
        put_number(out, "wait_s", why.wait_s);
    }
    put_route(cell, entry, &why, out);
    buf_str(out, "}\n");
}

static int explain(struct cell *cell, const char *id, struct buf *out)
{
    bool ended = false;
    const struct entry *entry = cell->scheduler ? cell_find(cell, id, &ended) : NULL;
    if (entry) {
        put_explanation(cell, entry, out);
        return 200;
    }
    buf_printf(out, "{\"version\":1,\"job\":");
    json_write_string(out, id, strlen(id));
    buf_printf(out, ",\"why\":\"%s\"",
               !cell->scheduler ? "not_leading"
               : ended          ? "ended"
                                : "unknown");
    bool owed = ended && senders_explain(cell->senders, id, out);
    buf_str(out, "}\n");
    /* How one ended is in Redis and in the journal; whether it was told by now, only here. */
    return !cell->scheduler ? 503 : owed ? 200 : 404;
}

/* ---- paths ---- */

int cell_answer(void *user, const char *path, struct buf *out, const char **type)
{
    static const char explain_prefix[] = "/explain/";
    struct cell *cell = user;
    if (strcmp(path, "/metrics") == 0) {
        *type = METRICS_TYPE;
        put_metrics(cell, out);
        return 200;
    }
    if (strcmp(path, "/healthz") == 0 || strcmp(path, "/readyz") == 0) {
        buf_printf(out, "%s\n", cell->scheduler ? "leading" : "standing by");
        return 200;
    }
    if (strncmp(path, explain_prefix, sizeof(explain_prefix) - 1) == 0) {
        *type = "application/json";
        return explain(cell, path + sizeof(explain_prefix) - 1, out);
    }
    buf_str(out, "there are /metrics, /healthz, /readyz and /explain/<job>\n");
    return 404;
}

#include "coordinator/senders.h"

#include "net/http.h"
#include "schema/fields.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS 8
#define HEADER_BYTES 512
#define IDLE_MS 1000
#define MS_NS 1000000ll

struct senders {
    struct senders_options options;
    struct http *outside; /* public addresses only */
    struct http *allowed; /* hosts that are allowed by name */
    pthread_t threads[THREADS];
    int thread_count;
    atomic_bool stopping;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    struct owed_table *table;
    struct owed *settled, **settled_end; /* by next_in_line */
    struct senders_stats stats;
};

/* ---- one call ---- */

/* No more than the receiver: a URL may be a secret by itself. */
static void name_receiver(const char *url, char *out, size_t size)
{
    struct http_url parts;
    struct err err;
    snprintf(out, size, "%s", http_url_read(&parts, url, &err) == 0 ? parts.host : "its receiver");
}

static int call(struct senders *senders, const struct owed *owed, struct http_answer *answer,
                struct err *err)
{
    char id[HEADER_BYTES], time[HEADER_BYTES], what[HTTP_HOST_BYTES];
    int64_t time_s = clock_wall_ns(senders->options.clock) / 1000000000;
    bool allowed = webhook_url_allowed(senders->options.rules, owed->url);
    struct buf signature;
    buf_init(&signature, HEADER_BYTES);
    buf_str(&signature, "webhook-signature: ");
    webhook_sign(senders->options.rules, owed->id, time_s, owed->body, owed->body_len, &signature);
    snprintf(id, sizeof(id), "webhook-id: %s", owed->id);
    snprintf(time, sizeof(time), "webhook-timestamp: %lld", (long long)time_s);
    name_receiver(owed->url, what, sizeof(what));
    struct http_request request = {
        .method = "POST",
        .url = owed->url,
        .what = what,
        .headers = {"content-type: application/json", "expect:", id, time, signature.data},
        .body = owed->body,
        .body_bytes = owed->body_len,
        .stop = &senders->stopping};
    int rc = signature.failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a signature")
                              : http_try(allowed ? senders->allowed : senders->outside, &request,
                                         (int)senders->options.timeout_s * 1000, answer, err);
    buf_release(&signature);
    return rc;
}

/* ---- threads ---- */

static void settle(struct senders *senders, struct owed *owed)
{
    senders->stats.delivered += owed->fate == OWED_DELIVERED;
    senders->stats.given_up += owed->fate == OWED_GIVEN_UP;
    owed->next_in_line = NULL;
    *senders->settled_end = owed;
    senders->settled_end = &owed->next_in_line;
}

static struct owed *take(struct senders *senders)
{
    const struct clock *clock = senders->options.clock;
    struct owed *expired,
        *owed = owed_take(senders->table, clock_monotonic_ns(clock), clock_wall_ns(clock));
    while ((expired = owed_expired(senders->table)))
        settle(senders, expired);
    return owed;
}

static void wait_for_one(struct senders *senders)
{
    int64_t due = owed_due_ns(senders->table);
    int64_t left =
        due == INT64_MAX ? IDLE_MS : (due - clock_monotonic_ns(senders->options.clock)) / MS_NS + 1;
    left = left > IDLE_MS ? IDLE_MS : left < 1 ? 1 : left;
    struct timespec until = clock_deadline((int)left);
    pthread_cond_timedwait(&senders->changed, &senders->lock, &until);
}

static void make(struct senders *senders, struct owed *owed)
{
    const struct clock *clock = senders->options.clock;
    struct http_answer answer = {0};
    char status[64];
    struct err err;
    pthread_mutex_unlock(&senders->lock);
    int rc = call(senders, owed, &answer, &err);
    snprintf(status, sizeof(status), "HTTP status %d%s", answer.status,
             answer.status / 100 == 3 ? "; redirects are not followed" : "");
    struct owed_answer is = {.status = rc == 0 ? answer.status : 0,
                             .refused = rc != 0 && err.code == ERR_UNSUPPORTED,
                             .asked_ms = answer.retry_after_ms,
                             .problem = rc == 0 ? status : err.message};
    pthread_mutex_lock(&senders->lock);
    enum owed_fate fate =
        owed_answer(senders->table, owed, &is, clock_monotonic_ns(clock), clock_wall_ns(clock));
    if (fate == OWED_WAITS)
        senders->stats.retried++;
    else
        settle(senders, owed);
}

static void *sender_main(void *user)
{
    struct senders *senders = user;
    pthread_mutex_lock(&senders->lock);
    while (!atomic_load(&senders->stopping)) {
        struct owed *owed = take(senders);
        if (owed)
            make(senders, owed);
        else
            wait_for_one(senders);
    }
    pthread_mutex_unlock(&senders->lock);
    return NULL;
}

/* ---- life ---- */

static int open_http(struct http **http, const struct senders *senders, bool public_only,
                     struct err *err)
{
    struct http_options options = HTTP_OPTIONS_INIT;
    options.connections_max = THREADS;
    options.ca_file = senders->options.ca_file;
    options.clock = senders->options.clock;
    options.public_only = public_only;
    return http_create(http, &options, err);
}

int senders_create(struct senders **out, const struct senders_options *options, struct err *err)
{
    struct senders *senders = calloc(1, sizeof(*senders));
    pthread_condattr_t monotonic;
    *out = NULL;
    if (!senders)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for callbacks");
    senders->options = *options;
    senders->settled_end = &senders->settled;
    pthread_mutex_init(&senders->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&senders->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    senders->table =
        owed_create(&(struct owed_options){.give_up_ns = options->give_up_s * 1000000000,
                                           .bytes_max = options->bytes_max,
                                           .random = (uint64_t)clock_wall_ns(options->clock)});
    if (!senders->table) {
        senders_free(senders);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for callbacks");
    }
    *out = senders;
    return 0;
}

void senders_free(struct senders *senders)
{
    if (!senders)
        return;
    atomic_store(&senders->stopping, true);
    pthread_mutex_lock(&senders->lock);
    pthread_cond_broadcast(&senders->changed);
    pthread_mutex_unlock(&senders->lock);
    for (int i = 0; i < senders->thread_count; i++)
        pthread_join(senders->threads[i], NULL);
    http_free(senders->outside);
    http_free(senders->allowed);
    owed_destroy(senders->table);
    pthread_cond_destroy(&senders->changed);
    pthread_mutex_destroy(&senders->lock);
    free(senders);
}

int senders_start(struct senders *senders, struct err *err)
{
    if (senders->options.rules->secret_count == 0)
        return 0;
    if (open_http(&senders->outside, senders, true, err) != 0 ||
        open_http(&senders->allowed, senders, false, err) != 0)
        return -1;
    for (; senders->thread_count < THREADS; senders->thread_count++) {
        pthread_t *thread = &senders->threads[senders->thread_count];
        if (pthread_create(thread, NULL, sender_main, senders) != 0)
            return err_set(err, ERR_MEMORY, ERR_FATAL, "cannot start a thread at-callback");
        pthread_setname_np(*thread, "at-callback");
    }
    return 0;
}

/* ---- the loop's side ---- */

int senders_add(struct senders *senders, const struct owed *what, bool committed, struct err *err)
{
    pthread_mutex_lock(&senders->lock);
    struct owed *owed = owed_add(senders->table, what, committed);
    pthread_mutex_unlock(&senders->lock);
    return owed ? 0 : err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for callbacks");
}

void senders_commit(struct senders *senders, const char *id)
{
    pthread_mutex_lock(&senders->lock);
    struct owed *owed = owed_find(senders->table, id);
    if (owed)
        owed_commit(senders->table, owed);
    pthread_cond_signal(&senders->changed);
    pthread_mutex_unlock(&senders->lock);
}

const struct owed *senders_next(struct senders *senders)
{
    pthread_mutex_lock(&senders->lock);
    struct owed *crowded = owed_crowded(senders->table), *owed;
    if (crowded)
        settle(senders, crowded);
    owed = senders->settled;
    if (owed) {
        senders->settled = owed->next_in_line;
        if (!senders->settled)
            senders->settled_end = &senders->settled;
    }
    pthread_mutex_unlock(&senders->lock);
    return owed;
}

void senders_forget(struct senders *senders, const char *id)
{
    pthread_mutex_lock(&senders->lock);
    struct owed *owed = owed_find(senders->table, id);
    if (owed)
        owed_free(senders->table, owed);
    pthread_mutex_unlock(&senders->lock);
}

struct senders_stats senders_stats(struct senders *senders)
{
    pthread_mutex_lock(&senders->lock);
    struct senders_stats stats = senders->stats;
    stats.waiting = owed_count(senders->table);
    pthread_mutex_unlock(&senders->lock);
    return stats;
}

bool senders_explain(struct senders *senders, const char *job, struct buf *out)
{
    char receiver[HTTP_HOST_BYTES];
    pthread_mutex_lock(&senders->lock);
    const struct owed *owed = owed_find_job(senders->table, job);
    if (owed) {
        name_receiver(owed->url, receiver, sizeof(receiver));
        buf_str(out, ",\"callback\":\"waiting\"");
        put_text(out, "callback_to", receiver);
        put_integer(out, "callback_tries", owed->tries);
        put_text(out, "callback_problem", *owed->problem ? owed->problem : NULL);
    }
    pthread_mutex_unlock(&senders->lock);
    return owed != NULL;
}

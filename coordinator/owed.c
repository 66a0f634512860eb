#include "coordinator/owed.h"

#include "common/err.h"
#include "common/names.h"
#include "net/retry.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS (1u << 16)
#define ORIGIN_MAX_BYTES 512

/* Of one receiver that fails: the first wait is up to a second, later ones up to five minutes. */
static const struct retry_policy backing_off = {
    .tries_max = INT_MAX, .first_ms = 1000, .most_ms = 300000, .total_ms = INT_MAX};

struct line {
    struct owed *first, *last;
    size_t count;
    int taken;
    int failures; /* in a row */
    int64_t next_ns;
};

struct owed_table {
    struct owed_options options;
    struct owed *buckets[BUCKETS];
    struct names receivers;
    struct line *lines;    /* by receiver */
    uint32_t line_cap, at; /* where owed_take looks first: everyone in turn */
    struct owed *expired;
    size_t count, bytes;
};

struct owed_table *owed_create(const struct owed_options *options)
{
    struct owed_table *table = calloc(1, sizeof(*table));
    if (!table)
        return NULL;
    table->options = *options;
    names_init(&table->receivers, OWED_RECEIVERS_MAX);
    return table;
}

void owed_destroy(struct owed_table *table)
{
    if (!table)
        return;
    for (size_t i = 0; i < BUCKETS; i++) {
        while (table->buckets[i]) {
            struct owed *owed = table->buckets[i];
            table->buckets[i] = owed->next_of_hash;
            free(owed);
        }
    }
    names_release(&table->receivers);
    free(table->lines);
    free(table);
}

/* ---- by id ---- */

static struct owed **place_of(struct owed_table *table, const char *id)
{
    uint32_t hash = 0;
    for (const char *at = id; *at; at++)
        hash = hash * 31 + (unsigned char)*at;
    struct owed **place = &table->buckets[hash & (BUCKETS - 1)];
    while (*place && strcmp((*place)->id, id) != 0)
        place = &(*place)->next_of_hash;
    return place;
}

struct owed *owed_find(const struct owed_table *table, const char *id)
{
    return *place_of((struct owed_table *)table, id);
}

const struct owed *owed_find_job(const struct owed_table *table, const char *job)
{
    for (size_t i = 0; i < BUCKETS; i++)
        for (const struct owed *at = table->buckets[i]; at; at = at->next_of_hash)
            if (strcmp(at->job, job) == 0)
                return at;
    return NULL;
}

/* ---- lines ---- */

static uint32_t receiver_of(struct owed_table *table, const char *url)
{
    char origin[ORIGIN_MAX_BYTES];
    const char *host = strstr(url, "://");
    size_t len = host ? (size_t)(host + 3 - url) + strcspn(host + 3, "/?#") : strlen(url);
    snprintf(origin, sizeof(origin), "%.*s", (int)(len < INT_MAX ? len : 0), url);
    uint32_t number = names_enter(&table->receivers, origin);
    if (number == NAMES_NONE && table->receivers.count > 0)
        number = table->receivers.count - 1;
    if (number == NAMES_NONE || number < table->line_cap)
        return number;
    uint32_t cap = table->line_cap ? 2 * table->line_cap : 64;
    struct line *bigger = realloc(table->lines, cap * sizeof(*bigger));
    if (!bigger)
        return NAMES_NONE;
    memset(bigger + table->line_cap, 0, (cap - table->line_cap) * sizeof(*bigger));
    table->lines = bigger;
    table->line_cap = cap;
    return number;
}

static void stand(struct owed_table *table, struct owed *owed)
{
    struct line *line = &table->lines[owed->receiver];
    owed->next_in_line = NULL;
    if (line->last)
        line->last->next_in_line = owed;
    else
        line->first = owed;
    line->last = owed;
    line->count++;
}

static struct owed *leave(struct line *line)
{
    struct owed *owed = line->first;
    line->first = owed->next_in_line;
    if (!line->first)
        line->last = NULL;
    line->count--;
    owed->next_in_line = NULL;
    return owed;
}

static void leave_wherever(struct line *line, const struct owed *owed)
{
    struct owed *before = NULL, *at = line->first;
    while (at && at != owed) {
        before = at;
        at = at->next_in_line;
    }
    if (!at)
        return;
    if (!before) {
        (void)leave(line);
        return;
    }
    before->next_in_line = at->next_in_line;
    if (line->last == at)
        line->last = before;
    line->count--;
}

/* ---- a life ---- */

static const char *lay(char **at, const char *text, size_t len)
{
    char *to = *at;
    memcpy(to, text, len);
    to[len] = '\0';
    *at += len + 1;
    return to;
}

static struct owed *copy_of(const struct owed *what)
{
    size_t id = strlen(what->id), job = strlen(what->job), url = strlen(what->url);
    size_t bytes = sizeof(struct owed) + id + job + url + what->body_len + 4;
    struct owed *owed = malloc(bytes);
    if (!owed)
        return NULL;
    char *at = (char *)(owed + 1);
    *owed = (struct owed){.body_len = what->body_len, .ended_ns = what->ended_ns, .bytes = bytes};
    owed->id = lay(&at, what->id, id);
    owed->job = lay(&at, what->job, job);
    owed->url = lay(&at, what->url, url);
    owed->body = lay(&at, what->body, what->body_len);
    return owed;
}

struct owed *owed_add(struct owed_table *table, const struct owed *what, bool committed)
{
    struct owed **place = place_of(table, what->id);
    if (*place)
        return *place;
    uint32_t receiver = receiver_of(table, what->url);
    struct owed *owed = receiver == NAMES_NONE ? NULL : copy_of(what);
    if (!owed)
        return NULL;
    owed->receiver = receiver;
    *place = owed;
    table->count++;
    table->bytes += owed->bytes;
    if (committed)
        owed_commit(table, owed);
    return owed;
}

void owed_commit(struct owed_table *table, struct owed *owed)
{
    if (owed->committed)
        return;
    owed->committed = true;
    stand(table, owed);
}

void owed_free(struct owed_table *table, struct owed *owed)
{
    struct owed **place = place_of(table, owed->id);
    ASSERT(*place == owed && !owed->taken);
    if (owed->committed && owed->fate == OWED_WAITS)
        leave_wherever(&table->lines[owed->receiver], owed);
    *place = owed->next_of_hash;
    table->count--;
    table->bytes -= owed->bytes;
    free(owed);
}

size_t owed_count(const struct owed_table *table)
{
    return table->count;
}

/* ---- giving up ---- */

static void give_up(struct owed *owed, const char *why)
{
    char latest[OWED_PROBLEM_BYTES / 2];
    snprintf(latest, sizeof(latest), "%s", owed->problem);
    owed->fate = OWED_GIVEN_UP;
    snprintf(owed->problem, sizeof(owed->problem), "%s%s%s", why, *latest ? "; the last try: " : "",
             latest);
}

static bool is_late(const struct owed_table *table, const struct owed *owed, int64_t wall_ns)
{
    return wall_ns - owed->ended_ns > table->options.give_up_ns;
}

/* Those at the head: the line is about in the order of the jobs' ends. */
static void expire(struct owed_table *table, struct line *line, int64_t wall_ns)
{
    while (line->failures > 0 && line->first && is_late(table, line->first, wall_ns)) {
        struct owed *owed = leave(line);
        give_up(owed, "its receiver failed for as long as callback-give-up allows");
        owed->next_in_line = table->expired;
        table->expired = owed;
    }
}

struct owed *owed_expired(struct owed_table *table)
{
    struct owed *owed = table->expired;
    if (owed)
        table->expired = owed->next_in_line;
    return owed;
}

struct owed *owed_crowded(struct owed_table *table)
{
    struct line *longest = NULL;
    if (table->bytes <= table->options.bytes_max)
        return NULL;
    for (uint32_t i = 0; i < table->receivers.count; i++)
        if (table->lines[i].count > (longest ? longest->count : 0))
            longest = &table->lines[i];
    if (!longest)
        return NULL;
    struct owed *owed = leave(longest);
    give_up(owed, "more callbacks wait than callback-bytes allows");
    return owed;
}

/* ---- trying ---- */

static bool is_free(const struct line *line)
{
    return line->first && line->taken < (line->failures > 0 ? 1 : OWED_AT_ONCE);
}

struct owed *owed_take(struct owed_table *table, int64_t now_ns, int64_t wall_ns)
{
    for (uint32_t i = 0; i < table->receivers.count; i++) {
        uint32_t number = (table->at + i) % table->receivers.count;
        struct line *line = &table->lines[number];
        if (!is_free(line) || line->next_ns > now_ns)
            continue;
        expire(table, line, wall_ns);
        if (!line->first)
            continue;
        struct owed *owed = leave(line);
        owed->taken = true;
        line->taken++;
        table->at = number + 1;
        return owed;
    }
    return NULL;
}

int64_t owed_due_ns(const struct owed_table *table)
{
    int64_t due = INT64_MAX;
    for (uint32_t i = 0; i < table->receivers.count; i++)
        if (is_free(&table->lines[i]) && table->lines[i].next_ns < due)
            due = table->lines[i].next_ns;
    return due;
}

static bool is_passing(const struct owed_answer *answer)
{
    return answer->status == 0
               ? !answer->refused
               : answer->status == 408 || answer->status == 429 || answer->status >= 500;
}

enum owed_fate owed_answer(struct owed_table *table, struct owed *owed,
                           const struct owed_answer *answer, int64_t now_ns, int64_t wall_ns)
{
    struct line *line = &table->lines[owed->receiver];
    bool passing = is_passing(answer);
    owed->taken = false;
    owed->tries++;
    line->taken--;
    line->failures = passing ? line->failures + 1 : 0;
    line->next_ns = 0;
    if (passing)
        line->next_ns =
            now_ns + 1000000ll * retry_delay_ms(&backing_off, line->failures, 0, answer->asked_ms,
                                                retry_random(&table->options.random));
    snprintf(owed->problem, sizeof(owed->problem), "%s", answer->problem ? answer->problem : "");
    if (answer->status >= 200 && answer->status < 300)
        owed->fate = OWED_DELIVERED;
    else if (!passing)
        give_up(owed, "its receiver will not have it");
    else if (is_late(table, owed, wall_ns))
        give_up(owed, "its receiver failed for as long as callback-give-up allows");
    else
        stand(table, owed);
    return owed->fate;
}

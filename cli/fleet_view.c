#include "cli/fleet_view.h"

#include "common/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void on_names(void *user, const struct redis_value *reply)
{
    struct workers *workers = user;
    if (reply->type != REDIS_ARRAY || reply->count == 0)
        return;
    workers->items = calloc(reply->count, sizeof(*workers->items));
    for (size_t i = 0; workers->items && i < reply->count; i++) {
        struct redis_value name = redis_item(reply, i);
        struct worker_view *worker = &workers->items[workers->count];
        worker->name = strdup(name.text);
        hash_init(&worker->is);
        workers->count += worker->name != NULL;
    }
}

static void on_length(void *user, const struct redis_value *reply)
{
    if (reply->type == REDIS_INTEGER)
        *(int64_t *)user = reply->integer;
}

static int read_one(struct fleet *fleet, struct worker_view *worker, struct err *err)
{
    char queue[512];
    snprintf(queue, sizeof(queue), REDIS_QUEUE "%s", worker->name);
    const struct redis_arg length[] = {redis_text("LLEN"), redis_text(queue)};
    worker->orders = -1;
    if (fleet_hash(fleet, REDIS_WORKER, worker->name, &worker->is, err) != 0)
        return -1;
    /* The dashboards' user may not look into orders. */
    return fleet_redis(fleet, on_length, &worker->orders, 2, length, err) == 0 ||
                   err->class == ERR_FATAL
               ? 0
               : -1;
}

int workers_read(struct fleet *fleet, struct workers *workers, struct err *err)
{
    const struct redis_arg names[] = {redis_text("ZRANGE"), redis_text(REDIS_WORKERS),
                                      redis_text("0"), redis_text("-1")};
    size_t kept = 0;
    int rc = fleet_redis(fleet, on_names, workers, 4, names, err);
    for (size_t i = 0; rc == 0 && i < workers->count; i++)
        rc = read_one(fleet, &workers->items[i], err);
    for (size_t i = 0; rc == 0 && i < workers->count; i++) {
        struct worker_view *worker = &workers->items[i], gone = *worker;
        if (worker->is.count > 0) {
            *worker = workers->items[kept];
            workers->items[kept++] = gone;
        }
    }
    for (size_t i = kept; rc == 0 && i < workers->count; i++) {
        free(workers->items[i].name);
        hash_release(&workers->items[i].is);
    }
    workers->count = rc == 0 ? kept : workers->count;
    return rc;
}

void workers_release(struct workers *workers)
{
    for (size_t i = 0; i < workers->count; i++) {
        free(workers->items[i].name);
        hash_release(&workers->items[i].is);
    }
    free(workers->items);
    *workers = (struct workers){0};
}

/* ---- writing ---- */

static double silent_s(const struct fleet *fleet, const struct worker_view *worker)
{
    double seen_ms = (double)hash_number(&worker->is, "seen_ms");
    return (double)clock_wall_ns(fleet->clock) * 1e-9 - seen_ms * 1e-3;
}

void workers_write_table(const struct fleet *fleet, const struct workers *workers, FILE *to)
{
    fprintf(to, "%-20s %-8s %-9s %8s %6s %7s  %s\n", "worker", "class", "state", "pictures",
            "orders", "seen", "models");
    for (size_t i = 0; i < workers->count; i++) {
        const struct worker_view *worker = &workers->items[i];
        char orders[24] = "?";
        if (worker->orders >= 0)
            snprintf(orders, sizeof(orders), "%" PRId64, worker->orders);
        fprintf(to, "%-20s %-8s %-9s %8s %6s %5.1f s  %s\n", worker->name,
                hash_get(&worker->is, "device_class"), hash_get(&worker->is, "state"),
                hash_get(&worker->is, "pictures_max"), orders, silent_s(fleet, worker),
                hash_get(&worker->is, "models"));
    }
}

void workers_write_json(const struct fleet *fleet, const struct workers *workers, FILE *to)
{
    struct buf out;
    buf_init(&out, 2 << 20);
    for (size_t i = 0; i < workers->count; i++) {
        const struct worker_view *worker = &workers->items[i];
        buf_clear(&out);
        buf_str(&out, "{\"worker\":");
        json_write_string(&out, worker->name, strlen(worker->name));
        hash_write(&worker->is, &out);
        if (worker->orders >= 0)
            buf_printf(&out, ",\"orders\":%" PRId64, worker->orders);
        buf_printf(&out, ",\"silent_s\":%.3f}", silent_s(fleet, worker));
        fprintf(to, "%s\n", out.data);
    }
    buf_release(&out);
}

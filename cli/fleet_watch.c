/* atelier watch: the cell, its workers and a batch, again and again. */
#include "cli/fleet.h"
#include "cli/fleet_view.h"
#include "common/json.h"
#include "common/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct conf_row rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_BATCH_ROW("watch until this batch is complete"),
    FLEET_JSON_ROW,
};

const struct conf_table watch_table = {
    .command = "atelier watch",
    .family = cli_tables,
    .usage = "atelier watch [--batch NAME] [options]",
    .summary = "A live table of the workers and of a batch, until Ctrl-C or until the batch is "
               "complete; a line whenever something changes where standard output is no terminal. "
               "Exit status: 0 (of a batch: all succeeded), 4 jobs of the batch did not succeed, 5 "
               "Redis could not be asked at first, 130 Ctrl-C before the batch was complete.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
};

struct watch {
    struct fleet fleet;
    struct hash cell, counts, batch;
    struct workers workers;
    char line[1024], shown[1024]; /* of a plain watch */
    bool seen;                    /* Redis has answered once */
};

static int read_all(struct watch *watch, struct err *err)
{
    struct fleet *fleet = &watch->fleet;
    workers_release(&watch->workers);
    if (fleet_hash(fleet, REDIS_CELL, "", &watch->cell, err) != 0 ||
        fleet_hash(fleet, REDIS_COUNTS, "", &watch->counts, err) != 0)
        return -1;
    if (fleet->options.batch &&
        fleet_hash(fleet, REDIS_BATCH, fleet->options.batch, &watch->batch, err) != 0)
        return -1;
    return workers_read(fleet, &watch->workers, err);
}

/* ---- showing ---- */

static uint64_t unsuccessful(const struct hash *batch)
{
    return hash_number(batch, "failed") + hash_number(batch, "dead") +
           hash_number(batch, "cancelled") + hash_number(batch, "expired");
}

static void put_batch(const struct watch *watch, char *out, size_t size)
{
    const struct hash *batch = &watch->batch;
    if (batch->count == 0)
        snprintf(out, size, "batch %s: no job of it has been accepted yet",
                 watch->fleet.options.batch);
    else
        snprintf(out, size, "batch %s: %s, %s/%s succeeded, %s live, %" PRIu64 " without success",
                 watch->fleet.options.batch, hash_get(batch, "status"),
                 hash_get(batch, "succeeded"), hash_get(batch, "jobs"), hash_get(batch, "live"),
                 unsuccessful(batch));
}

static void show_terminal(const struct watch *watch)
{
    char text[512];
    printf("\033[H\033[Jcell %s  leader %s  epoch %s  waiting %s  running %s\n\n",
           watch->fleet.options.services.cell, hash_get(&watch->cell, "leader"),
           hash_get(&watch->cell, "epoch"), hash_get(&watch->counts, "waiting"),
           hash_get(&watch->counts, "running"));
    workers_write_table(&watch->fleet, &watch->workers, stdout);
    if (watch->fleet.options.batch) {
        put_batch(watch, text, sizeof(text));
        printf("\n%s\n", text);
    }
    fflush(stdout);
}

static void show_plain(struct watch *watch)
{
    int n = snprintf(
        watch->line, sizeof(watch->line), "leader %s, %zu worker%s, %s waiting, %s running",
        hash_get(&watch->cell, "leader"), watch->workers.count, plural(watch->workers.count),
        hash_get(&watch->counts, "waiting"), hash_get(&watch->counts, "running"));
    if (watch->fleet.options.batch) {
        n += snprintf(watch->line + n, sizeof(watch->line) - (size_t)n, "; ");
        put_batch(watch, watch->line + n, sizeof(watch->line) - (size_t)n);
    }
    if (strcmp(watch->line, watch->shown) == 0)
        return;
    strcpy(watch->shown, watch->line);
    puts(watch->line);
    fflush(stdout);
}

static void show_json(const struct watch *watch)
{
    struct buf out;
    buf_init(&out, 2 << 20);
    buf_printf(&out, "{\"event\":\"cell\",\"workers\":%zu", watch->workers.count);
    buf_str(&out, ",\"cell\":");
    hash_write_object(&watch->cell, &out);
    buf_str(&out, ",\"counts\":");
    hash_write_object(&watch->counts, &out);
    if (watch->fleet.options.batch) {
        buf_str(&out, ",\"batch\":");
        hash_write_object(&watch->batch, &out);
    }
    printf("%s}\n", out.data);
    fflush(stdout);
    buf_release(&out);
}

/* ---- the loop ---- */

static int loop(struct watch *watch)
{
    bool json = watch->fleet.options.json, terminal = !json && isatty(STDOUT_FILENO);
    struct err err;
    while (!fleet_interrupted()) {
        if (read_all(watch, &err) == 0) {
            watch->seen = true;
            if (json)
                show_json(watch);
            else if (terminal)
                show_terminal(watch);
            else
                show_plain(watch);
        } else if (!watch->seen) {
            return fleet_fail(&watch->fleet, &err);
        } else {
            fprintf(stderr, "%s: %s; trying again\n", watch->fleet.table->command, err.message);
        }
        if (strcmp(hash_get(&watch->batch, "status"), "complete") == 0)
            return unsuccessful(&watch->batch) > 0 ? EXIT_FAILED : EXIT_ALL_DONE;
        fleet_sleep_ms(1000);
    }
    return watch->fleet.options.batch ? EXIT_INTERRUPTED : EXIT_ALL_DONE;
}

int command_watch(int argc, char **argv)
{
    struct watch watch = {0};
    int status;
    if (!fleet_begin(&watch.fleet, &watch_table, argc, argv, &status))
        return status;
    hash_init(&watch.cell);
    hash_init(&watch.counts);
    hash_init(&watch.batch);
    status = loop(&watch);
    workers_release(&watch.workers);
    hash_release(&watch.cell);
    hash_release(&watch.counts);
    hash_release(&watch.batch);
    return fleet_end(&watch.fleet, status);
}

/* atelier status and atelier workers: what Redis says, once. */
#include "cli/fleet.h"
#include "cli/fleet_view.h"
#include "common/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct conf_row status_rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_BATCH_ROW("the batch's counters instead of a job"),
    FLEET_JSON_ROW,
};

const struct conf_table status_table = {
    .command = "atelier status",
    .family = cli_tables,
    .usage = "atelier status [JOB | --batch NAME] [options]",
    .summary =
        "Says how a job, a batch or, without either, the cell is doing. Exit status: 0 it is "
        "known, 1 it is not (or nobody leads the cell), 5 Redis could not be asked.",
    .rows = status_rows,
    .row_count = sizeof(status_rows) / sizeof(status_rows[0]),
    .positional = "JOB",
    .positional_offset = FLEET_AT(word),
};

static const struct conf_row workers_rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_JSON_ROW,
};

const struct conf_table workers_table = {
    .command = "atelier workers",
    .family = cli_tables,
    .usage = "atelier workers [options]",
    .summary = "Lists the workers that Redis knows: class, state, room, models in memory, orders "
               "waiting. Exit status: 0, or 5 when Redis could not be asked.",
    .rows = workers_rows,
    .row_count = sizeof(workers_rows) / sizeof(workers_rows[0]),
};

/* ---- one hash ---- */

static void print_hash(const char *what, const char *name, const struct hash *hash, bool json)
{
    struct buf out;
    if (!json) {
        printf("%s %s\n", what, name);
        for (size_t i = 0; i < hash->count; i++)
            printf("  %-13s %s\n", hash->names[i], hash->values[i]);
        return;
    }
    buf_init(&out, 2 << 20);
    buf_printf(&out, "{\"%s\":", what);
    json_write_string(&out, name, strlen(name));
    hash_write(hash, &out);
    printf("%s}\n", out.data);
    buf_release(&out);
}

static int show_one(struct fleet *fleet, const char *what, const char *prefix, const char *name)
{
    bool is_job = strcmp(what, "job") == 0;
    struct hash hash;
    struct err err;
    hash_init(&hash);
    int rc = fleet_hash(fleet, prefix, name, &hash, &err);
    if (rc == 0 && hash.count == 0)
        rc = err_set(&err, ERR_NOT_FOUND, ERR_REJECT,
                     "Redis knows no %s \"%s\": it was never accepted, still waits in Kafka, or "
                     "ended so long ago that it was forgotten%s%s%s",
                     what, name,
                     is_job ? "; whether it was refused, and why, says: atelier redrive " : "",
                     is_job ? name : "", is_job ? " --dlq --dry-run" : "");
    if (rc == 0)
        print_hash(what, name, &hash, fleet->options.json);
    hash_release(&hash);
    return rc == 0 ? EXIT_ALL_DONE : fleet_fail(fleet, &err);
}

/* ---- the cell ---- */

static void print_cell(const struct fleet *fleet, const struct hash *cell,
                       const struct hash *counts, const struct workers *workers)
{
    struct buf out;
    size_t draining = 0;
    for (size_t i = 0; i < workers->count; i++)
        draining += strcmp(hash_get(&workers->items[i].is, "state"), "draining") == 0;
    if (!fleet->options.json) {
        printf("cell %s\n  leader        %s, epoch %s, seen %s\n  workers       %zu, %zu of them "
               "draining\n",
               fleet->options.services.cell, hash_get(cell, "leader"), hash_get(cell, "epoch"),
               hash_get(cell, "time"), workers->count, draining);
        for (size_t i = 0; i < counts->count; i++)
            printf("  %-13s %s\n", counts->names[i], counts->values[i]);
        return;
    }
    buf_init(&out, 1 << 20);
    buf_str(&out, "{\"cell\":");
    json_write_string(&out, fleet->options.services.cell, strlen(fleet->options.services.cell));
    hash_write(cell, &out);
    buf_printf(&out, ",\"workers\":%zu,\"draining\":%zu,\"counts\":", workers->count, draining);
    hash_write_object(counts, &out);
    printf("%s}\n", out.data);
    buf_release(&out);
}

static int show_cell(struct fleet *fleet)
{
    struct hash cell, counts;
    struct workers workers = {0};
    struct err err;
    hash_init(&cell);
    hash_init(&counts);
    int rc = fleet_hash(fleet, REDIS_CELL, "", &cell, &err);
    if (rc == 0 && cell.count == 0)
        rc = err_set(&err, ERR_NOT_FOUND, ERR_REJECT,
                     "nobody has led this cell since Redis began; start atelier-coordinator");
    if (rc == 0)
        rc = fleet_hash(fleet, REDIS_COUNTS, "", &counts, &err);
    if (rc == 0)
        rc = workers_read(fleet, &workers, &err);
    if (rc == 0)
        print_cell(fleet, &cell, &counts, &workers);
    workers_release(&workers);
    hash_release(&cell);
    hash_release(&counts);
    return rc == 0 ? EXIT_ALL_DONE : fleet_fail(fleet, &err);
}

int command_status(int argc, char **argv)
{
    struct fleet fleet;
    int status;
    if (!fleet_begin(&fleet, &status_table, argc, argv, &status))
        return status;
    if (fleet.options.word && fleet.options.batch)
        return fleet_usage(&fleet, "name a job or --batch NAME, not both");
    if (fleet.options.word)
        status = show_one(&fleet, "job", REDIS_JOB, fleet.options.word);
    else if (fleet.options.batch)
        status = show_one(&fleet, "batch", REDIS_BATCH, fleet.options.batch);
    else
        status = show_cell(&fleet);
    return fleet_end(&fleet, status);
}

int command_workers(int argc, char **argv)
{
    struct fleet fleet;
    struct workers workers = {0};
    struct err err;
    int status;
    if (!fleet_begin(&fleet, &workers_table, argc, argv, &status))
        return status;
    if (workers_read(&fleet, &workers, &err) != 0) {
        status = fleet_fail(&fleet, &err);
    } else {
        status = EXIT_ALL_DONE;
        if (fleet.options.json)
            workers_write_json(&fleet, &workers, stdout);
        else
            workers_write_table(&fleet, &workers, stdout);
    }
    workers_release(&workers);
    return fleet_end(&fleet, status);
}

/*
 * atelier get: results from object storage into a directory, DIR/<job>/<file>, the manifest last,
 * so that a folder with a manifest is whole. Every file is checked against the manifest's hash,
 * also one that is there already; what an interrupted download has left is gone on with.
 */
#include "cli/fleet.h"
#include "cli/progress.h"
#include "common/file.h"
#include "common/plural.h"
#include "common/sha256.h"
#include "net/s3.h"
#include "schema/manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX_BYTES (256u << 20)
#define SHOW_AFTER_MS 2000

static const struct conf_row rows[] = {
    {"out", CONF_STRING, FLEET_AT(out), "DIR", NULL, 0, 0, NULL,
     "where the results go, a folder for each job; the same directory again resumes"},
    FLEET_BATCH_ROW("every job of the batch that has succeeded, as the journal has them"),
    SERVICE_ROWS(struct fleet_options, services),
    SERVICE_S3_ROWS(struct fleet_options, services),
    FLEET_JSON_ROW,
};

const struct conf_table get_table = {
    .command = "atelier get",
    .family = cli_tables,
    .usage = "atelier get JOB | --batch NAME --out DIR [options]",
    .summary = "Fetches the pictures and manifests of jobs that have succeeded, checking every "
               "file's hash. Exit status: 0 all of them are there, 1 there are no results of that "
               "name (yet), 4 some could not be fetched, 5 the store could not be reached, 130 "
               "interrupted.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "JOB",
    .positional_offset = FLEET_AT(word),
};

struct get {
    struct fleet fleet;
    struct s3 *s3;
    struct ledger ledger; /* of the batch: card is the place in `ids` + 1 */
    char **ids;
    size_t count, cap;
    uint64_t jobs, failed, files, there, bytes;
    int64_t begun_ms, shown_ms;
};

static int open_store(struct get *get, struct err *err)
{
    struct s3_options options;
    if (service_s3(&get->fleet.options.services, get->fleet.clock, &options, err) != 0)
        return -1;
    return s3_create(&get->s3, &options, err);
}

/* ---- which jobs ---- */

static int add_id(struct get *get, const char *id, struct err *err)
{
    bool fresh;
    struct ledger_entry *entry = ledger_enter(&get->ledger, id, &fresh, err);
    if (!entry)
        return -1;
    if (!fresh)
        return 0;
    if (get->count == get->cap) {
        size_t cap = get->cap ? get->cap * 2 : 256;
        char **bigger = realloc(get->ids, cap * sizeof(*bigger));
        if (!bigger)
            return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the batch's ids");
        get->ids = bigger;
        get->cap = cap;
    }
    get->ids[get->count] = strdup(id);
    if (!get->ids[get->count])
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the batch's ids");
    get->count++;
    return 0;
}

static int take_state(void *user, const struct kafka_message *message, struct err *err)
{
    struct get *get = user;
    struct state state;
    int rc = 0;
    if (!message->key || message->key_len == 0 || message->key[0] == '@' || !message->value ||
        state_read(&state, message->value, message->value_len, err) != 0)
        return 0;
    if (state.kind == STATE_SUCCEEDED && state.batch && job_id_valid(state.id) &&
        strcmp(state.batch, get->fleet.options.batch) == 0)
        rc = add_id(get, state.id, err);
    state_release(&state);
    return rc;
}

/* ---- one job ---- */

/* Whether the file is there with the right hash. */
static bool is_there(const char *path, const struct manifest_file *file)
{
    struct buf bytes;
    char hash[SHA256_HEX_BYTES];
    bool right = false;
    if (!file_exists(path))
        return false;
    buf_init(&bytes, FILE_MAX_BYTES);
    if (file_read(&bytes, path, NULL) == 0 && bytes.len == file->bytes) {
        sha256_hex(hash, bytes.data, bytes.len);
        right = strcmp(hash, file->sha256) == 0;
    }
    buf_release(&bytes);
    return right;
}

/* A manifest is outside bytes: its names must not lead out of the folder. */
static bool is_plain(const struct manifest_file *file)
{
    return file->name[0] != '\0' && file->name[0] != '.' && !strchr(file->name, '/') &&
           strlen(file->sha256) == SHA256_HEX_BYTES - 1;
}

static int fetch_file(struct get *get, const char *id, const char *folder,
                      const struct manifest_file *file, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES], key[S3_KEY_MAX_BYTES + 1];
    if (!is_plain(file))
        return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: its manifest names no file \"%.80s\"", id,
                       file->name);
    if (file_join(path, folder, file->name, err) != 0)
        return -1;
    if (is_there(path, file)) {
        get->there++;
        return 0;
    }
    snprintf(key, sizeof(key), "results/%s/%s", id, file->name);
    if (s3_get_file(get->s3, (struct s3_object){NULL, key}, path, file->sha256, FILE_MAX_BYTES,
                    err) != 0)
        return -1;
    get->files++;
    get->bytes += file->bytes;
    return 0;
}

static int fetch_files(struct get *get, const char *id, const struct manifest_view *view,
                       struct err *err)
{
    struct manifest_file files[JOB_IMAGES_MAX];
    char folder[FILE_PATH_MAX_BYTES];
    size_t count = manifest_view_files(view, files, JOB_IMAGES_MAX);
    if (count > JOB_IMAGES_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s: its manifest names %zu files", id, count);
    if (file_join(folder, get->fleet.options.out, id, err) != 0 || file_make_dir(folder, err) != 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (fleet_interrupted())
            return err_set(err, ERR_CANCELLED, ERR_FATAL, "interrupted");
        if (fetch_file(get, id, folder, &files[i], err) != 0)
            return -1;
    }
    return 0;
}

static int fetch_job(struct get *get, const char *id, struct err *err)
{
    char key[S3_KEY_MAX_BYTES + 1], path[FILE_PATH_MAX_BYTES], name[JOB_NAME_MAX_BYTES + 32];
    struct manifest_view view = {0};
    struct buf text;
    snprintf(key, sizeof(key), "results/%s/" MANIFEST_NAME, id);
    snprintf(name, sizeof(name), "%s/" MANIFEST_NAME, id);
    buf_init(&text, MANIFEST_MAX_BYTES);
    int rc = s3_get(get->s3, (struct s3_object){NULL, key}, &text, err);
    if (rc != 0 && err->code == ERR_NOT_FOUND)
        err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                "there are no results of a job \"%s\": it has not succeeded (see: atelier status "
                "%s), or they were removed",
                id, id);
    if (rc == 0)
        rc = manifest_read(&view, text.data, text.len, err);
    if (rc == 0)
        rc = fetch_files(get, id, &view, err);
    if (rc == 0)
        rc = file_join(path, get->fleet.options.out, name, err);
    if (rc == 0)
        rc = file_write(path, text.data, text.len, FILE_REPLACE, err);
    manifest_view_release(&view);
    buf_release(&text);
    return rc;
}

/* ---- all of them ---- */

static void show(struct get *get, bool last)
{
    int64_t now = clock_monotonic_ns(get->fleet.clock) / 1000000;
    bool terminal = isatty(STDERR_FILENO);
    if (get->fleet.options.json || now - get->begun_ms < SHOW_AFTER_MS ||
        (!last && now - get->shown_ms < (terminal ? 200 : 5000)))
        return;
    get->shown_ms = now;
    fprintf(stderr, "%s%" PRIu64 "/%zu job%s, %" PRIu64 " file%s, %.1f MB%s",
            terminal ? "\r\033[K" : "", get->jobs, get->count, plural(get->count), get->files,
            plural(get->files), (double)get->bytes * 1e-6, terminal && !last ? "" : "\n");
}

/* 0, or -1 for what ends the whole: a store that cannot be reached. */
static int fetch_one(struct get *get, const char *id, struct err *err)
{
    if (fetch_job(get, id, err) == 0) {
        get->jobs++;
        if (get->fleet.options.json)
            printf("{\"event\":\"job\",\"id\":\"%s\"}\n", id);
        return 0;
    }
    if (err->class != ERR_REJECT || get->fleet.options.word)
        return -1;
    get->failed++;
    fprintf(stderr, "%s: %s: %s\n", get->fleet.table->command, id, err->message);
    return 0;
}

static int fetch_all(struct get *get, struct err *err)
{
    const struct fleet_options *options = &get->fleet.options;
    get->begun_ms = clock_monotonic_ns(get->fleet.clock) / 1000000;
    if (open_store(get, err) != 0 || file_make_dir(options->out, err) != 0)
        return -1;
    if (options->batch) {
        if (fleet_read_topic(&get->fleet, TOPIC_STATE, take_state, get, err) != 0)
            return -1;
        if (get->count == 0)
            return err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                           "no job of the batch \"%s\" has succeeded", options->batch);
    } else if (add_id(get, options->word, err) != 0) {
        return -1;
    }
    for (size_t i = 0; i < get->count; i++) {
        if (fetch_one(get, get->ids[i], err) != 0)
            return -1;
        show(get, false);
    }
    show(get, true);
    return 0;
}

static void sum_up(const struct get *get)
{
    char time[32];
    double seconds =
        (double)(clock_monotonic_ns(get->fleet.clock) / 1000000 - get->begun_ms) * 1e-3;
    progress_format_time(seconds, time);
    if (get->fleet.options.json)
        printf("{\"event\":\"end\",\"jobs\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"files\":%" PRIu64
               ",\"there\":%" PRIu64 ",\"bytes\":%" PRIu64 "}\n",
               get->jobs, get->failed, get->files, get->there, get->bytes);
    else
        printf("%" PRIu64 " job%s in %s: %" PRIu64 " file%s fetched, %" PRIu64
               " %s there, %.1f MB in %s\n",
               get->jobs, plural(get->jobs), get->fleet.options.out, get->files, plural(get->files),
               get->there, get->there == 1 ? "was" : "were", (double)get->bytes * 1e-6, time);
}

int command_get(int argc, char **argv)
{
    struct get get = {0};
    struct err err;
    int status;
    if (!fleet_begin(&get.fleet, &get_table, argc, argv, &status))
        return status;
    if (!fleet_one_of(&get.fleet, "job"))
        return EXIT_USAGE;
    if (!get.fleet.options.out)
        return fleet_usage(&get.fleet, "where to? name a directory with --out DIR");
    if (get.fleet.options.word && !job_id_valid(get.fleet.options.word))
        return fleet_usage(&get.fleet, "that is no job's id");
    if (fetch_all(&get, &err) != 0) {
        status = fleet_fail(&get.fleet, &err);
    } else {
        sum_up(&get);
        status = get.failed > 0 ? EXIT_FAILED : EXIT_ALL_DONE;
    }
    for (size_t i = 0; i < get.count; i++)
        free(get.ids[i]);
    free(get.ids);
    ledger_release(&get.ledger);
    s3_free(get.s3);
    return fleet_end(&get.fleet, status);
}

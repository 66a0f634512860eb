#include "worker/journal.h"

#include "common/json.h"
#include "schema/job.h"
#include "schema/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- jobs that were begun and not ended ---- */

/* Few: what was in flight when runs were killed. */
struct open_jobs {
    char (*ids)[JOB_NAME_MAX_BYTES + 1];
    size_t count, cap;
};

static int open_jobs_add(struct open_jobs *jobs, const char *id)
{
    if (strlen(id) > JOB_NAME_MAX_BYTES)
        return 0;
    if (jobs->count == jobs->cap) {
        size_t cap = jobs->cap ? jobs->cap * 2 : 64;
        void *ids = realloc(jobs->ids, cap * sizeof(jobs->ids[0]));
        if (!ids)
            return -1;
        jobs->ids = ids;
        jobs->cap = cap;
    }
    strcpy(jobs->ids[jobs->count++], id);
    return 0;
}

static void open_jobs_remove(struct open_jobs *jobs, const char *id)
{
    for (size_t i = jobs->count; i-- > 0;)
        if (strcmp(jobs->ids[i], id) == 0) {
            memmove(jobs->ids[i], jobs->ids[--jobs->count], sizeof(jobs->ids[0]));
            return;
        }
}

/* ---- reading ---- */

/* One line at a time; `at` is where it begins. Whatever is no JSON object is passed over. */
static int read_lines(const struct journal *journal,
                      int (*see)(void *user, const struct json *line, uint64_t at, struct err *err),
                      void *user, uint64_t *whole, struct err *err)
{
    static const struct json_limits limits = {JOURNAL_LINE_MAX_BYTES, 8, 4096};
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    int rc = 0;
    FILE *file = fopen(journal->path, "re");
    if (!file)
        return file_error(err, errno, "read", journal->path);
    uint64_t at = 0;
    *whole = 0;
    while (rc == 0 && (len = getline(&line, &cap, file)) > 0) {
        struct json_doc *doc;
        if (line[len - 1] == '\n')
            *whole = at + (uint64_t)len;
        if (line[len - 1] == '\n' && json_parse(&doc, line, (size_t)len, &limits, NULL) == 0) {
            rc = see(user, json_root(doc), at, err);
            json_doc_free(doc);
        }
        at += (uint64_t)len;
    }
    if (rc == 0 && ferror(file))
        rc = file_error(err, errno, "read", journal->path);
    free(line);
    fclose(file);
    return rc;
}

struct loading {
    struct ledger *ledger;
    struct open_jobs open;
};

static int load_line(void *user, const struct json *line, uint64_t at, struct err *err)
{
    struct loading *loading = user;
    const char *begun = json_string_or(json_get(line, "begin"), NULL);
    const char *done = json_string_or(json_get(line, "done"), NULL);
    const char *failed = json_string_or(json_get(line, "failed"), NULL);
    const char *swept = json_string_or(json_get(line, "swept"), NULL);
    const char *ended = done ? done : failed ? failed : swept;
    bool fresh;
    if (begun && open_jobs_add(&loading->open, begun) != 0)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to read the journal");
    if (ended)
        open_jobs_remove(&loading->open, ended);
    if (!done && !failed)
        return 0;
    struct ledger_entry *entry = ledger_enter(loading->ledger, done ? done : failed, &fresh, err);
    if (!entry)
        return -1;
    entry->card = (at + 1) & INT64_MAX;
    entry->content = strtoull(json_string_or(json_get(line, "content"), ""), NULL, 16);
    return 0;
}

/* ---- what stands beside a model ---- */

static void list_name(char list[JOURNAL_BESIDE_BYTES], const char *name, double scale)
{
    size_t used = strlen(list);
    int n = snprintf(list + used, JOURNAL_BESIDE_BYTES - used, scale == 1 ? "%s%s" : "%s%s × %g",
                     used ? ", " : "", name, scale);
    if (n < 0 || (size_t)n >= JOURNAL_BESIDE_BYTES - used)
        list[used] = '\0'; /* whole names only */
}

struct journal_beside journal_beside_of(const struct job *job)
{
    struct journal_beside beside = {.loras = ""};
    for (size_t i = 0; i < job->lora_count; i++)
        list_name(beside.loras, job->loras[i].name, job->loras[i].scale);
    for (size_t i = 0; i < job->controlnet_count; i++)
        list_name(beside.controlnets, job->controlnets[i].name, job->controlnets[i].scale);
    for (size_t i = 0; i < job->embedding_count; i++)
        list_name(beside.embeddings, job->embeddings[i], 1);
    return beside;
}

static void read_beside(struct journal_beside *beside, const struct json *line)
{
    char *const lists[] = {beside->loras, beside->controlnets, beside->embeddings};
    static const char *const keys[] = {"loras", "controlnets", "embeddings"};
    for (int i = 0; i < 3; i++)
        snprintf(lists[i], JOURNAL_BESIDE_BYTES, "%s", json_string_or(json_get(line, keys[i]), ""));
}

/* ---- writing ---- */

static int append(struct journal *journal, struct err *err)
{
    struct buf *line = &journal->line;
    buf_char(line, '\n');
    if (line->failed)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to write the journal");
    ssize_t n = write(journal->fd, line->data, line->len);
    if (n == (ssize_t)line->len) {
        journal->end += line->len;
        return 0;
    }
    int error = n < 0 ? errno : ENOSPC;
    /* A torn line would swallow the next one. */
    if (n > 0 && ftruncate(journal->fd, (off_t)journal->end) != 0)
        error = errno;
    return file_error(err, error, "write", journal->path);
}

static void start_line(struct journal *journal, const char *key, const char *id)
{
    buf_clear(&journal->line);
    buf_printf(&journal->line, "{\"%s\":", key);
    json_write_string(&journal->line, id, strlen(id));
}

static int journal_word(struct journal *journal, const char *key, const char *id, struct err *err)
{
    start_line(journal, key, id);
    buf_char(&journal->line, '}');
    return append(journal, err);
}

int journal_begin(struct journal *journal, const char *id, struct err *err)
{
    return journal_word(journal, "begin", id, err);
}

static void put_text(struct buf *line, const char *key, const char *text)
{
    if (!text)
        return;
    buf_printf(line, ",\"%s\":", key);
    json_write_string(line, text, strlen(text));
}

/* Only where there is something. */
static void put_beside(struct buf *line, const struct journal_beside *beside)
{
    put_text(line, "loras", *beside->loras ? beside->loras : NULL);
    put_text(line, "controlnets", *beside->controlnets ? beside->controlnets : NULL);
    put_text(line, "embeddings", *beside->embeddings ? beside->embeddings : NULL);
}

int journal_card(struct journal *journal, const struct journal_card *card, struct err *err)
{
    struct buf *line = &journal->line;
    uint64_t at = journal->end;
    bool fresh;
    start_line(journal, card->error ? "failed" : "done", card->id);
    buf_printf(line, ",\"content\":\"%016llx\"", (unsigned long long)card->content);
    put_text(line, "error", card->error);
    put_text(line, "model", card->model);
    put_text(line, "prompt", card->prompt);
    put_text(line, "negative_prompt", card->negative_prompt);
    buf_printf(line, ",\"seed\":%llu,\"width\":%d,\"height\":%d,\"steps\":%d,\"seconds\":%.3f",
               (unsigned long long)card->seed, card->width, card->height, card->steps,
               card->seconds);
    put_beside(line, &card->beside);
    buf_str(line, ",\"files\":[");
    for (size_t i = 0; i < card->file_count; i++) {
        buf_str(line, i ? "," : "");
        json_write_string(line, card->files[i], strlen(card->files[i]));
    }
    buf_str(line, "]}");
    if (append(journal, err) != 0)
        return -1;
    struct ledger_entry *entry = ledger_enter(journal->ledger, card->id, &fresh, err);
    if (!entry)
        return -1;
    entry->card = (at + 1) & INT64_MAX;
    entry->content = card->content;
    return 0;
}

static int sweep(struct journal *journal, const struct store *store, const struct open_jobs *open,
                 struct err *err)
{
    for (size_t i = 0; i < open->count; i++) {
        if (!job_id_valid(open->ids[i]))
            continue;
        if (store_sweep(store, open->ids[i], err) != 0 ||
            journal_word(journal, "swept", open->ids[i], err) != 0)
            return -1;
    }
    return 0;
}

int journal_open(struct journal *journal, const char *dir, const struct store *store,
                 struct ledger *ledger, struct err *err)
{
    struct loading loading = {.ledger = ledger};
    int rc = -1;
    *journal = (struct journal){.fd = -1, .ledger = ledger};
    buf_init(&journal->line, JOURNAL_LINE_MAX_BYTES);
    if (file_join(journal->path, dir, JOURNAL_NAME, err) != 0)
        return -1;
    journal->fd = open(journal->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (journal->fd < 0)
        return file_error(err, errno, "write", journal->path);
    if (read_lines(journal, load_line, &loading, &journal->end, err) != 0)
        goto out;
    if (ftruncate(journal->fd, (off_t)journal->end) != 0) {
        file_error(err, errno, "write", journal->path);
        goto out;
    }
    rc = sweep(journal, store, &loading.open, err);
out:
    free(loading.open.ids);
    if (rc != 0)
        journal_close(journal);
    return rc;
}

void journal_close(struct journal *journal)
{
    if (journal->fd >= 0)
        close(journal->fd);
    journal->fd = -1;
    buf_release(&journal->line);
}

/* ---- walking the cards ---- */

struct walking {
    const struct journal *journal;
    int (*see)(void *user, const struct journal_card *card, struct err *err);
    void *user;
};

static int walk_line(void *user, const struct json *line, uint64_t at, struct err *err)
{
    struct walking *walking = user;
    char files[JOB_IMAGES_MAX][MANIFEST_FILE_NAME_BYTES];
    const char *done = json_string_or(json_get(line, "done"), NULL);
    const char *failed = json_string_or(json_get(line, "failed"), NULL);
    if (!done && !failed)
        return 0;
    const struct ledger_entry *entry = ledger_find(walking->journal->ledger, done ? done : failed);
    if (!entry || entry->card != at + 1)
        return 0;
    struct journal_card card = {
        .id = done ? done : failed,
        .error = failed ? json_string_or(json_get(line, "error"), "unknown") : NULL,
        .model = json_string_or(json_get(line, "model"), NULL),
        .prompt = json_string_or(json_get(line, "prompt"), NULL),
        .negative_prompt = json_string_or(json_get(line, "negative_prompt"), NULL),
        .seed = (uint64_t)json_int_or(json_get(line, "seed"), 0),
        .width = (int)json_int_or(json_get(line, "width"), 0),
        .height = (int)json_int_or(json_get(line, "height"), 0),
        .steps = (int)json_int_or(json_get(line, "steps"), 0),
        .seconds = json_double_or(json_get(line, "seconds"), 0),
        .files = files,
    };
    read_beside(&card.beside, line);
    const struct json *list = json_get(line, "files");
    const struct json *file = list && list->type == JSON_ARRAY ? list->child : NULL;
    for (; file && card.file_count < JOB_IMAGES_MAX; file = file->next)
        snprintf(files[card.file_count++], sizeof(files[0]), "%.95s", json_string_or(file, ""));
    return walking->see(walking->user, &card, err);
}

int journal_walk(const struct journal *journal,
                 int (*see)(void *user, const struct journal_card *card, struct err *err),
                 void *user, struct err *err)
{
    struct walking walking = {journal, see, user};
    uint64_t whole;
    return read_lines(journal, walk_line, &walking, &whole, err);
}

#include "coordinator/journal.h"

#include "common/buf.h"
#include "common/clock.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH_MAX_BYTES (256u << 20)
#define NO_TEXT SIZE_MAX

/* A record or a note in a batch's buffer: sizes and offsets, since the buffer moves as it grows. */
struct entry {
    size_t topic, key, value, headers; /* offsets of texts; NO_TEXT: NULL */
    size_t key_len, value_len, header_count;
};

struct noted {
    struct journal_note note;
    size_t id, text;
};

struct batch {
    struct buf texts;
    struct entry *entries;
    struct noted *notes;
    size_t entry_count, entry_cap, note_count, note_cap;
    struct kafka_offsets offsets[JOURNAL_SOURCES];
    bool has_offsets, failed; /* failed: out of memory */
};

enum phase { IDLE, COMMITTING, COMMITTED };

struct journal {
    struct kafka_producer *producer;
    struct batch batches[2], *open, *away; /* `away` is the thread's while COMMITTING */
    size_t source_count, next_note;
    pthread_t thread;
    bool has_thread;
    int fd;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    enum phase phase;
    bool stopping, failed;
    struct err err;
    struct journal_stats stats;
};

/* ---- batches ---- */

static void batch_clear(struct batch *batch)
{
    buf_clear(&batch->texts);
    batch->entry_count = batch->note_count = 0;
    batch->has_offsets = false;
    for (int i = 0; i < JOURNAL_SOURCES; i++)
        for (int p = 0; p < KAFKA_PARTITIONS_MAX; p++)
            batch->offsets[i].next[p] = -1;
}

static void batch_release(struct batch *batch)
{
    buf_release(&batch->texts);
    free(batch->entries);
    free(batch->notes);
}

static size_t keep(struct batch *batch, const void *text, size_t len)
{
    size_t at = batch->texts.len;
    if (!text)
        return NO_TEXT;
    buf_append(&batch->texts, text, len);
    buf_char(&batch->texts, '\0');
    return at;
}

static size_t keep_text(struct batch *batch, const char *text)
{
    return keep(batch, text, text ? strlen(text) : 0);
}

static const char *kept(const struct batch *batch, size_t at)
{
    return at == NO_TEXT ? NULL : batch->texts.data + at;
}

static void *grow(void *items, size_t count, size_t *cap, size_t size)
{
    if (count < *cap)
        return items;
    size_t wanted = *cap ? *cap * 2 : 1024;
    void *bigger = realloc(items, wanted * size);
    if (bigger)
        *cap = wanted;
    return bigger;
}

static struct entry *new_entry(struct batch *batch)
{
    void *entries =
        grow(batch->entries, batch->entry_count, &batch->entry_cap, sizeof(struct entry));
    if (!entries) {
        batch->failed = true;
        return NULL;
    }
    batch->entries = entries;
    return &batch->entries[batch->entry_count++];
}

void journal_put_record(struct journal *journal, const struct kafka_record *record)
{
    struct batch *batch = journal->open;
    struct entry *entry = new_entry(batch);
    if (!entry)
        return;
    entry->topic = keep_text(batch, record->topic);
    entry->key = keep(batch, record->key, record->key_len);
    entry->key_len = record->key_len;
    entry->value = keep(batch, record->value, record->value_len);
    entry->value_len = record->value_len;
    entry->header_count = record->header_count;
    entry->headers = batch->texts.len;
    for (size_t i = 0; i < record->header_count; i++) {
        const struct kafka_header *header = &record->headers[i];
        size_t len = header->value ? header->len : NO_TEXT;
        (void)keep_text(batch, header->name);
        buf_append(&batch->texts, &len, sizeof(len));
        (void)keep(batch, header->value, header->len);
    }
}

void journal_put(struct journal *journal, const char *topic, const char *key, const void *value,
                 size_t value_len)
{
    journal_put_record(journal, &(struct kafka_record){.topic = topic,
                                                       .key = key,
                                                       .key_len = strlen(key),
                                                       .value = value,
                                                       .value_len = value_len});
}

void journal_offset(struct journal *journal, size_t source, int partition, int64_t next)
{
    ASSERT(source < journal->source_count && partition < KAFKA_PARTITIONS_MAX);
    journal->open->offsets[source].next[partition] = next;
    journal->open->has_offsets = true;
}

void journal_after(struct journal *journal, const struct journal_note *note)
{
    struct batch *batch = journal->open;
    void *notes = grow(batch->notes, batch->note_count, &batch->note_cap, sizeof(struct noted));
    if (!notes) {
        batch->failed = true;
        return;
    }
    batch->notes = notes;
    batch->notes[batch->note_count++] = (struct noted){
        .note = *note, .id = keep_text(batch, note->id), .text = keep_text(batch, note->text)};
}

bool journal_is_full(const struct journal *journal)
{
    return journal->open->texts.len >= JOURNAL_BATCH_BYTES;
}

/* ---- the thread ---- */

static size_t read_headers(const struct batch *batch, const struct entry *entry,
                           struct kafka_header headers[KAFKA_HEADERS_MAX])
{
    const char *at = batch->texts.data + entry->headers;
    size_t count =
        entry->header_count < KAFKA_HEADERS_MAX ? entry->header_count : KAFKA_HEADERS_MAX;
    for (size_t i = 0; i < count; i++) {
        size_t len;
        headers[i].name = at;
        at += strlen(at) + 1;
        memcpy(&len, at, sizeof(len));
        at += sizeof(len);
        headers[i].value = len == NO_TEXT ? NULL : at;
        headers[i].len = len == NO_TEXT ? 0 : len;
        at += len == NO_TEXT ? 0 : len + 1;
    }
    return count;
}

static int produce_all(struct journal *journal, const struct batch *batch, struct err *err)
{
    struct kafka_header headers[KAFKA_HEADERS_MAX];
    for (size_t i = 0; i < batch->entry_count; i++) {
        const struct entry *entry = &batch->entries[i];
        struct kafka_record record = {.topic = kept(batch, entry->topic),
                                      .key = kept(batch, entry->key),
                                      .key_len = entry->key_len,
                                      .value = kept(batch, entry->value),
                                      .value_len = entry->value_len,
                                      .headers = headers};
        record.header_count = read_headers(batch, entry, headers);
        if (kafka_produce(journal->producer, &record, err) != 0)
            return -1;
    }
    for (size_t i = 0; batch->has_offsets && i < journal->source_count; i++)
        if (kafka_send_offsets(journal->producer, &batch->offsets[i], err) != 0)
            return -1;
    return 0;
}

/* Until it is committed or never will be. */
static int commit(struct journal *journal, const struct batch *batch, struct err *err)
{
    struct err aborting;
    if (batch->failed || batch->texts.failed)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the journal's batch");
    for (;;) {
        if (kafka_begin(journal->producer, err) != 0)
            return -1;
        if (produce_all(journal, batch, err) == 0) {
            if (kafka_commit(journal->producer, err) == 0)
                return 0;
        } else if (err->class == ERR_RETRY && kafka_abort(journal->producer, &aborting) != 0) {
            *err = aborting;
        }
        if (err->class != ERR_RETRY)
            return -1;
    }
}

static void wake(const struct journal *journal)
{
    const uint64_t one = 1;
    ssize_t n = write(journal->fd, &one, sizeof(one));
    (void)n;
}

static void *journal_main(void *user)
{
    struct journal *journal = user;
    struct err err;
    pthread_mutex_lock(&journal->lock);
    while (!journal->stopping) {
        if (journal->phase != COMMITTING || journal->failed) {
            pthread_cond_wait(&journal->changed, &journal->lock);
            continue;
        }
        pthread_mutex_unlock(&journal->lock);
        int64_t begin = clock_monotonic_ns(clock_system());
        int rc = commit(journal, journal->away, &err);
        pthread_mutex_lock(&journal->lock);
        journal->stats.commit_s = (double)(clock_monotonic_ns(clock_system()) - begin) * 1e-9;
        if (rc != 0) {
            journal->failed = true;
            journal->err = err;
        } else {
            journal->stats.batches++;
            journal->stats.records += journal->away->entry_count;
            journal->stats.bytes += journal->away->texts.len;
            journal->phase = COMMITTED;
        }
        wake(journal);
    }
    pthread_mutex_unlock(&journal->lock);
    return NULL;
}

/* ---- life ---- */

int journal_create(struct journal **out, struct kafka_producer *producer, const char *group,
                   const char *const *topics, size_t topic_count, struct err *err)
{
    struct journal *journal = calloc(1, sizeof(*journal));
    *out = NULL;
    if (!journal) {
        kafka_producer_free(producer);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the journal");
    }
    ASSERT(topic_count <= JOURNAL_SOURCES);
    journal->producer = producer;
    journal->source_count = topic_count;
    pthread_mutex_init(&journal->lock, NULL);
    pthread_cond_init(&journal->changed, NULL);
    journal->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    for (int b = 0; b < 2; b++) {
        buf_init(&journal->batches[b].texts, BATCH_MAX_BYTES);
        batch_clear(&journal->batches[b]);
        for (size_t i = 0; i < topic_count; i++) {
            journal->batches[b].offsets[i].topic = topics[i];
            journal->batches[b].offsets[i].group = group;
        }
    }
    journal->open = &journal->batches[0];
    journal->away = &journal->batches[1];
    if (journal->fd < 0 || pthread_create(&journal->thread, NULL, journal_main, journal) != 0) {
        journal_free(journal);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "cannot start the thread at-journal");
    }
    pthread_setname_np(journal->thread, "at-journal");
    journal->has_thread = true;
    *out = journal;
    return 0;
}

void journal_free(struct journal *journal)
{
    if (!journal)
        return;
    pthread_mutex_lock(&journal->lock);
    journal->stopping = true;
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->lock);
    kafka_leave(journal->producer);
    if (journal->has_thread)
        pthread_join(journal->thread, NULL);
    kafka_producer_free(journal->producer);
    batch_release(&journal->batches[0]);
    batch_release(&journal->batches[1]);
    pthread_cond_destroy(&journal->changed);
    pthread_mutex_destroy(&journal->lock);
    if (journal->fd >= 0)
        close(journal->fd);
    free(journal);
}

/* ---- the main loop's side ---- */

void journal_kick(struct journal *journal)
{
    const struct batch *open = journal->open;
    if (open->entry_count == 0 && open->note_count == 0 && !open->has_offsets)
        return;
    pthread_mutex_lock(&journal->lock);
    if (journal->phase == IDLE && !journal->failed) {
        struct batch *full = journal->open;
        journal->open = journal->away;
        journal->away = full;
        journal->phase = COMMITTING;
        pthread_cond_signal(&journal->changed);
    }
    pthread_mutex_unlock(&journal->lock);
}

bool journal_next(struct journal *journal, struct journal_note *note)
{
    pthread_mutex_lock(&journal->lock);
    bool committed = journal->phase == COMMITTED;
    pthread_mutex_unlock(&journal->lock);
    if (!committed) {
        uint64_t count;
        ssize_t n = read(journal->fd, &count, sizeof(count));
        (void)n;
        return false;
    }
    struct batch *batch = journal->away;
    if (journal->next_note < batch->note_count) {
        const struct noted *noted = &batch->notes[journal->next_note++];
        *note = noted->note;
        note->id = kept(batch, noted->id);
        note->text = kept(batch, noted->text);
        return true;
    }
    batch_clear(batch);
    journal->next_note = 0;
    pthread_mutex_lock(&journal->lock);
    journal->phase = IDLE;
    pthread_mutex_unlock(&journal->lock);
    journal_kick(journal);
    return false;
}

int journal_fd(const struct journal *journal)
{
    return journal->fd;
}

bool journal_failed(struct journal *journal, struct err *err)
{
    pthread_mutex_lock(&journal->lock);
    bool failed = journal->failed;
    if (failed)
        *err = journal->err;
    pthread_mutex_unlock(&journal->lock);
    return failed;
}

struct journal_stats journal_stats(struct journal *journal)
{
    pthread_mutex_lock(&journal->lock);
    struct journal_stats stats = journal->stats;
    pthread_mutex_unlock(&journal->lock);
    return stats;
}

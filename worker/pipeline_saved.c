/*
 * What a hand-back keeps of a task: a header, then for each picture that has got anywhere its
 * index, a kind and so many bytes: a session's state or the entry of a stored file. It is read by
 * the same version of the same program; anything else begins anew.
 */
#include "worker/pipeline_parts.h"

#include <string.h>

#define SAVED_MAGIC 0x56535441u /* "ATSV" */
#define SAVED_VERSION 1
#define SAVED_MAX_BYTES ((size_t)1 << 30)

enum kind { KIND_SESSION = 1, KIND_FILE = 2 };

struct header {
    uint32_t magic, version, file_bytes, reserved;
};

struct part {
    uint32_t index, kind;
    uint64_t bytes;
};

static void begin(struct buf *saved)
{
    const struct header header = {SAVED_MAGIC, SAVED_VERSION, sizeof(struct manifest_file), 0};
    if (saved->max_bytes == 0)
        buf_init(saved, SAVED_MAX_BYTES);
    if (saved->len == 0)
        buf_append(saved, &header, sizeof(header));
}

static void add(struct buf *saved, int index, enum kind kind, const void *bytes, size_t len)
{
    const struct part part = {(uint32_t)index, kind, len};
    size_t before = saved->len;
    buf_append(saved, &part, sizeof(part));
    buf_append(saved, bytes, len);
    if (saved->failed) { /* without this one, then */
        saved->failed = false;
        saved->len = before;
    }
}

void saved_add_session(struct pipeline *pipeline, struct picture *picture)
{
    struct task *task = picture->task;
    struct buf state;
    struct err err;
    buf_init(&state, SAVED_MAX_BYTES);
    if (session_save(picture->session, &state, &err) == 0) {
        pthread_mutex_lock(&pipeline->lock);
        if (!task->handed_back) /* what it began from is used up */
            buf_release(&task->saved);
        task->handed_back = true;
        begin(&task->saved);
        add(&task->saved, picture->index, KIND_SESSION, state.data, state.len);
        pthread_mutex_unlock(&pipeline->lock);
    }
    buf_release(&state);
}

void saved_add_files(struct pipeline *pipeline, struct task *task)
{
    pthread_mutex_lock(&pipeline->lock);
    for (int i = 0; i < task->job.images; i++) {
        if (task->files[i].name[0] == '\0')
            continue;
        if (!task->handed_back)
            buf_release(&task->saved);
        task->handed_back = true;
        begin(&task->saved);
        add(&task->saved, i, KIND_FILE, &task->files[i], sizeof(task->files[i]));
    }
    pthread_mutex_unlock(&pipeline->lock);
}

/* The part of a picture, or NULL. */
static const char *find(const struct buf *saved, int index, struct part *part)
{
    struct header header;
    size_t at = sizeof(header);
    if (saved->len < sizeof(header))
        return NULL;
    memcpy(&header, saved->data, sizeof(header));
    if (header.magic != SAVED_MAGIC || header.version != SAVED_VERSION ||
        header.file_bytes != sizeof(struct manifest_file))
        return NULL;
    while (saved->len - at >= sizeof(*part)) {
        memcpy(part, saved->data + at, sizeof(*part));
        at += sizeof(*part);
        if (part->bytes > saved->len - at)
            return NULL;
        if (part->index == (uint32_t)index)
            return saved->data + at;
        at += part->bytes;
    }
    return NULL;
}

int saved_take(struct picture *picture, bool *found, struct err *err)
{
    struct task *task = picture->task;
    struct part part;
    const char *bytes = find(&task->saved, picture->index, &part);
    *found = bytes != NULL;
    if (!bytes)
        return 0;
    if (part.kind == KIND_SESSION)
        return session_restore(&picture->session, task->held, task->refiner, bytes, part.bytes,
                               NULL, err);
    if (part.kind != KIND_FILE || part.bytes != sizeof(task->files[0]))
        return err_set(err, ERR_FORMAT, ERR_RETRY, "a checkpoint with an unknown part");
    memcpy(&task->files[picture->index], bytes, part.bytes);
    picture->published = true;
    return 0;
}

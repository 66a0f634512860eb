#include "net/download.h"

#include "common/file.h"
#include "common/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TAG_MAX_BYTES 4096

struct part {
    const struct download *download;
    int fd;
    uint64_t bytes;  /* that are there */
    uint64_t begin;  /* where the current try goes on */
    uint64_t record; /* the most that ever were there */
    char etag[HTTP_ETAG_BYTES];
    char path[FILE_PATH_MAX_BYTES], tag_path[FILE_PATH_MAX_BYTES];
};

/* A weak ETag says nothing about bytes. */
static bool is_strong(const char *etag)
{
    return *etag == '"';
}

static int start_over(struct part *part, struct err *err)
{
    part->bytes = 0;
    part->etag[0] = '\0';
    unlink(part->tag_path);
    return ftruncate(part->fd, 0) == 0 ? 0 : file_error(err, errno, "write", part->path);
}

/* Whether what an earlier call left may be gone on with. */
static bool read_tag(struct part *part)
{
    struct buf text;
    bool ours = false;
    buf_init(&text, TAG_MAX_BYTES);
    if (file_read(&text, part->tag_path, NULL) == 0) {
        char *line = strchr(text.data, '\n');
        if (line && strlen(line + 1) < sizeof(part->etag)) {
            *line = '\0';
            ours = strcmp(text.data, part->download->request.what) == 0;
            strcpy(part->etag, line + 1);
        }
    }
    buf_release(&text);
    return ours && (is_strong(part->etag) || part->download->sha256);
}

static int write_tag(const struct part *part, struct err *err)
{
    struct buf text;
    buf_init(&text, TAG_MAX_BYTES);
    buf_printf(&text, "%s\n%s", part->download->request.what, part->etag);
    int rc = text.failed ? 0 : file_write(part->tag_path, text.data, text.len, FILE_REPLACE, err);
    buf_release(&text);
    return rc;
}

static int open_part(struct part *part, struct err *err)
{
    const char *path = part->download->path;
    struct stat status;
    int n = snprintf(part->path, sizeof(part->path), "%s.part", path);
    int m = snprintf(part->tag_path, sizeof(part->tag_path), "%s.part.tag", path);
    if (n >= (int)sizeof(part->path) || m >= (int)sizeof(part->tag_path))
        return err_set(err, ERR_LIMIT, ERR_REJECT, "the path %.200s… is too long", path);
    part->fd = open(part->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (part->fd < 0)
        return file_error(err, errno, "write", part->path);
    if (flock(part->fd, LOCK_EX | LOCK_NB) != 0)
        return err_set(err, ERR_CONFLICT, ERR_RETRY, "%s is being downloaded by somebody else",
                       path);
    if (fstat(part->fd, &status) != 0)
        return file_error(err, errno, "read", part->path);
    part->bytes = part->record = (uint64_t)status.st_size;
    return part->bytes > 0 && !read_tag(part) ? start_over(part, err) : 0;
}

static int on_begin(void *user, const struct http_answer *answer, struct err *err)
{
    struct part *part = user;
    const struct download *download = part->download;
    if (answer->status == 206 && answer->range_begin == (int64_t)part->begin) {
        part->bytes = part->begin;
    } else if (answer->status == 206) {
        return err_set(err, ERR_IO, ERR_RETRY, "%s: another range than was asked for",
                       download->request.what);
    } else {
        if (start_over(part, err) != 0)
            return -1;
        memcpy(part->etag, answer->etag, sizeof(part->etag));
        if (write_tag(part, err) != 0)
            return -1;
    }
    if (download->max_bytes && answer->length > 0 &&
        part->bytes + (uint64_t)answer->length > download->max_bytes)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s is larger than %" PRIu64 " bytes",
                       download->request.what, download->max_bytes);
    return 0;
}

static int on_write(void *user, const void *bytes, size_t len, struct err *err)
{
    struct part *part = user;
    const struct download *download = part->download;
    if (download->max_bytes && part->bytes + len > download->max_bytes)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s is larger than %" PRIu64 " bytes",
                       download->request.what, download->max_bytes);
    while (len > 0) {
        ssize_t n = pwrite(part->fd, bytes, len, (off_t)part->bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return file_error(err, n < 0 ? errno : ENOSPC, "write", part->path);
        bytes = (const char *)bytes + n;
        len -= (size_t)n;
        part->bytes += (uint64_t)n;
    }
    return 0;
}

static int try_once(struct part *part, int timeout_ms, struct http_answer *answer, struct err *err)
{
    struct http_request request = part->download->request;
    struct http_sink sink = {on_begin, on_write, part};
    char range[64], match[HTTP_ETAG_BYTES + 16];
    int used = 0;
    while (request.headers[used])
        used++;
    ASSERT(used + 2 <= HTTP_HEADERS_MAX);
    part->begin = part->bytes;
    if (part->begin > 0) {
        snprintf(range, sizeof(range), "Range: bytes=%" PRIu64 "-", part->begin);
        request.headers[used++] = range;
        snprintf(match, sizeof(match), "If-Match: %s", part->etag);
        if (is_strong(part->etag))
            request.headers[used++] = match;
    }
    request.sink = &sink;
    return http_try(part->download->http, &request, timeout_ms, answer, err);
}

/* Until all bytes are there. */
static int pull(struct part *part, struct err *err)
{
    const struct download *download = part->download;
    const struct http_options *options = http_options(download->http);
    struct http_answer answer = {0};
    struct err last = {0};
    struct retry retry;
    retry_begin(&retry, &options->retry, options->clock);
    do {
        answer.tries++;
        /* A large file may take as long as it takes; silence is what idle_timeout_ms is for. */
        bool whole = try_once(part, 0, &answer, &last) == 0;
        if (whole && (answer.status == 200 || answer.status == 206))
            return 0;
        if (!whole && (last.class != ERR_RETRY || last.code == ERR_MEMORY))
            return err_set(err, last.code, last.class, "%s", last.message);
        if (whole) {
            http_refusal(&download->request, &answer, download->refused, &last);
            bool stale = part->begin > 0 && (answer.status == 412 || answer.status == 416);
            if (!stale && !http_is_passing(&answer))
                return err_set(err, last.code, last.class, "%s", last.message);
            if (stale && start_over(part, err) != 0)
                return -1;
        }
        if (part->bytes > part->record) {
            part->record = part->bytes;
            retry_progress(&retry);
        }
    } while (retry_wait(&retry, answer.retry_after_ms));
    return err_set(err, last.code, ERR_RETRY, "%s (tried %d times)", last.message, answer.tries);
}

/* 0: the hash is the one that was given, 1: it is another. */
static int check_hash(const struct part *part, struct err *err)
{
    char hex[SHA256_HEX_BYTES];
    if (!part->download->sha256)
        return 0;
    void *bytes = NULL;
    if (part->bytes > 0) {
        bytes = mmap(NULL, part->bytes, PROT_READ, MAP_SHARED, part->fd, 0);
        if (bytes == MAP_FAILED)
            return file_error(err, errno, "read", part->path);
    }
    sha256_hex(hex, bytes, part->bytes);
    if (bytes)
        munmap(bytes, part->bytes);
    if (strcasecmp(hex, part->download->sha256) == 0)
        return 0;
    err_set(err, ERR_FORMAT, ERR_REJECT, "%s has the SHA-256 %s, not %s",
            part->download->request.what, hex, part->download->sha256);
    return 1;
}

/* 0, -1, or 1 for bytes with another hash, which are gone then. */
static int pull_checked(struct part *part, struct err *err)
{
    int rc = pull(part, err);
    if (rc == 0)
        rc = check_hash(part, err);
    if (rc == 1 && start_over(part, NULL) != 0)
        rc = -1;
    return rc;
}

static int give_name(struct part *part, struct err *err)
{
    const char *path = part->download->path;
    char dir[FILE_PATH_MAX_BYTES];
    if (fsync(part->fd) != 0 || rename(part->path, path) != 0)
        return file_error(err, errno, "write", path);
    unlink(part->tag_path);
    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (!slash)
        strcpy(dir, ".");
    else
        slash[slash == dir] = '\0';
    return file_sync_dir(dir, err);
}

int download_file(const struct download *download, struct err *err)
{
    struct part part = {.download = download, .fd = -1};
    int rc = open_part(&part, err);
    bool resumed = part.bytes > 0;
    if (rc == 0)
        rc = pull_checked(&part, err);
    if (rc == 1 && resumed) /* once more from the start, which was another call's */
        rc = pull_checked(&part, err);
    if (rc == 1)
        rc = -1;
    if (rc == 0)
        rc = give_name(&part, err);
    if (part.fd >= 0)
        close(part.fd);
    return rc;
}

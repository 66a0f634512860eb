#include "cli/lines.h"

#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROOM_BYTES (64u << 10) /* read at once, beyond the longest line */
#define KEPT_BYTES 256         /* of a line that is too long */

static ssize_t read_some(struct lines *lines, char *to, size_t room, struct err *err)
{
    ssize_t n;
    do
        n = read(lines->fd, to, room);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return file_error(err, errno, "read", lines->name);
    return n;
}

/* Counts the lines of a regular file for the progress display, then goes back to its beginning. */
static int count_lines(struct lines *lines, struct err *err)
{
    struct stat status;
    ssize_t n;
    char last = '\n';
    if (fstat(lines->fd, &status) != 0 || !S_ISREG(status.st_mode) ||
        lseek(lines->fd, 0, SEEK_CUR) != 0)
        return 0;
    while ((n = read_some(lines, lines->buffer, lines->max + ROOM_BYTES, err)) > 0) {
        const char *at = lines->buffer, *end = at + n;
        last = end[-1];
        while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL) {
            lines->total++;
            at++;
        }
    }
    lines->total += last != '\n';
    if (n < 0)
        return -1;
    return lseek(lines->fd, 0, SEEK_SET) == 0 ? 0 : file_error(err, errno, "read", lines->name);
}

int lines_open(struct lines *lines, const char *path, size_t max, struct err *err)
{
    *lines = (struct lines){.fd = -1, .name = path, .max = max};
    if (strcmp(path, "-") == 0) {
        lines->fd = STDIN_FILENO;
        lines->name = "standard input";
    } else if (file_is_dir(path)) {
        return err_set(err, ERR_INVALID, ERR_FATAL, "%s is a directory, not a jobs file", path);
    } else {
        lines->fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (lines->fd < 0)
        return file_error(err, errno, "open the jobs file", path);
    lines->buffer = malloc(max + ROOM_BYTES);
    if (!lines->buffer) {
        lines_close(lines);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to read %s", lines->name);
    }
    if (count_lines(lines, err) != 0) {
        lines_close(lines);
        return -1;
    }
    return 0;
}

void lines_close(struct lines *lines)
{
    if (lines->fd > STDIN_FILENO)
        close(lines->fd);
    free(lines->buffer);
    *lines = (struct lines){.fd = -1};
}

static int fill(struct lines *lines, struct err *err)
{
    memmove(lines->buffer, lines->buffer + lines->begin, lines->end - lines->begin);
    lines->end -= lines->begin;
    lines->begin = 0;
    ssize_t n =
        read_some(lines, lines->buffer + lines->end, lines->max + ROOM_BYTES - lines->end, err);
    if (n < 0)
        return -1;
    lines->eof = n == 0;
    lines->end += (size_t)n;
    return 0;
}

/* Passes over the rest of a line whose beginning stays at the buffer's. */
static int skip_rest(struct lines *lines, struct line *line, struct err *err)
{
    line->too_long = true;
    line->len = lines->end;
    lines->end = KEPT_BYTES;
    while (!lines->eof) {
        char *to = lines->buffer + KEPT_BYTES;
        ssize_t n = read_some(lines, to, lines->max + ROOM_BYTES - KEPT_BYTES, err);
        if (n < 0)
            return -1;
        lines->eof = n == 0;
        char *newline = memchr(to, '\n', (size_t)n);
        if (newline) {
            line->len += (size_t)(newline - to);
            lines->begin = (size_t)(newline + 1 - lines->buffer);
            lines->end = KEPT_BYTES + (size_t)n;
            return 1;
        }
        line->len += (size_t)n;
    }
    lines->begin = lines->end = 0;
    return 1;
}

int lines_next(struct lines *lines, struct line *line, struct err *err)
{
    size_t looked = 0;
    for (;;) {
        char *from = lines->buffer + lines->begin;
        size_t have = lines->end - lines->begin;
        char *newline = memchr(from + looked, '\n', have - looked);
        bool last = !newline && lines->eof && have > 0;
        *line = (struct line){.number = lines->number + 1, .text = from, .len = have};
        if (newline || last) {
            line->len = newline ? (size_t)(newline - from) : have;
            lines->begin += line->len + (newline != NULL);
            lines->number++;
            line->too_long = line->len > lines->max;
            return 1;
        }
        if (lines->eof)
            return 0;
        if (have > lines->max) {
            memmove(lines->buffer, from, have);
            lines->begin = 0;
            lines->end = have;
            line->text = lines->buffer;
            lines->number++;
            return skip_rest(lines, line, err);
        }
        looked = have;
        if (fill(lines, err) != 0)
            return -1;
    }
}

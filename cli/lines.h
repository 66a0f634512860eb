/*
 * lines.h: a file line by line in bounded memory, whatever it holds.
 *
 *     lines_open(&lines, "jobs.jsonl", JOB_MAX_BYTES, &err);
 *     while ((rc = lines_next(&lines, &line, &err)) > 0) ...
 */
#ifndef ATELIER_CLI_LINES_H
#define ATELIER_CLI_LINES_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct line {
    uint64_t number;  /* from 1 */
    const char *text; /* without the newline; until the next call; not NUL-terminated */
    size_t len;       /* of the whole line, also of one that is too long */
    bool too_long;    /* only the beginning was kept */
};

struct lines {
    int fd;
    const char *name;
    char *buffer;
    size_t max, begin, end;
    uint64_t number;
    uint64_t total; /* lines of a regular file, 0 when it cannot be known */
    bool eof;
};

/* "-" is standard input. A line of up to `max` bytes is given whole. */
int lines_open(struct lines *lines, const char *path, size_t max, struct err *err) must_check;
void lines_close(struct lines *lines);

/* 1 with a line, 0 at the end, -1 on a read error. */
int lines_next(struct lines *lines, struct line *line, struct err *err) must_check;

#endif

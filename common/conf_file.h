/*
 * conf_file.h: a configuration file, for conf.c only.
 *
 *     # every program reads this; a program's own lines are in its section
 *     redis-url-file = /run/secrets/redis
 *     cell = paris
 *
 *     [atelier-worker]
 *     threads = 8
 *
 * Lines are `key = value` with the keys of the flags, a `#` at a line's beginning makes it a
 * comment, a value is the rest of its line. Lines before the first section are for all programs;
 * another program's section is passed over. A key that the program does not have, in any of its
 * commands, is an error that names file, line and the nearest key.
 */
#ifndef ATELIER_COMMON_CONF_FILE_H
#define ATELIER_COMMON_CONF_FILE_H

#include "common/conf.h"

#define CONF_FILE_MAX_BYTES (1u << 20)

/* The text of a file, NUL-terminated, for as long as the process lives: options borrow from it. It
 * lies in a mapping of its own, so that nothing has to be the owner. NULL: `err` says why. */
char *conf_text(const char *path, struct err *err);

/* Calls `set` for each line of `table`'s own; `from` is "FILE:LINE: key". */
int conf_file_read(const struct conf_table *table, const char *path,
                   int (*set)(const struct conf_row *row, void *options, const char *from,
                              const char *text, struct err *err),
                   void *options, struct err *err) must_check;

/* The row of a key of `len` bytes, or NULL. */
const struct conf_row *conf_find(const struct conf_table *table, const char *key, size_t len);

#endif

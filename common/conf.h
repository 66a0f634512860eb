/*
 * conf.h: a program's options as one table that drives flags, environment, help and documentation.
 *
 * Each row says where in the program's options struct its value lives. A value comes from the flag,
 * else from the environment variable ATELIER_<KEY> (upper case, '-' as '_'), else from the
 * configuration file that --config or ATELIER_CONFIG names (conf_file.h says what it looks like),
 * else from the default. Strings are borrowed from argv, the environment, the table or the file,
 * whose text stays for as long as the process. An unknown flag is an error that offers the nearest
 * name.
 *
 *     static const struct conf_row rows[] = {
 *         {"steps", CONF_INT, offsetof(struct options, steps), "N", "20", 1, 500, NULL, "help"},
 *     };
 *     static const struct conf_table table = {"draw", rows, 1, ...};
 *     if (conf_parse(&table, &options, argc, argv, &err) != 0) ...
 */
#ifndef ATELIER_COMMON_CONF_H
#define ATELIER_COMMON_CONF_H

#include "common/buf.h"
#include "common/err.h"

#include <stddef.h>

enum conf_type {
    CONF_FLAG,   /* bool; given without a value, or as =yes / =no */
    CONF_INT,    /* int64_t */
    CONF_NUMBER, /* double */
    CONF_STRING, /* const char *, NULL without a default */
    CONF_CHOICE, /* const char *, one of `choices` */
    CONF_BYTES,  /* uint64_t; takes K, M, G and T, powers of 1024 */
    CONF_FILE,   /* const char *: what the named file holds, without the newline at its end; for
                    secrets, which flags and environments show to others */
};

struct conf_row {
    const char *key; /* "batch-max": the flag is --batch-max */
    enum conf_type type;
    size_t offset;
    const char *value_name;     /* as help shows it; NULL for flags */
    const char *fallback;       /* the default as text; NULL: zero, false or NULL */
    double min, max;            /* of numbers */
    const char *const *choices; /* ended by NULL; "name:N" stands for any number in N's place */
    const char *help;
};

struct conf_table {
    const char *command; /* "atelier run" */
    const char *usage;   /* "atelier run JOBS.jsonl --out DIR [options]" */
    const char *summary; /* one sentence */
    const struct conf_row *rows;
    size_t row_count;
    const char *positional;   /* "JOBS.jsonl"; NULL: takes none */
    size_t positional_offset; /* const char * */
    /* All tables of the program, whose keys its configuration file may hold; ended by NULL. NULL:
     * this one is the only one. */
    const struct conf_table *const *family;
};

/* Fills in `options` from defaults, configuration file, environment and argv[0..argc), the words
 * after the command. Returns 1 when help was asked for. Errors: ERR_INVALID (ERR_FATAL) naming the
 * flag. */
int conf_parse(const struct conf_table *table, void *options, int argc, char **argv,
               struct err *err) must_check;

/* The help text for a terminal, and the same as a Markdown section. */
void conf_help(const struct conf_table *table, struct buf *out);
void conf_markdown(const struct conf_table *table, struct buf *out);

#endif

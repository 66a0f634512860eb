/*
 * job_table.h: the contract as rows, inside schema/ only.
 *
 * A row says what a field is called, where it lives, what it may hold and what it is without being
 * given. Objects and lists of objects have a table of their own.
 */
#ifndef ATELIER_SCHEMA_JOB_TABLE_H
#define ATELIER_SCHEMA_JOB_TABLE_H

#include <stdbool.h>
#include <stddef.h>

enum field_kind {
    FIELD_TEXT,        /* const char *; `max` bytes */
    FIELD_NAME,        /* const char *; 1 … 128 of A-Z a-z 0-9 . _ - */
    FIELD_URI,         /* const char *: s3, https, data or a relative path */
    FIELD_CALLBACK,    /* const char *: an https URL; http is for the cell to allow */
    FIELD_CHOICE,      /* const char *: one of `choices` */
    FIELD_INT,         /* int */
    FIELD_INT64,       /* int64_t */
    FIELD_NUMBER,      /* double */
    FIELD_BOOL,        /* bool */
    FIELD_TIME,        /* int64_t, nanoseconds of the wall clock; RFC 3339 */
    FIELD_PAIR,        /* int[2] */
    FIELD_RANGE,       /* double[2], the first below the second */
    FIELD_TEXT_LIST,   /* const char *[limit] and a count */
    FIELD_OBJECT,      /* a struct, by `table` */
    FIELD_OBJECT_LIST, /* struct[limit] and a count, by `table` */
    FIELD_LABELS,      /* struct job_label[limit] and a count */
};

struct field_table;

struct field {
    const char *name;
    enum field_kind kind;
    bool required;
    bool has_default; /* `number` or `text` is a value; else it is what "not given" looks like */
    size_t offset;
    double min, max;            /* numbers; `max` also bytes of text */
    int multiple;               /* of integers; 0: any */
    double number;              /* default or "not given" of numbers, pairs and flags */
    const char *text;           /* the same of choices and names */
    const char *const *choices; /* ended by NULL */
    size_t limit, count_offset; /* of lists */
    const struct field_table *table;
    const char *help;
};

struct field_table {
    const struct field *fields;
    size_t count;
    size_t size; /* bytes of the struct */
};

extern const struct field_table job_fields;

struct job;
struct job_problems;

/* job_together.c: what fields, each good by itself, say together; fills in what follows from
 * others.
 */
void job_check_together(struct job *job, struct job_problems *problems);

#endif

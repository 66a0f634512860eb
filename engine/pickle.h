/*
 * pickle.h: Python's pickles as data. Nothing is looked up, called or run: a class is its name, and
 * what a class would have made of its arguments is those two, unread.
 *
 * Everything belongs to the pickle. A value may occur in several places, and in itself; whoever
 * walks over values keeps count.
 *
 * Source: pickletools.py of CPython, which describes each opcode.
 */
#ifndef ATELIER_ENGINE_PICKLE_H
#define ATELIER_ENGINE_PICKLE_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PICKLE_MAX_BYTES (16u << 20)

enum pickle_type {
    PICKLE_NONE,
    PICKLE_NUMBER, /* whole, or a truth value */
    PICKLE_OTHER,  /* fractions and bytes, which nobody asks for */
    PICKLE_TEXT,
    PICKLE_LIST, /* tuples and sets, too */
    PICKLE_DICT,
    PICKLE_CLASS,     /* `text` is its module, a blank, its name */
    PICKLE_MADE,      /* items: a class, its arguments */
    PICKLE_ELSEWHERE, /* items[0]: what a persistent id says */
};

struct pickle_value {
    enum pickle_type type;
    int64_t number;
    const char *text;            /* ends with zero */
    struct pickle_value **items; /* of a dictionary: key, value, key, … */
    size_t count, capacity;
};

struct pickle;

/* Errors: ERR_FORMAT or ERR_LIMIT (ERR_REJECT) without a path, ERR_MEMORY. */
int pickle_read(struct pickle **pickle, const void *bytes, size_t len, struct err *err) must_check;
void pickle_free(struct pickle *pickle);

const struct pickle_value *pickle_root(const struct pickle *pickle);

/* `bytes` that live as long as the pickle, or NULL. */
void *pickle_alloc(struct pickle *pickle, size_t bytes);

/* The value of a dictionary's text key, or NULL. */
const struct pickle_value *pickle_get(const struct pickle_value *dict, const char *key);

/* Item `i` of a list, or NULL. */
const struct pickle_value *pickle_item(const struct pickle_value *list, size_t i);

static inline bool pickle_is(const struct pickle_value *value, enum pickle_type type)
{
    return value != NULL && value->type == type;
}

#endif

/*
 * unicode_tables.h: sorted tables behind unicode.c, written by tools/unicode/make_tables.py.
 */
#ifndef ATELIER_ENGINE_UNICODE_TABLES_H
#define ATELIER_ENGINE_UNICODE_TABLES_H

#include "engine/unicode.h"

#include <stddef.h>
#include <stdint.h>

/* A run of characters that share a value. */
struct unicode_range {
    uint32_t first, last;
    uint8_t value;
};

struct unicode_pair {
    uint32_t from, to;
};

/* A full canonical decomposition, ended by 0 when it is shorter. */
struct unicode_split {
    uint32_t from;
    uint32_t parts[UNICODE_NFD_MAX];
};

struct unicode_join {
    uint32_t first, second, joined;
};

extern const struct unicode_range unicode_classes[]; /* enum unicode_class; others are left out */
extern const size_t unicode_classes_count;
extern const struct unicode_range unicode_marks[]; /* canonical combining class, where not 0 */
extern const size_t unicode_marks_count;
extern const struct unicode_pair unicode_lower[]; /* without U+0130, which becomes two */
extern const size_t unicode_lower_count;
extern const struct unicode_split unicode_splits[]; /* without Hangul, which is computed */
extern const size_t unicode_splits_count;
extern const struct unicode_join unicode_joins[]; /* by first, then second */
extern const size_t unicode_joins_count;

#endif

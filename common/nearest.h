/*
 * nearest.h: "did you mean": the names closest to a misspelt one.
 *
 *     char hint[NEAREST_HINT_BYTES];
 *     nearest_hint(hint, "promt", names, count);   // "; did you mean \"prompt\"?" or ""
 */
#ifndef ATELIER_COMMON_NEAREST_H
#define ATELIER_COMMON_NEAREST_H

#include <stddef.h>

#define NEAREST_HINT_BYTES 256
#define NEAREST_NAME_MAX_BYTES 128 /* of longer names only the beginning is compared */
#define NEAREST_OFFERED 3

/* Insertions, deletions, substitutions and swaps of neighbours that turn one name into the other,
 * letter case and the choice of '-', '_', '.' and ' ' counting little. In halves: a full edit is 2,
 * a change of case or separator 1. */
int nearest_distance(const char *a, const char *b);

/* Writes "; did you mean …?" with up to NEAREST_OFFERED names, nearest first, or an empty string
 * when nothing is near. */
void nearest_hint(char out[NEAREST_HINT_BYTES], const char *name, const char *const names[],
                  size_t count);

#endif

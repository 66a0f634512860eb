/*
 * ledger.h: what a run knows of every id it has met, in few bytes.
 *
 * An entry is 24 bytes: 64 bits each of the id's hash and the request's, and where the journal has
 * the job's latest card. The table doubles at four fifths full: 50 MB for a million ids, 75 MB for
 * the moment of growing. Hashes are SHA-256's first bytes; two ids of a million share one with a
 * probability of 3e-8, and then the second is reported as a repeat.
 */
#ifndef ATELIER_COMMON_LEDGER_H
#define ATELIER_COMMON_LEDGER_H

#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ledger_entry {
    uint64_t id; /* hash; 0: a free place */
    uint64_t content;
    uint64_t card : 63; /* offset in the journal + 1; 0: none */
    uint64_t seen : 1;  /* a line of this run's jobs file has it */
};

struct ledger {
    struct ledger_entry *entries;
    size_t count, cap;
};

void ledger_release(struct ledger *ledger); /* a zeroed ledger is empty */

/* The entry of an id, made if it is not there; valid until the next call. NULL and ERR_MEMORY
 * (ERR_FATAL) when memory is out. `fresh` says which. */
struct ledger_entry *ledger_enter(struct ledger *ledger, const char *id, bool *fresh,
                                  struct err *err);

/* The entry, or NULL. */
struct ledger_entry *ledger_find(const struct ledger *ledger, const char *id);

#endif

#include "common/ledger.h"

#include "common/sha256.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAP 1024

static uint64_t hash_of(const char *id)
{
    uint64_t hash = sha256_u64(id, strlen(id));
    return hash ? hash : 1;
}

/* The entry's place, or the free one where it belongs. */
static struct ledger_entry *place_of(struct ledger_entry *entries, size_t cap, uint64_t hash)
{
    size_t i = hash & (cap - 1);
    while (entries[i].id != 0 && entries[i].id != hash)
        i = (i + 1) & (cap - 1);
    return &entries[i];
}

static int grow(struct ledger *ledger, struct err *err)
{
    size_t cap = ledger->cap ? ledger->cap * 2 : FIRST_CAP;
    struct ledger_entry *entries = calloc(cap, sizeof(*entries));
    if (!entries)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to remember %zu job ids",
                       ledger->count);
    for (size_t i = 0; i < ledger->cap; i++)
        if (ledger->entries[i].id != 0)
            *place_of(entries, cap, ledger->entries[i].id) = ledger->entries[i];
    free(ledger->entries);
    ledger->entries = entries;
    ledger->cap = cap;
    return 0;
}

void ledger_release(struct ledger *ledger)
{
    free(ledger->entries);
    *ledger = (struct ledger){0};
}

struct ledger_entry *ledger_enter(struct ledger *ledger, const char *id, bool *fresh,
                                  struct err *err)
{
    if (ledger->count * 5 >= ledger->cap * 4 && grow(ledger, err) != 0)
        return NULL;
    uint64_t hash = hash_of(id);
    struct ledger_entry *entry = place_of(ledger->entries, ledger->cap, hash);
    *fresh = entry->id == 0;
    if (*fresh) {
        entry->id = hash;
        ledger->count++;
    }
    return entry;
}

struct ledger_entry *ledger_find(const struct ledger *ledger, const char *id)
{
    if (ledger->cap == 0)
        return NULL;
    struct ledger_entry *entry = place_of(ledger->entries, ledger->cap, hash_of(id));
    return entry->id ? entry : NULL;
}

/*
 * journal.h: DIR/journal.jsonl, which makes a rerun cheap and the contact sheet possible without
 * reading a million manifests. The manifest is the truth; a lost journal loses nothing.
 *
 * Append-only, one JSON object a line, each written with one call:
 *     {"begin": "id"}                             work may leave files from here on
 *     {"done": "id", "content": "16 hex", card…}  the manifest is there
 *     {"failed": "id", "error": "…", card…}       given up in that run; tried again by the next
 *     {"swept": "id"}                             leftovers of a killed run were removed
 * A torn last line is cut off when the journal is opened. One thread.
 */
#ifndef ATELIER_WORKER_JOURNAL_H
#define ATELIER_WORKER_JOURNAL_H

#include "common/buf.h"
#include "common/err.h"
#include "common/file.h"
#include "common/ledger.h"
#include "schema/job.h"
#include "worker/store.h"

#include <stdint.h>
#include <stdio.h>

#define JOURNAL_NAME "journal.jsonl"
#define JOURNAL_LINE_MAX_BYTES (512u << 10)

struct journal {
    int fd;       /* -1 when closed */
    uint64_t end; /* bytes */
    char path[FILE_PATH_MAX_BYTES];
    struct buf line;
    struct ledger *ledger;
};

/* What stood beside a job's model: names, and scales that are not 1, parted by commas; "" where
 * there is none. Long lists are cut. */
#define JOURNAL_BESIDE_BYTES 400
struct journal_beside {
    char loras[JOURNAL_BESIDE_BYTES], controlnets[JOURNAL_BESIDE_BYTES];
    char embeddings[JOURNAL_BESIDE_BYTES];
};
struct journal_beside journal_beside_of(const struct job *job);

/* What the contact sheet shows of a job. */
struct journal_card {
    const char *id;
    const char *error; /* NULL: done */
    uint64_t content;
    const char *model, *prompt, *negative_prompt; /* may be NULL */
    uint64_t seed;
    int width, height, steps;
    double seconds;
    struct journal_beside beside;
    size_t file_count;
    char (*files)[96]; /* names within results/<id>/ */
};

/* Opens and reads the journal in `dir`: done jobs enter the ledger, jobs that were begun and not
 * ended are swept from the store. */
int journal_open(struct journal *journal, const char *dir, const struct store *store,
                 struct ledger *ledger, struct err *err) must_check;
void journal_close(struct journal *journal);

int journal_begin(struct journal *journal, const char *id, struct err *err) must_check;

/* Writes a done or failed record and notes it in the ledger. */
int journal_card(struct journal *journal, const struct journal_card *card,
                 struct err *err) must_check;

/* Calls `see` with every job's latest card, in the order of the file; a non-zero result ends it. */
int journal_walk(const struct journal *journal,
                 int (*see)(void *user, const struct journal_card *card, struct err *err),
                 void *user, struct err *err) must_check;

#endif

/*
 * contact_sheet.h: DIR/index.html: the pictures of a run at a glance. It opens from disk and needs
 * nothing from elsewhere. Pages of CONTACT_SHEET_PAGE jobs each (index-2.html and so on), so that a
 * million jobs make no gigabyte page; written page by page, from the journal.
 */
#ifndef ATELIER_CLI_CONTACT_SHEET_H
#define ATELIER_CLI_CONTACT_SHEET_H

#include "common/err.h"
#include "worker/journal.h"

#include <stdint.h>

#define CONTACT_SHEET_PAGE 500

struct contact_sheet_facts {
    const char *title;  /* the jobs file's name */
    uint64_t rejected;  /* lines of this run */
    const char *status; /* "complete", "interrupted", … */
};

int contact_sheet_write(const struct journal *journal, const char *dir,
                        const struct contact_sheet_facts *facts, struct err *err) must_check;

#endif

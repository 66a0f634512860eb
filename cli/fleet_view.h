/* fleet_view.h: the workers of a cell as Redis knows them, for status, workers and watch. */
#ifndef ATELIER_CLI_FLEET_VIEW_H
#define ATELIER_CLI_FLEET_VIEW_H

#include "cli/fleet.h"

#include <stdio.h>

struct worker_view {
    char *name;
    struct hash is;
    int64_t orders; /* that wait in its list; -1: this user of Redis may not know */
};

struct workers {
    struct worker_view *items;
    size_t count;
};

/* Those with a hash: a worker that was silent for half a minute has none. */
int workers_read(struct fleet *fleet, struct workers *workers, struct err *err) must_check;
void workers_release(struct workers *workers);

void workers_write_table(const struct fleet *fleet, const struct workers *workers, FILE *to);
void workers_write_json(const struct fleet *fleet, const struct workers *workers, FILE *to);

#endif

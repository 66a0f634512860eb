/* report.h: what a simulation came to: as text for people, as JSON, as a drawing. */
#ifndef ATELIER_SIMULATOR_REPORT_H
#define ATELIER_SIMULATOR_REPORT_H

#include "common/buf.h"
#include "simulator/sim.h"

#define REPORT_COLUMNS_MAX 2

/* A policy by its file's name, and what it came to. */
struct report_column {
    const char *policy;
    const struct sim_result *result;
};

/* Tables of one simulation, or what differs between two. */
void report_text(const struct report_column *columns, int count, struct buf *out);

/* {"simulations": [{"policy": …, "pools": …, …}]} */
void report_json(const struct report_column *columns, int count, struct buf *out);

/* ---- chart.c ---- */

/* An SVG: by pool, workers, busy workers and jobs waiting over time. */
void report_svg(const struct report_column *columns, int count, struct buf *out);

#endif

/*
 * load.h: the jobs of a simulation, and when each of them comes.
 *
 * Three sources. Lines of a jobs file, in the contract (schema/job.h): a job comes at its
 * `x-arrival`, seconds from the beginning or a time as RFC 3339 has it; one without comes at the
 * beginning. Lines of a production trace in the form of GenTD26 (Alibaba, clusterdata,
 * cluster-trace-v2026-GenAI: requests.csv), which the first line's names of columns tell. Or
 * invented ones.
 *
 *     load_init(&load, &fleet, seed);
 *     while (…) load_line(&load, number, text, len, &err);
 *     load_finish(&load, start_ns, speed, &err);
 *     load_release(&load);
 *
 * Times are then nanoseconds from the beginning, jobs in the order in which they come.
 */
#ifndef ATELIER_SIMULATOR_LOAD_H
#define ATELIER_SIMULATOR_LOAD_H

#include "common/names.h"
#include "scheduler/profiles.h"
#include "simulator/fleet.h"

#define LOAD_JOBS_MAX 50000000
#define LOAD_TENANTS_MAX 65535
#define LOAD_TIME_NONE SCHEDULER_TIME_NONE

/* What of a job matters here. */
struct load_job {
    int64_t arrival_ns, not_before_ns, deadline_ns; /* the latter may be LOAD_TIME_NONE */
    uint32_t line;                                  /* of the file; of invented ones, number */
    uint32_t model, tenant;
    float work, max_price; /* as in struct demand */
    uint16_t width, height, steps;
    uint8_t images, needs, attempts_max;
    uint8_t class;    /* enum job_class */
    uint8_t tier : 2; /* LOAD_TIERS */
    uint8_t guided : 1;
};

extern const char *const load_tiers[];

struct load {
    struct fleet *fleet; /* borrowed; gets numbers for models */
    uint64_t seed;
    struct load_job *jobs;
    uint32_t count, cap;
    struct names tenants;
    struct job_problems *problems;
    int trace_columns[8]; /* places of the trace's columns; see load_trace.c */
    bool is_trace;
    bool has_wall_times, has_seconds, has_limits; /* arrivals as times; deadlines or not_befores */
    int64_t first_ns;                             /* the earliest arrival that is a time */
};

int load_init(struct load *load, struct fleet *fleet, uint64_t seed, struct err *err) must_check;
void load_release(struct load *load);

/* Lines in order, from 1; blank ones are passed over. Errors name the line and the field. */
int load_line(struct load *load, uint64_t number, const char *text, size_t len,
              struct err *err) must_check;

/* Invents jobs over some hours, at random: their rate follows the time of day, tenants and models
 * are drawn by Zipf's law, a tenth is interactive and half is bulk. */
int load_invent(struct load *load, uint64_t count, double hours, struct err *err) must_check;

/* Puts jobs in order. `start_ns` is the wall clock at the beginning, LOAD_TIME_NONE: the earliest
 * arrival. Arrivals come `speed` times as fast; what a job may wait stays. */
int load_finish(struct load *load, int64_t start_ns, double speed, struct err *err) must_check;

struct demand load_demand(const struct load_job *job);

/* ---- load_trace.c ---- */

/* Whether the line names a trace's columns, which are then known. */
int load_trace_header(struct load *load, const char *text, size_t len, struct err *err) must_check;
int load_trace_line(struct load *load, const char *text, size_t len, struct load_job *job,
                    struct err *err) must_check;

#endif

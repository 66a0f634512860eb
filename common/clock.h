/*
 * clock.h: time as something that is handed in, so that tests and the simulator own it.
 *
 *     const struct clock *clock = clock_system();
 *     int64_t begin_ns = clock_monotonic_ns(clock);
 */
#ifndef ATELIER_COMMON_CLOCK_H
#define ATELIER_COMMON_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define CLOCK_RFC3339_BYTES 32

struct clock {
    int64_t (*monotonic_ns)(void *user); /* never goes back; its origin means nothing */
    int64_t (*wall_ns)(void *user);      /* since 1970-01-01T00:00:00Z */
    void *user;
};

/* The machine's clock. Never freed. */
const struct clock *clock_system(void);

int64_t clock_monotonic_ns(const struct clock *clock);
int64_t clock_wall_ns(const struct clock *clock);

/* So many milliseconds from now on CLOCK_MONOTONIC of the machine: until when
 * pthread_cond_timedwait waits on a condition that is made for that clock. */
struct timespec clock_deadline(int timeout_ms);

/* "2026-03-01T12:00:00.250Z", in UTC with milliseconds; years 0001 to 9999. */
void clock_format_rfc3339(int64_t wall_ns, char out[CLOCK_RFC3339_BYTES]);

/* Reads RFC 3339 with any offset and up to nine decimals; a leap second counts as the next second.
 * False for anything else, impossible dates included. */
bool clock_parse_rfc3339(const char *text, int64_t *wall_ns);

#endif

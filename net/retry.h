/*
 * retry.h: when to try again: exponential back-off with full jitter, within a total.
 *
 * Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015): the wait is drawn
 * evenly from 0 to min(most, first × 2^tries), so that callers that failed together do not come
 * back together.
 *
 *     struct retry retry;
 *     retry_begin(&retry, &policy, clock);
 *     while (try() != 0 && retry_wait(&retry, 0))
 *         ;
 */
#ifndef ATELIER_NET_RETRY_H
#define ATELIER_NET_RETRY_H

#include "common/clock.h"

#include <stdbool.h>
#include <stdint.h>

struct retry_policy {
    int tries_max;
    int first_ms; /* the longest wait after the first try; doubles with every further one */
    int most_ms;  /* the longest wait */
    int total_ms; /* tries and waits together */
};
#define RETRY_POLICY_INIT                                                                          \
    {                                                                                              \
        .tries_max = 8, .first_ms = 100, .most_ms = 10000, .total_ms = 60000                       \
    }

struct retry {
    const struct retry_policy *policy;
    const struct clock *clock;
    int64_t begun_ns;
    int tries; /* that failed */
    uint64_t random;
};

void retry_begin(struct retry *retry, const struct retry_policy *policy, const struct clock *clock);

/* Counts a failed try and waits; `asked_ms` is what the server asked for (Retry-After), or 0.
 * False, at once, when there is no further try. */
bool retry_wait(struct retry *retry, int asked_ms);

/* Counts anew: a try that failed has brought something all the same. */
void retry_progress(struct retry *retry);

/* What is left of the total, at least 1. */
int retry_left_ms(const struct retry *retry);

/* Well-mixed bits from a state that anything may have begun (SplitMix64). */
uint64_t retry_random(uint64_t *state);

/* The decision, pure: the wait before the next try after `tries` failed ones in `spent_ms`, or -1
 * for none. `random` is any 64 bits. */
int retry_delay_ms(const struct retry_policy *policy, int tries, int64_t spent_ms, int asked_ms,
                   uint64_t random);

#endif

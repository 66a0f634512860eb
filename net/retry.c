#include "net/retry.h"

#include "common/mix.h"

#include <errno.h>
#include <time.h>

#define NS_PER_MS 1000000

uint64_t retry_random(uint64_t *state)
{
    uint64_t z = mix64(*state);
    *state += MIX_STEP;
    return z;
}

static int64_t spent_ms(const struct retry *retry)
{
    return (clock_monotonic_ns(retry->clock) - retry->begun_ns) / NS_PER_MS;
}

void retry_begin(struct retry *retry, const struct retry_policy *policy, const struct clock *clock)
{
    *retry =
        (struct retry){.policy = policy, .clock = clock, .begun_ns = clock_monotonic_ns(clock)};
    /* Differs from caller to caller by the time and by where its stack is. */
    retry->random = (uint64_t)retry->begun_ns ^ (uint64_t)(uintptr_t)retry << 20;
}

int retry_delay_ms(const struct retry_policy *policy, int tries, int64_t spent, int asked_ms,
                   uint64_t random)
{
    if (tries >= policy->tries_max)
        return -1;
    int64_t most = policy->first_ms;
    for (int i = 1; i < tries && most < policy->most_ms; i++)
        most *= 2;
    if (most > policy->most_ms)
        most = policy->most_ms;
    int64_t delay = (int64_t)(random % (uint64_t)(most + 1));
    if (delay < asked_ms)
        delay = asked_ms;
    return spent + delay < policy->total_ms ? (int)delay : -1;
}

bool retry_wait(struct retry *retry, int asked_ms)
{
    retry->tries++;
    int delay = retry_delay_ms(retry->policy, retry->tries, spent_ms(retry), asked_ms,
                               retry_random(&retry->random));
    if (delay < 0)
        return false;
    struct timespec left = {delay / 1000, (long)(delay % 1000) * NS_PER_MS};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
    return true;
}

void retry_progress(struct retry *retry)
{
    retry->tries = 0;
    retry->begun_ns = clock_monotonic_ns(retry->clock);
}

int retry_left_ms(const struct retry *retry)
{
    int64_t left = retry->policy->total_ms - spent_ms(retry);
    return left > 1 ? (int)left : 1;
}

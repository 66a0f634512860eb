/* Preloaded into a program, moves its wall clock by what a file says, while it runs:
 *
 *     LD_PRELOAD=libshifted_clock.so SHIFTED_CLOCK=FILE program
 *
 * FILE holds seconds, such as +3600, and is read again five times a second. CLOCK_MONOTONIC stays
 * right. Waits until a time of the wall clock end as the kernel ends them when the clock is set: as
 * soon as the clock says so. libfaketime moves the time that librdkafka reads and not its
 * cnd_timedwait, so that under its clock of +3600 each of librdkafka's waits takes an hour longer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000
#define READ_EVERY_NS (SECOND_NS / 5)

static int64_t kernel_ns(clockid_t clock)
{
    struct timespec now = {0};
    syscall(SYS_clock_gettime, clock, &now);
    return (int64_t)now.tv_sec * SECOND_NS + now.tv_nsec;
}

static int64_t shift_ns(void)
{
    static _Atomic int64_t shift, next;
    int64_t now = kernel_ns(CLOCK_MONOTONIC), due = atomic_load(&next);
    if (now >= due && atomic_compare_exchange_strong(&next, &due, now + READ_EVERY_NS)) {
        const char *path = getenv("SHIFTED_CLOCK");
        FILE *file = path ? fopen(path, "r") : NULL;
        long long seconds;
        if (file && fscanf(file, "%lld", &seconds) == 1)
            atomic_store(&shift, seconds * SECOND_NS);
        if (file)
            fclose(file);
    }
    return atomic_load(&shift);
}

static struct timespec to_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS};
}

static int64_t wall_ns(void)
{
    return kernel_ns(CLOCK_REALTIME) + shift_ns();
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)
        return (int)syscall(SYS_clock_gettime, clock, now);
    *now = to_timespec(wall_ns());
    return 0;
}

int timespec_get(struct timespec *now, int base)
{
    *now = to_timespec(wall_ns());
    return base;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int64_t ns = wall_ns();
    (void)zone;
    *now = (struct timeval){.tv_sec = ns / SECOND_NS, .tv_usec = ns % SECOND_NS / 1000};
    return 0;
}

time_t time(time_t *to)
{
    time_t now = wall_ns() / SECOND_NS;
    if (to)
        *to = now;
    return now;
}

/* In parts of a fifth of a second, so that a clock that is set meanwhile is seen. */
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex,
                  const struct timespec *restrict until)
{
    static _Atomic(int (*)(cnd_t *, mtx_t *, const struct timespec *)) wait;
    int64_t deadline = (int64_t)until->tv_sec * SECOND_NS + until->tv_nsec;
    if (!wait)
        wait =
            (int (*)(cnd_t *, mtx_t *, const struct timespec *))dlsym(RTLD_NEXT, "cnd_timedwait");
    for (;;) {
        int64_t left = deadline - wall_ns();
        struct timespec part =
            to_timespec(kernel_ns(CLOCK_REALTIME) + (left < READ_EVERY_NS ? left : READ_EVERY_NS));
        int rc = wait(condition, mutex, &part);
        if (rc != thrd_timedout || left <= READ_EVERY_NS)
            return rc;
    }
}

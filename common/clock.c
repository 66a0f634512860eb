#include "common/clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define NS_PER_SECOND 1000000000LL

static int64_t read_clock(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

static int64_t system_monotonic_ns(void *user)
{
    (void)user;
    return read_clock(CLOCK_MONOTONIC);
}

static int64_t system_wall_ns(void *user)
{
    (void)user;
    return read_clock(CLOCK_REALTIME);
}

struct timespec clock_deadline(int timeout_ms)
{
    int64_t until = read_clock(CLOCK_MONOTONIC) + timeout_ms * (NS_PER_SECOND / 1000);
    return (struct timespec){.tv_sec = until / NS_PER_SECOND, .tv_nsec = until % NS_PER_SECOND};
}

const struct clock *clock_system(void)
{
    static const struct clock system = {system_monotonic_ns, system_wall_ns, NULL};
    return &system;
}

int64_t clock_monotonic_ns(const struct clock *clock)
{
    return clock->monotonic_ns(clock->user);
}

int64_t clock_wall_ns(const struct clock *clock)
{
    return clock->wall_ns(clock->user);
}

void clock_format_rfc3339(int64_t wall_ns, char out[CLOCK_RFC3339_BYTES])
{
    int64_t ms = (wall_ns % NS_PER_SECOND + NS_PER_SECOND) % NS_PER_SECOND / 1000000;
    time_t seconds = (time_t)((wall_ns - ms * 1000000) / NS_PER_SECOND);
    struct tm tm;
    if (wall_ns < 0 && wall_ns % NS_PER_SECOND != 0)
        seconds = (time_t)((wall_ns - (NS_PER_SECOND - 1)) / NS_PER_SECOND);
    gmtime_r(&seconds, &tm);
    char date[CLOCK_RFC3339_BYTES];
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out, CLOCK_RFC3339_BYTES, "%.19s.%03dZ", date, (int)ms);
}

/* Reads exactly `digits` digits and moves on. */
static bool take_number(const char **at, int digits, int *out)
{
    int value = 0;
    for (int i = 0; i < digits; i++) {
        char c = (*at)[i];
        if (c < '0' || c > '9')
            return false;
        value = value * 10 + (c - '0');
    }
    *at += digits;
    *out = value;
    return true;
}

static bool take_char(const char **at, const char *any)
{
    if (**at == '\0' || !strchr(any, **at))
        return false;
    ++*at;
    return true;
}

static int days_in_month(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return month == 2 && leap ? 29 : days[month - 1];
}

static bool take_fraction(const char **at, int64_t *ns)
{
    int64_t scale = NS_PER_SECOND / 10;
    *ns = 0;
    if (!take_char(at, "."))
        return true;
    int digit, count = 0;
    while (count < 10 && take_number(at, 1, &digit)) {
        *ns += digit * scale;
        scale /= 10;
        count++;
    }
    return count >= 1 && count <= 9;
}

static bool take_offset(const char **at, int *seconds)
{
    int hours, minutes;
    *seconds = 0;
    if (take_char(at, "Zz"))
        return true;
    bool west = **at == '-';
    if (!take_char(at, "+-") || !take_number(at, 2, &hours) || !take_char(at, ":") ||
        !take_number(at, 2, &minutes) || hours > 23 || minutes > 59)
        return false;
    *seconds = (hours * 60 + minutes) * (west ? -60 : 60);
    return true;
}

bool clock_parse_rfc3339(const char *text, int64_t *wall_ns)
{
    struct tm tm = {0};
    int year, month, offset;
    int64_t fraction;
    if (!take_number(&text, 4, &year) || !take_char(&text, "-") || !take_number(&text, 2, &month) ||
        !take_char(&text, "-") || !take_number(&text, 2, &tm.tm_mday) || !take_char(&text, "Tt ") ||
        !take_number(&text, 2, &tm.tm_hour) || !take_char(&text, ":") ||
        !take_number(&text, 2, &tm.tm_min) || !take_char(&text, ":") ||
        !take_number(&text, 2, &tm.tm_sec) || !take_fraction(&text, &fraction) ||
        !take_offset(&text, &offset) || *text != '\0')
        return false;
    /* Nanoseconds in 64 bits reach from 1677 to 2262. */
    if (year < 1678 || year > 2261 || month < 1 || month > 12 || tm.tm_mday < 1 ||
        tm.tm_mday > days_in_month(year, month) || tm.tm_hour > 23 || tm.tm_min > 59 ||
        tm.tm_sec > 60)
        return false;
    tm.tm_year = year - 1900;
    tm.tm_mon = month - 1;
    *wall_ns = ((int64_t)timegm(&tm) - offset) * NS_PER_SECOND + fraction;
    return true;
}

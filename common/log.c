#include "common/log.h"

#include "common/buf.h"
#include "common/json.h"

#include <stdarg.h>
#include <string.h>

static const char *const names[] = {"error", "warn", "info", "debug"};

enum log_level log_level_by_name(const char *name)
{
    for (int i = LOG_ERROR; i <= LOG_DEBUG; i++)
        if (strcmp(names[i], name) == 0)
            return (enum log_level)i;
    return LOG_INFO;
}

static bool is_plain(const char *value)
{
    if (*value == '\0')
        return false;
    for (; *value; value++)
        if ((unsigned char)*value <= ' ' || *value == '"' || *value == '\\' || *value == '=' ||
            *value == 0x7F)
            return false;
    return true;
}

void log_event(const struct log *log, enum log_level level, const char *event, ...)
{
    char time[CLOCK_RFC3339_BYTES];
    struct buf line;
    if (!log->out || level > log->level)
        return;
    buf_init(&line, LOG_LINE_MAX_BYTES);
    clock_format_rfc3339(clock_wall_ns(log->clock), time);
    buf_printf(&line, "time=%s level=%s event=%s", time, names[level], event);
    if (log->worker)
        buf_printf(&line, " worker=%s", log->worker);
    va_list pairs;
    va_start(pairs, event);
    const char *key;
    while ((key = va_arg(pairs, const char *)) != NULL) {
        const char *value = va_arg(pairs, const char *);
        if (!value)
            continue;
        buf_printf(&line, " %s=", key);
        if (is_plain(value))
            buf_str(&line, value);
        else
            json_write_string(&line, value, strlen(value));
    }
    va_end(pairs);
    fprintf(log->out, "%s%s\n", line.data, line.failed ? "…" : "");
    buf_release(&line);
}

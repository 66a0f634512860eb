#include "schema/fields.h"

#include "common/clock.h"
#include "schema/job.h"

#include <string.h>

void put_text(struct buf *out, const char *key, const char *value)
{
    if (!value)
        return;
    buf_char(out, ',');
    json_write_key(out, key);
    json_write_string(out, value, strlen(value));
}

void put_json(struct buf *out, const char *key, const char *json)
{
    if (!json)
        return;
    buf_char(out, ',');
    json_write_key(out, key);
    buf_str(out, json);
}

void put_integer(struct buf *out, const char *key, int64_t value)
{
    buf_char(out, ',');
    json_write_key(out, key);
    json_write_integer(out, value);
}

void put_number(struct buf *out, const char *key, double value)
{
    if (value < 0)
        return;
    buf_char(out, ',');
    json_write_key(out, key);
    json_write_double(out, value);
}

void put_time(struct buf *out, const char *key, int64_t wall_ns)
{
    char text[CLOCK_RFC3339_BYTES];
    if (wall_ns == JOB_TIME_NONE)
        return;
    clock_format_rfc3339(wall_ns, text);
    put_text(out, key, text);
}

void put_true(struct buf *out, const char *key, bool value)
{
    if (value)
        buf_printf(out, ",\"%s\":true", key);
}

const char *get_text(const struct json *root, const char *key)
{
    return json_string_or(json_get(root, key), NULL);
}

int64_t get_time(const struct json *root, const char *key)
{
    const char *text = get_text(root, key);
    int64_t wall_ns;
    return text && clock_parse_rfc3339(text, &wall_ns) ? wall_ns : JOB_TIME_NONE;
}

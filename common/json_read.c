#include "common/json_read.h"

#include "common/nearest.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define NUMBER_MAX 1e15

int json_refuse(const struct json_reader *r, const char *place, const char *format, ...)
{
    char text[ERR_MESSAGE_MAX_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return err_set(r->err, ERR_INVALID, ERR_FATAL, "%s: %s%s%s", r->file, place,
                   place[0] ? ": " : "", text);
}

static int refuse_key(const struct json_reader *r, const char *place, const char *key,
                      const char *const known[], size_t count)
{
    char hint[NEAREST_HINT_BYTES], list[256];
    size_t len = 0;
    nearest_hint(hint, key, known, count);
    for (size_t i = 0; i < count && len < sizeof(list); i++)
        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", known[i]);
    return json_refuse(r, place, "there is no key \"%.80s\"%s%s%s", key, hint,
                       hint[0] ? "" : "; known are ", hint[0] ? "" : list);
}

int json_check_object(const struct json_reader *r, const struct json *value, const char *place,
                      const char *const known[], size_t count)
{
    if (value->type != JSON_OBJECT)
        return json_refuse(r, place, "must be an object, {…}");
    for (const struct json *member = value->child; member; member = member->next) {
        bool found = false;
        for (size_t i = 0; i < count; i++)
            found = found || strcmp(known[i], member->key) == 0;
        if (!found)
            return refuse_key(r, place, member->key, known, count);
    }
    return 0;
}

static void place_of(char at[JSON_PLACE_MAX_BYTES], const char *place, const char *key)
{
    snprintf(at, JSON_PLACE_MAX_BYTES, "%s%s%s", place, place[0] ? "." : "", key);
}

int json_read_number(const struct json_reader *r, const struct json *object, const char *place,
                     const char *key, double least, double *out)
{
    char at[JSON_PLACE_MAX_BYTES];
    const struct json *value = json_get(object, key);
    if (!value)
        return 0;
    place_of(at, place, key);
    if (!json_double(value, out) || *out < least || *out > NUMBER_MAX)
        return json_refuse(r, at, "must be a number of at least %g", least);
    return 0;
}

int json_read_count(const struct json_reader *r, const struct json *object, const char *place,
                    const char *key, int64_t least, int64_t most, int64_t *out)
{
    char at[JSON_PLACE_MAX_BYTES];
    const struct json *value = json_get(object, key);
    if (!value)
        return 0;
    place_of(at, place, key);
    if (!json_int64(value, out) || *out < least || *out > most)
        return json_refuse(r, at, "must be a whole number, %lld … %lld", (long long)least,
                           (long long)most);
    return 0;
}

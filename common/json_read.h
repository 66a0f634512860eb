/*
 * json_read.h: JSON that people write: a routing policy, a fleet to simulate. Whatever is wrong is
 * said with the file and the place in it, "rules[3].if.tier[1]", and what would be right.
 *
 *     struct json_reader r = {"routing.json", &err};
 *     static const char *const known[] = {"price_per_hour", "memory_gb"};
 *     if (JSON_CHECK_OBJECT(&r, value, "classes.a10", known) != 0 ||
 *         json_read_number(&r, value, "classes.a10", "price_per_hour", 0, &price) != 0) ...
 *
 * Places are made by the caller; "" is the whole file. Errors are ERR_INVALID (ERR_FATAL).
 */
#ifndef ATELIER_COMMON_JSON_READ_H
#define ATELIER_COMMON_JSON_READ_H

#include "common/err.h"
#include "common/json.h"

#define JSON_PLACE_MAX_BYTES 320

struct json_reader {
    const char *file; /* as errors call it */
    struct err *err;
};

/* Returns -1. */
int json_refuse(const struct json_reader *r, const char *place, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Whether the value is an object of these members alone. */
int json_check_object(const struct json_reader *r, const struct json *value, const char *place,
                      const char *const known[], size_t count) must_check;
#define JSON_CHECK_OBJECT(r, value, place, known)                                                  \
    json_check_object(r, value, place, known, sizeof(known) / sizeof((known)[0]))

/* A member of the object; absent: `out` stays. A number is from `least` on. */
int json_read_number(const struct json_reader *r, const struct json *object, const char *place,
                     const char *key, double least, double *out) must_check;
int json_read_count(const struct json_reader *r, const struct json *object, const char *place,
                    const char *key, int64_t least, int64_t most, int64_t *out) must_check;

#endif

/* fields.h: members of the small JSON records of this room; each put_* begins with a comma. */
#ifndef ATELIER_SCHEMA_FIELDS_H
#define ATELIER_SCHEMA_FIELDS_H

#include "common/buf.h"
#include "common/json.h"

#include <stdint.h>

void put_text(struct buf *out, const char *key, const char *value); /* nothing for NULL */
void put_json(struct buf *out, const char *key, const char *json);  /* nothing for NULL */
void put_integer(struct buf *out, const char *key, int64_t value);
void put_number(struct buf *out, const char *key, double value);  /* nothing below 0 */
void put_time(struct buf *out, const char *key, int64_t wall_ns); /* nothing for JOB_TIME_NONE */
void put_true(struct buf *out, const char *key, bool value);      /* nothing for false */

const char *get_text(const struct json *root, const char *key); /* or NULL */
int64_t get_time(const struct json *root, const char *key);     /* or JOB_TIME_NONE */

#endif

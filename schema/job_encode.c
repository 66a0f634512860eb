/* The canonical form of a request and the published JSON Schema, both from the table. */
#include "common/clock.h"
#include "common/json.h"
#include "schema/job.h"
#include "schema/job_table.h"

#include <stdio.h>
#include <string.h>

/* ---- canonical form ---- */

static bool is_absent(const struct field *field, const void *base);

/* An object was never given when it has none of the members before the first with a default. */
static bool is_absent_object(const struct field_table *table, const void *base)
{
    for (size_t i = 0; i < table->count; i++) {
        if (table->fields[i].has_default)
            return i > 0;
        if (!is_absent(&table->fields[i], base))
            return false;
    }
    return true;
}

static bool is_absent(const struct field *field, const void *base)
{
    const void *at = (const char *)base + field->offset;
    if (field->has_default)
        return false;
    switch (field->kind) {
    case FIELD_INT:
        return *(const int *)at == (int)field->number;
    case FIELD_INT64:
        return *(const int64_t *)at == (int64_t)field->number;
    case FIELD_NUMBER:
        return *(const double *)at == field->number;
    case FIELD_BOOL:
        return false;
    case FIELD_TIME:
        return *(const int64_t *)at == JOB_TIME_NONE;
    case FIELD_PAIR:
        return *(const int *)at == (int)field->number;
    case FIELD_RANGE:
        return *(const double *)at == field->number;
    case FIELD_TEXT_LIST:
    case FIELD_OBJECT_LIST:
    case FIELD_LABELS:
        return *(const size_t *)((const char *)base + field->count_offset) == 0;
    case FIELD_OBJECT:
        return is_absent_object(field->table, at);
    default:
        return *(const char *const *)at == NULL;
    }
}

static void encode_text(const char *text, struct buf *out)
{
    json_write_string(out, text, strlen(text));
}

static void encode_object(const struct field_table *table, const void *base, struct buf *out);

static void encode_list(const struct field *field, const void *at, size_t count, struct buf *out)
{
    buf_char(out, '[');
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            buf_char(out, ',');
        if (field->kind == FIELD_TEXT_LIST)
            encode_text(((const char *const *)at)[i], out);
        else
            encode_object(field->table, (const char *)at + i * field->table->size, out);
    }
    buf_char(out, ']');
}

static void encode_labels(const struct job_label *labels, size_t count, struct buf *out)
{
    buf_char(out, '{');
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            buf_char(out, ',');
        encode_text(labels[i].key, out);
        buf_char(out, ':');
        encode_text(labels[i].value, out);
    }
    buf_char(out, '}');
}

static void encode_field(const struct field *field, const void *base, struct buf *out)
{
    const void *at = (const char *)base + field->offset;
    const size_t *count = (const size_t *)((const char *)base + field->count_offset);
    char time[CLOCK_RFC3339_BYTES];
    switch (field->kind) {
    case FIELD_INT:
        json_write_integer(out, *(const int *)at);
        break;
    case FIELD_INT64:
        json_write_integer(out, *(const int64_t *)at);
        break;
    case FIELD_NUMBER:
        json_write_double(out, *(const double *)at);
        break;
    case FIELD_BOOL:
        buf_str(out, *(const bool *)at ? "true" : "false");
        break;
    case FIELD_TIME:
        clock_format_rfc3339(*(const int64_t *)at, time);
        buf_printf(out, "\"%s\"", time);
        break;
    case FIELD_PAIR:
        buf_printf(out, "[%d,%d]", ((const int *)at)[0], ((const int *)at)[1]);
        break;
    case FIELD_RANGE:
        buf_char(out, '[');
        json_write_double(out, ((const double *)at)[0]);
        buf_char(out, ',');
        json_write_double(out, ((const double *)at)[1]);
        buf_char(out, ']');
        break;
    case FIELD_TEXT_LIST:
    case FIELD_OBJECT_LIST:
        encode_list(field, at, *count, out);
        break;
    case FIELD_LABELS:
        encode_labels(at, *count, out);
        break;
    case FIELD_OBJECT:
        encode_object(field->table, at, out);
        break;
    default:
        encode_text(*(const char *const *)at, out);
        break;
    }
}

static bool encode_members(const struct field_table *table, const void *base, struct buf *out)
{
    bool first = true;
    for (size_t i = 0; i < table->count; i++) {
        const struct field *field = &table->fields[i];
        if (is_absent(field, base))
            continue;
        if (!first)
            buf_char(out, ',');
        first = false;
        json_write_key(out, field->name);
        encode_field(field, base, out);
    }
    return first;
}

static void encode_object(const struct field_table *table, const void *base, struct buf *out)
{
    buf_char(out, '{');
    encode_members(table, base, out);
    buf_char(out, '}');
}

/* Members that are the producer's own keep the order they came in. */
static void encode_own_members(const struct job *job, bool first, struct buf *out)
{
    const struct json *member = job->root ? job->root->child : NULL;
    for (; member; member = member->next) {
        if (strncmp(member->key, "x-", 2) != 0)
            continue;
        if (!first)
            buf_char(out, ',');
        first = false;
        encode_text(member->key, out);
        buf_char(out, ':');
        json_write_canonical(out, member);
    }
}

void job_encode(const struct job *job, struct buf *out)
{
    buf_char(out, '{');
    bool first = encode_members(&job_fields, job, out);
    encode_own_members(job, first, out);
    buf_char(out, '}');
}

/* ---- JSON Schema ---- */

static void schema_number(const char *key, double value, struct buf *out)
{
    /* 2^63-1 is no double. */
    if (value >= 0x1p63)
        buf_printf(out, ", \"%s\": 9223372036854775807", key);
    else {
        buf_printf(out, ", \"%s\": ", key);
        json_write_double(out, value);
    }
}

static void schema_default(const struct field *field, struct buf *out)
{
    if (!field->has_default)
        return;
    buf_str(out, ", \"default\": ");
    if (field->kind == FIELD_BOOL)
        buf_str(out, field->number != 0 ? "true" : "false");
    else if (field->text)
        encode_text(field->text, out);
    else
        json_write_double(out, field->number);
}

static void schema_object(const struct field_table *table, int depth, struct buf *out);

static void schema_text(const struct field *field, struct buf *out)
{
    buf_str(out, "\"type\": \"string\"");
    if (field->kind == FIELD_NAME)
        buf_str(out, ", \"pattern\": \"^(?!\\\\.{1,2}$)[A-Za-z0-9._-]{1,128}$\"");
    else if (field->kind == FIELD_CALLBACK)
        buf_str(out, ", \"format\": \"uri\", \"pattern\": \"^https?://\"");
    else if (field->kind == FIELD_URI)
        buf_str(out, ", \"minLength\": 1");
    else if (field->min > 0)
        schema_number("minLength", field->min, out);
    if (field->kind != FIELD_NAME)
        schema_number("maxLength", field->max, out);
}

static void schema_integer(const struct field *field, struct buf *out)
{
    buf_str(out, "\"type\": \"integer\"");
    schema_number("minimum", field->min, out);
    schema_number("maximum", field->max, out);
    if (field->multiple)
        schema_number("multipleOf", field->multiple, out);
}

static void schema_choice(const struct field *field, struct buf *out)
{
    buf_str(out, "\"enum\": [");
    for (size_t i = 0; field->choices[i]; i++) {
        buf_str(out, i ? ", " : "");
        encode_text(field->choices[i], out);
    }
    buf_char(out, ']');
}

static void schema_type(const struct field *field, int depth, struct buf *out)
{
    switch (field->kind) {
    case FIELD_INT:
    case FIELD_INT64:
        schema_integer(field, out);
        break;
    case FIELD_NUMBER:
        buf_str(out, "\"type\": \"number\"");
        schema_number("minimum", field->min, out);
        schema_number("maximum", field->max, out);
        break;
    case FIELD_BOOL:
        buf_str(out, "\"type\": \"boolean\"");
        break;
    case FIELD_TIME:
        buf_str(out, "\"type\": \"string\", \"format\": \"date-time\"");
        break;
    case FIELD_CHOICE:
        schema_choice(field, out);
        break;
    case FIELD_PAIR:
        buf_str(out, "\"type\": \"array\", \"minItems\": 2, \"maxItems\": 2, \"items\": {");
        schema_integer(field, out);
        buf_char(out, '}');
        break;
    case FIELD_RANGE:
        buf_str(out, "\"type\": \"array\", \"minItems\": 2, \"maxItems\": 2, \"items\": {"
                     "\"type\": \"number\"");
        schema_number("minimum", field->min, out);
        schema_number("maximum", field->max, out);
        buf_char(out, '}');
        break;
    case FIELD_TEXT_LIST:
        buf_printf(out, "\"type\": \"array\", \"maxItems\": %zu, \"items\": {", field->limit);
        schema_text(field, out);
        buf_char(out, '}');
        break;
    case FIELD_OBJECT_LIST:
        buf_printf(out, "\"type\": \"array\", \"maxItems\": %zu, \"items\": {", field->limit);
        schema_object(field->table, depth + 1, out);
        buf_char(out, '}');
        break;
    case FIELD_LABELS:
        buf_printf(out,
                   "\"type\": \"object\", \"maxProperties\": %zu, "
                   "\"additionalProperties\": {\"type\": \"string\", \"maxLength\": %.0f}",
                   field->limit, field->max);
        break;
    case FIELD_OBJECT:
        schema_object(field->table, depth + 1, out);
        break;
    default:
        schema_text(field, out);
        break;
    }
}

static void schema_required(const struct field_table *table, struct buf *out)
{
    bool any = false;
    for (size_t i = 0; i < table->count; i++)
        if (table->fields[i].required) {
            buf_printf(out, "%s\"%s\"", any ? ", " : "\"required\": [", table->fields[i].name);
            any = true;
        }
    if (any)
        buf_str(out, "], ");
}

static void schema_object(const struct field_table *table, int depth, struct buf *out)
{
    buf_str(out, "\"type\": \"object\", ");
    schema_required(table, out);
    buf_str(out, "\"additionalProperties\": false, ");
    if (depth == 0)
        buf_str(out, "\"patternProperties\": {\"^x-\": {}}, ");
    buf_str(out, "\"properties\": {");
    for (size_t i = 0; i < table->count; i++) {
        const struct field *field = &table->fields[i];
        buf_printf(out, "%s\n%*s\"%s\": {", i ? "," : "", 4 * (depth + 1), "", field->name);
        schema_type(field, depth, out);
        schema_default(field, out);
        buf_str(out, ", \"description\": ");
        encode_text(field->help, out);
        buf_char(out, '}');
    }
    buf_printf(out, "\n%*s}", 4 * depth, "");
}

void job_schema_write(struct buf *out)
{
    buf_str(out,
            "{\"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n"
            "\"title\": \"Atelier job, version 1\",\n"
            "\"description\": \"One picture request. Lengths of text are in bytes of UTF-8.\",\n");
    schema_object(&job_fields, 0, out);
    buf_str(out, "}\n");
}

/*
 * Reading a request: every field is looked at whatever the others are like, so that a producer sees
 * all problems at once. A field's path, such as
 * "controlnets[1].scale", is carried down as text.
 */
#include "schema/job.h"

#include "common/clock.h"
#include "common/json.h"
#include "common/nearest.h"
#include "common/sha256.h"
#include "schema/job_table.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define NODES_MAX 4096 /* values in one request: every list at its fullest needs fewer than 300 */
#define DEPTH_MAX 16
#define FIELDS_MAX 64 /* rows of one table */

/* ---- problems ---- */

static void copy_cut(char *out, size_t size, const char *text, size_t len)
{
    size_t used = 0;
    while (used < len) {
        size_t step = utf8_length(text + used, len - used);
        step = step ? step : 1;
        if (used + step > size - 4) {
            memcpy(out + used, "…", sizeof("…"));
            return;
        }
        memcpy(out + used, text + used, step);
        used += step;
    }
    out[used] = '\0';
}

void job_problem_add(struct job_problems *problems, const char *field, const char *value,
                     const char *format, ...)
{
    if (problems->count == JOB_PROBLEMS_MAX) {
        problems->dropped++;
        return;
    }
    struct job_problem *problem = &problems->items[problems->count++];
    copy_cut(problem->field, sizeof(problem->field), field, strlen(field));
    copy_cut(problem->value, sizeof(problem->value), value ? value : "", value ? strlen(value) : 0);
    va_list args;
    va_start(args, format);
    vsnprintf(problem->problem, sizeof(problem->problem), format, args);
    va_end(args);
}

void job_problems_write(const struct job_problems *problems, struct buf *out)
{
    buf_char(out, '[');
    for (size_t i = 0; i < problems->count; i++) {
        const struct job_problem *problem = &problems->items[i];
        buf_str(out, i == 0 ? "{\"field\":" : ",{\"field\":");
        json_write_string(out, problem->field, strlen(problem->field));
        buf_str(out, ",\"value\":");
        json_write_string(out, problem->value, strlen(problem->value));
        buf_str(out, ",\"problem\":");
        json_write_string(out, problem->problem, strlen(problem->problem));
        buf_char(out, '}');
    }
    if (problems->dropped > 0)
        buf_printf(out, ",{\"field\":\"\",\"value\":\"\",\"problem\":\"and %zu more\"}",
                   problems->dropped);
    buf_char(out, ']');
}

/* A value as a problem shows it: its text, or the beginning of its JSON. */
static void show(const struct json *value, char *out, size_t size)
{
    struct buf text;
    if (value->type == JSON_STRING) {
        copy_cut(out, size, value->text, value->text_len);
        return;
    }
    buf_init(&text, 64u << 10);
    json_write_canonical(&text, value);
    copy_cut(out, size, text.data, text.len);
    buf_release(&text);
}

static void report(struct job_problems *problems, const char *path, const struct json *value,
                   const char *problem)
{
    char text[128];
    show(value, text, sizeof(text));
    job_problem_add(problems, path, text, "%s", problem);
}

/* ---- one field ---- */

static const char *type_name(enum json_type type)
{
    static const char *const names[] = {"null",     "true or false", "a number",
                                        "a string", "an array",      "an object"};
    return names[type];
}

/* False, with a problem, when the value is of another type. */
static bool is_type(struct job_problems *problems, const char *path, const struct json *value,
                    enum json_type type)
{
    char text[128];
    if (value->type == type)
        return true;
    snprintf(text, sizeof(text), "must be %s, not %s", type_name(type), type_name(value->type));
    report(problems, path, value, text);
    return false;
}

static bool name_valid(const char *name, size_t len)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    if (len < 1 || len > JOB_NAME_MAX_BYTES || strspn(name, allowed) != len)
        return false;
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

bool job_id_valid(const char *id)
{
    return name_valid(id, strnlen(id, JOB_NAME_MAX_BYTES + 1));
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* s3://bucket/key, https://…, data:…;base64,… or a relative path. */
static const char *uri_problem(const char *uri)
{
    if (*uri == '\0')
        return "must not be empty";
    if (starts_with(uri, "s3://"))
        return strchr(uri + 5, '/') && uri[5] != '/' ? NULL : "must be s3://bucket/key";
    if (starts_with(uri, "https://"))
        return uri[8] != '\0' && uri[8] != '/' ? NULL : "must be https://host/…";
    if (starts_with(uri, "data:"))
        return strstr(uri, ";base64,") ? NULL : "must be data:image/png;base64,…";
    if (strstr(uri, "://"))
        return "must be s3://bucket/key, https://…, data:image/png;base64,… or a relative path";
    if (*uri == '/')
        return "must be a path relative to the jobs file, not an absolute one";
    return NULL;
}

static void read_text(struct job_problems *problems, const char *path, const struct field *field,
                      const struct json *value, const char **out)
{
    const char *problem = NULL;
    char text[160];
    if (!is_type(problems, path, value, JSON_STRING))
        return;
    if (value->text_len > (size_t)field->max && field->kind != FIELD_NAME) {
        snprintf(text, sizeof(text), "has %zu bytes; at most %.0f are allowed", value->text_len,
                 field->max);
        problem = text;
    } else if (value->text_len < (size_t)field->min) {
        problem = "must not be empty";
    } else if (field->kind == FIELD_NAME && !name_valid(value->text, value->text_len)) {
        problem = "must be 1 to 128 of A-Z a-z 0-9 . _ - (and neither . nor ..)";
    } else if (field->kind == FIELD_URI) {
        problem = uri_problem(value->text);
    } else if (field->kind == FIELD_CALLBACK && !starts_with(value->text, "https://") &&
               !starts_with(value->text, "http://")) {
        problem = "must be an https:// URL";
    }
    if (problem)
        report(problems, path, value, problem);
    else
        *out = value->text;
}

static void read_choice(struct job_problems *problems, const char *path, const struct field *field,
                        const struct json *value, const char **out)
{
    char text[384], hint[NEAREST_HINT_BYTES];
    size_t count = 0, used;
    if (!is_type(problems, path, value, JSON_STRING))
        return;
    for (; field->choices[count]; count++)
        if (strcmp(field->choices[count], value->text) == 0) {
            *out = field->choices[count];
            return;
        }
    nearest_hint(hint, value->text, field->choices, count);
    used = (size_t)snprintf(text, sizeof(text), "must be one of ");
    for (size_t i = 0; i < count && used < sizeof(text); i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", i ? ", " : "",
                                 field->choices[i]);
    if (used < sizeof(text))
        snprintf(text + used, sizeof(text) - used, "%s", hint);
    report(problems, path, value, text);
}

static bool read_integer(struct job_problems *problems, const char *path, const struct field *field,
                         const struct json *value, int64_t *out)
{
    char text[160], max[32];
    if (!is_type(problems, path, value, JSON_NUMBER))
        return false;
    if (json_int64(value, out) && *out >= (int64_t)field->min &&
        (field->kind == FIELD_INT64 || *out <= (int64_t)field->max) &&
        (field->multiple == 0 || *out % field->multiple == 0))
        return true;
    snprintf(max, sizeof(max), "%.0f", field->max);
    if (field->multiple)
        snprintf(text, sizeof(text), "must be a multiple of %d from %.0f to %s", field->multiple,
                 field->min, max);
    else
        snprintf(text, sizeof(text), "must be a whole number from %.0f to %s", field->min,
                 field->kind == FIELD_INT64 ? "9223372036854775807 (2^63-1)" : max);
    report(problems, path, value, text);
    return false;
}

static void read_number(struct job_problems *problems, const char *path, const struct field *field,
                        const struct json *value, double *out)
{
    char text[160];
    double number;
    if (!is_type(problems, path, value, JSON_NUMBER))
        return;
    if (json_double(value, &number) && number >= field->min && number <= field->max) {
        *out = number;
        return;
    }
    snprintf(text, sizeof(text), "must be a number from %.15g to %.15g", field->min, field->max);
    report(problems, path, value, text);
}

static void read_time(struct job_problems *problems, const char *path, const struct json *value,
                      int64_t *out)
{
    if (!is_type(problems, path, value, JSON_STRING))
        return;
    if (!clock_parse_rfc3339(value->text, out))
        report(problems, path, value, "must be a time such as 2026-03-01T12:00:00Z (RFC 3339)");
}

static void read_pair(struct job_problems *problems, const char *path, const struct field *field,
                      const struct json *value, int out[2])
{
    int64_t pair[2];
    char text[160];
    bool good = value->type == JSON_ARRAY && value->count == 2;
    const struct json *item = good ? value->child : NULL;
    for (int i = 0; good && i < 2; i++, item = item->next)
        good = json_int64(item, &pair[i]) && pair[i] >= (int64_t)field->min &&
               pair[i] <= (int64_t)field->max;
    if (good) {
        out[0] = (int)pair[0];
        out[1] = (int)pair[1];
        return;
    }
    snprintf(text, sizeof(text), "must be two whole numbers from %.0f to %.0f, as in [%d, %d]",
             field->min, field->max, field->min > 0 ? 512 : 0, field->min > 0 ? 768 : 0);
    report(problems, path, value, text);
}

static void read_range(struct job_problems *problems, const char *path, const struct field *field,
                       const struct json *value, double out[2])
{
    char text[160];
    bool good = value->type == JSON_ARRAY && value->count == 2;
    const struct json *item = good ? value->child : NULL;
    double range[2] = {0, 0};
    for (int i = 0; good && i < 2; i++, item = item->next) {
        good = item->type == JSON_NUMBER;
        range[i] = json_double_or(item, 0);
    }
    if (good && range[0] >= field->min && range[0] < range[1] && range[1] <= field->max) {
        out[0] = range[0];
        out[1] = range[1];
        return;
    }
    snprintf(text, sizeof(text), "must be two numbers from %.0f to %.0f, the lower one first",
             field->min, field->max);
    report(problems, path, value, text);
}

/* False, with a problem, when it is no array or too long. */
static bool is_list(struct job_problems *problems, const char *path, const struct field *field,
                    const struct json *value, enum json_type type)
{
    char text[96];
    if (!is_type(problems, path, value, type))
        return false;
    if (value->count <= field->limit)
        return true;
    snprintf(text, sizeof(text), "has %zu entries; at most %zu are allowed", value->count,
             field->limit);
    report(problems, path, value, text);
    return false;
}

static void read_text_list(struct job_problems *problems, const char *path,
                           const struct field *field, const struct json *value, const char **out,
                           size_t *count)
{
    char item_path[96];
    if (!is_list(problems, path, field, value, JSON_ARRAY))
        return;
    for (const struct json *item = value->child; item; item = item->next) {
        snprintf(item_path, sizeof(item_path), "%.60s[%zu]", path, *count);
        read_text(problems, item_path, field, item, &out[(*count)++]);
    }
}

static void read_labels(struct job_problems *problems, const char *path, const struct field *field,
                        const struct json *value, struct job_label *out, size_t *count)
{
    char item_path[96];
    if (!is_list(problems, path, field, value, JSON_OBJECT))
        return;
    for (const struct json *item = value->child; item; item = item->next) {
        snprintf(item_path, sizeof(item_path), "%.30s.%.60s", path, item->key);
        if (!is_type(problems, item_path, item, JSON_STRING))
            continue;
        if (item->text_len > (size_t)field->max)
            report(problems, item_path, item, "has more than 1024 bytes");
        out[(*count)++] = (struct job_label){item->key, item->text};
    }
}

static void read_object(struct job_problems *problems, const char *path,
                        const struct field_table *table, const struct json *value, void *out);

static void read_object_list(struct job_problems *problems, const char *path,
                             const struct field *field, const struct json *value, char *out,
                             size_t *count)
{
    char item_path[96];
    if (!is_list(problems, path, field, value, JSON_ARRAY))
        return;
    for (const struct json *item = value->child; item; item = item->next) {
        snprintf(item_path, sizeof(item_path), "%.60s[%zu]", path, *count);
        read_object(problems, item_path, field->table, item, out + *count * field->table->size);
        ++*count;
    }
}

static void read_field(struct job_problems *problems, const char *path, const struct field *field,
                       const struct json *value, void *base)
{
    void *at = (char *)base + field->offset;
    size_t *count = (size_t *)((char *)base + field->count_offset);
    int64_t integer;
    switch (field->kind) {
    case FIELD_TEXT:
    case FIELD_NAME:
    case FIELD_URI:
    case FIELD_CALLBACK:
        read_text(problems, path, field, value, at);
        break;
    case FIELD_CHOICE:
        read_choice(problems, path, field, value, at);
        break;
    case FIELD_INT:
        if (read_integer(problems, path, field, value, &integer))
            *(int *)at = (int)integer;
        break;
    case FIELD_INT64:
        if (read_integer(problems, path, field, value, &integer))
            *(int64_t *)at = integer;
        break;
    case FIELD_NUMBER:
        read_number(problems, path, field, value, at);
        break;
    case FIELD_BOOL:
        if (is_type(problems, path, value, JSON_BOOL))
            *(bool *)at = value->boolean;
        break;
    case FIELD_TIME:
        read_time(problems, path, value, at);
        break;
    case FIELD_PAIR:
        read_pair(problems, path, field, value, at);
        break;
    case FIELD_RANGE:
        read_range(problems, path, field, value, at);
        break;
    case FIELD_TEXT_LIST:
        read_text_list(problems, path, field, value, at, count);
        break;
    case FIELD_OBJECT:
        read_object(problems, path, field->table, value, at);
        break;
    case FIELD_OBJECT_LIST:
        read_object_list(problems, path, field, value, at, count);
        break;
    case FIELD_LABELS:
        read_labels(problems, path, field, value, at, count);
        break;
    }
}

/* ---- objects ---- */

static void set_defaults(const struct field_table *table, void *base)
{
    for (size_t i = 0; i < table->count; i++) {
        const struct field *field = &table->fields[i];
        void *at = (char *)base + field->offset;
        switch (field->kind) {
        case FIELD_INT:
            *(int *)at = (int)field->number;
            break;
        case FIELD_INT64:
            *(int64_t *)at = (int64_t)field->number;
            break;
        case FIELD_NUMBER:
            *(double *)at = field->number;
            break;
        case FIELD_BOOL:
            *(bool *)at = field->number != 0;
            break;
        case FIELD_TIME:
            *(int64_t *)at = JOB_TIME_NONE;
            break;
        case FIELD_PAIR:
            ((int *)at)[0] = ((int *)at)[1] = (int)field->number;
            break;
        case FIELD_RANGE:
            ((double *)at)[0] = ((double *)at)[1] = field->number;
            break;
        case FIELD_OBJECT:
            set_defaults(field->table, at);
            break;
        case FIELD_TEXT_LIST:
        case FIELD_OBJECT_LIST:
        case FIELD_LABELS:
            break;
        default:
            *(const char **)at = field->text;
            break;
        }
    }
}

static const struct field *find_field(const struct field_table *table, const char *name)
{
    for (size_t i = 0; i < table->count; i++)
        if (strcmp(table->fields[i].name, name) == 0)
            return &table->fields[i];
    return NULL;
}

static void report_unknown(struct job_problems *problems, const char *path,
                           const struct field_table *table, const struct json *member)
{
    const char *names[FIELDS_MAX];
    char hint[NEAREST_HINT_BYTES], text[384];
    ASSERT(table->count <= FIELDS_MAX);
    for (size_t i = 0; i < table->count; i++)
        names[i] = table->fields[i].name;
    nearest_hint(hint, member->key, names, table->count);
    size_t used = (size_t)snprintf(text, sizeof(text), "unknown field%s%s", hint,
                                   *path   ? ""
                                   : *hint ? " (own fields go under labels or begin with x-)"
                                           : "; own fields go under labels or begin with x-");
    for (size_t i = 0; *path && !*hint && i < table->count && used < sizeof(text); i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s",
                                 i ? ", " : "; there are ", names[i]);
    char member_path[96];
    snprintf(member_path, sizeof(member_path), "%s%s%.64s", path, *path ? "." : "", member->key);
    report(problems, member_path, member, text);
}

static void read_object(struct job_problems *problems, const char *path,
                        const struct field_table *table, const struct json *value, void *out)
{
    char member_path[96];
    set_defaults(table, out);
    if (!is_type(problems, path, value, JSON_OBJECT))
        return;
    for (const struct json *member = value->child; member; member = member->next) {
        const struct field *field = find_field(table, member->key);
        if (field) {
            snprintf(member_path, sizeof(member_path), "%.60s%s%s", path, *path ? "." : "",
                     field->name);
            read_field(problems, member_path, field, member, out);
        } else if (*path || !starts_with(member->key, "x-")) {
            report_unknown(problems, path, table, member);
        }
    }
    for (size_t i = 0; i < table->count; i++) {
        const struct field *field = &table->fields[i];
        if (!field->required || json_get(value, field->name))
            continue;
        snprintf(member_path, sizeof(member_path), "%.60s%s%s", path, *path ? "." : "",
                 field->name);
        job_problem_add(problems, member_path, NULL, "is required");
    }
}

/* ---- requests ---- */

void job_problem_add_error(struct job_problems *problems, const struct err *error)
{
    char path[64], top[64];
    const char *message = error->message, *colon = strstr(message, ": ");
    size_t len = colon ? (size_t)(colon - message) : sizeof(path);
    if (len < sizeof(path)) {
        snprintf(path, sizeof(path), "%.*s", (int)len, message);
        snprintf(top, sizeof(top), "%.*s", (int)strcspn(path, ".["), path);
        if (find_field(&job_fields, top)) {
            job_problem_add(problems, path, NULL, "%s", colon + 2);
            return;
        }
    }
    job_problem_add(problems, "", NULL, "%s", message);
}

int job_parse(struct job *job, const char *text, size_t len, struct job_problems *problems,
              struct err *err)
{
    static const struct json_limits limits = {JOB_MAX_BYTES, DEPTH_MAX, NODES_MAX};
    struct err own;
    *job = (struct job){.bytes = len};
    problems->count = problems->dropped = 0;
    if (json_parse(&job->doc, text, len, &limits, &own) != 0) {
        if (own.class == ERR_REJECT)
            job_problem_add(problems, "", NULL, "%s", own.message);
        return err_set(err, own.code, own.class, "%s", own.message);
    }
    job->root = json_root(job->doc);
    if (job->root->type != JSON_OBJECT)
        report(problems, "", job->root, "a job must be a JSON object, one per line");
    else {
        read_object(problems, "", &job_fields, job->root, job);
        job_check_together(job, problems);
    }
    if (problems->count == 0)
        return 0;
    const struct job_problem *first = &problems->items[0];
    return err_set(err, ERR_INVALID, ERR_REJECT, "%s%s%s", first->field, *first->field ? ": " : "",
                   first->problem);
}

void job_release(struct job *job)
{
    json_doc_free(job->doc);
    *job = (struct job){0};
}

void job_move(struct job *to, struct job *from)
{
    *to = *from;
    if (from->id == from->own_id)
        to->id = to->own_id;
    *from = (struct job){0};
}

/* ---- identity ---- */

static int hash_request(const struct job *job, uint64_t *out, struct err *err)
{
    struct buf text;
    buf_init(&text, JOB_ENCODED_MAX_BYTES);
    job_encode(job, &text);
    bool failed = text.failed;
    if (!failed)
        *out = sha256_u64(text.data, text.len);
    buf_release(&text);
    return failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory to encode a job") : 0;
}

int job_identify(struct job *job, const char *batch, uint64_t line, struct err *err)
{
    char text[2 * JOB_NAME_MAX_BYTES + 64];
    uint64_t hash;
    if (!job->id) {
        if (hash_request(job, &hash, err) != 0)
            return -1;
        snprintf(text, sizeof(text), "id %.*s %llu %016llx", JOB_NAME_MAX_BYTES,
                 job->batch ? job->batch : batch, (unsigned long long)line,
                 (unsigned long long)hash);
        snprintf(job->own_id, sizeof(job->own_id), "line-%06llu-%012llx", (unsigned long long)line,
                 (unsigned long long)(sha256_u64(text, strlen(text)) >> 16));
        job->id = job->own_id;
    }
    if (job->seed < 0) {
        snprintf(text, sizeof(text), "seed %s", job->id);
        job->seed = (int64_t)(sha256_u64(text, strlen(text)) >> 1) & ~(int64_t)(JOB_IMAGES_MAX - 1);
    }
    return hash_request(job, &job->content, err);
}

#include "schema/wire.h"

#include "schema/fields.h"

#include <string.h>

static const char *const order_names[ORDER_COUNT] = {"job", "cancel", "ack", "drain", "sweep"};
static const char *const report_names[REPORT_COUNT] = {"beat", "done", "failed", "returned"};

static int find_name(const struct json *root, const char *const *names, int count)
{
    const char *name = json_string_or(json_get(root, "type"), "");
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

static void put_attempt(struct buf *out, const char *id, uint64_t epoch, int attempt)
{
    put_text(out, "id", id);
    put_integer(out, "epoch", (int64_t)epoch);
    put_integer(out, "attempt", attempt);
}

bool wire_next_job(const struct json *jobs, const struct json **at, struct wire_job *job)
{
    if (!jobs || jobs->type != JSON_ARRAY)
        return false;
    for (*at = *at ? (*at)->next : jobs->child; *at; *at = (*at)->next) {
        const struct json *id = (*at)->type == JSON_ARRAY ? (*at)->child : NULL;
        if (!id || (*at)->count != 3 || id->type != JSON_STRING)
            continue;
        job->id = id->text;
        job->epoch = (uint64_t)json_int_or(id->next, 0);
        job->attempt = (int)json_int_or(id->next->next, 0);
        return true;
    }
    return false;
}

static void write_jobs(const struct wire_job *jobs, size_t count, struct buf *out)
{
    buf_str(out, ",\"jobs\":[");
    for (size_t i = 0; i < count; i++) {
        const struct wire_job *job = &jobs[i];
        buf_str(out, i ? ",[" : "[");
        json_write_string(out, job->id, strlen(job->id));
        buf_char(out, ',');
        json_write_integer(out, (int64_t)job->epoch);
        buf_char(out, ',');
        json_write_integer(out, job->attempt);
        buf_char(out, ']');
    }
    buf_char(out, ']');
}

/* ---- orders ---- */

void order_write(const struct order *order, struct buf *out)
{
    buf_printf(out, "{\"type\":\"%s\"", order_names[order->type]);
    if (order->type == ORDER_ACK)
        write_jobs(order->jobs, order->job_count, out);
    else if (order->type != ORDER_DRAIN)
        put_attempt(out, order->id, order->epoch, order->attempt);
    if (order->type == ORDER_JOB) {
        put_time(out, "accepted", order->accepted_ns);
        put_number(out, "predicted_s", order->predicted_s);
        put_number(out, "price", order->price);
        put_text(out, "traceparent", order->traceparent);
        put_text(out, "device_class", order->device_class);
        put_json(out, "request", order->request);
    }
    if (order->type == ORDER_JOB || order->type == ORDER_SWEEP)
        put_text(out, "checkpoint", order->checkpoint);
    buf_char(out, '}');
}

int order_read(struct order *order, const char *text, size_t len, struct err *err)
{
    *order = (struct order){0};
    if (json_parse(&order->doc, text, len, NULL, err) != 0)
        return err_prefix(err, "order");
    const struct json *root = json_root(order->doc);
    int type = find_name(root, order_names, ORDER_COUNT);
    order->type = (enum order_type)type;
    order->id = get_text(root, "id");
    order->epoch = (uint64_t)json_int_or(json_get(root, "epoch"), 0);
    order->attempt = (int)json_int_or(json_get(root, "attempt"), 0);
    order->accepted_ns = get_time(root, "accepted");
    order->predicted_s = json_double_or(json_get(root, "predicted_s"), -1);
    order->price = json_double_or(json_get(root, "price"), -1);
    order->traceparent = get_text(root, "traceparent");
    order->checkpoint = get_text(root, "checkpoint");
    order->device_class = get_text(root, "device_class");
    order->request_json = json_get(root, "request");
    order->jobs_json = json_get(root, "jobs");
    if (type < 0 || ((type == ORDER_JOB || type == ORDER_CANCEL) && !order->id) ||
        (type == ORDER_JOB && (!order->request_json || order->attempt < 1))) {
        order_release(order);
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "order: neither job, cancel, ack, drain nor sweep");
    }
    return 0;
}

void order_release(struct order *order)
{
    json_doc_free(order->doc);
    order->doc = NULL;
}

/* ---- reports ---- */

static void put_names(struct buf *out, const char *key, const char *const *names, size_t count)
{
    buf_printf(out, ",\"%s\":[", key);
    for (size_t i = 0; i < count; i++) {
        buf_str(out, i ? "," : "");
        json_write_string(out, names[i], strlen(names[i]));
    }
    buf_char(out, ']');
}

static void write_worker(const struct report_worker *is, struct buf *out)
{
    put_text(out, "boot", is->boot);
    put_text(out, "device_class", is->device_class);
    put_text(out, "processor", is->processor);
    put_text(out, "backend", is->backend);
    put_text(out, "isa", is->isa);
    put_text(out, "engine_version", is->engine_version);
    put_text(out, "precisions", is->precisions);
    put_integer(out, "pictures_max", is->pictures_max);
    put_integer(out, "memory_bytes", (int64_t)is->memory_bytes);
    put_true(out, "confidential", is->confidential);
    put_true(out, "draining", is->draining);
    put_integer(out, "cache_bytes", (int64_t)is->cache_bytes);
    put_integer(out, "cache_max_bytes", (int64_t)is->cache_max_bytes);
    put_number(out, "step_s", is->step_s);
    put_names(out, "resident", is->resident, is->resident_count);
    put_names(out, "adapters", is->adapters, is->adapter_count);
}

void report_write(const struct report *report, struct buf *out)
{
    buf_printf(out, "{\"type\":\"%s\"", report_names[report->type]);
    put_text(out, "worker", report->worker);
    if (report->type == REPORT_BEAT) {
        write_worker(&report->is, out);
        write_jobs(report->jobs, report->job_count, out);
    } else {
        put_attempt(out, report->id, report->epoch, report->attempt);
        put_text(out, "device_class", report->is.device_class);
        put_text(out, "error", report->error);
        put_true(out, "retry", report->retry);
        put_true(out, "cancelled", report->cancelled);
        put_text(out, "checkpoint", report->checkpoint);
    }
    if (report->type == REPORT_DONE) {
        put_text(out, "model", report->model);
        put_integer(out, "width", report->width);
        put_integer(out, "height", report->height);
        put_integer(out, "steps", report->steps);
        put_integer(out, "images", report->images);
        put_number(out, "compute_s", report->compute_s);
        put_number(out, "total_s", report->total_s);
        put_number(out, "load_s", report->load_s);
        put_text(out, "manifest", report->manifest);
        put_json(out, "files", report->files);
        put_true(out, "adopted", report->adopted);
    }
    buf_char(out, '}');
}

static uint64_t get_size(const struct json *root, const char *key)
{
    int64_t value = json_int_or(json_get(root, key), 0);
    return value > 0 ? (uint64_t)value : 0;
}

static size_t get_names(const struct json *root, const char *key, const char **names, size_t max)
{
    const struct json *list = json_get(root, key);
    size_t count = 0;
    for (const struct json *at = list && list->type == JSON_ARRAY ? list->child : NULL;
         at && count < max; at = at->next)
        if (at->type == JSON_STRING)
            names[count++] = at->text;
    return count;
}

static void read_worker(const struct json *root, struct report_worker *is)
{
    is->boot = json_string_or(json_get(root, "boot"), "");
    is->device_class = json_string_or(json_get(root, "device_class"), "cpu");
    is->processor = get_text(root, "processor");
    is->backend = get_text(root, "backend");
    is->isa = get_text(root, "isa");
    is->engine_version = get_text(root, "engine_version");
    is->precisions = json_string_or(json_get(root, "precisions"), "f32");
    is->pictures_max = (int)json_int_or(json_get(root, "pictures_max"), 1);
    is->memory_bytes = get_size(root, "memory_bytes");
    is->confidential = json_bool_or(json_get(root, "confidential"), false);
    is->draining = json_bool_or(json_get(root, "draining"), false);
    is->cache_bytes = get_size(root, "cache_bytes");
    is->cache_max_bytes = get_size(root, "cache_max_bytes");
    is->step_s = json_double_or(json_get(root, "step_s"), 0);
    is->resident_count = get_names(root, "resident", is->resident, WIRE_MODELS_MAX);
    is->adapter_count = get_names(root, "adapters", is->adapters, WIRE_ADAPTERS_MAX);
}

int report_read(struct report *report, const char *text, size_t len, struct err *err)
{
    *report = (struct report){0};
    if (json_parse(&report->doc, text, len, NULL, err) != 0)
        return err_prefix(err, "report");
    const struct json *root = json_root(report->doc);
    int type = find_name(root, report_names, REPORT_COUNT);
    report->type = (enum report_type)type;
    report->worker = get_text(root, "worker");
    report->id = get_text(root, "id");
    if (type < 0 || !report->worker || (type != REPORT_BEAT && !report->id)) {
        report_release(report);
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "report: neither beat, done, failed nor returned of a named worker");
    }
    report->epoch = get_size(root, "epoch");
    report->attempt = (int)json_int_or(json_get(root, "attempt"), 0);
    report->model = get_text(root, "model");
    report->width = (int)json_int_or(json_get(root, "width"), 0);
    report->height = (int)json_int_or(json_get(root, "height"), 0);
    report->steps = (int)json_int_or(json_get(root, "steps"), 0);
    report->images = (int)json_int_or(json_get(root, "images"), 0);
    report->compute_s = json_double_or(json_get(root, "compute_s"), -1);
    report->total_s = json_double_or(json_get(root, "total_s"), -1);
    report->load_s = json_double_or(json_get(root, "load_s"), -1);
    report->manifest = get_text(root, "manifest");
    report->files_json = json_get(root, "files");
    report->adopted = json_bool_or(json_get(root, "adopted"), false);
    report->is.device_class = get_text(root, "device_class");
    report->error = get_text(root, "error");
    report->retry = json_bool_or(json_get(root, "retry"), false);
    report->cancelled = json_bool_or(json_get(root, "cancelled"), false);
    report->checkpoint = get_text(root, "checkpoint");
    if (type == REPORT_BEAT) {
        read_worker(root, &report->is);
        report->jobs_json = json_get(root, "jobs");
    }
    return 0;
}

void report_release(struct report *report)
{
    json_doc_free(report->doc);
    report->doc = NULL;
}

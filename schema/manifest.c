#include "schema/manifest.h"

#include "common/clock.h"
#include "common/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_text(struct buf *out, const char *key, const char *text)
{
    buf_printf(out, "\"%s\":", key);
    if (text)
        json_write_string(out, text, strlen(text));
    else
        buf_str(out, "null");
    buf_char(out, ',');
}

/* Microseconds are enough, and keep the text short; negative is unknown. */
static void put_seconds(struct buf *out, const char *key, double seconds)
{
    buf_printf(out, "\"%s\":", key);
    if (seconds < 0)
        buf_str(out, "null");
    else
        json_write_double(out, round(seconds * 1e6) / 1e6);
    buf_char(out, ',');
}

static void put_time(struct buf *out, const char *key, int64_t wall_ns)
{
    char time[CLOCK_RFC3339_BYTES];
    clock_format_rfc3339(wall_ns, time);
    put_text(out, key, time);
}

/* Takes back the comma after the last member. */
static void end_object(struct buf *out)
{
    if (out->len > 0 && out->data[out->len - 1] == ',')
        out->len--;
    buf_char(out, '}');
}

static void put_files(struct buf *out, const struct manifest *manifest)
{
    buf_str(out, "\"files\":[");
    for (size_t i = 0; i < manifest->file_count; i++) {
        const struct manifest_file *file = &manifest->files[i];
        buf_printf(out, "%s{\"index\":%zu,", i ? "," : "", i);
        put_text(out, "name", file->name);
        put_text(out, "sha256", file->sha256);
        buf_printf(out, "\"bytes\":%llu,\"seed\":%llu,\"width\":%d,\"height\":%d}",
                   (unsigned long long)file->bytes, (unsigned long long)file->seed, file->width,
                   file->height);
    }
    buf_str(out, "],");
}

void manifest_write(const struct manifest *manifest, struct buf *out)
{
    buf_printf(out, "{\"version\":%d,\"status\":\"succeeded\",", MANIFEST_VERSION);
    put_text(out, "id", manifest->id);
    if (manifest->batch)
        put_text(out, "batch", manifest->batch);
    put_text(out, "tenant", manifest->tenant);
    buf_printf(out, "\"content\":\"%016llx\",\"request\":%s,",
               (unsigned long long)manifest->content, manifest->request);
    put_files(out, manifest);
    buf_str(out, "\"device\":{");
    put_text(out, "class", manifest->device_class);
    put_text(out, "processor", manifest->processor);
    put_text(out, "backend", manifest->backend);
    put_text(out, "isa", manifest->isa);
    put_text(out, "precision", manifest->precision);
    end_object(out);
    buf_char(out, ',');
    put_text(out, "model_family", manifest->model_family);
    put_text(out, "engine_version", manifest->engine_version);
    buf_printf(out, "\"attempt\":%d,", manifest->attempt);
    if (manifest->traceparent)
        put_text(out, "traceparent", manifest->traceparent);
    put_time(out, "started", manifest->started_ns);
    put_time(out, "finished", manifest->finished_ns);
    buf_str(out, "\"times\":{");
    put_seconds(out, "prepare_s", manifest->times.prepare_s);
    put_seconds(out, "compute_s", manifest->times.compute_s);
    put_seconds(out, "publish_s", manifest->times.publish_s);
    put_seconds(out, "total_s", manifest->times.total_s);
    end_object(out);
    buf_str(out, ",\"cost\":{");
    put_seconds(out, "predicted_s", manifest->predicted_s);
    put_seconds(out, "actual_s", manifest->actual_s);
    bool priced = manifest->predicted_price > 0 && manifest->predicted_s > 0;
    put_seconds(out, "predicted", priced ? manifest->predicted_price : -1);
    put_seconds(out, "actual",
                priced ? manifest->predicted_price * manifest->actual_s / manifest->predicted_s
                       : -1);
    end_object(out);
    buf_str(out, "}\n");
}

int manifest_read(struct manifest_view *view, const char *text, size_t len, struct err *err)
{
    static const struct json_limits limits = {MANIFEST_MAX_BYTES, 32, 64u << 10};
    *view = (struct manifest_view){0};
    if (json_parse(&view->doc, text, len, &limits, err) != 0)
        return -1;
    const struct json *root = json_root(view->doc);
    const char *content = json_string_or(json_get(root, "content"), "");
    view->id = json_string_or(json_get(root, "id"), NULL);
    view->request = json_get(root, "request");
    view->files = json_get(root, "files");
    view->content = strtoull(content, NULL, 16);
    view->total_s = json_double_or(json_get(json_get(root, "times"), "total_s"), 0);
    if (view->id && view->request && view->request->type == JSON_OBJECT && view->files &&
        view->files->type == JSON_ARRAY)
        return 0;
    manifest_view_release(view);
    return err_set(err, ERR_FORMAT, ERR_REJECT, "a manifest without id, request or files");
}

void manifest_view_release(struct manifest_view *view)
{
    json_doc_free(view->doc);
    *view = (struct manifest_view){0};
}

/* A seed may lie beyond what a signed number holds. */
static uint64_t number_or_zero(const struct json *value)
{
    return value && value->type == JSON_NUMBER ? strtoull(value->text, NULL, 10) : 0;
}

size_t manifest_view_files(const struct manifest_view *view, struct manifest_file *files,
                           size_t count)
{
    const struct json *object = view->files->child;
    for (size_t i = 0; i < count && object; i++, object = object->next) {
        struct manifest_file *file = &files[i];
        *file = (struct manifest_file){
            .bytes = number_or_zero(json_get(object, "bytes")),
            .seed = number_or_zero(json_get(object, "seed")),
            .width = (int)json_int_or(json_get(object, "width"), 0),
            .height = (int)json_int_or(json_get(object, "height"), 0),
        };
        snprintf(file->name, sizeof(file->name), "%s",
                 json_string_or(json_get(object, "name"), ""));
        snprintf(file->sha256, sizeof(file->sha256), "%s",
                 json_string_or(json_get(object, "sha256"), ""));
    }
    return view->files->count;
}

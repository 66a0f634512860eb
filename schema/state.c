#include "schema/state.h"

#include "common/clock.h"
#include "schema/fields.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[STATE_COUNT] = {
    [STATE_QUEUED] = "queued",   [STATE_RETRYING] = "retrying", [STATE_SUCCEEDED] = "succeeded",
    [STATE_FAILED] = "failed",   [STATE_DEAD] = "dead",         [STATE_CANCELLED] = "cancelled",
    [STATE_EXPIRED] = "expired",
};

const char *state_name(enum state_kind kind)
{
    return names[kind];
}

bool state_is_terminal(enum state_kind kind)
{
    return kind >= STATE_SUCCEEDED;
}

/* ---- writing ---- */

void state_write(const struct state *state, struct buf *out)
{
    buf_str(out, "{\"version\":");
    json_write_integer(out, STATE_VERSION);
    buf_str(out, ",\"id\":");
    json_write_string(out, state->id, strlen(state->id));
    put_text(out, "state", state_name(state->kind));
    put_text(out, "batch", state->batch);
    put_text(out, "tenant", state->tenant);
    buf_printf(out, ",\"content\":\"%016" PRIx64 "\"", state->content);
    put_integer(out, "epoch", (int64_t)state->epoch);
    put_integer(out, "attempts", state->attempts);
    put_integer(out, "crashes", state->crashes);
    put_integer(out, "returns", state->returns);
    put_time(out, "accepted", state->accepted_ns);
    put_text(out, "traceparent", state->traceparent);
    if (state_is_terminal(state->kind)) {
        put_time(out, "finished", state->finished_ns);
        put_text(out, "worker", state->worker);
        put_text(out, "device_class", state->device_class);
        put_text(out, "manifest", state->manifest);
        put_json(out, "files", state->files);
        put_text(out, "error", state->error);
        put_number(out, "seconds", state->seconds);
        put_number(out, "price", state->price);
    } else {
        put_time(out, "not_before", state->not_before_ns);
        put_text(out, "checkpoint", state->checkpoint);
        put_true(out, "cancelling", state->cancelling);
    }
    put_json(out, "request", state->request);
    buf_char(out, '}');
}

/* ---- reading ---- */

static bool read_kind(const struct json *root, enum state_kind *kind)
{
    const char *name = json_string_or(json_get(root, "state"), "");
    for (int i = 0; i < STATE_COUNT; i++) {
        if (strcmp(names[i], name) == 0) {
            *kind = (enum state_kind)i;
            return true;
        }
    }
    return false;
}

int state_read(struct state *state, const char *text, size_t len, struct err *err)
{
    *state = (struct state){0};
    if (json_parse(&state->doc, text, len, NULL, err) != 0)
        return err_prefix(err, "state record");
    const struct json *root = json_root(state->doc);
    const char *content = get_text(root, "content");
    state->id = get_text(root, "id");
    if (!state->id || !content || !read_kind(root, &state->kind)) {
        state_release(state);
        return err_set(err, ERR_FORMAT, ERR_REJECT, "state record without id, content or state");
    }
    state->content = strtoull(content, NULL, 16);
    state->batch = get_text(root, "batch");
    state->tenant = json_string_or(json_get(root, "tenant"), "default");
    state->epoch = (uint64_t)json_int_or(json_get(root, "epoch"), 0);
    state->attempts = (int)json_int_or(json_get(root, "attempts"), 0);
    state->crashes = (int)json_int_or(json_get(root, "crashes"), 0);
    state->returns = (int)json_int_or(json_get(root, "returns"), 0);
    state->accepted_ns = get_time(root, "accepted");
    state->finished_ns = get_time(root, "finished");
    state->not_before_ns = get_time(root, "not_before");
    state->traceparent = get_text(root, "traceparent");
    state->checkpoint = get_text(root, "checkpoint");
    state->cancelling = json_bool_or(json_get(root, "cancelling"), false);
    state->worker = get_text(root, "worker");
    state->device_class = get_text(root, "device_class");
    state->manifest = get_text(root, "manifest");
    state->error = get_text(root, "error");
    state->seconds = json_double_or(json_get(root, "seconds"), -1);
    state->price = json_double_or(json_get(root, "price"), -1);
    state->request_json = json_get(root, "request");
    return 0;
}

void state_release(struct state *state)
{
    json_doc_free(state->doc);
    state->doc = NULL;
}

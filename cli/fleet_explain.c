/*
 * atelier explain: why a job waits or runs where it does. The leader alone knows; its address is in
 * the hash `cell`. Where it cannot be asked, Redis says what it knows.
 */
#include "cli/fleet.h"
#include "common/json.h"
#include "net/http.h"

#include <stdio.h>
#include <string.h>

#define ANSWER_MAX_BYTES (1u << 20)
#define ANSWER_MS 5000
#define DEPTH_MAX 8

static const struct conf_row rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_JSON_ROW,
};

const struct conf_table explain_table = {
    .command = "atelier explain",
    .family = cli_tables,
    .usage = "atelier explain JOB [options]",
    .summary =
        "Says why a job waits or runs where it does, when it may start and what it may cost, "
        "as the leading coordinator sees it; else what Redis knows. Exit status: 0 it is "
        "known, 1 it is not, 5 neither could be asked.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "JOB",
    .positional_offset = FLEET_AT(word),
};

/* 1: the coordinator has answered; 0: it knows no such job; -1: it could not be asked. */
static int ask(const char *api, const char *job, struct buf *out, struct err *err)
{
    struct http_options options = HTTP_OPTIONS_INIT;
    struct http_answer answer = {0};
    struct http_buf_sink sink;
    struct http *http;
    char url[1024];
    options.clock = clock_system();
    snprintf(url, sizeof(url), "http://%s/explain/%s", api, job);
    if (http_create(&http, &options, err) != 0)
        return -1;
    http_buf_sink(&sink, out, url);
    struct http_request request = {.method = "GET", .url = url, .what = url, .sink = &sink.sink};
    int rc = http_try(http, &request, ANSWER_MS, &answer, err);
    http_free(http);
    if (rc == 0 && answer.status == 200)
        return 1;
    if (rc == 0 && answer.status == 404)
        return 0;
    return rc == 0 ? http_refusal(&request, &answer, ERR_RETRY, err) : -1;
}

/* Members a line, nested ones set in; whatever the coordinator says is shown. */
static void print_value(const struct json *value, int depth)
{
    struct buf text;
    bool nested = value->child && (value->type == JSON_OBJECT || value->type == JSON_ARRAY);
    printf("%*s%s%s", 2 * depth, "",
           value->key                  ? value->key
           : value->type == JSON_ARRAY ? ""
                                       : "-",
           nested ? "\n" : "  ");
    if (nested && depth < DEPTH_MAX) {
        for (const struct json *at = value->child; at; at = at->next)
            print_value(at, depth + 1);
        return;
    }
    if (value->type == JSON_STRING) {
        printf("%s\n", value->text);
        return;
    }
    buf_init(&text, ANSWER_MAX_BYTES);
    json_write_canonical(&text, value);
    printf("%s\n", text.data);
    buf_release(&text);
}

static int print_answer(const struct fleet *fleet, const struct buf *answer, struct err *err)
{
    struct json_doc *doc;
    if (json_parse(&doc, answer->data, answer->len, NULL, err) != 0)
        return err_prefix(err, "the coordinator's answer");
    if (fleet->options.json) {
        printf("%s%s", answer->data, answer->data[answer->len - 1] == '\n' ? "" : "\n");
    } else {
        printf("job %s\n", fleet->options.word);
        for (const struct json *at = json_root(doc)->child; at; at = at->next)
            print_value(at, 1);
    }
    json_doc_free(doc);
    return 0;
}

static void print_known(const struct fleet *fleet, const struct hash *job)
{
    struct buf out;
    if (!fleet->options.json) {
        printf("job %s\n", fleet->options.word);
        for (size_t i = 0; i < job->count; i++)
            printf("  %s  %s\n", job->names[i], job->values[i]);
        return;
    }
    buf_init(&out, 1 << 20);
    buf_str(&out, "{\"id\":");
    json_write_string(&out, fleet->options.word, strlen(fleet->options.word));
    hash_write(job, &out);
    printf("%s}\n", out.data);
    buf_release(&out);
}

static int explain(struct fleet *fleet, struct hash *hash, struct buf *answer, struct err *err)
{
    const char *job = fleet->options.word;
    int asked = -1;
    if (fleet_hash(fleet, REDIS_CELL, "", hash, err) != 0)
        return -1;
    const char *api = hash_get(hash, "api");
    if (api[0] == '\0')
        err_set(err, ERR_NOT_FOUND, ERR_RETRY, "no coordinator has told its address");
    else
        asked = ask(api, job, answer, err);
    if (asked == 1)
        return print_answer(fleet, answer, err);
    if (asked < 0)
        fprintf(stderr, "%s: the leading coordinator could not be asked (%s); what Redis knows:\n",
                fleet->table->command, err->message);
    /* One that has ended is Redis' to tell. */
    if (fleet_hash(fleet, REDIS_JOB, job, hash, err) != 0)
        return -1;
    if (hash->count == 0)
        return err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                       "no job \"%s\" is known: it was never accepted, still waits in Kafka, or "
                       "ended so long ago that it was forgotten; whether it was refused, and "
                       "why, says: atelier redrive %s --dlq --dry-run",
                       job, job);
    print_known(fleet, hash);
    return 0;
}

int command_explain(int argc, char **argv)
{
    struct fleet fleet;
    struct hash hash;
    struct buf answer;
    struct err err;
    int status;
    if (!fleet_begin(&fleet, &explain_table, argc, argv, &status))
        return status;
    if (!fleet.options.word || !job_id_valid(fleet.options.word))
        return fleet_usage(&fleet, fleet.options.word ? "that is no job's id" : "which job?");
    hash_init(&hash);
    buf_init(&answer, ANSWER_MAX_BYTES);
    int rc = explain(&fleet, &hash, &answer, &err);
    hash_release(&hash);
    buf_release(&answer);
    return fleet_end(&fleet, rc == 0 ? EXIT_ALL_DONE : fleet_fail(&fleet, &err));
}

/*
 * atelier submit: a jobs file onto the cell's topic, each line judged before it is sent.
 *
 * A line is sent as understood: the id, the batch and the seed that it did not give filled in, in
 * canonical form. So the same file sent twice is the same jobs, and costs nothing the second time.
 */
#include "cli/fleet.h"
#include "cli/lines.h"
#include "cli/progress.h"
#include "common/json.h"
#include "common/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define SHOW_AFTER_MS 2000
#define TRACE_BYTES 56

static const struct conf_row rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    FLEET_BATCH_ROW("batch of the jobs that name none, and what their ids are made of"),
    {"wait", CONF_FLAG, FLEET_AT(wait), NULL, NULL, 0, 0, NULL,
     "wait until every job has ended; Ctrl-C stops the waiting, not the jobs"},
    FLEET_JSON_ROW,
};

const struct conf_table submit_table = {
    .command = "atelier submit",
    .family = cli_tables,
    .usage = "atelier submit JOBS.jsonl [--batch NAME] [--wait] [options]",
    .summary =
        "Sends every job of a file, one JSON object a line (- is standard input), to the fleet. A "
        "job without an id gets one from the batch or the file's name, its line and its content, "
        "so "
        "that sending the file again repeats nothing. Exit status: 0 all sent (with --wait: all "
        "succeeded), 3 lines were rejected, 4 jobs did not succeed, 5 the cell could not be "
        "reached, 130 interrupted.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "JOBS.jsonl",
    .positional_offset = FLEET_AT(word),
};

struct submit {
    struct fleet fleet;
    struct lines lines;
    struct ledger ledger;
    struct follow follow;
    struct job_problems problems;
    const char *name;                 /* of the batch, or the file's without its folders */
    char topics[2][TOPIC_NAME_BYTES]; /* jobs, interactive */
    uint64_t sent, repeated, rejected, read;
    int64_t begun_ms, shown_ms;
    struct buf text;
};

static bool is_blank(const struct line *line)
{
    for (size_t i = 0; i < line->len; i++)
        if (line->text[i] == '\0' || !strchr(" \t\r", line->text[i]))
            return false;
    return true;
}

/* ---- judging ---- */

static void refuse_local(struct submit *submit, const char *field, const char *uri)
{
    if (uri && !strstr(uri, "://") && strncmp(uri, "data:", 5) != 0)
        job_problem_add(&submit->problems, field, uri,
                        "is a path on this machine, which workers do not see; put the picture into "
                        "object storage and name it s3://bucket/key, or send it as data:");
}

static void refuse_local_files(struct submit *submit, const struct job *job)
{
    char field[40];
    refuse_local(submit, "init_image", job->init_image);
    refuse_local(submit, "mask", job->mask);
    for (size_t i = 0; i < job->controlnet_count; i++) {
        snprintf(field, sizeof(field), "controlnets[%zu].image", i);
        refuse_local(submit, field, job->controlnets[i].image);
    }
}

/* 0: a job to send; 1: problems say what is wrong. */
static int judge(struct submit *submit, const struct line *line, struct job *job, struct err *err)
{
    struct job_problems *problems = &submit->problems;
    const char *text = line->text;
    size_t len = line->len;
    *job = (struct job){0};
    problems->count = problems->dropped = 0;
    if (line->too_long) {
        job_problem_add(problems, "", NULL, "a line of %zu bytes; at most %u are allowed",
                        line->len, JOB_MAX_BYTES);
        return 1;
    }
    if (line->number == 1 && len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) {
        text += 3;
        len -= 3;
    }
    if (job_parse(job, text, len, problems, err) != 0 && err->class != ERR_REJECT)
        return -1;
    if (!job->root || job->root->type != JSON_OBJECT)
        return 1;
    refuse_local_files(submit, job);
    if (problems->count > 0)
        return 1;
    if (!job->batch)
        job->batch = submit->fleet.options.batch;
    return job_identify(job, submit->name, line->number, err);
}

static void reject(struct submit *submit, const struct line *line, const struct job *job)
{
    const struct job_problems *problems = &submit->problems;
    struct buf out;
    submit->rejected++;
    if (!submit->fleet.options.json) {
        for (size_t i = 0; i < problems->count; i++)
            fprintf(stderr, "%s:%" PRIu64 ": %s%s%s\n", submit->lines.name, line->number,
                    problems->items[i].field, problems->items[i].field[0] ? ": " : "",
                    problems->items[i].problem);
        return;
    }
    buf_init(&out, 1 << 20);
    buf_printf(&out, "{\"event\":\"rejected\",\"line\":%" PRIu64, line->number);
    if (job->id) {
        buf_str(&out, ",\"id\":");
        json_write_string(&out, job->id, strlen(job->id));
    }
    buf_str(&out, ",\"problems\":");
    job_problems_write(problems, &out);
    printf("%s}\n", out.data);
    buf_release(&out);
}

/* Whether an earlier line has the id; 1 with a problem when it asked for something else. */
static int compare(struct submit *submit, const struct job *job, bool *repeat, struct err *err)
{
    bool fresh;
    struct ledger_entry *entry = ledger_enter(&submit->ledger, job->id, &fresh, err);
    if (!entry)
        return -1;
    *repeat = entry->seen;
    if (entry->seen && entry->content != job->content) {
        job_problem_add(&submit->problems, "id", job->id,
                        "an earlier line has this id and asks for something else");
        return 1;
    }
    entry->seen = 1;
    entry->content = job->content;
    return 0;
}

/* ---- sending ---- */

/* The caller's trace, when the environment carries one; else each job begins its own. */
static void make_trace(char out[TRACE_BYTES])
{
    const char *given = getenv("TRACEPARENT");
    unsigned char random[24];
    if (given && strlen(given) == 55 && strspn(given, "0123456789abcdef-") == 55) {
        strcpy(out, given);
        return;
    }
    if (getrandom(random, sizeof(random), 0) != sizeof(random))
        memset(random, 1, sizeof(random)); /* zeros would be invalid */
    char *at = out + sprintf(out, "00-");
    for (int i = 0; i < 24; i++)
        at += sprintf(at, "%s%02x", i == 16 ? "-" : "", random[i]);
    strcpy(at, "-01");
}

static int send(struct submit *submit, const struct job *job, uint64_t line, struct err *err)
{
    char trace[TRACE_BYTES], source[TOPIC_NAME_BYTES + 32];
    bool interactive = strcmp(job->priority, "interactive") == 0;
    make_trace(trace);
    snprintf(source, sizeof(source), "/atelier/%s/submit", submit->fleet.options.services.cell);
    const char *const pairs[][2] = {
        {"ce_specversion", "1.0"},
        {"ce_id", job->id},
        {"ce_type", "atelier.job.v1"},
        {"ce_source", source},
        {"content-type", "application/json"},
        {"traceparent", trace},
    };
    struct kafka_header headers[sizeof(pairs) / sizeof(pairs[0])];
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        headers[i] = (struct kafka_header){pairs[i][0], pairs[i][1], strlen(pairs[i][1])};
    const struct kafka_record record = {.topic = submit->topics[interactive],
                                        .key = job->id,
                                        .key_len = strlen(job->id),
                                        .value = submit->text.data,
                                        .value_len = submit->text.len,
                                        .headers = headers,
                                        .header_count = sizeof(pairs) / sizeof(pairs[0])};
    if (fleet_send(&submit->fleet, &record, err) != 0)
        return -1;
    submit->sent++;
    if (submit->fleet.options.json)
        printf("{\"event\":\"sent\",\"line\":%" PRIu64 ",\"id\":\"%s\"}\n", line, job->id);
    return submit->fleet.options.wait ? follow_add(&submit->follow, job->id, line, err) : 0;
}

static void show(struct submit *submit, bool last)
{
    int64_t now = clock_monotonic_ns(submit->fleet.clock) / 1000000;
    bool terminal = isatty(STDERR_FILENO);
    char total[32] = "";
    if (submit->fleet.options.json || now - submit->begun_ms < SHOW_AFTER_MS ||
        (!last && now - submit->shown_ms < (terminal ? 200 : 5000)))
        return;
    submit->shown_ms = now;
    if (submit->lines.total > 0)
        snprintf(total, sizeof(total), "/%" PRIu64, submit->lines.total);
    fprintf(stderr, "%s%" PRIu64 "%s line%s, %" PRIu64 " delivered%s", terminal ? "\r\033[K" : "",
            submit->read, total, plural(submit->lines.total ? submit->lines.total : submit->read),
            submit->fleet.producer ? kafka_delivered(submit->fleet.producer) : 0,
            terminal && !last ? "" : "\n");
}

static int feed(struct submit *submit, const struct line *line, struct err *err)
{
    struct job job;
    bool repeat = false;
    if (is_blank(line))
        return 0;
    int rc = judge(submit, line, &job, err);
    if (rc == 0)
        rc = compare(submit, &job, &repeat, err);
    buf_clear(&submit->text);
    if (rc == 0)
        job_encode(&job, &submit->text);
    if (rc == 0 && submit->text.len > JOB_MAX_BYTES) {
        job_problem_add(&submit->problems, "", NULL,
                        "with its defaults written out it has %zu bytes; at most %u are allowed",
                        submit->text.len, JOB_MAX_BYTES);
        rc = 1;
    }
    if (rc == 1)
        reject(submit, line, &job);
    else if (rc == 0 && repeat)
        submit->repeated++;
    else if (rc == 0)
        rc = send(submit, &job, line->number, err);
    job_release(&job);
    return rc < 0 ? -1 : 0;
}

static int send_all(struct submit *submit, struct err *err)
{
    struct line line;
    int rc;
    while ((rc = lines_next(&submit->lines, &line, err)) > 0) {
        submit->read++;
        if (feed(submit, &line, err) != 0)
            return -1;
        show(submit, false);
        if (fleet_interrupted())
            break;
    }
    if (rc < 0 || fleet_deliver(&submit->fleet, err) != 0)
        return -1;
    show(submit, true);
    return 0;
}

static void sum_up(const struct submit *submit)
{
    char time[32];
    double seconds =
        (double)(clock_monotonic_ns(submit->fleet.clock) / 1000000 - submit->begun_ms) * 1e-3;
    if (submit->fleet.options.json) {
        printf("{\"event\":\"submitted\",\"sent\":%" PRIu64 ",\"repeated\":%" PRIu64
               ",\"rejected\":%" PRIu64 ",\"seconds\":%.3f}\n",
               submit->sent, submit->repeated, submit->rejected, seconds);
        fflush(stdout);
        return;
    }
    progress_format_time(seconds, time);
    printf("%" PRIu64 " job%s sent to %s in %s", submit->sent, plural(submit->sent),
           submit->topics[0], time);
    if (submit->repeated > 0)
        printf("; %" PRIu64 " repeated line%s ignored", submit->repeated, plural(submit->repeated));
    if (submit->rejected > 0)
        printf("; %" PRIu64 " line%s rejected", submit->rejected, plural(submit->rejected));
    printf("\n");
    if (!submit->fleet.options.wait && submit->fleet.options.batch)
        printf("follow them: atelier watch --batch %s\n", submit->fleet.options.batch);
    fflush(stdout);
}

static int open_all(struct submit *submit, struct err *err)
{
    const struct fleet_options *options = &submit->fleet.options;
    const char *slash = strrchr(options->word, '/');
    submit->name = options->batch ? options->batch : slash ? slash + 1 : options->word;
    submit->begun_ms = clock_monotonic_ns(submit->fleet.clock) / 1000000;
    submit->follow = (struct follow){.fleet = &submit->fleet,
                                     .ledger = &submit->ledger,
                                     .since_ms = clock_wall_ns(submit->fleet.clock) / 1000000};
    buf_init(&submit->text, JOB_ENCODED_MAX_BYTES);
    if (fleet_topic(&submit->fleet, TOPIC_JOBS, submit->topics[0], err) != 0 ||
        fleet_topic(&submit->fleet, TOPIC_INTERACTIVE, submit->topics[1], err) != 0)
        return -1;
    int rc = lines_open(&submit->lines, options->word, JOB_MAX_BYTES, err);
    if (rc != 0)
        err->class = ERR_FATAL; /* a file that is not there is not a job that is not there */
    return rc;
}

static int run(struct submit *submit)
{
    struct err err;
    if (open_all(submit, &err) != 0)
        return fleet_fail(&submit->fleet, &err);
    int rc = send_all(submit, &err);
    if (rc != 0) {
        uint64_t safe = submit->fleet.producer ? kafka_delivered(submit->fleet.producer) : 0;
        int status = fleet_fail(&submit->fleet, &err);
        fprintf(stderr,
                "%" PRIu64 " of %" PRIu64 " job%s delivered; sending the file again "
                "repeats none of them\n",
                safe, submit->sent, plural(submit->sent));
        return status;
    }
    sum_up(submit);
    if (fleet_interrupted())
        return EXIT_INTERRUPTED;
    int status = EXIT_ALL_DONE;
    if (submit->fleet.options.wait)
        status = follow_wait(&submit->follow, submit->name);
    return status == EXIT_ALL_DONE && submit->rejected > 0 ? EXIT_REJECTED : status;
}

int command_submit(int argc, char **argv)
{
    struct submit *submit = calloc(1, sizeof(*submit));
    int status = EXIT_FATAL;
    if (!submit)
        return EXIT_FATAL;
    submit->lines.fd = -1;
    if (fleet_begin(&submit->fleet, &submit_table, argc, argv, &status)) {
        if (!submit->fleet.options.word)
            status = fleet_usage(&submit->fleet, "which jobs file? (- is standard input)");
        else if (submit->fleet.options.batch && !job_id_valid(submit->fleet.options.batch))
            status = fleet_usage(&submit->fleet,
                                 "--batch: 1 to 128 of A-Z a-z 0-9 . _ - make a batch's name");
        else
            status = run(submit);
        lines_close(&submit->lines);
        buf_release(&submit->text);
        follow_release(&submit->follow);
        ledger_release(&submit->ledger);
        fleet_end(&submit->fleet, 0);
    }
    free(submit);
    return status;
}

/*
 * atelier simulate: what a routing policy would make of a load on a fleet, without either. The
 * simulator is simulator/; here are its files, its options and what is printed.
 */
#include "cli/command.h"
#include "cli/lines.h"
#include "common/clock.h"
#include "common/conf.h"
#include "common/file.h"
#include "common/json.h"
#include "simulator/report.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REPORT_MAX_BYTES (256u << 20)
#define LINES_PER_LOOK 4096
#define SILENT_NS 2000000000 /* before progress is shown, and between */

struct simulate_options {
    const char *policy, *workers, *jobs, *models, *cost_file, *compare, *start, *svg;
    double invent, hours, speed, target_wait_s, lease_s;
    int64_t seed, jobs_max, overtake_max, crashes_max;
    bool json;
};

#define AT(member) offsetof(struct simulate_options, member)

static const struct conf_row rows[] = {
    {"policy", CONF_STRING, AT(policy), "FILE", NULL, 0, 0, NULL,
     "routing policy with its prices, such as deploy/routing.json"},
    {"workers", CONF_STRING, AT(workers), "FILE", NULL, 0, 0, NULL,
     "the fleet: pools of workers, and models (docs/simulate.md)"},
    {"jobs", CONF_STRING, AT(jobs), "FILE", NULL, 0, 0, NULL,
     "a jobs file whose jobs come at their x-arrival, or a trace in the form of GenTD26; -: from "
     "standard input"},
    {"invent", CONF_NUMBER, AT(invent), "N", "0", 0, LOAD_JOBS_MAX, NULL,
     "instead of a file, so many jobs at random"},
    {"hours", CONF_NUMBER, AT(hours), "H", "24", 0.001, 100000, NULL,
     "over which invented jobs come"},
    {"models", CONF_STRING, AT(models), "DIR", NULL, 0, 0, NULL,
     "models directory, whose catalogue says what the fleet's file does not"},
    {"cost-file", CONF_STRING, AT(cost_file), "FILE", NULL, 0, 0, NULL,
     "what a coordinator has learned of how long jobs take (its --cost-file); else built-in "
     "guesses"},
    {"compare", CONF_STRING, AT(compare), "FILE", NULL, 0, 0, NULL,
     "another policy for the same load, shown beside the first"},
    {"speed", CONF_NUMBER, AT(speed), "X", "1", 1e-3, 1e6, NULL,
     "how many times as fast the jobs come"},
    {"start", CONF_STRING, AT(start), "TIME", NULL, 0, 0, NULL,
     "when the simulation begins, such as 2026-03-01T12:00:00Z; by default with the first job"},
    {"seed", CONF_INT, AT(seed), "N", "1", 0, 9e15, NULL, "of everything that is left to chance"},
    {"jobs-max", CONF_INT, AT(jobs_max), "N", "1000000", 16, 16000000, NULL,
     "jobs in the scheduler at once, as the coordinator's"},
    {"overtake-max", CONF_INT, AT(overtake_max), "N", "100000", 1, 16000000, NULL,
     "the starvation bound: younger jobs that may overtake one"},
    {"target-wait", CONF_NUMBER, AT(target_wait_s), "SECONDS", "300", 1, 864000, NULL,
     "in which the work at hand should be done: what the wanted workers follow from"},
    {"lease", CONF_NUMBER, AT(lease_s), "SECONDS", "10", 0, 3600, NULL,
     "after how long a crashed worker's jobs go to others"},
    {"crashes-max", CONF_INT, AT(crashes_max), "N", "3", 1, 100, NULL,
     "workers that may crash while they have a job before it is dead"},
    {"svg", CONF_STRING, AT(svg), "FILE", NULL, 0, 0, NULL,
     "draws queues and busy workers over time into it"},
    {"json", CONF_FLAG, AT(json), NULL, NULL, 0, 0, NULL, "prints JSON"},
};

const struct conf_table simulate_table = {
    .command = "atelier simulate",
    .family = cli_tables,
    .usage = "atelier simulate --policy POLICY.json --workers WORKERS.json "
             "{--jobs FILE | --invent N} [options]",
    .summary = "Says what a routing policy would make of a load on a fleet: waits, prices, "
               "deadlines, and how many workers are wanted. It drives the scheduler itself; only "
               "the workers and the time are played. Exit status: 0, 2 wrong options, 5 a file "
               "that cannot be read or taken.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
};

/* ---- progress ---- */

struct show {
    int64_t shown_ns;
    bool terminal, up;
};

static struct show begin_show(void)
{
    return (struct show){.shown_ns = clock_monotonic_ns(clock_system()),
                         .terminal = isatty(STDERR_FILENO)};
}

static bool is_due(struct show *show)
{
    int64_t now_ns = clock_monotonic_ns(clock_system());
    if (now_ns - show->shown_ns < SILENT_NS)
        return false;
    show->shown_ns = now_ns;
    show->up = true;
    return true;
}

static void show_reading(struct show *show, const struct lines *lines)
{
    if (lines->number % LINES_PER_LOOK == 0 && is_due(show))
        fprintf(stderr, "%sread %llu of %llu lines%s", show->terminal ? "\r\033[K" : "",
                (unsigned long long)lines->number, (unsigned long long)lines->total,
                show->terminal ? "" : "\n");
}

static void show_running(void *user, const struct sim_progress *progress)
{
    struct show *show = user;
    if (!is_due(show))
        return;
    fprintf(stderr, "%sday %.2f: %llu of %llu jobs are over, %u wait, %u run%s",
            show->terminal ? "\r\033[K" : "", progress->day, (unsigned long long)progress->ended,
            (unsigned long long)progress->jobs, progress->waiting, progress->running,
            show->terminal ? "" : "\n");
}

static void end_show(struct show *show)
{
    if (show->terminal && show->up)
        fputs("\r\033[K", stderr);
    show->up = false;
}

/* ---- files ---- */

static int read_lines(struct load *load, const char *path, struct err *err)
{
    struct lines lines;
    struct line line;
    struct show show = begin_show();
    int rc;
    if (lines_open(&lines, path, JOB_MAX_BYTES, err) != 0)
        return -1;
    while ((rc = lines_next(&lines, &line, err)) > 0) {
        if (line.too_long)
            rc = err_set(err, ERR_LIMIT, ERR_FATAL, "line %llu is longer than %u bytes",
                         (unsigned long long)line.number, JOB_MAX_BYTES);
        else
            rc = load_line(load, line.number, line.text, line.len, err);
        if (rc != 0)
            break;
        show_reading(&show, &lines);
    }
    end_show(&show);
    if (rc != 0)
        err_prefix(err, "%s", lines.name);
    lines_close(&lines);
    return rc;
}

static int read_load(const struct simulate_options *o, struct load *load, struct err *err)
{
    int64_t start_ns = LOAD_TIME_NONE;
    if (o->start && !clock_parse_rfc3339(o->start, &start_ns))
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "--start: \"%s\" is no time such as 2026-03-01T12:00:00Z", o->start);
    int rc = o->jobs ? read_lines(load, o->jobs, err)
                     : load_invent(load, (uint64_t)o->invent, o->hours, err);
    return rc == 0 ? load_finish(load, start_ns, o->speed, err) : -1;
}

static int read_cost(const char *path, struct json_doc **doc, struct err *err)
{
    struct cost *cost;
    *doc = NULL;
    if (!path)
        return 0;
    if (json_parse_file(doc, path, NULL, err) != 0 || cost_create(&cost, NULL, err) != 0)
        return -1;
    int rc = cost_read(cost, json_root(*doc), err); /* so that an error names the file */
    cost_free(cost);
    return rc == 0 ? 0 : err_prefix(err, "%s", path);
}

static int write_svg(const char *path, const struct report_column *columns, int count,
                     struct err *err)
{
    struct buf out;
    buf_init(&out, REPORT_MAX_BYTES);
    report_svg(columns, count, &out);
    int rc = out.failed ? err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to draw %s", path)
                        : file_write(path, out.data, out.len, FILE_REPLACE, err);
    buf_release(&out);
    return rc;
}

static int print(const struct simulate_options *o, const struct report_column *columns, int count,
                 struct err *err)
{
    struct buf out;
    buf_init(&out, REPORT_MAX_BYTES);
    (o->json ? report_json : report_text)(columns, count, &out);
    int rc = out.failed ? err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the report") : 0;
    if (rc == 0 && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0))
        rc = err_set(err, ERR_IO, ERR_FATAL, "cannot write to standard output");
    buf_release(&out);
    return rc;
}

/* ---- the command ---- */

struct bench {
    const struct simulate_options *options;
    struct fleet fleet;
    struct catalogue catalogue;
    struct load load;
    struct json_doc *cost;
};

static int run_policy(const struct bench *bench, const char *path, struct sim_result *result,
                      struct err *err)
{
    const struct simulate_options *o = bench->options;
    struct sim_options options = SIM_OPTIONS_INIT;
    struct show shows = begin_show();
    struct policy *policy;
    if (policy_read(&policy, path, err) != 0)
        return -1;
    options.policy = policy;
    options.fleet = &bench->fleet;
    options.load = &bench->load;
    options.cost = bench->cost ? json_root(bench->cost) : NULL;
    options.seed = (uint64_t)o->seed;
    options.jobs_max = (uint32_t)o->jobs_max;
    options.overtake_max = (uint32_t)o->overtake_max;
    options.target_wait_s = o->target_wait_s;
    options.lease_s = o->lease_s;
    options.crashes_max = (int)o->crashes_max;
    options.progress = show_running;
    options.user = &shows;
    int rc = sim_run(&options, result, err);
    end_show(&shows);
    policy_free(policy);
    return rc;
}

static int open_bench(struct bench *bench, struct err *err)
{
    const struct simulate_options *o = bench->options;
    if (fleet_read(&bench->fleet, o->workers, err) != 0)
        return -1;
    if (o->models && (catalogue_open(&bench->catalogue, o->models, err) != 0 ||
                      fleet_add_catalogue(&bench->fleet, &bench->catalogue, err) != 0))
        return -1;
    if (read_cost(o->cost_file, &bench->cost, err) != 0 ||
        load_init(&bench->load, &bench->fleet, (uint64_t)o->seed, err) != 0)
        return -1;
    return read_load(o, &bench->load, err);
}

static int simulate(struct bench *bench, struct err *err)
{
    const struct simulate_options *o = bench->options;
    const char *policies[REPORT_COLUMNS_MAX] = {o->policy, o->compare};
    struct sim_result results[REPORT_COLUMNS_MAX] = {{0}};
    struct report_column columns[REPORT_COLUMNS_MAX];
    int count = 0, rc = open_bench(bench, err);
    for (; rc == 0 && count < REPORT_COLUMNS_MAX && policies[count]; count++) {
        rc = run_policy(bench, policies[count], &results[count], err);
        columns[count] = (struct report_column){policies[count], &results[count]};
    }
    if (rc == 0 && o->svg)
        rc = write_svg(o->svg, columns, count, err);
    if (rc == 0)
        rc = print(o, columns, count, err);
    for (int i = 0; i < count; i++)
        sim_result_release(&results[i]);
    return rc;
}

static const char *missing(const struct simulate_options *o)
{
    if (!o->policy)
        return "--policy is needed: a routing policy, such as deploy/routing.json";
    if (!o->workers)
        return "--workers is needed: the fleet, such as examples/simulate/workers.json";
    if (!o->jobs && o->invent < 1)
        return "--jobs FILE or --invent N is needed: what is to be drawn";
    if (o->jobs && o->invent >= 1)
        return "--jobs and --invent exclude each other; leave one out";
    return NULL;
}

int command_simulate(int argc, char **argv)
{
    struct simulate_options options = {0};
    struct bench bench = {.options = &options};
    struct err err;
    struct buf help;
    int rc = conf_parse(&simulate_table, &options, argc, argv, &err);
    if (rc > 0) {
        buf_init(&help, 1 << 20);
        conf_help(&simulate_table, &help);
        fputs(help.data, stdout);
        buf_release(&help);
        return EXIT_ALL_DONE;
    }
    if (rc != 0) {
        fprintf(stderr, "atelier simulate: %s\n", err.message);
        return EXIT_USAGE;
    }
    if (missing(&options)) {
        fprintf(stderr, "atelier simulate: %s\n", missing(&options));
        return EXIT_USAGE;
    }
    rc = simulate(&bench, &err);
    if (rc != 0)
        fprintf(stderr, "atelier simulate: %s\n", err.message);
    load_release(&bench.load);
    fleet_release(&bench.fleet);
    catalogue_release(&bench.catalogue);
    json_doc_free(bench.cost);
    return rc == 0 ? EXIT_ALL_DONE : EXIT_FATAL;
}

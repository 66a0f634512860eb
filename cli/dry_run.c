/*
 * A dry run reads every line as a run would, in bounded memory, asks models and pictures about it
 * (dry_check.h), and adds the good ones up by model and size. Then each model is loaded, its memory
 * plan asked for every size, and two steps and a decoding of its commonest size are timed:
 * estimates come from this machine, not from a table.
 */
#include "cli/command.h"
#include "cli/dry_check.h"
#include "cli/runner.h"
#include "common/json.h"
#include "common/plural.h"
#include "worker/support.h"

#include <stdlib.h>
#include <string.h>

#define GROUPS_MAX 1024 /* of model and size; what is over is added to the last */
#define PROBLEMS_SHOWN 20
#define TIMED_STEPS 2

struct group {
    int model;
    int width, height; /* of the pictures, after a second pass */
    uint64_t jobs, pictures;
    double pixel_steps; /* of all pictures, second passes included */
};

struct survey {
    struct runner *runner;
    struct dry_check check;
    struct group groups[GROUPS_MAX];
    size_t count;
    size_t weights_bytes, activations_bytes; /* the largest */
    double seconds;
    int models;
    bool unfit;
};

static struct group *find_group(struct survey *survey, int model, int width, int height)
{
    for (size_t i = 0; i < survey->count; i++) {
        struct group *group = &survey->groups[i];
        if (group->model == model && group->width == width && group->height == height)
            return group;
    }
    if (survey->count == GROUPS_MAX)
        return &survey->groups[GROUPS_MAX - 1];
    struct group *group = &survey->groups[survey->count++];
    *group = (struct group){.model = model, .width = width, .height = height};
    return group;
}

static void add(struct survey *survey, const struct task *task)
{
    const struct job *job = &task->job;
    int width, height;
    job_final_size(job, &width, &height);
    struct group *group = find_group(survey, task->model, width, height);
    group->jobs++;
    group->pictures += (uint64_t)job->images;
    group->pixel_steps += job_pixel_steps(job, job->width, job->height, job->steps) * job->images;
}

/* As atelier submit says it. */
static void write_problems(const struct runner *runner, uint64_t line, const struct job *job)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    buf_printf(&out, "{\"event\":\"rejected\",\"line\":%llu", (unsigned long long)line);
    if (job->id) {
        buf_str(&out, ",\"id\":");
        json_write_string(&out, job->id, strlen(job->id));
    }
    buf_str(&out, ",\"problems\":");
    job_problems_write(&runner->problems, &out);
    if (!out.failed)
        printf("%s}\n", out.data);
    buf_release(&out);
}

static void show_problems(struct runner *runner, uint64_t line, const struct job *job)
{
    if (runner->options->json) {
        write_problems(runner, line, job);
        return;
    }
    if (runner->tally.rejected == PROBLEMS_SHOWN + 1)
        fprintf(stderr, "… and more; --json says all of them\n");
    if (runner->tally.rejected > PROBLEMS_SHOWN)
        return;
    for (size_t i = 0; i < runner->problems.count; i++) {
        const struct job_problem *problem = &runner->problems.items[i];
        fprintf(stderr, "line %llu: %s%s%s%s%s%s\n", (unsigned long long)line, problem->field,
                *problem->value ? " \"" : "", problem->value, *problem->value ? "\"" : "",
                *problem->field ? ": " : "", problem->problem);
    }
}

/* Repeated ids, within the file only. 0: new. */
static int judge_id(struct runner *runner, const struct job *job, struct err *err)
{
    bool fresh;
    struct ledger_entry *entry = ledger_enter(&runner->ledger, job->id, &fresh, err);
    if (!entry)
        return -1;
    if (fresh) {
        entry->content = job->content;
        return 0;
    }
    if (entry->content == job->content) {
        runner->tally.repeated++;
        return 2;
    }
    job_problem_add(&runner->problems, "id", job->id,
                    "an earlier line has this id and asks for something else");
    return 1;
}

/* 0: added; 1: rejected, and said why; 2: a repeat. */
static int take_line(struct survey *survey, const struct line *line, struct task *task,
                     struct err *err)
{
    struct runner *runner = survey->runner;
    int rc = runner_judge(runner, line, &task->job, &task->model, err);
    if (rc == 0)
        rc = judge_id(runner, &task->job, err);
    if (rc == 0)
        rc = dry_check_task(&survey->check, task, err);
    if (rc == 0)
        add(survey, task);
    if (rc == 1) {
        runner->tally.rejected++;
        show_problems(runner, line->number, &task->job);
    }
    return rc;
}

static int read_all(struct survey *survey, struct err *err)
{
    struct runner *runner = survey->runner;
    struct line line;
    int rc;
    while ((rc = lines_next(&runner->lines, &line, err)) > 0 && runner_interrupts() == 0) {
        struct task task = {0};
        if (line.len == 0)
            continue;
        runner->tally.lines++;
        rc = take_line(survey, &line, &task, err);
        job_release(&task.job);
        if (rc < 0)
            return -1;
    }
    return rc;
}

static double seconds_since(const struct runner *runner, int64_t begin_ns)
{
    return (double)(clock_monotonic_ns(runner->clock) - begin_ns) * 1e-9;
}

/* A picture, and a mask, for a model that does not draw without. */
static int give_pictures(struct draw *draw, struct model *model, struct image *blank,
                         struct err *err)
{
    if (session_check(model, draw, err) == 0)
        return 0;
    *blank = (struct image){.width = draw->width, .height = draw->height};
    blank->rgb = calloc((size_t)draw->width * (size_t)draw->height, 3);
    if (!blank->rgb)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a picture");
    draw->init_image = blank;
    if (session_check(model, draw, err) == 0)
        return 0;
    draw->mask = blank;
    return session_check(model, draw, err);
}

/* Seconds per step and pixel, and per decoded pixel. */
static int time_model(struct runner *runner, struct model *model, int width, int height,
                      double *step_rate, double *decode_rate, struct err *err)
{
    struct draw draw = DRAW_INIT;
    struct session *session = NULL;
    struct image image = {0}, blank = {0};
    draw.prompt = "a test";
    draw.width = width;
    draw.height = height;
    draw.steps = 10;
    double pixels = (double)width * height;
    int rc = give_pictures(&draw, model, &blank, err);
    if (rc == 0)
        rc = session_create(&session, model, &draw, NULL, err);
    for (int i = 0; rc == 0 && i < TIMED_STEPS; i++) {
        int64_t begin = clock_monotonic_ns(runner->clock);
        rc = engine_step(model, &session, 1, err);
        *step_rate = seconds_since(runner, begin) / pixels;
    }
    if (rc == 0) {
        int64_t begin = clock_monotonic_ns(runner->clock);
        rc = session_decode(session, &image, err);
        *decode_rate = seconds_since(runner, begin) / pixels;
    }
    image_release(&blank);
    image_release(&image);
    session_free(session);
    return rc;
}

static void show_group(struct survey *survey, const struct group *group, size_t bytes,
                       double seconds)
{
    char time[32];
    struct runner *runner = survey->runner;
    progress_format_time(seconds, time);
    if (runner->options->json)
        printf("{\"event\":\"estimate\",\"model\":\"%s\",\"width\":%d,\"height\":%d,\"jobs\":%llu,"
               "\"pictures\":%llu,\"memory_bytes\":%zu,\"seconds\":%.3f}\n",
               runner->catalogue.models[group->model].name, group->width, group->height,
               (unsigned long long)group->jobs, (unsigned long long)group->pictures, bytes,
               seconds);
    else
        printf("  %s %d×%d: %llu job%s, %llu picture%s, %.1f MB of activations, about %s\n",
               runner->catalogue.models[group->model].name, group->width, group->height,
               (unsigned long long)group->jobs, plural(group->jobs),
               (unsigned long long)group->pictures, plural(group->pictures), (double)bytes / 1e6,
               time);
}

static int estimate_group(struct survey *survey, struct model *model, const struct group *group,
                          double step_rate, double decode_rate)
{
    double pixels = (double)group->width * group->height;
    size_t bytes = 0;
    struct err err;
    if (model_plan(model, group->width, group->height, 1, &bytes, &err) != 0) {
        fprintf(stderr, "%llu job%s of %s at %d×%d: %s\n", (unsigned long long)group->jobs,
                plural(group->jobs), survey->runner->catalogue.models[group->model].name,
                group->width, group->height, err.message);
        survey->unfit = true;
        return -1;
    }
    double seconds =
        group->pixel_steps * step_rate + (double)group->pictures * pixels * decode_rate;
    if (bytes > survey->activations_bytes)
        survey->activations_bytes = bytes;
    survey->seconds += seconds;
    show_group(survey, group, bytes, seconds);
    return 0;
}

static void estimate_model(struct survey *survey, int number)
{
    struct runner *runner = survey->runner;
    struct model *model = NULL;
    const struct group *largest = NULL;
    double step_rate = 0, decode_rate = 0;
    struct err err;
    for (size_t i = 0; i < survey->count; i++)
        if (survey->groups[i].model == number &&
            (!largest || survey->groups[i].pictures > largest->pictures))
            largest = &survey->groups[i];
    if (!largest || runner_interrupts() > 0)
        return;
    survey->models++;
    if (models_acquire(runner->stations.at[0].models, number, -1, &model, &err) != 0) {
        fprintf(stderr, "%s\n", err.message);
        survey->unfit = true;
        return;
    }
    if (time_model(runner, model, largest->width, largest->height, &step_rate, &decode_rate,
                   &err) != 0)
        fprintf(stderr, "cannot time %s: %s\n", runner->catalogue.models[number].name, err.message);
    for (size_t i = 0; i < survey->count; i++)
        if (survey->groups[i].model == number)
            (void)estimate_group(survey, model, &survey->groups[i], step_rate, decode_rate);
    struct memory_use use = engine_memory(runner->stations.at[0].engine);
    if (use.weights_bytes > survey->weights_bytes)
        survey->weights_bytes = use.weights_bytes;
    models_release(runner->stations.at[0].models, number);
}

static void show_end(const struct survey *survey)
{
    const struct tally *tally = &survey->runner->tally;
    char time[32];
    uint64_t jobs = 0, pictures = 0;
    for (size_t i = 0; i < survey->count; i++) {
        jobs += survey->groups[i].jobs;
        pictures += survey->groups[i].pictures;
    }
    progress_format_time(survey->seconds, time);
    if (survey->runner->options->json) {
        printf(
            "{\"event\":\"end\",\"lines\":%llu,\"jobs\":%llu,\"pictures\":%llu,\"rejected\":%llu,"
            "\"repeated\":%llu,\"weights_bytes\":%zu,\"activations_bytes\":%zu,\"seconds\":%.3f}\n",
            (unsigned long long)tally->lines, (unsigned long long)jobs,
            (unsigned long long)pictures, (unsigned long long)tally->rejected,
            (unsigned long long)tally->repeated, survey->weights_bytes, survey->activations_bytes,
            survey->seconds);
        return;
    }
    printf(
        "%llu job%s, %llu picture%s of %d model%s in %llu line%s; %llu rejected, %llu repeated\n",
        (unsigned long long)jobs, plural(jobs), (unsigned long long)pictures, plural(pictures),
        survey->models, plural((uint64_t)survey->models), (unsigned long long)tally->lines,
        plural(tally->lines), (unsigned long long)tally->rejected,
        (unsigned long long)tally->repeated);
    printf("about %s on this machine; weights %.0f MB, activations up to %.0f MB\n", time,
           (double)survey->weights_bytes / 1e6, (double)survey->activations_bytes / 1e6);
}

static int estimate(struct survey *survey, struct err *err)
{
    struct runner *runner = survey->runner;
    if (stations_open_models(&runner->stations, &runner->catalogue, err) != 0)
        return -1;
    for (size_t i = 0; i < runner->catalogue.count; i++)
        estimate_model(survey, (int)i);
    show_end(survey);
    return 0;
}

int dry_run(const struct run_options *options)
{
    struct err err;
    int status;
    struct runner *runner = malloc(sizeof(*runner));
    struct survey *survey = calloc(1, sizeof(*survey));
    if (!runner || !survey) {
        free(runner);
        free(survey);
        fprintf(stderr, "atelier run: out of memory\n");
        return EXIT_FATAL;
    }
    survey->runner = runner;
    if (runner_open(runner, options, &err) != 0 ||
        dry_check_open(&survey->check, runner, &err) != 0 || read_all(survey, &err) < 0 ||
        estimate(survey, &err) != 0) {
        fprintf(stderr, "atelier run: %s\n", err.message);
        status = exit_status_of(&err);
    } else
        status = runner_interrupts() > 0      ? EXIT_INTERRUPTED
                 : survey->unfit              ? EXIT_FAILED
                 : runner->tally.rejected > 0 ? EXIT_REJECTED
                                              : EXIT_ALL_DONE;
    dry_check_release(&survey->check);
    runner_release(runner);
    free(runner);
    free(survey);
    return status;
}

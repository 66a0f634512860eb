#include "cli/runner.h"

#include "cli/command.h"
#include "cli/contact_sheet.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH_AUTO 16      /* pictures, as long as they do not fill the device */
#define AHEAD 4            /* jobs beyond the batch in the pipeline: prepared, published */
#define LINES_PER_TURN 512 /* read before the loop looks elsewhere */
#define WAIT_MS 100
#define LEARNING 0.3

/* ---- signals ---- */

static volatile sig_atomic_t interrupts;

static void on_signal(int number)
{
    static const char text[] = "\nquitting at once; run the same command to resume\n";
    (void)number;
    if (++interrupts < 2)
        return;
    ssize_t n = write(STDERR_FILENO, text, sizeof(text) - 1);
    (void)n;
    _exit(EXIT_INTERRUPTED);
}

void runner_watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* A full or limited file system is an error of write(), not the end of the process. */
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

int runner_interrupts(void)
{
    return interrupts;
}

/* ---- opening ---- */

static void on_warning(void *user, const char *message)
{
    struct runner *runner = user;
    progress_clear(&runner->progress);
    fprintf(stderr, "warning: %s\n", message);
}

static int find_base_dir(struct runner *runner, struct err *err)
{
    const char *path = runner->options->jobs;
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) : 0;
    if (len >= sizeof(runner->base_dir))
        return err_set(err, ERR_LIMIT, ERR_FATAL, "the jobs file's path is too long");
    memcpy(runner->base_dir, path, len);
    strcpy(runner->base_dir + len, slash ? len == 0 ? "/" : "" : ".");
    return 0;
}

static int open_window(struct runner *runner, struct err *err)
{
    struct scheduler_options window = SCHEDULER_OPTIONS_INIT;
    window.jobs_max = RUNNER_WINDOW;
    window.bytes_max = RUNNER_WINDOW_BYTES;
    window.tenants_max = RUNNER_TENANTS;
    window.classes_max = window.profiles_max = 1;
    window.workers_max = (uint32_t)runner->stations.count;
    /* One window's worth: a model that all but a few ask for is loaded once in that many jobs. */
    window.overtake_max = RUNNER_WINDOW;
    runner->tasks = calloc(RUNNER_WINDOW, sizeof(*runner->tasks));
    runner->free_slots = calloc(RUNNER_WINDOW, sizeof(*runner->free_slots));
    runner->rates = calloc(runner->catalogue.count, sizeof(*runner->rates));
    if (!runner->tasks || !runner->free_slots || !runner->rates)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the window of jobs");
    while (runner->free_count < RUNNER_WINDOW) {
        runner->free_slots[runner->free_count] = RUNNER_WINDOW - 1 - runner->free_count;
        runner->free_count++;
    }
    return scheduler_create(&runner->scheduler, &window, err);
}

static int batch_max(const struct runner *runner)
{
    return runner->options->batch_max ? (int)runner->options->batch_max : BATCH_AUTO;
}

static int open_pipelines(struct runner *runner, struct err *err)
{
    const struct run_options *options = runner->options;
    const struct engine_info *info = engine_info(runner->stations.at[0].engine);
    struct pipeline_options wanted = {
        .catalogue = &runner->catalogue,
        .store = &runner->store,
        .base_dir = runner->base_dir,
        .dump_dir = options->dump_stages,
        .clock = runner->clock,
        .batch_max = batch_max(runner),
        .batch_pixels = options->batch_max ? 0 : info->batch_pixels,
        .tasks_max = 2 * batch_max(runner) + AHEAD,
    };
    return stations_start(&runner->stations, wanted, err);
}

/* One class of workers, a station each, and one profile: a job's effort is its seconds. */
static int start_workers(struct runner *runner, struct err *err)
{
    struct scheduler_event profile = {
        .type = EVENT_PROFILE,
        .profile = {.route_count = 1, .seconds = {1}},
    };
    if (runner_step(runner, &profile, err) != 0)
        return -1;
    for (int i = 0; i < runner->stations.count; i++) {
        struct scheduler_event event = {
            .type = EVENT_WORKER,
            .worker = (uint32_t)i,
            .worker_is = {.pictures_max = 2 * batch_max(runner) + AHEAD,
                          .memory_bytes = UINT64_MAX},
        };
        if (runner_step(runner, &event, err) != 0)
            return -1;
    }
    return 0;
}

int runner_open(struct runner *runner, const struct run_options *options, struct err *err)
{
    char models[FILE_PATH_MAX_BYTES];
    *runner = (struct runner){.options = options,
                              .clock = clock_system(),
                              .out.lock_fd = -1,
                              .journal.fd = -1,
                              .lines.fd = -1};
    stations_init(&runner->stations);
    progress_begin(&runner->progress, runner->clock, options->json);
    if (setup_models_dir(&options->setup, models, err) != 0 ||
        catalogue_open(&runner->catalogue, models, err) != 0 || find_base_dir(runner, err) != 0 ||
        lines_open(&runner->lines, options->jobs, JOB_MAX_BYTES, err) != 0 ||
        stations_open_engines(&runner->stations, &options->setup,
                              options->dry_run ? 1 : STATIONS_MAX, on_warning, runner, err) != 0)
        return -1;
    runner->tally.total = runner->lines.total;
    if (options->dry_run)
        return 0;
    if (store_dir_open(&runner->out, options->out, err) != 0)
        return -1;
    store_dir_sweep_root(&runner->out);
    runner->store = store_dir_store(&runner->out);
    if (options->dump_stages && file_make_dir(options->dump_stages, err) != 0)
        return -1;
    if (journal_open(&runner->journal, runner->out.root, &runner->store, &runner->ledger, err) !=
            0 ||
        report_open(&runner->rejected, options->out, "rejected.jsonl", err) != 0 ||
        report_open(&runner->failed, options->out, "failed.jsonl", err) != 0 ||
        stations_open_models(&runner->stations, &runner->catalogue, err) != 0 ||
        open_window(runner, err) != 0 || open_pipelines(runner, err) != 0)
        return -1;
    return start_workers(runner, err);
}

static void free_task(struct runner *runner, struct task *task)
{
    runner->tasks[task->slot] = NULL;
    runner->free_slots[runner->free_count++] = task->slot;
    task_release(task);
    free(task);
}

void runner_release(struct runner *runner)
{
    stations_release(&runner->stations); /* nothing draws any more */
    for (uint32_t i = 0; runner->tasks && runner->free_slots && i < RUNNER_WINDOW; i++)
        if (runner->tasks[i])
            free_task(runner, runner->tasks[i]);
    scheduler_free(runner->scheduler);
    journal_close(&runner->journal);
    ledger_release(&runner->ledger);
    store_dir_close(&runner->out);
    lines_close(&runner->lines);
    catalogue_release(&runner->catalogue);
    free(runner->tasks);
    free(runner->free_slots);
    free(runner->rates);
}

/* ---- what becomes of jobs ---- */

static void fill_card(struct journal_card *card, const struct task *task,
                      char (*files)[MANIFEST_FILE_NAME_BYTES])
{
    const struct job *job = &task->job;
    *card = (struct journal_card){.id = job->id,
                                  .content = job->content,
                                  .model = job->model,
                                  .prompt = job->prompt,
                                  .negative_prompt = job->negative_prompt,
                                  .seed = (uint64_t)job->seed,
                                  .width = job->width,
                                  .height = job->height,
                                  .steps = job->steps,
                                  .seconds = task->times.total_s,
                                  .beside = journal_beside_of(job),
                                  .files = files};
}

int runner_fail(struct runner *runner, struct task *task, const struct err *reason, struct err *err)
{
    struct journal_card card;
    fill_card(&card, task, NULL);
    card.error = reason->message;
    if (reason->code == ERR_CANCELLED)
        runner->tally.expired++;
    else
        runner->tally.failed++;
    progress_clear(&runner->progress);
    if (runner->tally.failed <= 20 && !runner->options->json)
        fprintf(stderr, "line %llu: job %s: %s\n", (unsigned long long)task->line, task->job.id,
                reason->message);
    if (report_failed(&runner->failed, task->line, task->job.id, task->attempt, reason, err) != 0)
        return -1;
    return journal_card(&runner->journal, &card, err);
}

static int record_done(struct runner *runner, const struct task *task, struct err *err)
{
    char files[JOB_IMAGES_MAX][MANIFEST_FILE_NAME_BYTES];
    struct journal_card card;
    fill_card(&card, task, files);
    for (int i = 0; i < task->job.images; i++)
        strcpy(files[card.file_count++], task->files[i].name);
    runner->tally.done++;
    runner->tally.pictures += (uint64_t)task->job.images;
    return journal_card(&runner->journal, &card, err);
}

static void learn(struct runner *runner, const struct task *task)
{
    const struct job *job = &task->job;
    struct model_rate *known = &runner->rates[task->model];
    double measured = task->times.compute_s /
                      (job_pixel_steps(job, job->width, job->height, job->steps) * job->images);
    known->rate = known->rate == 0 ? measured : known->rate + LEARNING * (measured - known->rate);
    known->width = job->width;
    known->height = job->height;
    known->steps = job->steps;
}

static void stop(struct runner *runner)
{
    struct scheduler_event event = {.type = EVENT_PAUSE};
    struct scheduler_actions actions;
    event.now_ns = clock_wall_ns(runner->clock);
    scheduler_step(runner->scheduler, &event, &actions);
    runner->stopping = runner->at_end = true;
    stations_stop(&runner->stations);
}

static int complete(struct runner *runner, struct task *task, struct err *err)
{
    struct scheduler_event event = {
        .type = EVENT_FINISH, .slot = task->slot, .outcome = OUTCOME_DONE};
    int rc = 0;
    runner->in_flight--;
    if (!task->failed) {
        learn(runner, task);
        rc = record_done(runner, task, err);
    } else if (task->err.code == ERR_CANCELLED) {
        /* Interrupted: neither done nor failed; the next run draws it. */
    } else if (task->err.class == ERR_FATAL) {
        rc = err_set(err, task->err.code, ERR_FATAL, "%s", task->err.message);
    } else if (task->err.class == ERR_RETRY && !runner->stopping) {
        event.outcome = OUTCOME_RETRY;
    } else {
        rc = runner_fail(runner, task, &task->err, err);
    }
    if (event.outcome == OUTCOME_DONE)
        free_task(runner, task);
    if (runner_step(runner, &event, err) != 0)
        rc = -1;
    return rc;
}

static int act(struct runner *runner, const struct scheduler_action *action, struct err *err)
{
    struct task *task = runner->tasks[action->slot];
    struct err reason;
    int rc;
    switch (action->type) {
    case ACTION_ASSIGN:
        task->attempt = action->attempt;
        if (journal_begin(&runner->journal, task->job.id, err) != 0) {
            return -1;
        }
        runner->in_flight++;
        pipeline_put(runner->stations.at[action->worker].pipeline, task);
        return 0;
    case ACTION_EXPIRE:
        err_set(&reason, ERR_CANCELLED, ERR_REJECT, "its deadline passed before it could start");
        rc = runner_fail(runner, task, &reason, err);
        free_task(runner, task);
        return rc;
    case ACTION_GIVE_UP:
        reason = task->err;
        rc = runner_fail(runner, task, &reason, err);
        free_task(runner, task);
        return rc;
    }
    return 0;
}

int runner_step(struct runner *runner, struct scheduler_event *event, struct err *err)
{
    struct scheduler_actions actions;
    int rc = 0;
    do {
        event->now_ns = clock_wall_ns(runner->clock);
        scheduler_step(runner->scheduler, event, &actions);
        for (size_t i = 0; i < actions.count; i++)
            if (act(runner, &actions.items[i], err) != 0)
                rc = -1;
        *event = (struct scheduler_event){.type = EVENT_TICK};
    } while (actions.more && rc == 0);
    return rc;
}

/* ---- the loop ---- */

static int read_lines(struct runner *runner, struct err *err)
{
    struct line line;
    for (int i = 0; i < LINES_PER_TURN && !runner->at_end && runner_interrupts() == 0; i++) {
        if (!scheduler_has_room(runner->scheduler, JOB_MAX_BYTES))
            return 0;
        int rc = lines_next(&runner->lines, &line, err);
        if (rc < 0)
            return -1;
        if (rc == 0)
            runner->at_end = true;
        else if (runner_feed(runner, &line, err) != 0)
            return -1;
    }
    return 0;
}

static double seconds_left(const struct runner *runner)
{
    const struct tally *tally = &runner->tally;
    uint64_t settled = tally->rejected + tally->repeated + tally->skipped;
    uint64_t drawn = tally->done + tally->failed + tally->expired;
    if (tally->total == 0 || drawn == 0)
        return -1;
    double elapsed = (double)(clock_monotonic_ns(runner->clock) - runner->progress.begun_ns) * 1e-9;
    uint64_t left = tally->total > settled + drawn ? tally->total - settled - drawn : 0;
    return elapsed * (double)left / (double)drawn;
}

static void show(struct runner *runner)
{
    struct pipeline_progress now = stations_progress(&runner->stations);
    progress_show(&runner->progress, &runner->tally, &now, stations_loading(&runner->stations),
                  seconds_left(runner));
}

static int turn(struct runner *runner, struct err *err)
{
    if (read_lines(runner, err) != 0)
        return -1;
    bool reading = !runner->at_end && scheduler_has_room(runner->scheduler, JOB_MAX_BYTES);
    struct task *task = stations_take(&runner->stations, reading ? 0 : WAIT_MS);
    for (; task; task = stations_take(&runner->stations, 0))
        if (complete(runner, task, err) != 0)
            return -1;
    struct scheduler_event tick = {.type = EVENT_TICK};
    return runner_step(runner, &tick, err);
}

static bool is_over(const struct runner *runner)
{
    struct scheduler_count count = scheduler_count(runner->scheduler);
    if (runner->in_flight > 0)
        return false;
    return runner->stopping || (runner->at_end && count.ready + count.delayed == 0);
}

static void loop(struct runner *runner)
{
    struct err err;
    while (!is_over(runner)) {
        if (runner_interrupts() > 0 && !runner->stopping) {
            progress_clear(&runner->progress);
            fprintf(stderr, "finishing the step in progress; Ctrl-C again quits at once\n");
            stop(runner);
        }
        if (turn(runner, &err) != 0) {
            if (!runner->fatal)
                runner->fatal_err = err;
            runner->fatal = true;
            stop(runner);
        }
        show(runner);
    }
}

/* ---- the end ---- */

static const char *status_of(const struct runner *runner)
{
    if (runner->fatal)
        return "stopped by an error";
    if (runner->stopping)
        return "interrupted";
    return "complete";
}

static int exit_status(const struct runner *runner)
{
    const struct tally *tally = &runner->tally;
    if (runner->fatal)
        return exit_status_of(&runner->fatal_err);
    if (runner->stopping)
        return EXIT_INTERRUPTED;
    if (tally->failed + tally->expired > 0)
        return EXIT_FAILED;
    return tally->rejected > 0 ? EXIT_REJECTED : EXIT_ALL_DONE;
}

static void write_ends(struct runner *runner)
{
    const char *slash = strrchr(runner->options->jobs, '/');
    struct contact_sheet_facts facts = {
        .title = slash ? slash + 1 : runner->options->jobs,
        .rejected = runner->tally.rejected,
        .status = status_of(runner),
    };
    struct err err;
    /* Each for itself: a disk that is too full for one may hold the other. */
    if (report_close(&runner->rejected, &err) != 0)
        fprintf(stderr, "atelier: %s\n", err.message);
    if (report_close(&runner->failed, &err) != 0)
        fprintf(stderr, "atelier: %s\n", err.message);
    if (contact_sheet_write(&runner->journal, runner->options->out, &facts, &err) != 0)
        fprintf(stderr, "atelier: contact sheet: %s\n", err.message);
}

int runner_run(struct runner *runner)
{
    loop(runner);
    progress_clear(&runner->progress);
    write_ends(runner);
    runner->tally.model_loads = stations_load_count(&runner->stations);
    progress_end(&runner->progress, &runner->tally, status_of(runner), runner->options->out);
    if (runner->fatal)
        fprintf(stderr, "atelier: %s\n", runner->fatal_err.message);
    if (runner->stopping)
        fprintf(stderr, "what is drawn is kept; run the same command again to resume\n");
    return exit_status(runner);
}

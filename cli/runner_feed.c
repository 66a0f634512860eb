/* From a line to a queued job: what is wrong with it, whether it is new, whether it is done. */
#include "cli/runner.h"
#include "common/json.h"
#include "worker/support.h"

#include <stdlib.h>
#include <string.h>

static bool is_blank(const struct line *line)
{
    for (size_t i = 0; i < line->len; i++)
        if (!strchr(" \t\r", line->text[i]) || line->text[i] == '\0')
            return false;
    return true;
}

static void check_model(struct runner *runner, const struct job *job, int *model)
{
    char hint[512];
    *model = job->model ? catalogue_find(&runner->catalogue, job->model) : -1;
    if (!job->model || *model >= 0)
        return;
    catalogue_hint(&runner->catalogue, job->model, hint, sizeof(hint));
    job_problem_add(&runner->problems, "model", job->model, "there is no such model in %.160s%s",
                    runner->catalogue.dir, hint);
}

int runner_judge(struct runner *runner, const struct line *line, struct job *job, int *model,
                 struct err *err)
{
    struct job_problems *problems = &runner->problems;
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
    check_model(runner, job, model);
    support_check_models(job, &runner->catalogue, problems);
    support_check(job, engine_info(runner->stations.at[0].engine), problems);
    support_check_local(job, problems);
    if (problems->count > 0)
        return 1;
    if (job_identify(job, runner->options->jobs, line->number, err) != 0)
        return -1;
    catalogue_fill(&runner->catalogue, *model, job);
    job_check_sampling(job, problems);
    return problems->count > 0;
}

static int reject(struct runner *runner, const struct line *line, const struct job *job,
                  struct err *err)
{
    size_t len = line->too_long && line->len > 200 ? 200 : line->len;
    runner->tally.rejected++;
    return report_rejected(&runner->rejected, line->number, job->id, line->text, len,
                           &runner->problems, err);
}

/* The card of a job that an earlier run finished, for a journal that has lost it. */
static int adopt(struct runner *runner, const struct job *job, const struct manifest_view *view,
                 struct err *err)
{
    char files[JOB_IMAGES_MAX][MANIFEST_FILE_NAME_BYTES];
    const struct json *request = view->request;
    struct journal_card card = {
        .id = job->id,
        .content = view->content,
        .model = job->model,
        .prompt = job->prompt,
        .negative_prompt = job->negative_prompt,
        .seed = (uint64_t)job->seed,
        .width = (int)json_int_or(json_get(request, "width"), 0),
        .height = (int)json_int_or(json_get(request, "height"), 0),
        .steps = (int)json_int_or(json_get(request, "steps"), 0),
        .seconds = view->total_s,
        .beside = journal_beside_of(job),
        .files = files,
    };
    for (const struct json *file = view->files->child; file && card.file_count < JOB_IMAGES_MAX;
         file = file->next)
        snprintf(files[card.file_count++], sizeof(files[0]), "%.95s",
                 json_string_or(json_get(file, "name"), ""));
    return journal_card(&runner->journal, &card, err);
}

/* 1 with a problem noted when the finished job was another request, 0 when it is this one. */
static int compare_manifest(struct runner *runner, const struct job *job, bool known,
                            uint64_t known_content, struct err *err)
{
    struct manifest_view view = {0};
    struct buf text;
    uint64_t content = known_content;
    int rc = 0;
    if (!known) {
        buf_init(&text, MANIFEST_MAX_BYTES);
        rc = store_manifest(&runner->store, job->id, &text, err);
        if (rc == 0)
            rc = manifest_read(&view, text.data, text.len, err);
        buf_release(&text);
        if (rc != 0) {
            job_problem_add(&runner->problems, "id", job->id, "its manifest cannot be read: %.200s",
                            err->message);
            return 1;
        }
        content = view.content;
    }
    if (content != job->content) {
        job_problem_add(&runner->problems, "id", job->id,
                        "this out directory holds another request's pictures under this id; choose "
                        "another id or another --out");
        rc = 1;
    } else if (!known) {
        rc = adopt(runner, job, &view, err);
    }
    manifest_view_release(&view);
    return rc;
}

enum verdict { VERDICT_NEW, VERDICT_REJECTED, VERDICT_REPEATED, VERDICT_DONE, VERDICT_ERROR };

/* Compares the job with what this run and earlier ones have seen under its id. */
static enum verdict compare(struct runner *runner, const struct job *job, struct err *err)
{
    bool fresh;
    struct ledger_entry *entry = ledger_enter(&runner->ledger, job->id, &fresh, err);
    if (!entry)
        return VERDICT_ERROR;
    if (entry->seen) {
        if (entry->content == job->content)
            return VERDICT_REPEATED;
        job_problem_add(&runner->problems, "id", job->id,
                        "an earlier line has this id and asks for something else");
        return VERDICT_REJECTED;
    }
    bool known = entry->card != 0;
    uint64_t known_content = entry->content;
    entry->seen = 1;
    entry->content = job->content;
    bool done;
    if (store_is_done(&runner->store, job->id, &done, err) != 0)
        return VERDICT_ERROR;
    if (!done)
        return VERDICT_NEW;
    switch (compare_manifest(runner, job, known, known_content, err)) {
    case 0:
        return VERDICT_DONE;
    case 1:
        return VERDICT_REJECTED;
    default:
        return VERDICT_ERROR;
    }
}

static enum job_class class_of(const struct job *job)
{
    return strcmp(job->priority, "interactive") == 0 ? CLASS_INTERACTIVE
           : strcmp(job->priority, "bulk") == 0      ? CLASS_BULK
                                                     : CLASS_NORMAL;
}

/* Tenants are told apart by a hash into the scheduler's table: two that meet there share. */
static uint32_t tenant_of(const struct job *job)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *c = job->tenant; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    return hash % RUNNER_TENANTS;
}

static double predict(const struct runner *runner, const struct task *task)
{
    const struct job *job = &task->job;
    const struct model_rate *known = &runner->rates[task->model];
    if (known->rate == 0)
        return -1;
    double work = job_pixel_steps(job, job->width ? job->width : known->width,
                                  job->height ? job->height : known->height,
                                  job->steps ? job->steps : known->steps);
    return known->rate * work * job->images;
}

void runner_submit(struct runner *runner, struct task *task)
{
    struct scheduler_event event = {.type = EVENT_SUBMIT, .slot = task->slot};
    const struct job *job = &task->job;
    task->predicted_s = predict(runner, task);
    event.job = (struct scheduler_job){
        .model = (uint32_t)task->model,
        .width = job->width,
        .height = job->height,
        .pictures = job->images,
        .effort = task->predicted_s < 0 ? 0 : task->predicted_s / job->images,
        .class = class_of(job),
        .tenant = tenant_of(job),
        .not_before_ns = job->not_before_ns,
        .deadline_ns = job->deadline_ns,
        .attempts_max = job->max_attempts,
        .bytes = job->bytes,
    };
    if (runner_step(runner, &event, &runner->fatal_err) != 0)
        runner->fatal = true;
}

int runner_feed(struct runner *runner, const struct line *line, struct err *err)
{
    struct job job;
    int model = -1;
    runner->tally.lines++;
    if (is_blank(line)) {
        if (runner->tally.total > 0)
            runner->tally.total--;
        return 0;
    }
    int rc = runner_judge(runner, line, &job, &model, err);
    if (rc == 0) {
        enum verdict verdict = compare(runner, &job, err);
        rc = verdict == VERDICT_ERROR ? -1 : verdict == VERDICT_REJECTED ? 1 : 0;
        runner->tally.repeated += verdict == VERDICT_REPEATED;
        runner->tally.skipped += verdict == VERDICT_DONE;
        if (verdict == VERDICT_NEW) {
            struct task *task = calloc(1, sizeof(*task));
            if (!task) {
                job_release(&job);
                return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for a job");
            }
            ASSERT(runner->free_count > 0);
            task->slot = runner->free_slots[--runner->free_count];
            runner->tasks[task->slot] = task;
            job_move(&task->job, &job);
            task->model = model;
            task->line = line->number;
            runner_submit(runner, task);
            return runner->fatal ? -1 : 0;
        }
    }
    if (rc == 1)
        rc = reject(runner, line, &job, err);
    job_release(&job);
    return rc;
}

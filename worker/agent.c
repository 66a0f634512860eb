#include "worker/agent_parts.h"

#include "common/json.h"
#include "worker/support.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define TURN_MS 200
#define SECOND_NS 1000000000ll
#define ACK_WAIT_NS (15 * SECOND_NS) /* at the end, for the last reports */
#define BATCH_CPU 4
#define BATCH_CARD 8
#define CHECKPOINT_MAX_BYTES ((size_t)1 << 30)
#define MANIFEST_KEY_BYTES (JOB_NAME_MAX_BYTES + 32)

/* ---- reports ---- */

static void settle(struct agent *agent, struct held *held, struct report *report)
{
    struct buf text;
    report->worker = agent->name;
    report->is.device_class = agent->device_class;
    report->id = held->id;
    report->epoch = held->epoch;
    report->attempt = held->attempt;
    buf_init(&text, WIRE_MAX_BYTES);
    report_write(report, &text);
    char *copy = text.failed ? NULL : strdup(text.data);
    buf_release(&text);
    pthread_mutex_lock(&agent->lock);
    agent->done += report->type == REPORT_DONE;
    agent->failed += report->type == REPORT_FAILED && !report->cancelled;
    agent->cancelled += report->type == REPORT_FAILED && report->cancelled;
    agent->returned += report->type == REPORT_RETURNED;
    held->drawing = false;
    held->report = copy; /* without memory the job stays in the beats, and is retried in the end */
    pthread_mutex_unlock(&agent->lock);
    link_wake(agent);
}

static void settle_failed(struct agent *agent, struct held *held, const struct err *why)
{
    char attempt[16];
    struct report report = {.type = REPORT_FAILED,
                            .error = why->message,
                            .retry = why->class != ERR_REJECT,
                            .cancelled = held->cancelled};
    snprintf(attempt, sizeof(attempt), "%d", held->attempt);
    log_event(agent->log, LOG_WARN, held->cancelled ? "job_cancelled" : "job_failed", "job",
              held->id, "attempt", attempt, "error", why->message, NULL);
    settle(agent, held, &report);
}

static void write_files(const struct task *task, struct buf *out)
{
    buf_char(out, '[');
    for (int i = 0; i < task->job.images; i++) {
        const struct manifest_file *file = &task->files[i];
        buf_printf(
            out, "%s{\"name\":\"%s\",\"sha256\":\"%s\",\"bytes\":%" PRIu64 ",\"seed\":%" PRIu64 "}",
            i ? "," : "", file->name, file->sha256, file->bytes, file->seed);
    }
    buf_char(out, ']');
}

static void settle_done(struct agent *agent, struct held *held)
{
    const struct task *task = &held->task;
    char manifest[MANIFEST_KEY_BYTES], attempt[16], seconds[32];
    struct err err;
    struct buf files;
    buf_init(&files, WIRE_MAX_BYTES);
    write_files(task, &files);
    snprintf(manifest, sizeof(manifest), "results/%s/" MANIFEST_NAME, held->id);
    struct report report = {.type = REPORT_DONE,
                            .model = task->job.model,
                            .width = task->job.width,
                            .height = task->job.height,
                            .steps = task->job.steps,
                            .images = task->job.images,
                            .compute_s = task->times.compute_s,
                            .total_s = task->times.total_s,
                            .load_s = task->load_s,
                            .manifest = manifest,
                            .files = files.data,
                            .adopted = task->adopted};
    snprintf(attempt, sizeof(attempt), "%d", held->attempt);
    snprintf(seconds, sizeof(seconds), "%.3f", task->times.total_s);
    log_event(agent->log, LOG_INFO, "job_done", "job", held->id, "attempt", attempt, "seconds",
              seconds, NULL);
    /* Before the report: once that is out, nobody looks at the job again. */
    if (held->attempt > 1 && store_clear(&agent->store, held->id, &err) != 0)
        log_event(agent->log, LOG_WARN, "objects_left", "job", held->id, "error", err.message,
                  NULL);
    settle(agent, held, &report);
    buf_release(&files);
}

/* Handed back, with what has been done of it where there is something. */
static void settle_returned(struct agent *agent, struct held *held)
{
    char name[64] = "", attempt[16];
    const struct buf *saved = &held->task.saved;
    struct err err;
    snprintf(attempt, sizeof(attempt), "%d", held->attempt);
    if (held->task.handed_back && saved->len > 0) {
        snprintf(name, sizeof(name), "%" PRIu64 "-%d", held->epoch, held->attempt);
        if (store_put_blob(&agent->store, held->id, name, saved->data, saved->len, &err) != 0) {
            log_event(agent->log, LOG_WARN, "checkpoint_lost", "job", held->id, "error",
                      err.message, NULL);
            name[0] = '\0';
        }
    } else if (held->checkpoint[0]) {
        strcpy(name, held->checkpoint); /* not begun: the next one begins from the same */
    }
    struct report report = {.type = REPORT_RETURNED, .checkpoint = name[0] ? name : NULL};
    log_event(agent->log, LOG_INFO, "job_returned", "job", held->id, "attempt", attempt,
              "checkpoint", name[0] ? name : NULL, NULL);
    settle(agent, held, &report);
}

/* ---- orders ---- */

static struct held *find(struct agent *agent, const char *id, int attempt)
{
    for (struct held *held = agent->held; held; held = held->next)
        if (held->attempt == attempt && strcmp(held->id, id) == 0)
            return held;
    return NULL;
}

static void let_go(struct agent *agent, struct held *gone)
{
    pthread_mutex_lock(&agent->lock);
    struct held **link = &agent->held;
    while (*link && *link != gone)
        link = &(*link)->next;
    if (*link)
        *link = gone->next;
    pthread_mutex_unlock(&agent->lock);
    task_release(&gone->task);
    free(gone->report);
    free(gone);
}

static void refuse(struct err *err, const struct job_problems *problems)
{
    const struct job_problem *first = &problems->items[0];
    err_set(err, ERR_INVALID, ERR_REJECT, "%s%s%s", first->field, first->field[0] ? ": " : "",
            first->problem);
}

/* The request as this worker understands it. */
static int read_request(struct agent *agent, struct held *held, const struct order *order,
                        struct err *err)
{
    struct task *task = &held->task;
    struct job_problems *problems = calloc(1, sizeof(*problems));
    struct buf text;
    int rc = -1;
    buf_init(&text, 4 * JOB_MAX_BYTES);
    json_write_canonical(&text, order->request_json);
    if (!problems || text.failed) {
        err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a request");
    } else if (job_parse(&task->job, text.data, text.len, problems, err) != 0) {
        if (problems->count > 0)
            refuse(err, problems);
    } else if (job_identify(&task->job, "", 0, err) == 0) {
        task->model = catalogue_find(&agent->catalogue, task->job.model);
        if (task->model < 0)
            err_set(err, ERR_NOT_FOUND, ERR_RETRY, "this worker has no model %s", task->job.model);
        else
            catalogue_fill(&agent->catalogue, task->model, &task->job);
        job_check_sampling(&task->job, problems);
        support_check(&task->job, engine_info(agent->engine), problems);
        if (problems->count > 0)
            refuse(err, problems);
        rc = task->model < 0 || problems->count > 0 ? -1 : 0;
    }
    buf_release(&text);
    free(problems);
    return rc;
}

static int read_checkpoint(struct agent *agent, struct held *held, struct err *err)
{
    buf_init(&held->task.saved, CHECKPOINT_MAX_BYTES);
    if (!held->checkpoint[0])
        return 0;
    int rc = store_get_blob(&agent->store, held->id, held->checkpoint, &held->task.saved, err);
    if (rc != 0 && err->code == ERR_NOT_FOUND) { /* gone: from the beginning, then */
        buf_clear(&held->task.saved);
        return 0;
    }
    return rc;
}

static struct held *hold(struct agent *agent, const struct order *order)
{
    struct held *held = calloc(1, sizeof(*held));
    if (!held)
        return NULL;
    snprintf(held->id, sizeof(held->id), "%s", order->id);
    snprintf(held->traceparent, sizeof(held->traceparent), "%s",
             order->traceparent ? order->traceparent : "");
    snprintf(held->checkpoint, sizeof(held->checkpoint), "%s",
             order->checkpoint ? order->checkpoint : "");
    held->epoch = order->epoch;
    held->attempt = order->attempt;
    held->task.attempt = order->attempt;
    held->task.predicted_s = order->predicted_s;
    held->task.price = order->price;
    held->task.traceparent = held->traceparent[0] ? held->traceparent : NULL;
    pthread_mutex_lock(&agent->lock);
    held->next = agent->held;
    agent->held = held;
    pthread_mutex_unlock(&agent->lock);
    return held;
}

static void take_job(struct agent *agent, const struct order *order)
{
    struct err err;
    if (strlen(order->id) > JOB_NAME_MAX_BYTES || find(agent, order->id, order->attempt))
        return;
    struct held *held = hold(agent, order);
    if (!held)
        return; /* as if it had been lost on the way */
    if (agent->draining) {
        settle_returned(agent, held);
    } else if (read_request(agent, held, order, &err) != 0 ||
               read_checkpoint(agent, held, &err) != 0) {
        settle_failed(agent, held, &err);
    } else {
        pthread_mutex_lock(&agent->lock);
        held->drawing = true;
        pthread_mutex_unlock(&agent->lock);
        pipeline_put(agent->pipeline, &held->task);
    }
}

static void let_all_go(struct agent *agent, const struct order *ack)
{
    struct wire_job job;
    for (const struct json *at = NULL; wire_next_job(ack->jobs_json, &at, &job);) {
        struct held *held = find(agent, job.id, job.attempt);
        if (held && held->report)
            let_go(agent, held);
    }
}

static void drain(struct agent *agent)
{
    pthread_mutex_lock(&agent->lock);
    bool before = agent->draining;
    agent->draining = true;
    pthread_mutex_unlock(&agent->lock);
    if (!before)
        log_event(agent->log, LOG_INFO, "draining", NULL);
}

/* Of a job that has ended; unless it has been driven again since, and to here. */
static void sweep(struct agent *agent, const struct order *order)
{
    struct err err;
    for (const struct held *held = agent->held; held; held = held->next)
        if (held->drawing && strcmp(held->id, order->id) == 0)
            return;
    int rc = order->checkpoint
                 ? store_remove_blob(&agent->store, order->id, order->checkpoint, &err)
                 : store_clear(&agent->store, order->id, &err);
    if (rc != 0)
        log_event(agent->log, LOG_WARN, "objects_left", "job", order->id, "error", err.message,
                  NULL);
}

static void follow(struct agent *agent, const struct letter *letter)
{
    struct order order;
    struct err err;
    if (order_read(&order, letter->text, letter->len, &err) != 0) {
        log_event(agent->log, LOG_WARN, "order_dropped", "problem", err.message, NULL);
        return;
    }
    struct held *held = order.id ? find(agent, order.id, order.attempt) : NULL;
    pthread_mutex_lock(&agent->lock);
    bool stale = order.epoch < agent->epoch;
    pthread_mutex_unlock(&agent->lock);
    switch (order.type) {
    case ORDER_JOB:
        if (!stale) /* an old leader's: the new one will give the job again */
            take_job(agent, &order);
        break;
    case ORDER_CANCEL:
        if (held && held->drawing && !stale) {
            held->cancelled = true;
            pipeline_cancel(agent->pipeline, &held->task);
        }
        break;
    case ORDER_ACK:
        let_all_go(agent, &order);
        break;
    case ORDER_DRAIN:
        drain(agent);
        break;
    case ORDER_SWEEP:
        if (!stale)
            sweep(agent, &order);
        break;
    default:
        break;
    }
    order_release(&order);
}

static void read_letters(struct agent *agent)
{
    pthread_mutex_lock(&agent->lock);
    struct letter *letter = agent->letters, *next;
    agent->letters = NULL;
    agent->letters_end = &agent->letters;
    pthread_mutex_unlock(&agent->lock);
    for (; letter; letter = next) {
        next = letter->next;
        follow(agent, letter);
        free(letter);
    }
}

/* ---- the pipeline's end ---- */

/* What comes back without a fault of the job, since the pipeline stops. */
static bool is_handed_back(const struct agent *agent, const struct held *held)
{
    return agent->draining && held->task.err.code == ERR_CANCELLED && !held->cancelled;
}

static struct held *holder_of(struct task *task)
{
    return (struct held *)((char *)task - offsetof(struct held, task));
}

static int take_back(struct agent *agent, struct err *err)
{
    struct task *task;
    while ((task = pipeline_take(agent->pipeline, 0)) != NULL) {
        struct held *held = holder_of(task);
        if (!task->failed) {
            settle_done(agent, held);
        } else if (is_handed_back(agent, held)) {
            settle_returned(agent, held);
        } else if (task->err.class == ERR_FATAL) {
            *err = task->err;
            settle_returned(agent, held);
            return -1;
        } else {
            settle_failed(agent, held, &task->err);
        }
    }
    return 0;
}

/* ---- the loop ---- */

void agent_wake(struct agent *agent)
{
    pthread_mutex_lock(&agent->lock);
    agent->woken = true;
    pthread_cond_signal(&agent->changed);
    pthread_mutex_unlock(&agent->lock);
}

static void on_through(void *user)
{
    agent_wake(user);
}

static void wait_for_work(struct agent *agent)
{
    struct timespec until = clock_deadline(TURN_MS);
    pthread_mutex_lock(&agent->lock);
    while (!agent->woken &&
           pthread_cond_timedwait(&agent->changed, &agent->lock, &until) != ETIMEDOUT)
        ;
    agent->woken = false;
    pthread_mutex_unlock(&agent->lock);
}

static bool is_drawing(struct agent *agent)
{
    for (struct held *held = agent->held; held; held = held->next)
        if (held->drawing)
            return true;
    return false;
}

static int turn(struct agent *agent, struct err *err)
{
    wait_for_work(agent);
    read_letters(agent);
    return take_back(agent, err);
}

/* In hand: finished within the grace period, or saved and handed back; then the last reports. */
static int leave(struct agent *agent, struct err *err)
{
    int64_t begin = clock_monotonic_ns(agent->clock);
    int64_t grace_end = begin + agent->options->grace_s * SECOND_NS;
    struct err later;
    int rc = 0;
    drain(agent);
    while (is_drawing(agent) && clock_monotonic_ns(agent->clock) < grace_end && rc == 0)
        rc = turn(agent, err);
    pipeline_hand_back(agent->pipeline);
    while (is_drawing(agent))
        if (turn(agent, rc == 0 ? err : &later) != 0)
            rc = -1;
    int64_t ack_end = clock_monotonic_ns(agent->clock) + ACK_WAIT_NS;
    while (agent->held && clock_monotonic_ns(agent->clock) < ack_end)
        (void)turn(agent, &later);
    return rc;
}

/* ---- opening and closing ---- */

static void on_warning(void *user, const char *message)
{
    const struct agent *agent = user;
    log_event(agent->log, LOG_WARN, "engine", "warning", message, NULL);
}

static int read_input(void *user, const char *uri, struct buf *out, struct err *err)
{
    const struct agent *agent = user;
    return fetch_read(&agent->input_fetch, uri, out, err);
}

static int open_storage(struct agent *agent, struct err *err)
{
    struct s3_options s3;
    struct http_options http = HTTP_OPTIONS_INIT;
    if (service_s3(&agent->options->services, agent->clock, &s3, err) != 0)
        return -1;
    http.ca_file = s3.http.ca_file;
    http.clock = agent->clock;
    if (s3_create(&agent->s3, &s3, err) != 0 || s3_check(agent->s3, err) != 0 ||
        http_create(&agent->http, &http, err) != 0)
        return -1;
    http.public_only =
        !agent->options->private_inputs; /* what a job names is a stranger's to say */
    if (http_create(&agent->input_http, &http, err) != 0)
        return -1;
    agent->input_fetch = (struct fetch){.http = agent->input_http, .s3 = agent->s3};
    agent->fetch = (struct fetch){.http = agent->http, .s3 = agent->s3};
    agent->store = store_s3(agent->s3);
    struct cache_options cache = {.dir = agent->options->cache,
                                  .max_bytes = agent->options->cache_max_bytes,
                                  .fetch = &agent->fetch,
                                  .s3 = s3,
                                  .log = agent->log};
    return cache_open(&agent->cache, &cache, err);
}

static int locate(void *user, const struct catalogue_model *model, char path[FILE_PATH_MAX_BYTES],
                  struct err *err)
{
    struct agent *agent = user;
    return cache_locate(&agent->cache, model, path, err);
}

static int batch_max_of(const struct agent *agent)
{
    bool card = engine_info(agent->engine)->overlaps;
    return agent->options->batch_max > 0 ? (int)agent->options->batch_max
           : card                        ? BATCH_CARD
                                         : BATCH_CPU;
}

static int open_engine(struct agent *agent, struct err *err)
{
    const struct agent_options *options = agent->options;
    struct engine_options wanted = ENGINE_OPTIONS_INIT;
    wanted.backend = options->device;
    wanted.isa = options->isa;
    wanted.precision = (enum precision)support_precision_by_name(options->precision);
    wanted.threads = (int)options->threads;
    wanted.memory_max_bytes = options->memory_bytes;
    wanted.warn = on_warning;
    wanted.user = agent;
    if (engine_create(&agent->engine, &wanted, err) != 0 ||
        models_create(&agent->models, agent->engine, &agent->catalogue, err) != 0)
        return -1;
    agent->device_class = options->device_class ? options->device_class
                                                : support_device_class(engine_info(agent->engine));
    if (!agent->device_class)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "device-class: no class is known for a %s; say with --device-class what the "
                       "routing policy calls it",
                       engine_info(agent->engine)->processor);
    models_set_locate(agent->models, locate, agent);
    int batch_max = batch_max_of(agent);
    agent->pictures_max = batch_max + (int)options->ahead;
    struct pipeline_options pipeline = {.engine = agent->engine,
                                        .models = agent->models,
                                        .catalogue = &agent->catalogue,
                                        .store = &agent->store,
                                        .read_input = read_input,
                                        .device_class = agent->device_class,
                                        .wake = on_through,
                                        .user = agent,
                                        .clock = agent->clock,
                                        .batch_max = batch_max,
                                        .batch_pixels = engine_info(agent->engine)->batch_pixels,
                                        .tasks_max = 256};
    return pipeline_create(&agent->pipeline, &pipeline, err);
}

static int open_serve(struct agent *agent, struct err *err)
{
    struct serve_options options = {.host = agent->options->metrics_host,
                                    .port = (int)agent->options->metrics_port,
                                    .threaded = true,
                                    .answer = agent_answer,
                                    .user = agent};
    return options.port == 0 ? 0 : serve_create(&agent->serve, &options, err);
}

static int start_link(struct agent *agent, struct err *err)
{
    agent->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (agent->wake_fd < 0 || pthread_create(&agent->link, NULL, link_main, agent) != 0)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "cannot start the thread at-link");
    pthread_setname_np(agent->link, "at-link");
    agent->has_link = true;
    return 0;
}

static int check_redis(const struct agent *agent, struct err *err)
{
    struct redis_options options = {.url = agent->options->services.redis_url,
                                    .ca_file = agent->options->services.redis_ca_file,
                                    .clock = agent->clock};
    struct redis *redis;
    if (redis_create(&redis, &options, err) != 0)
        return -1;
    redis_free(redis);
    return 0;
}

static int open_agent(struct agent *agent, struct err *err)
{
    char models[FILE_PATH_MAX_BYTES];
    const struct agent_options *options = agent->options;
    snprintf(agent->name, sizeof(agent->name), "%s", options->name);
    snprintf(agent->boot, sizeof(agent->boot), "%016" PRIx64 "-%d",
             (uint64_t)clock_wall_ns(agent->clock), (int)getpid());
    if (!job_id_valid(agent->name))
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "name: '%.80s' is no name of letters, digits, '.', '_' and '-'",
                       agent->name);
    if (options->models)
        snprintf(models, sizeof(models), "%s", options->models);
    else if (!file_find(models, "models"))
        return err_set(err, ERR_NOT_FOUND, ERR_FATAL,
                       "no models directory beside the program or here; give --models");
    if (catalogue_open(&agent->catalogue, models, err) != 0 || check_redis(agent, err) != 0 ||
        open_storage(agent, err) != 0 || open_engine(agent, err) != 0 ||
        open_serve(agent, err) != 0)
        return -1;
    return start_link(agent, err);
}

static void close_agent(struct agent *agent)
{
    pthread_mutex_lock(&agent->lock);
    agent->leaving = true;
    pthread_mutex_unlock(&agent->lock);
    if (agent->has_link) {
        link_wake(agent);
        pthread_join(agent->link, NULL);
    }
    serve_free(agent->serve);
    pipeline_free(agent->pipeline);
    while (agent->held)
        let_go(agent, agent->held);
    read_letters(agent);
    models_free(agent->models);
    engine_free(agent->engine);
    catalogue_release(&agent->catalogue);
    s3_free(agent->s3);
    http_free(agent->http);
    http_free(agent->input_http);
    if (agent->wake_fd >= 0)
        close(agent->wake_fd);
}

int agent_run(const struct agent_options *options, const struct log *log, const volatile int *stop,
              struct err *err)
{
    struct agent agent = {.options = options, .log = log, .clock = log->clock, .wake_fd = -1};
    pthread_condattr_t monotonic;
    agent.letters_end = &agent.letters;
    pthread_mutex_init(&agent.lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&agent.changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int rc = open_agent(&agent, err);
    if (rc == 0) {
        log_event(log, LOG_INFO, "serving", "worker", log->worker ? NULL : agent.name, "class",
                  agent.device_class, NULL);
        while (rc == 0 && !*stop && !agent.draining)
            rc = turn(&agent, err);
        struct err leaving;
        if (leave(&agent, &leaving) != 0 && rc == 0) {
            *err = leaving;
            rc = -1;
        }
    }
    close_agent(&agent);
    pthread_cond_destroy(&agent.changed);
    pthread_mutex_destroy(&agent.lock);
    return rc;
}

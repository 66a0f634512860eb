/*
 * at-link: one link waits in BLMPOP for orders, another beats and reports. Orders go to main as
 * text. A lost connection costs nothing but time: popped orders are in the list of what the next
 * beat names, and one that was lost on the way is given anew by the leader, which misses it there.
 */
#include "worker/agent_parts.h"

#include "worker/support.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SECOND_NS 1000000000ll
#define BEAT_NS SECOND_NS
#define REPEAT_NS (3 * SECOND_NS)
#define ORDERS_AT_ONCE "64"
#define WAIT_S "1"
#define TURN_MS 100
#define KEEP_S "30"
#define BEAT_JOBS_MAX 128 /* SCHEDULER_WORKER_JOBS_MAX */

struct link {
    struct agent *agent;
    struct redis *orders, *out;
    bool asking;
    int64_t beat_ns; /* monotonic, when the next is due */
    char queue[sizeof(REDIS_QUEUE) + AGENT_NAME_BYTES];
    /* The jobs of the beat under way, by the numbers in its reply. */
    char beat_ids[BEAT_JOBS_MAX][JOB_NAME_MAX_BYTES + 1];
    int beat_attempts[BEAT_JOBS_MAX];
    size_t beat_count;
};

/* ---- letters ---- */

static void post(struct agent *agent, const char *text, size_t len)
{
    struct letter *letter = malloc(sizeof(*letter) + len + 1);
    if (!letter)
        return; /* as if it had been lost on the way */
    letter->next = NULL;
    letter->len = len;
    memcpy(letter->text, text, len);
    letter->text[len] = '\0';
    pthread_mutex_lock(&agent->lock);
    *agent->letters_end = letter;
    agent->letters_end = &letter->next;
    agent->woken = true;
    pthread_cond_signal(&agent->changed);
    pthread_mutex_unlock(&agent->lock);
}

static void on_orders(void *user, const struct redis_value *reply)
{
    struct link *link = user;
    link->asking = false;
    if (!reply || reply->type != REDIS_ARRAY || reply->count != 2)
        return;
    struct redis_value items = redis_item(reply, 1);
    for (size_t i = 0; i < items.count; i++) {
        struct redis_value item = redis_item(&items, i);
        post(link->agent, item.text, item.len);
    }
}

static void ask(struct link *link)
{
    const struct redis_arg args[] = {redis_text("BLMPOP"),      redis_text(WAIT_S),
                                     redis_text("1"),           redis_text(link->queue),
                                     redis_text("LEFT"),        redis_text("COUNT"),
                                     redis_text(ORDERS_AT_ONCE)};
    if (link->asking || !redis_connected(link->orders))
        return;
    link->asking = true;
    redis_send(link->orders, on_orders, link, sizeof(args) / sizeof(args[0]), args);
}

/* ---- reports ---- */

static void send_report(struct link *link, const char *text)
{
    const struct redis_arg args[] = {redis_text("XADD"), redis_text(REDIS_REPORTS), redis_text("*"),
                                     redis_text("m"), redis_text(text)};
    redis_send(link->out, NULL, NULL, sizeof(args) / sizeof(args[0]), args);
}

static void send_reports(struct link *link)
{
    struct agent *agent = link->agent;
    int64_t now = clock_monotonic_ns(agent->clock);
    if (!redis_connected(link->out))
        return;
    pthread_mutex_lock(&agent->lock);
    for (struct held *held = agent->held; held; held = held->next) {
        if (!held->report || (held->reported_ns && now - held->reported_ns < REPEAT_NS))
            continue;
        held->reported_ns = now;
        send_report(link, held->report);
    }
    pthread_mutex_unlock(&agent->lock);
}

/* ---- beats ---- */

static void describe(struct agent *agent, struct report_worker *is)
{
    const struct engine_info *engine = engine_info(agent->engine);
    struct pipeline_progress progress = pipeline_progress(agent->pipeline);
    int resident[WIRE_MODELS_MAX];
    *is = (struct report_worker){
        .boot = agent->boot,
        .device_class = agent->device_class,
        .processor = engine->processor,
        .backend = engine->backend,
        .isa = engine->isa,
        .engine_version = engine_version(),
        .precisions = support_precision_name(engine->precision),
        .pictures_max = agent->leaving ? 0 : agent->pictures_max,
        .memory_bytes = agent->options->memory_bytes ? agent->options->memory_bytes
                        : engine->memory_bytes > 0
                            ? engine->memory_bytes
                            : (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE),
        .confidential = agent->options->confidential,
        .draining = agent->draining,
        .cache_bytes = cache_bytes(&agent->cache),
        .cache_max_bytes = agent->options->cache ? agent->options->cache_max_bytes : 0,
        .step_s = progress.step_s};
    is->resident_count = models_resident(agent->models, resident, WIRE_MODELS_MAX);
    for (size_t i = 0; i < is->resident_count; i++)
        is->resident[i] = agent->catalogue.models[resident[i]].name;
    is->adapter_count =
        models_resident_adapters(agent->models, agent->adapter_names, WIRE_ADAPTERS_MAX);
    for (size_t i = 0; i < is->adapter_count; i++)
        is->adapters[i] = agent->adapter_names[i];
}

/* The reply: the cell's epoch, then the numbers of jobs that are another's by now. */
static void on_beat(void *user, const struct redis_value *reply)
{
    struct link *link = user;
    struct agent *agent = link->agent;
    struct buf text;
    if (!reply || reply->type != REDIS_ARRAY)
        return;
    struct redis_value epoch = redis_item(reply, 0);
    pthread_mutex_lock(&agent->lock);
    if ((uint64_t)epoch.integer > agent->epoch)
        agent->epoch = (uint64_t)epoch.integer;
    pthread_mutex_unlock(&agent->lock);
    buf_init(&text, 1 << 16);
    for (size_t i = 1; i < reply->count; i++) {
        struct redis_value number = redis_item(reply, i);
        size_t at = (size_t)number.integer - 1;
        if (number.integer < 1 || at >= link->beat_count)
            continue;
        struct order lost = {.type = ORDER_CANCEL,
                             .id = link->beat_ids[at],
                             .epoch = (uint64_t)epoch.integer,
                             .attempt = link->beat_attempts[at]};
        buf_clear(&text);
        order_write(&lost, &text);
        post(agent, text.data, text.len);
    }
    buf_release(&text);
}

struct beat_texts {
    char worker[sizeof(REDIS_WORKER) + AGENT_NAME_BYTES], now[24], pictures[16], memory[24];
    char jobs[BEAT_JOBS_MAX][sizeof(REDIS_JOB) + JOB_NAME_MAX_BYTES];
    char numbers[BEAT_JOBS_MAX][3][16];
    char resident[1024];
};

static size_t put_fields(const struct agent *agent, const struct report_worker *is,
                         struct beat_texts *texts, struct redis_arg *args)
{
    size_t count = 0, used = 0;
    snprintf(texts->pictures, sizeof(texts->pictures), "%d", is->pictures_max);
    snprintf(texts->memory, sizeof(texts->memory), "%llu", (unsigned long long)is->memory_bytes);
    texts->resident[0] = '\0';
    for (size_t i = 0; i < is->resident_count && used < sizeof(texts->resident); i++)
        used += (size_t)snprintf(texts->resident + used, sizeof(texts->resident) - used, "%s%s",
                                 i ? "," : "", is->resident[i]);
    const char *const pairs[][2] = {
        {"device_class", is->device_class},
        {"processor", is->processor},
        {"isa", is->isa},
        {"engine_version", is->engine_version},
        {"precisions", is->precisions},
        {"pictures_max", texts->pictures},
        {"memory_bytes", texts->memory},
        {"models", texts->resident},
        {"state", agent->leaving ? "left"
                  : is->draining ? "draining"
                                 : "serving"},
        {"seen_ms", texts->now},
    };
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        args[count++] = redis_text(pairs[i][0]);
        args[count++] = redis_text(pairs[i][1] ? pairs[i][1] : "");
    }
    return count;
}

static const char *status_of(const struct held *held, enum task_stage stage)
{
    if (held->report || stage == TASK_PUBLISHING)
        return "publishing";
    return stage == TASK_RUNNING ? "running" : "assigned";
}

/* Under the lock: which jobs, and how far they are. */
static void gather(struct link *link, struct wire_job *jobs, struct beat_texts *texts,
                   const char **statuses)
{
    struct agent *agent = link->agent;
    link->beat_count = 0;
    for (struct held *held = agent->held; held && link->beat_count < BEAT_JOBS_MAX;
         held = held->next) {
        size_t i = link->beat_count++;
        /* Out of the pipeline it is through, or not in yet. */
        struct task_progress progress = {held->report ? TASK_PUBLISHING : TASK_WAITING,
                                         held->task.step, held->task.steps};
        if (held->drawing)
            progress = pipeline_task_progress(agent->pipeline, &held->task);
        strcpy(link->beat_ids[i], held->id);
        link->beat_attempts[i] = held->attempt;
        jobs[i] = (struct wire_job){link->beat_ids[i], held->epoch, held->attempt};
        snprintf(texts->jobs[i], sizeof(texts->jobs[i]), REDIS_JOB "%s", held->id);
        snprintf(texts->numbers[i][0], 16, "%d", held->attempt);
        snprintf(texts->numbers[i][1], 16, "%d", progress.step);
        snprintf(texts->numbers[i][2], 16, "%d", progress.steps);
        statuses[i] = status_of(held, progress.stage);
    }
}

static void beat(struct link *link)
{
    struct agent *agent = link->agent;
    struct report report = {.type = REPORT_BEAT, .worker = agent->name};
    struct wire_job jobs[BEAT_JOBS_MAX];
    const char *statuses[BEAT_JOBS_MAX];
    struct redis_arg args[5 * BEAT_JOBS_MAX + 64], fields[32];
    char field_count[8];
    struct beat_texts *texts = malloc(sizeof(*texts));
    struct buf text;
    size_t count = 0;
    if (!texts)
        return;
    pthread_mutex_lock(&agent->lock);
    describe(agent, &report.is);
    gather(link, jobs, texts, statuses);
    pthread_mutex_unlock(&agent->lock);
    snprintf(texts->worker, sizeof(texts->worker), REDIS_WORKER "%s", agent->name);
    snprintf(texts->now, sizeof(texts->now), "%lld",
             (long long)(clock_wall_ns(agent->clock) / 1000000));
    report.jobs = jobs;
    report.job_count = link->beat_count;
    buf_init(&text, WIRE_MAX_BYTES);
    report_write(&report, &text);
    args[count++] = redis_text(REDIS_CELL);
    args[count++] = redis_text(REDIS_WORKERS);
    args[count++] = redis_text(texts->worker);
    args[count++] = redis_text(REDIS_REPORTS);
    for (size_t i = 0; i < link->beat_count; i++)
        args[count++] = redis_text(texts->jobs[i]);
    size_t keys = count, pairs = put_fields(agent, &report.is, texts, fields);
    snprintf(field_count, sizeof(field_count), "%zu", pairs / 2);
    args[count++] = redis_text(agent->name);
    args[count++] = redis_text(texts->now);
    args[count++] = redis_text(KEEP_S);
    args[count++] = (struct redis_arg){text.data, text.len};
    args[count++] = redis_text(field_count);
    memcpy(args + count, fields, pairs * sizeof(*args));
    count += pairs;
    for (size_t i = 0; i < link->beat_count; i++) {
        args[count++] = redis_text(texts->numbers[i][0]);
        args[count++] = redis_text(statuses[i]);
        args[count++] = redis_text(texts->numbers[i][1]);
        args[count++] = redis_text(texts->numbers[i][2]);
    }
    redis_eval(link->out, SCRIPT_HEARTBEAT, on_beat, link, keys, count, args);
    buf_release(&text);
    free(texts);
}

/* ---- the thread ---- */

static void on_state(void *user, bool connected, const char *why)
{
    const struct link *link = user;
    log_event(link->agent->log, connected ? LOG_INFO : LOG_WARN, "redis", "connected",
              connected ? "yes" : "no", "why", why, NULL);
}

static bool is_leaving(struct agent *agent)
{
    pthread_mutex_lock(&agent->lock);
    bool leaving = agent->leaving;
    pthread_mutex_unlock(&agent->lock);
    return leaving;
}

static void serve(struct link *link)
{
    struct pollfd fds[3] = {redis_pollfd(link->orders),
                            redis_pollfd(link->out),
                            {.fd = link->agent->wake_fd, .events = POLLIN}};
    uint64_t count;
    int timeout = redis_timeout_ms(link->orders, redis_timeout_ms(link->out, TURN_MS));
    if (poll(fds, 3, timeout) < 0)
        return;
    if (fds[2].revents) {
        ssize_t n = read(link->agent->wake_fd, &count, sizeof(count));
        (void)n;
    }
    redis_service(link->orders, fds[0].revents);
    redis_service(link->out, fds[1].revents);
}

static void work(struct link *link)
{
    struct agent *agent = link->agent;
    while (!is_leaving(agent)) {
        int64_t now = clock_monotonic_ns(agent->clock);
        ask(link);
        send_reports(link);
        if (now >= link->beat_ns && redis_connected(link->out)) {
            link->beat_ns = now + BEAT_NS;
            beat(link);
        }
        serve(link);
    }
    if (!redis_connected(link->out))
        return;
    beat(link); /* the last word: no room, no jobs */
    for (int i = 0; i < 20 && redis_pending(link->out) > 0; i++)
        serve(link);
}

void *link_main(void *user)
{
    struct agent *agent = user;
    struct link *link = calloc(1, sizeof(*link));
    struct redis_options options = {.url = agent->options->services.redis_url,
                                    .ca_file = agent->options->services.redis_ca_file,
                                    .clock = agent->clock};
    struct err err;
    if (!link)
        return NULL;
    link->agent = agent;
    snprintf(link->queue, sizeof(link->queue), REDIS_QUEUE "%s", agent->name);
    if (redis_create(&link->orders, &options, &err) == 0) {
        options.on_state = on_state;
        options.user = link;
        if (redis_create(&link->out, &options, &err) == 0)
            work(link);
    }
    redis_free(link->orders);
    redis_free(link->out);
    free(link);
    return NULL;
}

void link_wake(struct agent *agent)
{
    const uint64_t one = 1;
    ssize_t n = write(agent->wake_fd, &one, sizeof(one));
    (void)n;
}

/*
 * atelier bench fleet: what coordinator, Kafka and Redis do on this machine when no picture is
 * drawn. The services and the coordinators are real; the workers are played by one thread that
 * takes orders for all of them and reports each as done at once.
 *
 * Everything happens in a cell of its own name and in Redis' database 9, which is emptied.
 */
#include "cli/command.h"
#include "common/clock.h"
#include "common/conf.h"
#include "common/file.h"
#include "common/json.h"
#include "net/kafka.h"
#include "net/redis.h"
#include "net/services.h"
#include "schema/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKERS_MAX 1024
#define WORKER_JOBS 128
#define DATABASE "/9"
#define SECOND_NS 1000000000ll
#define WAIT_S 300
#define LATENCIES_MAX 2000
#define MODEL "tiny-shapes"
#define CLASS "g8i"

struct fleet_options {
    struct service_options services;
    const char *what;
    int64_t jobs, held, latencies;
    bool json;
};

#define AT(member) offsetof(struct fleet_options, member)

static const struct conf_row rows[] = {
    SERVICE_ROWS(struct fleet_options, services),
    {"jobs", CONF_INT, AT(jobs), "N", "200000", 100, 10000000, NULL,
     "jobs that are taken in, then given out and completed"},
    {"held", CONF_INT, AT(held), "N", "100000", 0, WORKERS_MAX *WORKER_JOBS, NULL,
     "jobs in flight when the leader is killed; 0: it is not"},
    {"latencies", CONF_INT, AT(latencies), "N", "300", 0, LATENCIES_MAX, NULL,
     "single jobs on an idle fleet"},
    {"json", CONF_FLAG, AT(json), NULL, NULL, 0, 0, NULL, "a JSON object"},
};

const struct conf_table bench_fleet_table = {
    .command = "atelier bench fleet",
    .family = cli_tables,
    .usage = "atelier bench fleet [options]",
    .summary =
        "Measures coordinator, Kafka and Redis without drawing: jobs taken in, given out and "
        "completed per second, latency, memory, a leader's replacement. Uses the services "
        "that the environment names (eval \"$(scripts/services env)\"), a cell of its own and "
        "Redis' database 9, which it empties.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "fleet",
    .positional_offset = AT(what),
};

struct figures {
    double produced, taken_in, completed, polls; /* per second */
    double latency_p50_ms, latency_p99_ms;       /* from producing to the order */
    double coordinator_bytes, redis_job_bytes;   /* resident; per queued job */
    double takeover_s;                           /* negative: not measured */
};

struct bench {
    const struct fleet_options *options;
    const struct clock *clock;
    struct kafka_options kafka;
    struct kafka_producer *producer;
    struct redis *orders, *out;
    char redis_url[512], jobs_topic[TOPIC_NAME_BYTES], cell[64];
    char coordinator[FILE_PATH_MAX_BYTES];
    pid_t coordinators[2], poller;
    int poller_pipe;

    /* the played workers */
    int workers;
    bool holding, asking;
    int64_t beat_ns;
    uint64_t orders_taken;
    int64_t last_order_ns; /* monotonic */
    struct wire_job *held[WORKERS_MAX];
    int held_count[WORKERS_MAX];
    struct buf text;
};

static int64_t now(const struct bench *bench)
{
    return clock_monotonic_ns(bench->clock);
}

static double seconds_since(const struct bench *bench, int64_t begin)
{
    return (double)(now(bench) - begin) * 1e-9;
}

/* ---- programs ---- */

static int find_coordinator(struct bench *bench, struct err *err)
{
    if (file_find(bench->coordinator, "coordinator/atelier-coordinator") ||
        file_find(bench->coordinator, "atelier-coordinator"))
        return 0;
    return err_set(err, ERR_NOT_FOUND, ERR_FATAL, "no atelier-coordinator beside this program");
}

static void start_coordinator(struct bench *bench, int i)
{
    char name[32], log[128];
    snprintf(name, sizeof(name), "bench%d", i);
    snprintf(log, sizeof(log), "/tmp/%s-%s.log", bench->cell, name);
    bench->coordinators[i] = fork();
    if (bench->coordinators[i] != 0)
        return;
    int fd = open(log, O_CREAT | O_WRONLY | O_APPEND, 0600);
    (void)dup2(fd, 2);
    setenv("ATELIER_CELL", bench->cell, 1);
    setenv("ATELIER_REDIS_URL", bench->redis_url, 1);
    setenv("ATELIER_KAFKA_BROKERS", bench->options->services.brokers, 1);
    execl(bench->coordinator, bench->coordinator, "--name", name, "--jobs-max", "2000000",
          "--jobs-bytes", "2G", (char *)NULL);
    _exit(127);
}

static void stop_all(struct bench *bench)
{
    for (int i = 0; i < 2; i++) {
        if (bench->coordinators[i] <= 0)
            continue;
        kill(bench->coordinators[i], SIGKILL);
        waitpid(bench->coordinators[i], NULL, 0);
        bench->coordinators[i] = 0;
    }
}

static double resident_bytes(pid_t pid)
{
    char path[64], line[128];
    double bytes = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof(line), file))
        if (strncmp(line, "VmRSS:", 6) == 0)
            bytes = strtod(line + 6, NULL) * 1024;
    if (file)
        fclose(file);
    return bytes;
}

/* ---- the played workers ---- */

static void send_done(struct bench *bench, int worker, const struct order *order)
{
    char name[16], manifest[160];
    snprintf(name, sizeof(name), "bw%d", worker);
    snprintf(manifest, sizeof(manifest), "results/%s/manifest.json", order->id);
    struct report report = {.type = REPORT_DONE,
                            .worker = name,
                            .id = order->id,
                            .epoch = order->epoch,
                            .attempt = order->attempt,
                            .model = MODEL,
                            .compute_s = -1,
                            .total_s = 0.001,
                            .load_s = -1,
                            .manifest = manifest,
                            .files = "[]"};
    buf_clear(&bench->text);
    report_write(&report, &bench->text);
    const struct redis_arg args[] = {redis_text("XADD"),
                                     redis_text(REDIS_REPORTS),
                                     redis_text("*"),
                                     redis_text("m"),
                                     {bench->text.data, bench->text.len}};
    redis_send(bench->out, NULL, NULL, 5, args);
}

static void hold(struct bench *bench, int worker, const struct order *order)
{
    if (!bench->held[worker])
        bench->held[worker] = calloc(WORKER_JOBS, sizeof(struct wire_job));
    if (!bench->held[worker] || bench->held_count[worker] == WORKER_JOBS)
        return;
    bench->held[worker][bench->held_count[worker]++] =
        (struct wire_job){strdup(order->id), order->epoch, order->attempt};
}

static void take_order(struct bench *bench, int worker, const struct redis_value *text)
{
    struct order order;
    struct err err;
    if (order_read(&order, text->text, text->len, &err) != 0)
        return;
    if (order.type == ORDER_JOB) {
        bench->orders_taken++;
        bench->last_order_ns = now(bench);
        if (bench->holding)
            hold(bench, worker, &order);
        else
            send_done(bench, worker, &order);
    }
    order_release(&order);
}

static void on_orders(void *user, const struct redis_value *reply)
{
    struct bench *bench = user;
    bench->asking = false;
    if (!reply || reply->type != REDIS_ARRAY || reply->count != 2)
        return;
    struct redis_value key = redis_item(reply, 0), items = redis_item(reply, 1);
    int worker = atoi(key.text + sizeof(REDIS_QUEUE) - 1 + 2);
    for (size_t i = 0; i < items.count; i++) {
        struct redis_value item = redis_item(&items, i);
        take_order(bench, worker, &item);
    }
}

static void ask(struct bench *bench)
{
    struct redis_arg args[WORKERS_MAX + 8];
    static char keys[WORKERS_MAX][16];
    char count[16];
    size_t n = 0;
    /* One question at a time, of at most as many queues as a command holds. */
    int asked = bench->workers < REDIS_ARGS_MAX - 8 ? bench->workers : REDIS_ARGS_MAX - 8;
    if (bench->asking || asked == 0 || !redis_connected(bench->orders))
        return;
    snprintf(count, sizeof(count), "%d", asked);
    args[n++] = redis_text("BLMPOP");
    args[n++] = redis_text("0.1");
    args[n++] = redis_text(count);
    for (int i = 0; i < asked; i++) {
        snprintf(keys[i], sizeof(keys[i]), REDIS_QUEUE "bw%d", i);
        args[n++] = redis_text(keys[i]);
    }
    args[n++] = redis_text("LEFT");
    args[n++] = redis_text("COUNT");
    args[n++] = redis_text("128");
    bench->asking = true;
    redis_send(bench->orders, on_orders, bench, n, args);
}

static void beat_one(struct bench *bench, int worker)
{
    char name[16], key[32], time[24];
    snprintf(name, sizeof(name), "bw%d", worker);
    snprintf(key, sizeof(key), REDIS_WORKER "%s", name);
    snprintf(time, sizeof(time), "%lld", (long long)(clock_wall_ns(bench->clock) / 1000000));
    struct report report = {.type = REPORT_BEAT,
                            .worker = name,
                            .is = {.boot = bench->cell,
                                   .device_class = CLASS,
                                   .precisions = "f32",
                                   .pictures_max = WORKER_JOBS,
                                   .memory_bytes = 64ull << 30,
                                   .resident = {MODEL},
                                   .resident_count = 1,
                                   .step_s = -1},
                            .jobs = bench->held[worker],
                            .job_count = (size_t)bench->held_count[worker]};
    buf_clear(&bench->text);
    report_write(&report, &bench->text);
    const struct redis_arg args[] = {redis_text(REDIS_CELL), redis_text(REDIS_WORKERS),
                                     redis_text(key),        redis_text(REDIS_REPORTS),
                                     redis_text(name),       redis_text(time),
                                     redis_text("30"),       {bench->text.data, bench->text.len},
                                     redis_text("1"),        redis_text("device_class"),
                                     redis_text(CLASS)};
    redis_eval(bench->out, SCRIPT_HEARTBEAT, NULL, NULL, 4, 11, args);
}

static void serve(struct bench *bench, int timeout_ms)
{
    if (now(bench) >= bench->beat_ns && redis_connected(bench->out)) {
        bench->beat_ns = now(bench) + SECOND_NS;
        for (int i = 0; i < bench->workers; i++)
            beat_one(bench, i);
    }
    ask(bench);
    struct pollfd fds[2] = {redis_pollfd(bench->orders), redis_pollfd(bench->out)};
    int timeout = redis_timeout_ms(bench->orders, redis_timeout_ms(bench->out, timeout_ms));
    if (poll(fds, 2, timeout) < 0)
        return;
    redis_service(bench->orders, fds[0].revents);
    redis_service(bench->out, fds[1].revents);
}

/* ---- asking Redis ---- */

static void take_number(void *user, const struct redis_value *reply)
{
    double *number = user;
    if (reply->type == REDIS_STRING)
        *number = strtod(reply->text, NULL);
}

static double batch_field(struct bench *bench, const char *batch, const char *field)
{
    char key[64];
    double number = -1;
    struct err err;
    snprintf(key, sizeof(key), REDIS_BATCH "%s", batch);
    const struct redis_arg args[] = {redis_text("HGET"), redis_text(key), redis_text(field)};
    if (redis_call(bench->out, 5000, take_number, &number, 3, args, &err) != 0)
        return -1;
    return number;
}

static void take_memory(void *user, const struct redis_value *reply)
{
    double *bytes = user;
    const char *at = reply->type == REDIS_STRING ? strstr(reply->text, "used_memory:") : NULL;
    if (at)
        *bytes = strtod(at + strlen("used_memory:"), NULL);
}

static double redis_bytes(struct bench *bench)
{
    double bytes = 0;
    struct err err;
    const struct redis_arg args[] = {redis_text("INFO"), redis_text("memory")};
    if (redis_call(bench->out, 5000, take_memory, &bytes, 2, args, &err) != 0)
        return 0;
    return bytes;
}

/* ---- producing ---- */

static int produce(struct bench *bench, const char *batch, int64_t from, int64_t count,
                   struct err *err)
{
    char id[64], value[512];
    for (int64_t i = from; i < from + count; i++) {
        int id_len = snprintf(id, sizeof(id), "%s-%07lld", batch, (long long)i);
        int len = snprintf(value, sizeof(value),
                           "{\"id\":\"%s\",\"model\":\"" MODEL "\",\"prompt\":\"a glossy red star "
                           "above a blue circle on a white background\",\"seed\":%lld,"
                           "\"batch\":\"%s\",\"steps\":20,\"priority\":\"bulk\"}",
                           id, (long long)i, batch);
        struct kafka_record record = {.topic = bench->jobs_topic,
                                      .key = id,
                                      .key_len = (size_t)id_len,
                                      .value = value,
                                      .value_len = (size_t)len};
        if (kafka_produce(bench->producer, &record, err) != 0)
            return -1;
    }
    return kafka_flush(bench->producer, 120000, err);
}

/* ---- the measurements ---- */

static int wait_until(struct bench *bench, const char *batch, const char *field, double wanted,
                      struct err *err)
{
    int64_t begin = now(bench), shown = begin;
    double number = -1;
    while ((number = batch_field(bench, batch, field)) < wanted) {
        int64_t until = now(bench) + SECOND_NS / 20;
        while (now(bench) < until)
            serve(bench, 5);
        if (now(bench) - shown > 2 * SECOND_NS) {
            shown = now(bench);
            fprintf(stderr, "  %s %.0f of %.0f\n", field, number, wanted);
        }
        if (seconds_since(bench, begin) > WAIT_S)
            return err_set(err, ERR_IO, ERR_FATAL, "%s of batch %s is %.0f, not %.0f, after %d s",
                           field, batch, number, wanted, WAIT_S);
    }
    return 0;
}

static int measure_ingest(struct bench *bench, struct figures *figures, struct err *err)
{
    double jobs = (double)bench->options->jobs;
    int64_t begin = now(bench);
    double before = redis_bytes(bench);
    fprintf(stderr, "producing %.0f jobs\n", jobs);
    if (produce(bench, "first", 0, bench->options->jobs, err) != 0)
        return -1;
    figures->produced = jobs / seconds_since(bench, begin);
    fprintf(stderr, "taking them in\n");
    start_coordinator(bench, 0);
    while (batch_field(bench, "first", "live") < 0)
        serve(bench, 5);
    begin = now(bench); /* the first ones are in: starting up does not count, nor do they */
    double first = batch_field(bench, "first", "live");
    if (wait_until(bench, "first", "live", jobs, err) != 0)
        return -1;
    figures->taken_in = (jobs - first) / seconds_since(bench, begin);
    figures->coordinator_bytes = resident_bytes(bench->coordinators[0]);
    figures->redis_job_bytes = (redis_bytes(bench) - before) / jobs;
    return 0;
}

/* A dashboard of its own process, which counts how often it can ask. */
static void start_poller(struct bench *bench)
{
    int pipe_fds[2];
    if (pipe(pipe_fds) != 0)
        return;
    bench->poller_pipe = pipe_fds[0];
    bench->poller = fork();
    if (bench->poller != 0) {
        close(pipe_fds[1]);
        return;
    }
    struct redis_options options = {.url = bench->redis_url, .clock = bench->clock};
    struct redis *redis;
    struct err err;
    uint64_t count = 0;
    char key[64];
    if (redis_create(&redis, &options, &err) != 0)
        _exit(1);
    for (int64_t begin = now(bench); seconds_since(bench, begin) < 2.0;) {
        struct pollfd fd = redis_pollfd(redis);
        while (redis_connected(redis) && redis_pending(redis) < 200) {
            snprintf(key, sizeof(key), REDIS_JOB "first-%07llu",
                     (unsigned long long)(count * 7919) % (unsigned long long)bench->options->jobs);
            const struct redis_arg args[] = {redis_text("HGETALL"), redis_text(key)};
            redis_send(redis, NULL, NULL, 2, args);
            count++;
        }
        fd = redis_pollfd(redis);
        int n = poll(&fd, 1, 10);
        redis_service(redis, n > 0 ? fd.revents : 0);
    }
    double rate = (double)count / 2.0;
    ssize_t n = write(pipe_fds[1], &rate, sizeof(rate));
    _exit(n == sizeof(rate) ? 0 : 1);
}

static int measure_completion(struct bench *bench, struct figures *figures, struct err *err)
{
    double jobs = (double)bench->options->jobs;
    fprintf(stderr, "giving them out\n");
    bench->workers = 32;
    int64_t begin = now(bench);
    if (wait_until(bench, "first", "succeeded", jobs, err) != 0)
        return -1;
    figures->completed = jobs / seconds_since(bench, begin);
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure_latency(struct bench *bench, struct figures *figures, struct err *err)
{
    static double found[LATENCIES_MAX];
    int64_t count = bench->options->latencies;
    fprintf(stderr, "single jobs on an idle fleet\n");
    bench->workers = 1;
    for (int64_t i = 0; i < count; i++) {
        uint64_t before = bench->orders_taken;
        int64_t begin = now(bench);
        if (produce(bench, "single", i, 1, err) != 0)
            return -1;
        while (bench->orders_taken == before && seconds_since(bench, begin) < 10)
            serve(bench, 1);
        found[i] = (double)(bench->last_order_ns - begin) * 1e-6;
        for (int64_t until = now(bench) + SECOND_NS / 20; now(bench) < until;)
            serve(bench, 5);
    }
    if (count == 0)
        return 0;
    qsort(found, (size_t)count, sizeof(*found), by_value);
    figures->latency_p50_ms = found[count / 2];
    figures->latency_p99_ms = found[count * 99 / 100];
    return 0;
}

static int measure_polling(struct bench *bench, struct figures *figures, struct err *err)
{
    fprintf(stderr, "polling beside a running fleet\n");
    bench->workers = 32;
    int64_t begin = now(bench);
    if (produce(bench, "second", 0, bench->options->jobs / 4, err) != 0)
        return -1;
    start_poller(bench);
    while (seconds_since(bench, begin) < 3.0)
        serve(bench, 5);
    if (read(bench->poller_pipe, &figures->polls, sizeof(figures->polls)) != sizeof(figures->polls))
        figures->polls = 0;
    waitpid(bench->poller, NULL, 0);
    return wait_until(bench, "second", "succeeded", (double)(bench->options->jobs / 4), err);
}

static int measure_takeover(struct bench *bench, struct figures *figures, struct err *err)
{
    int64_t held = bench->options->held;
    figures->takeover_s = -1;
    if (held == 0)
        return 0;
    fprintf(stderr, "killing the leader with %lld jobs in flight\n", (long long)held);
    start_coordinator(bench, 1);
    bench->holding = true;
    bench->workers = (int)((held + WORKER_JOBS - 1) / WORKER_JOBS);
    bench->orders_taken = 0;
    if (produce(bench, "third", 0, held, err) != 0)
        return -1;
    int64_t begin = now(bench);
    while (bench->orders_taken < (uint64_t)held && seconds_since(bench, begin) < WAIT_S)
        serve(bench, 5);
    kill(bench->coordinators[0], SIGKILL);
    waitpid(bench->coordinators[0], NULL, 0);
    bench->coordinators[0] = 0;
    begin = now(bench);
    uint64_t before = bench->orders_taken;
    bench->workers++; /* room for one more */
    if (produce(bench, "fourth", 0, 1, err) != 0)
        return -1;
    while (bench->orders_taken == before && seconds_since(bench, begin) < WAIT_S)
        serve(bench, 5);
    figures->takeover_s = seconds_since(bench, begin);
    fprintf(stderr, "  %llu orders were given anew\n",
            (unsigned long long)(bench->orders_taken - before - 1));
    return 0;
}

/* ---- the whole ---- */

static void print(const struct bench *bench, const struct figures *f)
{
    const struct {
        const char *name, *unit;
        double value, wanted;
        bool least; /* less is better */
    } lines[] = {
        {"producing", "jobs/s", f->produced, 0, false},
        {"durable ingest", "jobs/s", f->taken_in, 50000, false},
        {"assign and complete", "jobs/s", f->completed, 20000, false},
        {"enqueue to start, idle, p50", "ms", f->latency_p50_ms, 10, true},
        {"enqueue to start, idle, p99", "ms", f->latency_p99_ms, 10, true},
        {"status polls beside a fleet", "1/s", f->polls, 30000, false},
        {"coordinator, all queued", "MB", f->coordinator_bytes / 1e6, 0, true},
        {"Redis, per queued job", "bytes", f->redis_job_bytes, 400, true},
        {"takeover, jobs in flight", "s", f->takeover_s, 10, true},
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        if (bench->options->json)
            printf("%s\"%s\":%.6g", i ? "," : "{", lines[i].name, lines[i].value);
        else if (lines[i].wanted > 0)
            printf("%-28s %12.1f %-7s target %s %.0f\n", lines[i].name, lines[i].value,
                   lines[i].unit, lines[i].least ? "≤" : "≥", lines[i].wanted);
        else
            printf("%-28s %12.1f %s\n", lines[i].name, lines[i].value, lines[i].unit);
    }
    if (bench->options->json)
        puts("}");
}

static int open_bench(struct bench *bench, struct err *err)
{
    const struct service_options *services = &bench->options->services;
    struct redis_options redis = {.url = bench->redis_url, .clock = bench->clock};
    struct service_options own = *services;
    snprintf(bench->cell, sizeof(bench->cell), "bench-%d", (int)getpid());
    snprintf(bench->redis_url, sizeof(bench->redis_url), "%.480s" DATABASE, services->redis_url);
    own.cell = bench->cell;
    bench->kafka = (struct kafka_options){.brokers = services->brokers, .client_id = bench->cell};
    buf_init(&bench->text, WIRE_MAX_BYTES);
    if (find_coordinator(bench, err) != 0 ||
        service_topic(&own, TOPIC_JOBS, bench->jobs_topic, err) != 0)
        return -1;
    const struct kafka_topic topic = {bench->jobs_topic, 4, NULL};
    const struct redis_arg flush[] = {redis_text("FLUSHDB")};
    if (redis_create(&bench->orders, &redis, err) != 0 ||
        redis_create(&bench->out, &redis, err) != 0 ||
        redis_call(bench->orders, 5000, NULL, NULL, 1, flush, err) != 0 ||
        kafka_topics_ensure(&bench->kafka, &topic, 1, 10000, err) != 0)
        return -1;
    return kafka_producer_create(&bench->producer, &bench->kafka, NULL, err);
}

static void close_bench(struct bench *bench)
{
    stop_all(bench);
    kafka_producer_free(bench->producer);
    redis_free(bench->orders);
    redis_free(bench->out);
    buf_release(&bench->text);
}

int bench_fleet(int argc, char **argv)
{
    struct fleet_options options = {0};
    static struct bench bench;
    struct figures figures = {0};
    struct err err;
    struct buf help;
    int rc = conf_parse(&bench_fleet_table, &options, argc, argv, &err);
    if (rc > 0) {
        buf_init(&help, 1 << 20);
        conf_help(&bench_fleet_table, &help);
        fputs(help.data, stdout);
        buf_release(&help);
        return EXIT_ALL_DONE;
    }
    bench.options = &options;
    bench.clock = clock_system();
    signal(SIGPIPE, SIG_IGN);
    if (rc == 0)
        rc = open_bench(&bench, &err);
    if (rc == 0)
        rc = measure_ingest(&bench, &figures, &err);
    if (rc == 0)
        rc = measure_completion(&bench, &figures, &err);
    if (rc == 0)
        rc = measure_latency(&bench, &figures, &err);
    if (rc == 0)
        rc = measure_polling(&bench, &figures, &err);
    if (rc == 0)
        rc = measure_takeover(&bench, &figures, &err);
    print(&bench, &figures);
    close_bench(&bench);
    if (rc == 0)
        return EXIT_ALL_DONE;
    fprintf(stderr, "atelier bench fleet: %s\n", err.message);
    return EXIT_FATAL;
}

#include "cli/fleet.h"

#include "common/json.h"
#include "common/log.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DELIVER_SLICE_MS 500
#define DELIVER_SILENT_MS 30000 /* Kafka takes nothing for so long: it is away */
#define READ_WAIT_MS 200
#define HASH_MAX_BYTES (1u << 20)

/* ---- life ---- */

static volatile sig_atomic_t interrupts;

static void on_signal(int number)
{
    if (interrupts++)
        _exit(128 + number);
}

bool fleet_interrupted(void)
{
    return interrupts > 0;
}

void fleet_sleep_ms(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};
    if (!interrupts)
        nanosleep(&time, NULL);
}

bool fleet_begin(struct fleet *fleet, const struct conf_table *table, int argc, char **argv,
                 int *status)
{
    struct sigaction action = {.sa_handler = on_signal};
    struct err err;
    struct buf help;
    *fleet = (struct fleet){.table = table, .clock = clock_system()};
    int rc = conf_parse(table, &fleet->options, argc, argv, &err);
    if (rc < 0)
        *status = fleet_usage(fleet, err.message);
    if (rc > 0) {
        buf_init(&help, 1 << 20);
        conf_help(table, &help);
        fputs(help.data, stdout);
        buf_release(&help);
        *status = EXIT_ALL_DONE;
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    return rc == 0;
}

int fleet_end(struct fleet *fleet, int status)
{
    redis_free(fleet->redis);
    kafka_producer_free(fleet->producer);
    *fleet = (struct fleet){.table = fleet->table};
    return status;
}

int fleet_fail(const struct fleet *fleet, const struct err *err)
{
    if (err->code == ERR_CANCELLED)
        return EXIT_INTERRUPTED;
    fprintf(stderr, "%s: %s\n", fleet->table->command, err->message);
    return err->code == ERR_NOT_FOUND && err->class == ERR_REJECT ? EXIT_ABSENT : EXIT_FATAL;
}

int fleet_usage(const struct fleet *fleet, const char *message)
{
    fprintf(stderr, "%s: %s\n", fleet->table->command, message);
    return EXIT_USAGE;
}

bool fleet_one_of(const struct fleet *fleet, const char *word_name)
{
    char text[160];
    if (!fleet->options.word != !fleet->options.batch)
        return true;
    snprintf(text, sizeof(text), "name a %s or --batch NAME%s", word_name,
             fleet->options.word ? ", not both" : "");
    fleet_usage(fleet, text);
    return false;
}

/* ---- hashes ---- */

void hash_init(struct hash *hash)
{
    *hash = (struct hash){0};
    buf_init(&hash->text, HASH_MAX_BYTES);
}

void hash_release(struct hash *hash)
{
    buf_release(&hash->text);
    hash->count = 0;
}

const char *hash_get(const struct hash *hash, const char *name)
{
    for (size_t i = 0; i < hash->count; i++)
        if (strcmp(hash->names[i], name) == 0)
            return hash->values[i];
    return "";
}

uint64_t hash_number(const struct hash *hash, const char *name)
{
    return strtoull(hash_get(hash, name), NULL, 10);
}

static bool is_number(const char *text)
{
    struct json_doc *doc;
    if (json_parse(&doc, text, strlen(text), NULL, NULL) != 0)
        return false;
    bool number = json_root(doc)->type == JSON_NUMBER;
    json_doc_free(doc);
    return number;
}

/* Fields that hold a name, though it may look like a number. */
static bool is_name(const char *field)
{
    static const char *const names[] = {"batch", "tenant", "model",  "worker",
                                        "nonce", "leader", "models", "error"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(field, names[i]) == 0)
            return true;
    return false;
}

void hash_write(const struct hash *hash, struct buf *out)
{
    for (size_t i = 0; i < hash->count; i++) {
        buf_char(out, ',');
        json_write_string(out, hash->names[i], strlen(hash->names[i]));
        buf_char(out, ':');
        if (is_number(hash->values[i]) && !is_name(hash->names[i]))
            buf_str(out, hash->values[i]);
        else
            json_write_string(out, hash->values[i], strlen(hash->values[i]));
    }
}

void hash_write_object(const struct hash *hash, struct buf *out)
{
    size_t begin = out->len;
    hash_write(hash, out);
    if (out->len == begin)
        buf_char(out, '{');
    else
        out->data[begin] = '{'; /* in place of the first comma */
    buf_char(out, '}');
}

static void on_hash(void *user, const struct redis_value *reply)
{
    struct hash *hash = user;
    size_t at[2 * FLEET_FIELDS_MAX];
    size_t count = reply->type == REDIS_ARRAY ? reply->count : 0;
    if (count > 2 * FLEET_FIELDS_MAX)
        count = 2 * FLEET_FIELDS_MAX;
    buf_clear(&hash->text);
    for (size_t i = 0; i < count; i++) {
        struct redis_value value = redis_item(reply, i);
        at[i] = hash->text.len;
        buf_append(&hash->text, value.text, value.len);
        buf_char(&hash->text, '\0');
    }
    hash->count = hash->text.failed ? 0 : count / 2;
    for (size_t i = 0; i < hash->count; i++) { /* now that the text does not move any more */
        hash->names[i] = hash->text.data + at[2 * i];
        hash->values[i] = hash->text.data + at[2 * i + 1];
    }
}

/* ---- Redis ---- */

static void on_state(void *user, bool connected, const char *why)
{
    struct fleet *fleet = user;
    if (!connected)
        snprintf(fleet->redis_trouble, sizeof(fleet->redis_trouble), "%s", why);
}

int fleet_redis_open(struct fleet *fleet, struct err *err)
{
    struct redis_options options = {.url = fleet->options.services.redis_url,
                                    .ca_file = fleet->options.services.redis_ca_file,
                                    .clock = fleet->clock,
                                    .on_state = on_state,
                                    .user = fleet};
    static const struct redis_arg ping[] = {{"PING", 4}};
    if (fleet->redis)
        return 0;
    if (redis_create(&fleet->redis, &options, err) != 0)
        return -1;
    return fleet_redis(fleet, NULL, NULL, 1, ping, err);
}

struct asked {
    redis_reply_fn *take;
    void *user;
    char refused[160];
};

static void on_asked(void *user, const struct redis_value *reply)
{
    struct asked *asked = user;
    if (reply->type == REDIS_ERROR)
        snprintf(asked->refused, sizeof(asked->refused), "%s", reply->text);
    else if (asked->take)
        asked->take(asked->user, reply);
}

int fleet_redis(struct fleet *fleet, redis_reply_fn *take, void *user, size_t count,
                const struct redis_arg *args, struct err *err)
{
    struct asked asked = {.take = take, .user = user};
    if (fleet_redis_open(fleet, err) != 0)
        return -1;
    if (redis_call(fleet->redis, FLEET_REDIS_TIMEOUT_MS, on_asked, &asked, count, args, err) != 0) {
        if (fleet->redis_trouble[0])
            err_set(err, ERR_IO, ERR_RETRY, "redis: %s", fleet->redis_trouble);
        err_prefix(err, "cannot ask the cell's Redis (--redis-url or ATELIER_REDIS_URL)");
        return -1;
    }
    if (asked.refused[0])
        return err_set(err, ERR_IO, ERR_FATAL, "Redis refuses %.40s: %s", args[0].text,
                       asked.refused);
    return 0;
}

int fleet_hash(struct fleet *fleet, const char *prefix, const char *name, struct hash *hash,
               struct err *err)
{
    char key[512];
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    const struct redis_arg args[] = {redis_text("HGETALL"), redis_text(key)};
    hash->count = 0;
    return fleet_redis(fleet, on_hash, hash, 2, args, err);
}

int fleet_redis_drain(struct fleet *fleet, struct err *err)
{
    int64_t until = clock_monotonic_ns(fleet->clock) + FLEET_REDIS_TIMEOUT_MS * 1000000ll;
    while (redis_pending(fleet->redis) > 0 && clock_monotonic_ns(fleet->clock) < until) {
        struct pollfd fd = redis_pollfd(fleet->redis);
        int n = poll(&fd, 1, redis_timeout_ms(fleet->redis, 200));
        redis_service(fleet->redis, n > 0 ? fd.revents : 0);
    }
    return redis_pending(fleet->redis) == 0 && redis_connected(fleet->redis)
               ? 0
               : err_set(err, ERR_IO, ERR_RETRY, "redis: the connection was lost");
}

/* ---- Kafka ---- */

struct kafka_options fleet_kafka(const struct fleet *fleet)
{
    return (struct kafka_options){.brokers = fleet->options.services.brokers,
                                  .client_id = "atelier",
                                  .properties = fleet->options.services.kafka_properties};
}

int fleet_topic(const struct fleet *fleet, const char *topic, char out[TOPIC_NAME_BYTES],
                struct err *err)
{
    return service_topic(&fleet->options.services, topic, out, err);
}

int fleet_send(struct fleet *fleet, const struct kafka_record *record, struct err *err)
{
    struct kafka_options options = fleet_kafka(fleet);
    if (!fleet->producer && kafka_producer_create(&fleet->producer, &options, NULL, err) != 0)
        return -1;
    return kafka_produce(fleet->producer, record, err);
}

/* For as long as Kafka takes records at all. */
int fleet_deliver(struct fleet *fleet, struct err *err)
{
    uint64_t before = 0;
    int silent_ms = 0;
    while (fleet->producer && silent_ms < DELIVER_SILENT_MS) {
        if (kafka_flush(fleet->producer, DELIVER_SLICE_MS, err) == 0)
            return 0;
        if (fleet_interrupted())
            return err_set(err, ERR_CANCELLED, ERR_FATAL, "interrupted");
        uint64_t now = kafka_delivered(fleet->producer);
        silent_ms = now > before ? 0 : silent_ms + DELIVER_SLICE_MS;
        before = now;
    }
    if (!fleet->producer)
        return 0;
    return err_set(err, ERR_IO, ERR_RETRY,
                   "Kafka at %s took no record of the cell \"%s\" within %d s; is it up, and has a "
                   "coordinator made the cell's topics? (--kafka-brokers, --cell)",
                   fleet->options.services.brokers, fleet->options.services.cell,
                   DELIVER_SILENT_MS / 1000);
}

int fleet_order(struct fleet *fleet, const char *action, const char *key, const char *value,
                struct err *err)
{
    char topic[TOPIC_NAME_BYTES];
    struct buf text;
    if (fleet_topic(fleet, TOPIC_CONTROL, topic, err) != 0)
        return -1;
    buf_init(&text, 4096);
    buf_printf(&text, "{\"action\":\"%s\",\"%s\":", action, key);
    json_write_string(&text, value, strlen(value));
    buf_char(&text, '}');
    const struct kafka_record record = {.topic = topic,
                                        .key = value,
                                        .key_len = strlen(value),
                                        .value = text.data,
                                        .value_len = text.len};
    int rc = fleet_send(fleet, &record, err);
    buf_release(&text);
    return rc == 0 ? fleet_deliver(fleet, err) : -1;
}

int fleet_read_topic(struct fleet *fleet, const char *topic,
                     int (*take)(void *user, const struct kafka_message *message, struct err *err),
                     void *user, struct err *err)
{
    struct kafka_options options = fleet_kafka(fleet);
    char name[TOPIC_NAME_BYTES];
    struct kafka_reader_options which = {.topic = name, .committed_only = true};
    struct kafka_reader *reader;
    struct kafka_message message;
    int rc = 0;
    if (fleet_topic(fleet, topic, name, err) != 0 ||
        kafka_reader_create(&reader, &options, &which, err) != 0)
        return err_prefix(err, "cannot read from the cell's Kafka at %s (--kafka-brokers, --cell)",
                          options.brokers);
    while (rc == 0 && !kafka_reader_caught_up(reader) && !fleet_interrupted()) {
        rc = kafka_reader_next(reader, &message, READ_WAIT_MS, err);
        if (rc > 0)
            rc = take(user, &message, err);
    }
    kafka_reader_free(reader);
    if (rc == 0 && fleet_interrupted())
        rc = err_set(err, ERR_CANCELLED, ERR_FATAL, "interrupted");
    return rc;
}

const char *fleet_header(const struct kafka_message *message, const char *name, char *out,
                         size_t size)
{
    for (size_t i = 0; i < message->header_count; i++) {
        const struct kafka_header *header = &message->headers[i];
        if (strcmp(header->name, name) != 0 || !header->value || header->len >= size)
            continue;
        memcpy(out, header->value, header->len);
        out[header->len] = '\0';
        return out;
    }
    return NULL;
}

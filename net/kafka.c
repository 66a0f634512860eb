/*
 * DESIGN
 *
 * A reader assigns itself all partitions of a topic instead of subscribing: the leader is alone by
 * election and by fencing, so a group's rebalancing would only cost time. Messages come in batches
 * from librdkafka's queue, whose change from empty to not empty is written to an eventfd.
 *
 * A producer with a transactional id is opened once per term of a leader. Opening fences whoever
 * had the id before; being fenced is fatal for the object, and reopening it would fence the
 * rightful leader in turn, so that is never done here: the caller steps down and stands for
 * election again.
 */
#include "net/kafka.h"

#include "common/buf.h"
#include "common/file.h"

#include <librdkafka/rdkafka.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH 512
#define SHORT_MS 10000
#define ERROR_TEXT 512

/* ---- configuration ---- */

static void on_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
    const struct log *log = rd_kafka_opaque(rk);
    enum log_level ours = level <= 3 ? LOG_ERROR : level <= 4 ? LOG_WARN : LOG_DEBUG;
    if (log)
        log_event(log, ours, "kafka", "facility", facility, "text", text, NULL);
}

static int set(rd_kafka_conf_t *conf, const char *key, const char *value, struct err *err)
{
    char text[ERROR_TEXT];
    if (rd_kafka_conf_set(conf, key, value, text, sizeof(text)) == RD_KAFKA_CONF_OK)
        return 0;
    return err_set(err, ERR_INVALID, ERR_FATAL, "kafka-properties: %s: %s", key, text);
}

/* "key=value", or "key=@file" for what must not be seen in `ps` or a configuration. */
static int set_property(rd_kafka_conf_t *conf, char *line, struct err *err)
{
    struct buf content;
    char *value = strchr(line, '=');
    if (!value || value == line)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "kafka-properties: '%s' is not of the form key=value", line);
    *value++ = '\0';
    if (value[0] != '@')
        return set(conf, line, value, err);
    buf_init(&content, 64 << 10);
    int rc = file_read(&content, value + 1, err);
    while (rc == 0 && content.len > 0 && content.data[content.len - 1] == '\n')
        content.data[--content.len] = '\0';
    if (rc == 0)
        rc = set(conf, line, content.data, err);
    else
        err->class = ERR_FATAL;
    buf_release(&content);
    return rc;
}

static int set_properties(rd_kafka_conf_t *conf, const char *properties, struct err *err)
{
    char *copy = strdup(properties ? properties : ""), *rest = copy, *line;
    int rc = copy ? 0 : err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory");
    while (rc == 0 && (line = strsep(&rest, "\n;")) != NULL) {
        line += strspn(line, " \t");
        if (line[0] != '\0' && line[0] != '#')
            rc = set_property(conf, line, err);
    }
    free(copy);
    return rc;
}

/* The caller's own properties come last, so that they win. */
static rd_kafka_conf_t *make_conf(const struct kafka_options *options, const char *const (*ours)[2],
                                  struct err *err)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    int rc = set(conf, "bootstrap.servers", options->brokers, err);
    if (rc == 0)
        rc = set(conf, "client.id", options->client_id ? options->client_id : "atelier", err);
    for (; rc == 0 && (*ours)[0]; ours++)
        rc = set(conf, (*ours)[0], (*ours)[1], err);
    if (rc == 0)
        rc = set_properties(conf, options->properties, err);
    if (rc != 0) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }
    rd_kafka_conf_set_opaque(conf, (void *)options->log);
    rd_kafka_conf_set_log_cb(conf, on_log);
    return conf;
}

static rd_kafka_t *open_client(rd_kafka_type_t type, const struct kafka_options *options,
                               const char *const (*ours)[2], struct err *err)
{
    char text[ERROR_TEXT];
    rd_kafka_conf_t *conf = make_conf(options, ours, err);
    rd_kafka_t *rk = conf ? rd_kafka_new(type, conf, text, sizeof(text)) : NULL;
    if (conf && !rk) {
        rd_kafka_conf_destroy(conf);
        err_set(err, ERR_INVALID, ERR_FATAL, "kafka: %s", text);
    }
    return rk;
}

/* ---- errors ---- */

static int from_code(struct err *err, rd_kafka_resp_err_t code, enum err_class class,
                     const char *doing)
{
    return err_set(err, ERR_IO, class, "kafka: %s: %s", doing, rd_kafka_err2str(code));
}

static bool is_fenced(rd_kafka_resp_err_t code)
{
    return code == RD_KAFKA_RESP_ERR__FENCED || code == RD_KAFKA_RESP_ERR_PRODUCER_FENCED ||
           code == RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
}

/* Takes over the error. */
static int from_error(struct err *err, rd_kafka_t *rk, rd_kafka_error_t *error, const char *doing)
{
    char text[ERROR_TEXT];
    rd_kafka_resp_err_t code = rd_kafka_error_code(error);
    rd_kafka_resp_err_t first = rd_kafka_fatal_error(rk, text, sizeof(text));
    if (is_fenced(code) || is_fenced(first))
        err_set(err, ERR_CONFLICT, ERR_FATAL, "kafka: %s: another leader has taken over", doing);
    else
        err_set(err, ERR_IO, rd_kafka_error_txn_requires_abort(error) ? ERR_RETRY : ERR_FATAL,
                "kafka: %s: %s", doing, rd_kafka_error_string(error));
    rd_kafka_error_destroy(error);
    return -1;
}

/* ---- topics ---- */

/* RD_KAFKA_EVENT_ERROR */
static const char *const with_errors[][2] = {{"enabled_events", "8"}, {NULL, NULL}};

static rd_kafka_NewTopic_t *new_topic(const struct kafka_topic *topic, struct err *err)
{
    char text[ERROR_TEXT], *copy, *rest, *line;
    rd_kafka_NewTopic_t *wanted =
        rd_kafka_NewTopic_new(topic->name, topic->partitions, -1, text, sizeof(text));
    if (!wanted) {
        err_set(err, ERR_INVALID, ERR_FATAL, "kafka: topic %s: %s", topic->name, text);
        return NULL;
    }
    copy = rest = strdup(topic->config ? topic->config : "");
    while (copy && (line = strsep(&rest, ";")) != NULL) {
        char *value = strchr(line, '=');
        if (!value)
            continue;
        *value++ = '\0';
        rd_kafka_NewTopic_set_config(wanted, line, value);
    }
    free(copy);
    return wanted;
}

static int check_created(rd_kafka_event_t *event, struct err *err)
{
    size_t count;
    const rd_kafka_CreateTopics_result_t *result = rd_kafka_event_CreateTopics_result(event);
    if (rd_kafka_event_error(event) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return from_code(err, rd_kafka_event_error(event), ERR_RETRY, "creating topics");
    const rd_kafka_topic_result_t **topics = rd_kafka_CreateTopics_result_topics(result, &count);
    for (size_t i = 0; i < count; i++) {
        rd_kafka_resp_err_t code = rd_kafka_topic_result_error(topics[i]);
        const char *text = rd_kafka_topic_result_error_string(topics[i]);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR && code != RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS)
            return err_set(err, ERR_IO, ERR_FATAL, "kafka: cannot create the topic %s: %s",
                           rd_kafka_topic_result_name(topics[i]),
                           text ? text : rd_kafka_err2str(code));
    }
    return 0;
}

/* Errors that no waiting mends. */
static bool is_refusal(const rd_kafka_event_t *event)
{
    rd_kafka_resp_err_t code = rd_kafka_event_error((rd_kafka_event_t *)event);
    return rd_kafka_event_type(event) == RD_KAFKA_EVENT_ERROR &&
           (code == RD_KAFKA_RESP_ERR__AUTHENTICATION || code == RD_KAFKA_RESP_ERR__SSL);
}

/* Waits for the answer, or for a refusal. */
static int await_created(rd_kafka_queue_t *queue, const char *brokers, int timeout_ms,
                         struct err *err)
{
    rd_kafka_event_t *event;
    int rc = 0;
    bool answered = false;
    while (rc == 0 && !answered) {
        event = rd_kafka_queue_poll(queue, timeout_ms + SHORT_MS);
        if (!event || rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR__TIMED_OUT) {
            rc = err_set(err, ERR_IO, ERR_RETRY, "kafka: no answer from %s within %d s", brokers,
                         timeout_ms / 1000);
        } else if (is_refusal(event)) {
            rc = err_set(err, ERR_IO, ERR_FATAL, "kafka: %s", rd_kafka_event_error_string(event));
        } else if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_CREATETOPICS_RESULT) {
            answered = true;
            rc = check_created(event, err);
        }
        if (event)
            rd_kafka_event_destroy(event);
    }
    return rc;
}

int kafka_topics_ensure(const struct kafka_options *options, const struct kafka_topic *topics,
                        size_t count, int timeout_ms, struct err *err)
{
    rd_kafka_t *rk = open_client(RD_KAFKA_PRODUCER, options, with_errors, err);
    rd_kafka_NewTopic_t *wanted[16] = {0};
    rd_kafka_AdminOptions_t *admin = NULL;
    rd_kafka_queue_t *queue = NULL;
    char text[ERROR_TEXT];
    int rc = rk ? 0 : -1;
    ASSERT(count <= 16);
    for (size_t i = 0; rc == 0 && i < count; i++)
        if (!(wanted[i] = new_topic(&topics[i], err)))
            rc = -1;
    if (rc != 0)
        goto out;
    admin = rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);
    rd_kafka_AdminOptions_set_request_timeout(admin, timeout_ms, text, sizeof(text));
    queue = rd_kafka_queue_get_main(rk);
    rd_kafka_CreateTopics(rk, wanted, count, admin, queue);
    rc = await_created(queue, options->brokers, timeout_ms, err);
out:
    if (queue)
        rd_kafka_queue_destroy(queue);
    if (admin)
        rd_kafka_AdminOptions_destroy(admin);
    for (size_t i = 0; i < count; i++)
        if (wanted[i])
            rd_kafka_NewTopic_destroy(wanted[i]);
    if (rk)
        rd_kafka_destroy(rk);
    return rc;
}

/* ---- reading ---- */

struct kafka_reader {
    rd_kafka_t *rk;
    rd_kafka_queue_t *queue;
    int fd;
    char *topic;
    rd_kafka_topic_partition_list_t *partitions;
    bool ended[KAFKA_PARTITIONS_MAX]; /* its end was reached once */
    int64_t next[KAFKA_PARTITIONS_MAX];
    int64_t until[KAFKA_PARTITIONS_MAX]; /* an end that was asked for; 0: none was */
    rd_kafka_message_t *batch[BATCH];
    int count, at; /* of the batch */
    rd_kafka_message_t *shown;
    struct kafka_header headers[KAFKA_HEADERS_MAX];
};

static int find_partitions(struct kafka_reader *reader, const char *topic, struct err *err)
{
    const struct rd_kafka_metadata *metadata = NULL;
    rd_kafka_topic_t *handle = rd_kafka_topic_new(reader->rk, topic, NULL);
    rd_kafka_resp_err_t code = rd_kafka_metadata(reader->rk, 0, handle, &metadata, 3 * SHORT_MS);
    int count = 0, rc = 0;
    rd_kafka_topic_destroy(handle);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return from_code(err, code, ERR_RETRY, topic);
    if (metadata->topic_cnt == 1)
        count = metadata->topics[0].partition_cnt;
    if (count == 0 || count > KAFKA_PARTITIONS_MAX)
        rc = err_set(err, ERR_NOT_FOUND, ERR_FATAL, "kafka: topic %s has %d partitions (1 to %d)",
                     topic, count, KAFKA_PARTITIONS_MAX);
    rd_kafka_metadata_destroy(metadata);
    reader->partitions = rd_kafka_topic_partition_list_new(count > 0 ? count : 1);
    for (int i = 0; rc == 0 && i < count; i++)
        rd_kafka_topic_partition_list_add(reader->partitions, topic, i);
    return rc;
}

static int find_offsets(struct kafka_reader *reader, bool grouped, struct err *err)
{
    rd_kafka_topic_partition_list_t *list = reader->partitions;
    if (grouped) {
        rd_kafka_resp_err_t code = rd_kafka_committed(reader->rk, list, 3 * SHORT_MS);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
            return from_code(err, code, ERR_RETRY, "reading committed offsets");
    }
    for (int i = 0; i < list->cnt; i++) {
        if (!grouped || list->elems[i].offset < 0)
            list->elems[i].offset = RD_KAFKA_OFFSET_BEGINNING;
        reader->next[i] = list->elems[i].offset;
    }
    return 0;
}

static int open_reader(struct kafka_reader *reader, const struct kafka_options *options,
                       const struct kafka_reader_options *which, struct err *err)
{
    char kilobytes[32];
    snprintf(kilobytes, sizeof(kilobytes), "%zu",
             which->queue_bytes ? (which->queue_bytes + 1023) / 1024 : 16384);
    const char *const ours[][2] = {
        {"group.id", which->group ? which->group : "atelier-reader"},
        {"enable.auto.commit", "false"},
        {"enable.auto.offset.store", "false"},
        {"enable.partition.eof", "true"},
        {"auto.offset.reset", "earliest"},
        {"isolation.level", which->committed_only ? "read_committed" : "read_uncommitted"},
        {"queued.max.messages.kbytes", kilobytes},
        {"queued.min.messages", "20000"},
        {"fetch.wait.max.ms", "500"},
        {"fetch.error.backoff.ms", "100"},
        {NULL, NULL},
    };
    reader->topic = strdup(which->topic);
    reader->rk = open_client(RD_KAFKA_CONSUMER, options, ours, err);
    if (!reader->rk)
        return -1;
    rd_kafka_poll_set_consumer(reader->rk);
    if (find_partitions(reader, which->topic, err) != 0 ||
        find_offsets(reader, which->group != NULL, err) != 0)
        return -1;
    reader->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (reader->fd < 0)
        return err_set(err, ERR_IO, ERR_FATAL, "cannot make an eventfd");
    reader->queue = rd_kafka_queue_get_consumer(reader->rk);
    const uint64_t one = 1;
    rd_kafka_queue_io_event_enable(reader->queue, reader->fd, &one, sizeof(one));
    rd_kafka_resp_err_t code = rd_kafka_assign(reader->rk, reader->partitions);
    return code == RD_KAFKA_RESP_ERR_NO_ERROR ? 0 : from_code(err, code, ERR_RETRY, which->topic);
}

int kafka_reader_create(struct kafka_reader **out, const struct kafka_options *options,
                        const struct kafka_reader_options *which, struct err *err)
{
    struct kafka_reader *reader = calloc(1, sizeof(*reader));
    *out = NULL;
    if (!reader)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for a reader");
    reader->fd = -1;
    if (open_reader(reader, options, which, err) != 0) {
        kafka_reader_free(reader);
        return -1;
    }
    *out = reader;
    return 0;
}

void kafka_reader_free(struct kafka_reader *reader)
{
    if (!reader)
        return;
    if (reader->shown)
        rd_kafka_message_destroy(reader->shown);
    while (reader->at < reader->count)
        rd_kafka_message_destroy(reader->batch[reader->at++]);
    if (reader->queue) {
        rd_kafka_queue_io_event_enable(reader->queue, -1, NULL, 0);
        rd_kafka_queue_destroy(reader->queue);
    }
    if (reader->rk) {
        rd_kafka_consumer_close(reader->rk);
        rd_kafka_destroy(reader->rk);
    }
    if (reader->partitions)
        rd_kafka_topic_partition_list_destroy(reader->partitions);
    if (reader->fd >= 0)
        close(reader->fd);
    free(reader->topic);
    free(reader);
}

static size_t read_headers(struct kafka_reader *reader, const rd_kafka_message_t *message)
{
    rd_kafka_headers_t *headers;
    size_t count = 0;
    if (rd_kafka_message_headers(message, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return 0;
    for (; count < KAFKA_HEADERS_MAX; count++) {
        struct kafka_header *header = &reader->headers[count];
        if (rd_kafka_header_get_all(headers, count, &header->name, &header->value, &header->len) !=
            RD_KAFKA_RESP_ERR_NO_ERROR)
            break;
    }
    return count;
}

static void show(struct kafka_reader *reader, rd_kafka_message_t *from, struct kafka_message *to)
{
    reader->shown = from;
    reader->next[from->partition] = from->offset + 1;
    *to = (struct kafka_message){.key = from->key,
                                 .key_len = from->key_len,
                                 .value = from->payload,
                                 .value_len = from->len,
                                 .partition = from->partition,
                                 .offset = from->offset,
                                 .time_ms = rd_kafka_message_timestamp(from, NULL),
                                 .headers = reader->headers};
    to->header_count = read_headers(reader, from);
}

/* What comes in place of a message. Most errors pass: librdkafka goes on by itself. */
static int take_error(struct kafka_reader *reader, const rd_kafka_message_t *message,
                      struct err *err)
{
    switch (message->err) {
    case RD_KAFKA_RESP_ERR__PARTITION_EOF:
        reader->ended[message->partition] = true;
        reader->next[message->partition] = message->offset;
        return 0;
    case RD_KAFKA_RESP_ERR__FATAL:
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
        return from_code(err, message->err, ERR_FATAL, reader->topic);
    default:
        return 0;
    }
}

static void drain(int fd)
{
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof(count));
    (void)n;
}

int kafka_reader_next(struct kafka_reader *reader, struct kafka_message *message, int timeout_ms,
                      struct err *err)
{
    if (reader->shown)
        rd_kafka_message_destroy(reader->shown);
    reader->shown = NULL;
    for (;;) {
        if (reader->at == reader->count) {
            drain(reader->fd);
            ssize_t n =
                rd_kafka_consume_batch_queue(reader->queue, timeout_ms, reader->batch, BATCH);
            reader->at = 0;
            reader->count = n > 0 ? (int)n : 0;
            if (n <= 0)
                return 0;
        }
        rd_kafka_message_t *next = reader->batch[reader->at++];
        if (!next->err) {
            show(reader, next, message);
            return 1;
        }
        int rc = take_error(reader, next, err);
        rd_kafka_message_destroy(next);
        if (rc != 0)
            return -1;
    }
}

int kafka_reader_fd(const struct kafka_reader *reader)
{
    return reader->fd;
}

void kafka_reader_pause(struct kafka_reader *reader)
{
    (void)rd_kafka_pause_partitions(reader->rk, reader->partitions);
}

void kafka_reader_resume(struct kafka_reader *reader)
{
    (void)rd_kafka_resume_partitions(reader->rk, reader->partitions);
}

int kafka_reader_find_end(struct kafka_reader *reader, struct err *err)
{
    for (int i = 0; i < reader->partitions->cnt; i++) {
        int64_t low, high;
        rd_kafka_resp_err_t code = rd_kafka_query_watermark_offsets(reader->rk, reader->topic, i,
                                                                    &low, &high, 3 * SHORT_MS);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
            return from_code(err, code, ERR_RETRY, reader->topic);
        reader->until[i] = high;
    }
    return 0;
}

/* The end of a partition is known from its own event, which also passes what no reader is shown:
 * the marks of transactions. */
bool kafka_reader_caught_up(const struct kafka_reader *reader)
{
    for (int i = 0; i < reader->partitions->cnt; i++)
        if (!reader->ended[i] || reader->next[i] < reader->until[i])
            return false;
    return true;
}

int64_t kafka_reader_lag(struct kafka_reader *reader)
{
    int64_t lag = 0, low, high;
    for (int i = 0; i < reader->partitions->cnt; i++) {
        if (rd_kafka_get_watermark_offsets(reader->rk, reader->topic, i, &low, &high) !=
            RD_KAFKA_RESP_ERR_NO_ERROR)
            continue;
        int64_t next = reader->next[i] < low ? low : reader->next[i];
        if (high > next)
            lag += high - next;
    }
    return lag;
}

/* ---- election ---- */

struct kafka_member {
    rd_kafka_t *rk;
    bool holds;
};

static void on_rebalance(rd_kafka_t *rk, rd_kafka_resp_err_t code,
                         rd_kafka_topic_partition_list_t *partitions, void *opaque)
{
    struct kafka_member *member = opaque;
    rd_kafka_error_t *error;
    bool given = code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
    if (partitions->cnt > 0)
        member->holds = given;
    error = given ? rd_kafka_incremental_assign(rk, partitions)
                  : rd_kafka_incremental_unassign(rk, partitions);
    if (error)
        rd_kafka_error_destroy(error);
    if (member->holds) /* held, not read: the control records are read by a reader */
        (void)rd_kafka_pause_partitions(rk, partitions);
}

static void on_member_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
    (void)rk;
    (void)level;
    (void)facility;
    (void)text;
}

static rd_kafka_t *open_member(struct kafka_member *member, const struct kafka_options *options,
                               const char *group, int session_timeout_ms, struct err *err)
{
    char session[16], beat[16], text[ERROR_TEXT];
    snprintf(session, sizeof(session), "%d", session_timeout_ms);
    /* A standby hears at its next beat that it is elected. */
    snprintf(beat, sizeof(beat), "%d", session_timeout_ms / 12);
    const char *const ours[][2] = {
        {"group.id", group},
        {"session.timeout.ms", session},
        {"heartbeat.interval.ms", beat},
        {"enable.auto.commit", "false"},
        {"auto.offset.reset", "latest"},
        /* Whoever leads keeps the lead when another one joins. */
        {"partition.assignment.strategy", "cooperative-sticky"},
        {NULL, NULL},
    };
    rd_kafka_conf_t *conf = make_conf(options, ours, err);
    if (!conf)
        return NULL;
    rd_kafka_conf_set_opaque(conf, member);
    rd_kafka_conf_set_log_cb(conf, on_member_log);
    rd_kafka_conf_set_rebalance_cb(conf, on_rebalance);
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text, sizeof(text));
    if (!rk) {
        rd_kafka_conf_destroy(conf);
        err_set(err, ERR_INVALID, ERR_FATAL, "kafka: %s", text);
    }
    return rk;
}

int kafka_member_create(struct kafka_member **out, const struct kafka_options *options,
                        const char *group, const char *topic, int session_timeout_ms,
                        struct err *err)
{
    struct kafka_member *member = calloc(1, sizeof(*member));
    *out = NULL;
    if (!member)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for a member");
    member->rk = open_member(member, options, group, session_timeout_ms, err);
    if (!member->rk) {
        free(member);
        return -1;
    }
    rd_kafka_poll_set_consumer(member->rk);
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(topics, topic, RD_KAFKA_PARTITION_UA);
    rd_kafka_resp_err_t code = rd_kafka_subscribe(member->rk, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR) {
        kafka_member_free(member);
        return from_code(err, code, ERR_FATAL, "joining the election");
    }
    *out = member;
    return 0;
}

void kafka_member_free(struct kafka_member *member)
{
    if (!member)
        return;
    rd_kafka_consumer_close(member->rk);
    rd_kafka_destroy(member->rk);
    free(member);
}

bool kafka_member_poll(struct kafka_member *member, int timeout_ms)
{
    rd_kafka_message_t *message = rd_kafka_consumer_poll(member->rk, timeout_ms);
    if (message)
        rd_kafka_message_destroy(message);
    return member->holds;
}

/* ---- producing ---- */

struct kafka_producer {
    rd_kafka_t *rk;
    bool transactional;
    uint64_t delivered;
    rd_kafka_resp_err_t failed; /* the first failure of a delivery */
    atomic_bool leaving;        /* a Kafka that does not answer is no longer waited for */
};

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
    struct kafka_producer *producer = message->_private;
    (void)rk;
    (void)opaque;
    if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
        producer->delivered++;
    else if (!producer->failed)
        producer->failed = message->err;
}

static rd_kafka_t *open_producer(const struct kafka_options *options, const char *transactional_id,
                                 struct err *err)
{
    char text[ERROR_TEXT];
    const char *const ours[][2] = {
        {"enable.idempotence", "true"},
        {"queue.buffering.max.ms", "2"},
        {"queue.buffering.max.messages", "200000"},
        {"batch.num.messages", "20000"},
        {"compression.type", "lz4"},
        {"message.max.bytes", "4194304"},
        /* Without transactions a record is tried for as long as the caller waits in a flush. */
        {"message.timeout.ms", transactional_id ? "50000" : "0"},
        {transactional_id ? "transactional.id" : NULL, transactional_id},
        {"transaction.timeout.ms", "60000"},
        {NULL, NULL},
    };
    rd_kafka_conf_t *conf = make_conf(options, ours, err);
    if (!conf)
        return NULL;
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    if (!rk) {
        rd_kafka_conf_destroy(conf);
        err_set(err, ERR_INVALID, ERR_FATAL, "kafka: %s", text);
    }
    return rk;
}

/* Fences. A broker that is away, or still ends its predecessor's transaction, is waited for. */
static int init_transactions(struct kafka_producer *producer, struct err *err)
{
    for (;;) {
        rd_kafka_error_t *error = rd_kafka_init_transactions(producer->rk, SHORT_MS);
        if (!error)
            return 0;
        if (!rd_kafka_error_is_retriable(error))
            return from_error(err, producer->rk, error, "opening the journal");
        rd_kafka_error_destroy(error);
    }
}

int kafka_producer_create(struct kafka_producer **out, const struct kafka_options *options,
                          const char *transactional_id, struct err *err)
{
    struct kafka_producer *producer = calloc(1, sizeof(*producer));
    *out = NULL;
    if (!producer)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for a producer");
    producer->transactional = transactional_id != NULL;
    producer->rk = open_producer(options, transactional_id, err);
    if (!producer->rk || (transactional_id && init_transactions(producer, err) != 0)) {
        kafka_producer_free(producer);
        return -1;
    }
    *out = producer;
    return 0;
}

void kafka_producer_free(struct kafka_producer *producer)
{
    if (!producer)
        return;
    if (producer->rk) {
        (void)rd_kafka_purge(producer->rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        (void)rd_kafka_flush(producer->rk, 100);
        rd_kafka_destroy(producer->rk);
    }
    free(producer);
}

static rd_kafka_headers_t *copy_headers(const struct kafka_record *record)
{
    if (record->header_count == 0)
        return NULL;
    rd_kafka_headers_t *headers = rd_kafka_headers_new(record->header_count);
    for (size_t i = 0; i < record->header_count; i++) {
        const struct kafka_header *header = &record->headers[i];
        (void)rd_kafka_header_add(headers, header->name, -1, header->value, (ssize_t)header->len);
    }
    return headers;
}

static rd_kafka_resp_err_t send_once(struct kafka_producer *producer,
                                     const struct kafka_record *record, rd_kafka_headers_t *headers)
{
    if (!headers)
        return rd_kafka_producev(producer->rk, RD_KAFKA_V_TOPIC(record->topic),
                                 RD_KAFKA_V_KEY(record->key, record->key_len),
                                 RD_KAFKA_V_VALUE((void *)record->value, record->value_len),
                                 RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                                 RD_KAFKA_V_OPAQUE(producer), RD_KAFKA_V_END);
    return rd_kafka_producev(
        producer->rk, RD_KAFKA_V_TOPIC(record->topic), RD_KAFKA_V_KEY(record->key, record->key_len),
        RD_KAFKA_V_VALUE((void *)record->value, record->value_len), RD_KAFKA_V_HEADERS(headers),
        RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_OPAQUE(producer), RD_KAFKA_V_END);
}

int kafka_produce(struct kafka_producer *producer, const struct kafka_record *record,
                  struct err *err)
{
    rd_kafka_headers_t *headers = copy_headers(record);
    for (;;) {
        rd_kafka_resp_err_t code = send_once(producer, record, headers);
        if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
            return 0; /* the headers are librdkafka's now */
        if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL) {
            rd_kafka_poll(producer->rk, 10);
            continue;
        }
        if (headers)
            rd_kafka_headers_destroy(headers);
        if (code == RD_KAFKA_RESP_ERR__FATAL)
            return from_error(err, producer->rk, rd_kafka_error_new(code, NULL), record->topic);
        return from_code(err, code, producer->transactional ? ERR_RETRY : ERR_REJECT,
                         record->topic);
    }
}

int kafka_flush(struct kafka_producer *producer, int timeout_ms, struct err *err)
{
    rd_kafka_resp_err_t code = rd_kafka_flush(producer->rk, timeout_ms);
    if (producer->failed)
        code = producer->failed;
    producer->failed = RD_KAFKA_RESP_ERR_NO_ERROR;
    return code == RD_KAFKA_RESP_ERR_NO_ERROR
               ? 0
               : from_code(err, code, ERR_RETRY, "delivering records");
}

uint64_t kafka_delivered(struct kafka_producer *producer)
{
    rd_kafka_poll(producer->rk, 0);
    return producer->delivered;
}

int kafka_begin(struct kafka_producer *producer, struct err *err)
{
    rd_kafka_error_t *error = rd_kafka_begin_transaction(producer->rk);
    return error ? from_error(err, producer->rk, error, "beginning a transaction") : 0;
}

void kafka_leave(struct kafka_producer *producer)
{
    atomic_store(&producer->leaving, true);
}

static bool may_go_on(struct kafka_producer *producer, const rd_kafka_error_t *error)
{
    return rd_kafka_error_is_retriable(error) && !atomic_load(&producer->leaving);
}

int kafka_send_offsets(struct kafka_producer *producer, const struct kafka_offsets *offsets,
                       struct err *err)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(8);
    rd_kafka_error_t *error = NULL;
    for (int i = 0; i < KAFKA_PARTITIONS_MAX; i++)
        if (offsets->next[i] >= 0)
            rd_kafka_topic_partition_list_add(list, offsets->topic, i)->offset = offsets->next[i];
    if (list->cnt > 0) {
        rd_kafka_consumer_group_metadata_t *group =
            rd_kafka_consumer_group_metadata_new(offsets->group);
        do {
            if (error)
                rd_kafka_error_destroy(error);
            error = rd_kafka_send_offsets_to_transaction(producer->rk, list, group, SHORT_MS);
        } while (error && may_go_on(producer, error));
        rd_kafka_consumer_group_metadata_destroy(group);
    }
    rd_kafka_topic_partition_list_destroy(list);
    return error ? from_error(err, producer->rk, error, "adding offsets") : 0;
}

static int abort_transaction(struct kafka_producer *producer, struct err *err)
{
    rd_kafka_error_t *error;
    while ((error = rd_kafka_abort_transaction(producer->rk, SHORT_MS)) != NULL) {
        if (!may_go_on(producer, error))
            return from_error(err, producer->rk, error, "aborting a transaction");
        rd_kafka_error_destroy(error);
    }
    return 0;
}

int kafka_abort(struct kafka_producer *producer, struct err *err)
{
    producer->failed = RD_KAFKA_RESP_ERR_NO_ERROR;
    return abort_transaction(producer, err);
}

int kafka_commit(struct kafka_producer *producer, struct err *err)
{
    struct err aborting;
    rd_kafka_error_t *error;
    while ((error = rd_kafka_commit_transaction(producer->rk, SHORT_MS)) != NULL) {
        if (!may_go_on(producer, error))
            break;
        rd_kafka_error_destroy(error);
    }
    producer->failed = RD_KAFKA_RESP_ERR_NO_ERROR;
    if (!error)
        return 0;
    (void)from_error(err, producer->rk, error, "committing");
    if (atomic_load(&producer->leaving))
        err->class = ERR_FATAL; /* whoever leads next ends the transaction */
    if (err->class == ERR_RETRY && abort_transaction(producer, &aborting) != 0)
        *err = aborting;
    return -1;
}

/*
 * Dead letters, again: each goes back to the topic that it came from, byte for byte, once, however
 * often the same bytes have died. What is still wrong comes back as a dead letter, which is looked
 * for; what is accepted shows in Redis.
 */
#include "cli/fleet.h"
#include "common/json.h"
#include "common/plural.h"
#include "common/sha256.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_MS 100

/* One that was sent. */
struct letter {
    char *key;                        /* the job's id; NULL: of an order, which leaves no trace */
    char before[CLOCK_RFC3339_BYTES]; /* when such a job was accepted before; "": never */
    bool settled;
};

struct letters {
    struct fleet *fleet;
    struct ledger ledger;              /* of the values' hashes: card is the place in `sent` + 1 */
    char sources[3][TOPIC_NAME_BYTES]; /* where a dead letter may have come from; orders last */
    struct letter *sent;
    size_t count, cap, left, refused;
    uint64_t listed;
    int64_t since_ms; /* what died before did not die of this */
};

/* ---- saying so ---- */

static const struct kafka_header *problems_of(const struct kafka_message *message)
{
    for (size_t i = 0; i < message->header_count; i++)
        if (strcmp(message->headers[i].name, "atelier-problems") == 0 &&
            message->headers[i].value && message->headers[i].len > 0)
            return &message->headers[i];
    return NULL;
}

static void tell_json(const char *event, const struct kafka_message *message, const char *topic)
{
    const struct kafka_header *problems = problems_of(message);
    struct buf out;
    buf_init(&out, 8 << 20);
    buf_printf(&out, "{\"event\":\"%s\"", event);
    if (topic)
        buf_printf(&out, ",\"topic\":\"%s\"", topic);
    buf_str(&out, ",\"key\":");
    json_write_string(&out, message->key ? message->key : "", message->key_len);
    buf_str(&out, ",\"problems\":");
    if (problems)
        buf_append(&out, problems->value, problems->len);
    else
        buf_str(&out, "[]");
    printf("%s}\n", out.data);
    buf_release(&out);
}

static void tell_letter(const struct letters *letters, const struct kafka_message *message,
                        const char *topic)
{
    const struct kafka_header *problems = problems_of(message);
    bool dry_run = letters->fleet->options.dry_run;
    if (letters->fleet->options.json)
        tell_json(dry_run ? "listed" : "sent", message, topic);
    else
        printf("%s %.*s to %s; it was refused for %.*s\n", dry_run ? "would send" : "sent",
               (int)message->key_len, message->key ? message->key : "", topic,
               problems ? (int)problems->len : 0, problems ? (const char *)problems->value : "");
}

static void tell_refused(const struct letters *letters, const struct kafka_message *message)
{
    const struct kafka_header *problems = problems_of(message);
    if (letters->fleet->options.json)
        tell_json("refused", message, NULL);
    else
        fprintf(stderr, "%.*s was refused again for %.*s\n", (int)message->key_len,
                message->key ? message->key : "", problems ? (int)problems->len : 0,
                problems ? (const char *)problems->value : "");
}

/* ---- sending ---- */

/* Where it came from, if that is a topic of this cell; a header could name anything. */
static const char *source_of(const struct letters *letters, const struct kafka_message *message)
{
    char topic[TOPIC_NAME_BYTES];
    if (!fleet_header(message, "atelier-topic", topic, sizeof(topic)))
        return NULL;
    for (int i = 0; i < 3; i++)
        if (strcmp(topic, letters->sources[i]) == 0)
            return letters->sources[i];
    return NULL;
}

static bool is_asked_for(const struct letters *letters, const struct kafka_message *message)
{
    const char *word = letters->fleet->options.word;
    return message->value && (!word || (message->key && message->key_len == strlen(word) &&
                                        memcmp(word, message->key, message->key_len) == 0));
}

/* When the job of that id was accepted, for Redis; "": it knows of none. */
static int read_accepted(struct letters *letters, const char *id, char out[CLOCK_RFC3339_BYTES],
                         struct err *err)
{
    struct hash hash;
    hash_init(&hash);
    int rc = fleet_hash(letters->fleet, REDIS_JOB, id, &hash, err);
    snprintf(out, CLOCK_RFC3339_BYTES, "%s", rc == 0 ? hash_get(&hash, "accepted") : "");
    hash_release(&hash);
    return rc;
}

static struct letter *new_letter(struct letters *letters)
{
    if (letters->count == letters->cap) {
        size_t cap = letters->cap ? letters->cap * 2 : 256;
        struct letter *bigger = realloc(letters->sent, cap * sizeof(*bigger));
        if (!bigger)
            return NULL;
        letters->sent = bigger;
        letters->cap = cap;
    }
    struct letter *letter = &letters->sent[letters->count++];
    *letter = (struct letter){.key = NULL};
    return letter;
}

static struct ledger_entry *entry_of(struct letters *letters, const struct kafka_message *message,
                                     bool *fresh, struct err *err)
{
    char name[SHA256_HEX_BYTES];
    sha256_hex(name, message->value, message->value_len);
    return ledger_enter(&letters->ledger, name, fresh, err);
}

/* Remembers a letter that goes out, and how things are before that. */
static int remember(struct letters *letters, const struct kafka_message *message, const char *topic,
                    struct err *err)
{
    struct letter *letter = new_letter(letters);
    bool order = topic == letters->sources[2];
    if (letter && !order && message->key)
        letter->key = strndup(message->key, message->key_len);
    if (!letter || (!order && message->key && !letter->key))
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the letters to send");
    letters->left++;
    if (!letter->key || letters->fleet->options.no_wait)
        return 0;
    return read_accepted(letters, letter->key, letter->before, err);
}

static int send_letter(struct letters *letters, const struct kafka_message *message,
                       const char *topic, struct err *err)
{
    struct kafka_header headers[KAFKA_HEADERS_MAX];
    struct kafka_record record = {.topic = topic,
                                  .key = message->key,
                                  .key_len = message->key_len,
                                  .value = message->value,
                                  .value_len = message->value_len,
                                  .headers = headers};
    for (size_t i = 0; i < message->header_count; i++)
        if (strncmp(message->headers[i].name, "atelier-", 8) != 0)
            headers[record.header_count++] = message->headers[i];
    if (remember(letters, message, topic, err) != 0)
        return -1;
    return fleet_send(letters->fleet, &record, err);
}

static int take_letter(void *user, const struct kafka_message *message, struct err *err)
{
    struct letters *letters = user;
    const char *topic = source_of(letters, message);
    bool fresh;
    if (!topic || !is_asked_for(letters, message))
        return 0;
    struct ledger_entry *entry = entry_of(letters, message, &fresh, err);
    if (!entry)
        return -1;
    if (!fresh)
        return 0;
    entry->card = letters->count + 1;
    tell_letter(letters, message, topic);
    letters->listed++;
    return letters->fleet->options.dry_run ? 0 : send_letter(letters, message, topic, err);
}

/* ---- what became of them ---- */

static int take_refusal(struct letters *letters, const struct kafka_message *message,
                        struct err *err)
{
    bool fresh;
    if (message->time_ms < letters->since_ms || !source_of(letters, message) ||
        !is_asked_for(letters, message))
        return 0;
    const struct ledger_entry *entry = entry_of(letters, message, &fresh, err);
    if (!entry)
        return -1;
    struct letter *letter = entry->card ? &letters->sent[entry->card - 1] : NULL;
    if (!letter || letter->settled)
        return 0;
    letter->settled = true;
    letters->left--;
    letters->refused++;
    tell_refused(letters, message);
    return 0;
}

static int read_refusals(struct letters *letters, struct kafka_reader *reader, struct err *err)
{
    struct kafka_message message;
    int rc;
    while ((rc = kafka_reader_next(reader, &message, 0, err)) > 0)
        if (take_refusal(letters, &message, err) != 0)
            return -1;
    return rc;
}

static int read_redis(struct letters *letters, struct err *err)
{
    char now[CLOCK_RFC3339_BYTES];
    for (size_t i = 0; i < letters->count; i++) {
        struct letter *letter = &letters->sent[i];
        if (letter->settled || !letter->key)
            continue;
        if (read_accepted(letters, letter->key, now, err) != 0)
            return -1;
        letter->settled = now[0] && strcmp(now, letter->before) != 0;
        letters->left -= letter->settled;
    }
    return 0;
}

static int look(struct letters *letters, struct kafka_reader *reader, struct err *err)
{
    int64_t until = clock_monotonic_ns(letters->fleet->clock) + FLEET_EFFECT_MS * 1000000ll;
    while (letters->left > 0 && clock_monotonic_ns(letters->fleet->clock) < until) {
        if (read_refusals(letters, reader, err) != 0 || read_redis(letters, err) != 0)
            return -1;
        if (fleet_interrupted())
            return err_set(err, ERR_CANCELLED, ERR_FATAL, "interrupted");
        if (letters->left > 0)
            fleet_sleep_ms(LOOK_MS);
    }
    return 0;
}

static int find_out(struct letters *letters, struct err *err)
{
    struct kafka_options options = fleet_kafka(letters->fleet);
    char topic[TOPIC_NAME_BYTES];
    struct kafka_reader_options which = {.topic = topic, .committed_only = true};
    struct kafka_reader *reader = NULL;
    if (fleet_topic(letters->fleet, TOPIC_DLQ, topic, err) != 0 ||
        kafka_reader_create(&reader, &options, &which, err) != 0)
        return -1;
    int rc = look(letters, reader, err);
    kafka_reader_free(reader);
    if (rc != 0)
        return -1;
    if (letters->left > 0)
        fprintf(stderr,
                "%s: it is not known of %zu dead letter%s whether they were taken up, which is so "
                "of orders and of jobs that were known before; atelier status JOB shows those, and "
                "--dlq --dry-run lists what has died\n",
                letters->fleet->table->command, letters->left, plural(letters->left));
    return letters->refused > 0 ? EXIT_REJECTED : letters->left > 0 ? EXIT_ABSENT : 0;
}

/* ---- the whole ---- */

static int redrive(struct letters *letters, struct err *err)
{
    static const char *const sources[] = {TOPIC_JOBS, TOPIC_INTERACTIVE, TOPIC_CONTROL};
    for (int i = 0; i < 3; i++)
        if (fleet_topic(letters->fleet, sources[i], letters->sources[i], err) != 0)
            return -1;
    letters->since_ms = clock_wall_ns(letters->fleet->clock) / 1000000;
    if (fleet_read_topic(letters->fleet, TOPIC_DLQ, take_letter, letters, err) != 0 ||
        fleet_deliver(letters->fleet, err) != 0)
        return -1;
    return letters->left > 0 && !letters->fleet->options.no_wait ? find_out(letters, err) : 0;
}

int letters_redrive(struct fleet *fleet, uint64_t *sent, struct err *err)
{
    struct letters letters = {.fleet = fleet};
    int rc = redrive(&letters, err);
    *sent = letters.listed;
    for (size_t i = 0; i < letters.count; i++)
        free(letters.sent[i].key);
    free(letters.sent);
    ledger_release(&letters.ledger);
    return rc;
}

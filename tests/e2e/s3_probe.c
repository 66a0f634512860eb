/*
 * s3_probe: the object store's adapter as a program, for test_s3.py; built only with the tests.
 *
 *     s3_probe COMMAND ARGUMENT...
 *
 * The store comes from ATELIER_S3_ENDPOINT, ATELIER_S3_BUCKET, S3_PREFIX and the AWS_ variables;
 * RETRY_TOTAL_MS, IDLE_MS and PUBLIC_ONLY change its limits. Prints "ok" and what was found, or
 * "error CODE CLASS MESSAGE"; the exit status is 0 or 1.
 */
#include "common/file.h"
#include "net/fetch.h"
#include "net/s3.h"
#include "worker/store_s3.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX_BYTES (256u << 20)

static const char *env(const char *name, const char *fallback)
{
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

static struct s3_options options_of_env(void)
{
    struct s3_options options = S3_OPTIONS_INIT;
    options.endpoint = env("ATELIER_S3_ENDPOINT", NULL);
    options.bucket = env("ATELIER_S3_BUCKET", NULL);
    options.prefix = env("S3_PREFIX", "");
    options.access_key = env("AWS_ACCESS_KEY_ID", NULL);
    options.secret_key = env("AWS_SECRET_ACCESS_KEY", NULL);
    options.session_token = env("AWS_SESSION_TOKEN", NULL);
    options.part_bytes = S3_PART_MIN_BYTES;
    options.http.retry.total_ms = atoi(env("RETRY_TOTAL_MS", "20000"));
    options.http.retry.tries_max = 12;
    options.http.idle_timeout_ms = atoi(env("IDLE_MS", "20000"));
    options.http.public_only = *env("PUBLIC_ONLY", "") != '\0';
    options.http.clock = clock_system();
    return options;
}

static int put(struct s3 *s3, char **words, struct err *err)
{
    struct buf bytes;
    buf_init(&bytes, FILE_MAX_BYTES);
    int rc = file_read(&bytes, words[1], err);
    if (rc == 0)
        rc = s3_put(s3, words[0], bytes.data, bytes.len,
                    strcmp(words[2], "new") == 0 ? S3_NEW : S3_REPLACE, "image/png", err);
    buf_release(&bytes);
    return rc;
}

/* Writes what was read to words[1]; words[2] is the most that may come. */
static int get(struct s3 *s3, const struct fetch *fetch, char **words, struct err *err)
{
    struct buf bytes;
    buf_init(&bytes, (size_t)atol(words[2]));
    int rc = fetch ? fetch_read(fetch, words[0], &bytes, err)
                   : s3_get(s3, (struct s3_object){NULL, words[0]}, &bytes, err);
    if (rc == 0)
        rc = file_write(words[1], bytes.data, bytes.len, FILE_REPLACE, err);
    buf_release(&bytes);
    return rc;
}

static int head(struct s3 *s3, char **words, struct err *err)
{
    struct s3_head head;
    if (s3_head(s3, (struct s3_object){NULL, words[0]}, &head, err) != 0)
        return -1;
    printf("%d %llu %s\n", head.exists, (unsigned long long)head.bytes, head.etag);
    return 0;
}

static int print_listed(void *user, const struct s3_listed *object, struct err *err)
{
    (void)user;
    (void)err;
    printf("%llu %s\n", (unsigned long long)object->bytes, object->key);
    return 0;
}

/* ---- many at once ---- */

struct writer {
    pthread_t thread;
    struct s3 *s3;
    atomic_bool *stop;
    int number, least, rounds, failures;
};

static void *write_and_read(void *user)
{
    struct writer *writer = user;
    struct err err;
    for (int i = 0; i < writer->least || !atomic_load(writer->stop); i++) {
        char key[64], text[64];
        struct buf back;
        snprintf(key, sizeof(key), "many/%d/%d", writer->number, i);
        int len = snprintf(text, sizeof(text), "writer %d, object %d", writer->number, i);
        buf_init(&back, 1000);
        if (s3_put(writer->s3, key, text, (size_t)len, S3_NEW, "text/plain", &err) != 0 ||
            s3_get(writer->s3, (struct s3_object){NULL, key}, &back, &err) != 0) {
            writer->failures++;
            printf("%s\n", err.message);
        } else if (back.len != (size_t)len || memcmp(back.data, text, back.len) != 0) {
            writer->failures++;
        }
        buf_release(&back);
        writer->rounds++;
    }
    return NULL;
}

/* Writers of so many objects at least, and on until standard input ends; prints how many each
 * wrote. */
static int many(struct s3 *s3, char **words, struct err *err)
{
    int count = atoi(words[0]), failures = 0;
    atomic_bool stop = false;
    struct writer *writers = calloc((size_t)count, sizeof(*writers));
    for (int i = 0; i < count; i++) {
        writers[i] = (struct writer){.s3 = s3, .stop = &stop, .number = i, .least = atoi(words[1])};
        pthread_create(&writers[i].thread, NULL, write_and_read, &writers[i]);
    }
    while (getchar() != EOF)
        ;
    atomic_store(&stop, true);
    for (int i = 0; i < count; i++) {
        pthread_join(writers[i].thread, NULL);
        failures += writers[i].failures;
        printf("%d\n", writers[i].rounds);
    }
    free(writers);
    return failures ? err_set(err, ERR_IO, ERR_RETRY, "%d failures", failures) : 0;
}

/* ---- as a store ---- */

static int get_blob(const struct store *store, char **words, struct err *err)
{
    struct buf bytes;
    buf_init(&bytes, 1000);
    int rc = store_get_blob(store, words[0], words[1], &bytes, err);
    if (rc == 0)
        printf("%s\n", bytes.data);
    buf_release(&bytes);
    return rc;
}

static int is_done(const struct store *store, char **words, struct err *err)
{
    bool done;
    if (store_is_done(store, words[0], &done, err) != 0)
        return -1;
    printf("%s\n", done ? "done" : "not done");
    return 0;
}

/* Words: the job's id, and a name or bytes or both. */
static int run_store(const struct store *store, const char *command, char **words, struct err *err)
{
    if (strcmp(command, "store-put") == 0)
        return store_begin(store, words[0], err) != 0
                   ? -1
                   : store_put(store, words[0], words[1], words[2], strlen(words[2]), err);
    if (strcmp(command, "store-finish") == 0)
        return store_finish(store, words[0], words[1], strlen(words[1]), err);
    if (strcmp(command, "store-is-done") == 0)
        return is_done(store, words, err);
    if (strcmp(command, "store-sweep") == 0)
        return store_sweep(store, words[0], err);
    if (strcmp(command, "store-put-blob") == 0)
        return store_put_blob(store, words[0], words[1], words[2], strlen(words[2]), err);
    if (strcmp(command, "store-get-blob") == 0)
        return get_blob(store, words, err);
    if (strcmp(command, "store-remove-blob") == 0)
        return store_remove_blob(store, words[0], words[1], err);
    return err_set(err, ERR_INVALID, ERR_FATAL, "unknown command %s", command);
}

/* ---- commands ---- */

static int run(struct s3 *s3, const struct fetch *fetch, const char *command, char **words,
               struct err *err)
{
    const char *sha256 = words[0] && words[1] ? words[2] : NULL;
    if (strcmp(command, "check") == 0) {
        int rc = s3_check(s3, err);
        if (rc == 0)
            printf("creates only: %s\n", s3_creates_only(s3) ? "yes" : "no");
        return rc;
    }
    if (strcmp(command, "check-put") == 0)
        return s3_check(s3, err) != 0 ? -1 : put(s3, words, err);
    if (strcmp(command, "put") == 0)
        return put(s3, words, err);
    if (strcmp(command, "get") == 0)
        return get(s3, NULL, words, err);
    if (strcmp(command, "fetch") == 0)
        return get(s3, fetch, words, err);
    if (strcmp(command, "get-file") == 0)
        return s3_get_file(s3, (struct s3_object){NULL, words[0]}, words[1], sha256, 0, err);
    if (strcmp(command, "fetch-file") == 0)
        return fetch_file(fetch, words[0], words[1], sha256, 0, err);
    if (strcmp(command, "head") == 0)
        return head(s3, words, err);
    if (strcmp(command, "delete") == 0)
        return s3_delete(s3, words[0], err);
    if (strcmp(command, "list") == 0)
        return s3_list(s3, words[0], print_listed, NULL, err);
    if (strcmp(command, "many") == 0)
        return many(s3, words, err);
    struct store store = store_s3(s3);
    return run_store(&store, command, words, err);
}

int main(int argc, char **argv)
{
    struct err err;
    struct s3 *s3 = NULL;
    struct http *http = NULL;
    struct s3_options options = options_of_env();
    int rc = argc < 2 ? 2 : 0;
    if (rc == 0)
        rc = s3_create(&s3, &options, &err);
    if (rc == 0)
        rc = http_create(&http, &options.http, &err);
    if (rc == 0) {
        struct fetch fetch = {http, s3, NULL};
        rc = run(s3, &fetch, argv[1], argv + 2, &err);
    }
    if (rc == 0)
        printf("ok\n");
    else if (argc >= 2)
        printf("error %s %s %s\n", err_code_name(err.code), err_class_name(err.class), err.message);
    http_free(http);
    s3_free(s3);
    return rc != 0;
}

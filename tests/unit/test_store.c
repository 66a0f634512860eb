/* The store, the journal and the ledger: what a killed run may leave, and what the next one does.
 */
#include "common/ledger.h"
#include "worker/bounded_queue.h"
#include "worker/journal.h"
#include "worker/stage_dump.h"
#include "worker/store_dir.h"

#include "tests/unit/unit.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];
static struct err err;

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/atelier-store-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", dir);
    return system(command);
}

static bool exists(const char *name)
{
    char path[FILE_PATH_MAX_BYTES];
    return file_join(path, dir, name, &err) == 0 && file_exists(path);
}

static void put(const char *name, const char *text)
{
    char path[FILE_PATH_MAX_BYTES];
    assert_int_equal(file_join(path, dir, name, &err), 0);
    assert_int_equal(file_write(path, text, strlen(text), FILE_REPLACE, &err), 0);
}

static void test_store(void **state)
{
    (void)state;
    struct store_dir opened, second;
    bool done;
    assert_int_equal(store_dir_open(&opened, dir, &err), 0);
    struct store store = store_dir_store(&opened);
    assert_int_equal(store_dir_open(&second, dir, &err), -1);
    assert_contains(err.message, "in use by another run");
    assert_int_equal(store_begin(&store, "a", &err), 0);
    assert_int_equal(store_put(&store, "a", "0-x.png", "xyz", 3, &err), 0);
    assert_int_equal(store_put(&store, "a", "0-x.png", "xyz", 3, &err), 0);
    assert_int_equal(store_is_done(&store, "a", &done, &err), 0);
    assert_false(done);
    put("results/a/.tmp-1-1", "torn");
    assert_int_equal(store_begin(&store, "a", &err), 0);
    assert_false(exists("results/a/0-x.png"));
    assert_false(exists("results/a/.tmp-1-1"));
    assert_int_equal(store_put(&store, "a", "0-x.png", "xyz", 3, &err), 0);
    assert_int_equal(store_finish(&store, "a", "{}", 2, &err), 0);
    assert_int_equal(store_is_done(&store, "a", &done, &err), 0);
    assert_true(done);
    assert_int_equal(store_finish(&store, "a", "{2}", 3, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_int_equal(store_sweep(&store, "a", &err), 0);
    assert_true(exists("results/a/0-x.png"));
    assert_int_equal(store_begin(&store, "b", &err), 0);
    assert_int_equal(store_sweep(&store, "b", &err), 0);
    assert_false(exists("results/b"));
    put(".tmp-rejected.jsonl", "x");
    store_dir_sweep_root(&opened);
    assert_false(exists(".tmp-rejected.jsonl"));
    store_dir_close(&opened);
    assert_int_equal(store_dir_open(&opened, dir, &err), 0);
    store_dir_close(&opened);
}

static void test_checkpoints(void **state)
{
    (void)state;
    struct store_dir opened;
    struct buf out;
    assert_int_equal(store_dir_open(&opened, dir, &err), 0);
    struct store store = store_dir_store(&opened);
    buf_init(&out, 100);
    assert_int_equal(store_get_blob(&store, "c", "0", &out, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(store_put_blob(&store, "c", "0", "first", 5, &err), 0);
    assert_int_equal(store_put_blob(&store, "c", "0", "second", 6, &err), 0);
    assert_int_equal(store_put_blob(&store, "c", "1", "", 0, &err), 0);
    assert_int_equal(store_get_blob(&store, "c", "0", &out, &err), 0);
    assert_string_equal(out.data, "second");
    assert_int_equal(store_remove_blob(&store, "c", "0", &err), 0);
    assert_true(exists("checkpoints/c/1"));
    assert_int_equal(store_remove_blob(&store, "c", "1", &err), 0);
    assert_int_equal(store_remove_blob(&store, "c", "1", &err), 0);
    assert_false(exists("checkpoints/c"));
    buf_release(&out);
    store_dir_close(&opened);
}

static void test_out_directories_that_cannot_be(void **state)
{
    (void)state;
    struct store_dir store;
    char path[FILE_PATH_MAX_BYTES];
    put("a-file", "x");
    assert_int_equal(file_join(path, dir, "a-file", &err), 0);
    assert_int_equal(store_dir_open(&store, path, &err), -1);
    assert_contains(err.message, "is a file");
    assert_int_equal(store_dir_open(&store, "/no/such/parent/out", &err), -1);
    assert_contains(err.message, "/no/such/parent/out");
    assert_int_equal(store_dir_open(&store, "/proc/self", &err), -1);
}

static int collect(void *user, const struct journal_card *card, struct err *unused)
{
    char *text = user;
    (void)unused;
    sprintf(text + strlen(text), "%s%s:%zu ", card->id, card->error ? "!" : "", card->file_count);
    return 0;
}

static void test_journal(void **state)
{
    (void)state;
    struct store_dir opened;
    struct journal journal;
    struct ledger ledger = {0};
    char files[1][96] = {"0-x.png"}, cards[500] = "";
    struct journal_card card = {
        .id = "a", .content = 7, .prompt = "p \"q\"", .files = files, .file_count = 1};
    assert_int_equal(store_dir_open(&opened, dir, &err), 0);
    struct store store = store_dir_store(&opened);
    assert_int_equal(journal_open(&journal, dir, &store, &ledger, &err), 0);
    assert_int_equal(journal_begin(&journal, "a", &err), 0);
    assert_int_equal(journal_card(&journal, &card, &err), 0);
    card.id = "f";
    card.error = "why";
    card.file_count = 0;
    assert_int_equal(journal_card(&journal, &card, &err), 0);
    assert_int_equal(journal_begin(&journal, "left", &err), 0);
    assert_int_equal(store_begin(&store, "left", &err), 0);
    put("results/left/0-y.png", "half");
    journal_close(&journal);
    ledger_release(&ledger);

    /* Killed while a line was written. */
    char path[FILE_PATH_MAX_BYTES];
    assert_int_equal(file_join(path, dir, JOURNAL_NAME, &err), 0);
    int fd = open(path, O_WRONLY | O_APPEND);
    assert_int_equal(write(fd, "{\"done\":\"torn", 13), 13);
    close(fd);

    assert_int_equal(journal_open(&journal, dir, &store, &ledger, &err), 0);
    assert_false(exists("results/left"));
    assert_non_null(ledger_find(&ledger, "a"));
    assert_int_equal(ledger_find(&ledger, "a")->content, 7);
    assert_null(ledger_find(&ledger, "torn"));
    card = (struct journal_card){.id = "f", .files = files, .file_count = 1};
    assert_int_equal(journal_card(&journal, &card, &err), 0);
    assert_int_equal(journal_walk(&journal, collect, cards, &err), 0);
    assert_string_equal(cards, "a:1 f:1 ");
    journal_close(&journal);
    ledger_release(&ledger);
    store_dir_close(&opened);
}

static void test_ledger(void **state)
{
    (void)state;
    struct ledger ledger = {0};
    char id[32];
    bool fresh;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 100000; i++) {
            snprintf(id, sizeof(id), "job-%d", i);
            struct ledger_entry *entry = ledger_enter(&ledger, id, &fresh, &err);
            assert_int_equal(fresh, round == 0);
            if (fresh)
                entry->content = (uint64_t)i;
            assert_int_equal(entry->content, i);
        }
    assert_int_equal(ledger.count, 100000);
    assert_int_equal(sizeof(struct ledger_entry), 24);
    ledger_release(&ledger);
}

static void *fill_queue(void *user)
{
    for (intptr_t i = 1; i <= 10000; i++)
        if (!bounded_queue_put(user, (void *)i))
            return NULL;
    bounded_queue_close(user);
    return NULL;
}

static void test_queue(void **state)
{
    (void)state;
    struct bounded_queue queue;
    pthread_t thread;
    assert_int_equal(bounded_queue_init(&queue, 3, &err), 0);
    assert_null(bounded_queue_take_within(&queue, 0));
    assert_null(bounded_queue_take_within(&queue, 5));
    pthread_create(&thread, NULL, fill_queue, &queue);
    for (intptr_t i = 1; i <= 10000; i++)
        assert_ptr_equal(bounded_queue_take(&queue), (void *)i);
    assert_null(bounded_queue_take(&queue));
    pthread_join(thread, NULL);
    assert_false(bounded_queue_put(&queue, &queue));
    bounded_queue_release(&queue);
}

static void test_stage_dump(void **state)
{
    (void)state;
    struct stage_dump file;
    struct buf out;
    char path[FILE_PATH_MAX_BYTES];
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    static const int64_t dims[] = {2, 3};
    stage_dump_init(&file);
    stage_dump_add(&file, "a", values, dims, 2);
    stage_dump_add(&file, "b", values, dims, 1);
    assert_int_equal(file_join(path, dir, "t.safetensors", &err), 0);
    assert_int_equal(stage_dump_write(&file, path, &err), 0);
    stage_dump_release(&file);
    buf_init(&out, 1000);
    assert_int_equal(file_read(&out, path, &err), 0);
    size_t header = (unsigned char)out.data[0];
    assert_int_equal((8 + header) % 8, 0);
    assert_int_equal(out.len, 8 + header + 32);
    assert_contains(out.data + 8,
                    "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[24,32]}");
    assert_memory_equal(out.data + 8 + header, values, sizeof(values));
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_checkpoints),
        cmocka_unit_test(test_out_directories_that_cannot_be),
        cmocka_unit_test(test_journal),
        cmocka_unit_test(test_ledger),
        cmocka_unit_test(test_queue),
        cmocka_unit_test(test_stage_dump),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}

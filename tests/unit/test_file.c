#include "common/file.h"

#include "tests/unit/unit.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/atelier-file-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int count_entries(void)
{
    int n = 0;
    DIR *d = opendir(dir);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static int remove_dir(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", dir);
    return system(command);
}

static void assert_holds(const char *path, const char *text)
{
    struct buf out;
    struct err err;
    buf_init(&out, 1000);
    assert_int_equal(file_read(&out, path, &err), 0);
    assert_string_equal(out.data, text);
    buf_release(&out);
}

static void test_write_new_never_overwrites(void **state)
{
    (void)state;
    char path[FILE_PATH_MAX_BYTES];
    struct err err;
    assert_int_equal(file_join(path, dir, "a", &err), 0);
    assert_int_equal(file_write(path, "one", 3, FILE_NEW, &err), 0);
    assert_int_equal(file_write(path, "two", 3, FILE_NEW, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_holds(path, "one");
    assert_int_equal(file_write(path, "three", 5, FILE_REPLACE, &err), 0);
    assert_holds(path, "three");
    assert_int_equal(count_entries(), 1);
}

static void test_a_full_disk_leaves_nothing(void **state)
{
    (void)state;
    char path[FILE_PATH_MAX_BYTES], bytes[5000] = {0};
    struct err err;
    struct rlimit old, low = {1000, 1000};
    getrlimit(RLIMIT_FSIZE, &old);
    low.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(file_join(path, dir, "b", &err), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    int rc = file_write(path, bytes, sizeof(bytes), FILE_NEW, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, ERR_LIMIT);
    assert_int_equal(err.class, ERR_FATAL);
    assert_contains(err.message, "free some space");
    assert_false(file_exists(path));
    assert_int_equal(count_entries(), 1);
}

static void test_read_keeps_its_limit(void **state)
{
    (void)state;
    char path[FILE_PATH_MAX_BYTES];
    struct err err;
    struct buf out;
    buf_init(&out, 4);
    assert_int_equal(file_join(path, dir, "a", &err), 0);
    assert_int_equal(file_read(&out, path, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    buf_release(&out);
    buf_init(&out, 5);
    assert_int_equal(file_read(&out, path, &err), 0);
    buf_release(&out);
    assert_int_equal(file_read(&out, dir, &err), -1);
    assert_int_equal(err.code, ERR_IO);
}

static void test_errors_name_the_path(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(file_write("/no/such/dir/x", "", 0, FILE_NEW, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_contains(err.message, "/no/such/dir");
    assert_int_equal(file_make_dir("/dev/null", &err), -1);
    assert_int_equal(file_make_dir(dir, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_new_never_overwrites),
        cmocka_unit_test(test_a_full_disk_leaves_nothing),
        cmocka_unit_test(test_read_keeps_its_limit),
        cmocka_unit_test(test_errors_name_the_path),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}

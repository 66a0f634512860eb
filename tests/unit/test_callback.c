/* Callbacks without a network: signatures, secrets, URLs; who is called next, and when. */
#include "common/base64.h"
#include "common/clock.h"
#include "coordinator/owed.h"
#include "coordinator/senders.h"
#include "net/webhook.h"

#include "tests/unit/unit.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000ll
/* 24, 25 and 64 bytes. */
#define SECRET "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
#define SECRET_25 "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="

static struct err err;

/* ---- webhook.c ---- */

static void sign(const char *secrets, const char *expected)
{
    struct webhook_rules rules;
    const char *body = "{\"test\": 2432232314}";
    struct buf out;
    buf_init(&out, 1024);
    assert_int_equal(webhook_rules_read(&rules, secrets, NULL, &err), 0);
    webhook_sign(&rules, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, strlen(body), &out);
    assert_string_equal(out.data, expected);
    buf_release(&out);
}

/* The vector that the specification's own libraries test with, and the same with a second secret.
 */
static void test_signature(void **state)
{
    (void)state;
    sign(SECRET, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    sign(SECRET_25 "\r\n\n" SECRET, "v1,woH/1mJtZGSMCmpFTxRYbStS24eLLD/oXIYr4PYyZ7g= "
                                    "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

static void test_id(void **state)
{
    (void)state;
    char id[WEBHOOK_ID_BYTES], other[WEBHOOK_ID_BYTES];
    webhook_id(id, "abc", 3); /* FIPS 180-2, appendix B.1 */
    assert_string_equal(id, "msg_ba7816bf8f01cfea414140de5dae2223");
    webhook_id(other, "abd", 3);
    assert_string_not_equal(id, other);
}

static void test_base64(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {/* RFC 4648, section 10 */
                                           {"", ""},
                                           {"f", "Zg=="},
                                           {"fo", "Zm8="},
                                           {"foo", "Zm9v"},
                                           {"foobar", "Zm9vYmFy"}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct buf out;
        buf_init(&out, 64);
        base64_encode(pairs[i][0], strlen(pairs[i][0]), &out);
        assert_string_equal(out.len ? out.data : "", pairs[i][1]);
        buf_release(&out);
    }
}

static void test_secrets(void **state)
{
    (void)state;
    struct webhook_rules rules;
    static const char *const bad[][2] = {
        {"", "no secret"},
        {"\n\n", "no secret"},
        {"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "line 1 is no secret"},
        {SECRET "\nwhsec_MfKQ", "line 2: the secret has 3 bytes"},
        {"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa!w", "line 1: base64"},
        {SECRET "\n" SECRET "\n" SECRET "\n" SECRET "\n" SECRET, "line 5 is one secret more"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(webhook_rules_read(&rules, bad[i][0], NULL, &err), -1);
        assert_non_null(strstr(err.message, bad[i][1]));
        assert_null(strstr(err.message, "MfKQ"));
    }
}

static void test_urls(void **state)
{
    (void)state;
    struct webhook_rules rules;
    static const char *const good[] = {
        "https://example.org/hook?id=1",
        "https://example.org:8443",
        "https://93.184.215.14/",
        "https://[2606:2800:21f::1]/",
        "http://127.0.0.1:8080/x",
        "https://Inside/x",
        "http://[::1]/",
    };
    static const char *const bad[][2] = {
        {"http://example.org/", "https://"},
        {"https://", "no http or https URL"},
        {"https://exa mple.org/", "no http or https URL"},
        {"file:///etc/passwd", "no http or https URL"},
        {"https://u:p@example.org/", "user or password"},
        {"https://u@example.org/", "user or password"},
        {"https://localhost/", "private"},
        {"https://10.1.2.3/", "private"},
        {"https://0x7f.2/", "private"},
        {"https://169.254.169.254/latest/meta-data", "private"},
        {"https://[fd00::1]/", "private"},
        {"https://[::ffff:192.168.0.1]/", "private"},
        {"https://[64:ff9b::c0a8:1]/", "private"},
        {"http://inside.example.org/", "https://"},
    };
    assert_int_equal(webhook_rules_read(&rules, SECRET, "127.0.0.1,inside,::1", &err), 0);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(webhook_url_check(&rules, good[i], &err), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(webhook_url_check(&rules, bad[i][0], &err), -1);
        assert_non_null(strstr(err.message, bad[i][1]));
        assert_false(webhook_url_allowed(&rules, bad[i][0]));
    }
    assert_true(webhook_url_allowed(&rules, "https://INSIDE:1/"));
    assert_false(webhook_url_allowed(&rules, "https://nside/"));
    assert_int_equal(webhook_rules_read(&rules, NULL, NULL, &err), 0);
    assert_int_equal(webhook_url_check(&rules, good[0], &err), -1);
    assert_non_null(strstr(err.message, "callback-secrets-file"));
}

/* ---- owed.c ---- */

static const struct owed_answer taken = {.status = 204}, busy = {.status = 503},
                                gone = {.status = 410}, lost = {.problem = "no network"};

static struct owed_table *new_table(size_t bytes_max)
{
    return owed_create(
        &(struct owed_options){.give_up_ns = 100 * SECOND_NS, .bytes_max = bytes_max, .random = 1});
}

static struct owed *add(struct owed_table *table, const char *id, const char *url)
{
    struct owed what = {.id = id, .job = id, .url = url, .body = "{}", .body_len = 2};
    return owed_add(table, &what, true);
}

static void test_answers(void **state)
{
    (void)state;
    static const int passing[] = {0, 408, 429, 500, 501, 503}, final[] = {301, 400, 404, 410};
    for (size_t i = 0; i < sizeof(passing) / sizeof(passing[0]); i++) {
        struct owed_table *table = new_table(1 << 20);
        struct owed_answer answer = {.status = passing[i], .problem = "why"};
        add(table, "a", "https://h/");
        struct owed *owed = owed_take(table, 0, 0);
        assert_int_equal(owed_answer(table, owed, &answer, 0, 0), OWED_WAITS);
        assert_int_equal(owed_answer(table, owed_take(table, 300 * SECOND_NS, 0), &taken, 0, 0),
                         OWED_DELIVERED);
        assert_int_equal(owed->tries, 2);
        owed_free(table, owed);
        assert_int_equal(owed_count(table), 0);
        owed_destroy(table);
    }
    for (size_t i = 0; i < sizeof(final) / sizeof(final[0]); i++) {
        struct owed_table *table = new_table(1 << 20);
        struct owed_answer answer = {.status = final[i]};
        add(table, "a", "https://h/");
        assert_int_equal(owed_answer(table, owed_take(table, 0, 0), &answer, 0, 0), OWED_GIVEN_UP);
        assert_null(owed_take(table, 300 * SECOND_NS, 0));
        owed_destroy(table);
    }
}

/* What is not committed is not called; what is forgotten is gone, wherever it stands. */
static void test_what_is_known(void **state)
{
    (void)state;
    struct owed_table *table = new_table(1 << 20);
    struct owed what = {.id = "a", .job = "j", .url = "https://h/", .body = "{}", .body_len = 2};
    struct owed *owed = owed_add(table, &what, false);
    assert_ptr_equal(owed_add(table, &what, false), owed);
    assert_null(owed_take(table, 0, 0));
    assert_int_equal(owed_due_ns(table), INT64_MAX);
    owed_commit(table, owed);
    add(table, "b", "https://h/");
    add(table, "c", "https://h/");
    assert_int_equal(owed_count(table), 3);
    assert_ptr_equal(owed_find_job(table, "j"), owed);
    owed_free(table, owed_find(table, "b"));
    owed_free(table, owed);
    assert_null(owed_find(table, "a"));
    assert_string_equal(owed_take(table, 0, 0)->id, "c");
    assert_null(owed_take(table, 0, 0));
    owed_destroy(table);
}

/* A receiver that fails gets one try at a time, later and later; others notice nothing. */
static void test_a_receiver_that_fails(void **state)
{
    (void)state;
    struct owed_table *table = new_table(1 << 20);
    char id[16];
    int64_t now = 0;
    for (int i = 0; i < 6; i++) {
        snprintf(id, sizeof(id), "bad%d", i);
        add(table, id, "https://bad/x");
    }
    struct owed *at_once[OWED_AT_ONCE];
    for (int i = 0; i < OWED_AT_ONCE; i++)
        assert_non_null(at_once[i] = owed_take(table, now, 0));
    assert_null(owed_take(table, now, 0));
    for (int i = 0; i < OWED_AT_ONCE; i++)
        owed_answer(table, at_once[i], i % 2 ? &lost : &busy, now, 0);
    int64_t waited = 0;
    for (int i = 0; i < 40; i++) {
        now = owed_due_ns(table);
        struct owed *probe = owed_take(table, now, 0);
        assert_non_null(probe);
        assert_null(owed_take(table, now, 0));
        add(table, "good", "https://good/x");
        struct owed *good = owed_take(table, now, 0);
        assert_string_equal(good->id, "good");
        owed_answer(table, good, &taken, now, 0);
        owed_free(table, good);
        owed_answer(table, probe, &busy, now, 0);
        assert_in_range(owed_due_ns(table), now, now + 300 * SECOND_NS);
        waited += owed_due_ns(table) - now;
    }
    assert_true(waited > 30 * 60 * SECOND_NS); /* of 150 s on average each */
    now = owed_due_ns(table);
    owed_answer(table, owed_take(table, now, 0), &taken, now, 0);
    for (int i = 0; i < OWED_AT_ONCE; i++)
        assert_non_null(owed_take(table, now, 0));
    owed_destroy(table);
}

static void test_a_receiver_that_asks_for_time(void **state)
{
    (void)state;
    struct owed_table *table = new_table(1 << 20);
    struct owed_answer answer = {.status = 429, .asked_ms = 60000};
    add(table, "a", "https://h/");
    owed_answer(table, owed_take(table, 0, 0), &answer, 0, 0);
    assert_int_equal(owed_due_ns(table), 60 * SECOND_NS);
    owed_destroy(table);
}

/* After its time one try is made all the same: the fleet may have been away. */
static void test_giving_up(void **state)
{
    (void)state;
    struct owed_table *table = new_table(1 << 20);
    const int64_t late = 101 * SECOND_NS;
    add(table, "a", "https://h/");
    add(table, "b", "https://h/");
    add(table, "c", "https://other/");
    struct owed *a = owed_take(table, 0, late);
    assert_int_equal(owed_answer(table, a, &busy, 0, late), OWED_GIVEN_UP);
    assert_non_null(strstr(a->problem, "callback-give-up"));
    assert_null(owed_expired(table));
    assert_string_equal(owed_take(table, 300 * SECOND_NS, late)->id, "c");
    assert_null(owed_take(table, 300 * SECOND_NS, late));
    struct owed *b = owed_expired(table);
    assert_string_equal(b->id, "b");
    assert_int_equal(b->fate, OWED_GIVEN_UP);
    assert_null(owed_expired(table));
    owed_destroy(table);
}

/* The longest line pays for want of room. */
static void test_too_many(void **state)
{
    (void)state;
    struct owed_table *table = new_table(0);
    add(table, "a", "https://h/");
    add(table, "b", "https://long/1");
    add(table, "c", "https://long/2");
    struct owed *b = owed_crowded(table);
    assert_string_equal(b->id, "b");
    assert_non_null(strstr(b->problem, "callback-bytes"));
    owed_free(table, b);
    owed_destroy(table);
    table = new_table(1 << 20);
    add(table, "a", "https://h/");
    assert_null(owed_crowded(table));
    assert_int_equal(owed_answer(table, owed_take(table, 0, 0), &gone, 0, 0), OWED_GIVEN_UP);
    owed_destroy(table);
}

/* ---- senders.c ---- */

static struct senders *new_senders(const struct webhook_rules *rules, const char *url)
{
    struct senders *senders;
    const struct senders_options options = {.rules = rules,
                                            .timeout_s = 60,
                                            .give_up_s = 100,
                                            .bytes_max = 1 << 20,
                                            .clock = clock_system()};
    struct owed what = {.id = "msg_1", .job = "j", .url = url, .body = "{}", .body_len = 2};
    what.ended_ns = clock_wall_ns(clock_system());
    assert_int_equal(senders_create(&senders, &options, &err), 0);
    assert_int_equal(senders_add(senders, &what, false, &err), 0);
    assert_int_equal(senders_start(senders, &err), 0);
    senders_commit(senders, what.id);
    return senders;
}

static int listen_on(char url[64])
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof(at);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, len), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    snprintf(url, 64, "http://127.0.0.1:%d/", ntohs(at.sin_port));
    return fd;
}

/* A leader that steps down waits for no receiver. */
static void test_breaking_off(void **state)
{
    (void)state;
    struct webhook_rules rules;
    struct buf said;
    char url[64];
    int server = listen_on(url);
    assert_int_equal(webhook_rules_read(&rules, SECRET, "127.0.0.1", &err), 0);
    struct senders *senders = new_senders(&rules, url);
    int client = accept(server, NULL, NULL);
    int64_t begun = clock_monotonic_ns(clock_system());
    buf_init(&said, 1024);
    assert_true(senders_explain(senders, "j", &said));
    assert_non_null(strstr(said.data, "\"callback_to\":\"127.0.0.1\""));
    assert_false(senders_explain(senders, "k", &said));
    assert_int_equal(senders_stats(senders).waiting, 1);
    assert_null(senders_next(senders));
    senders_free(senders);
    assert_true(clock_monotonic_ns(clock_system()) - begun < 5 * SECOND_NS);
    buf_release(&said);
    close(client);
    close(server);
}

/* An address that the name of a host turns out to have is judged before anything is sent. */
static void test_a_private_address(void **state)
{
    (void)state;
    struct webhook_rules rules;
    const struct owed *owed = NULL;
    assert_int_equal(webhook_rules_read(&rules, SECRET, NULL, &err), 0);
    struct senders *senders = new_senders(&rules, "https://receiver.localhost/");
    for (int i = 0; i < 500 && !owed; i++) {
        owed = senders_next(senders);
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    assert_non_null(owed);
    assert_int_equal(owed->fate, OWED_GIVEN_UP);
    assert_int_equal(owed->tries, 1);
    assert_non_null(strstr(owed->problem, "private network"));
    senders_forget(senders, owed->id);
    assert_int_equal(senders_stats(senders).waiting, 0);
    senders_free(senders);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_signature),
        cmocka_unit_test(test_id),
        cmocka_unit_test(test_base64),
        cmocka_unit_test(test_secrets),
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_what_is_known),
        cmocka_unit_test(test_a_receiver_that_fails),
        cmocka_unit_test(test_a_receiver_that_asks_for_time),
        cmocka_unit_test(test_giving_up),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_breaking_off),
        cmocka_unit_test(test_a_private_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

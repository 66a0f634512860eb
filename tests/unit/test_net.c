/* The network room without a network: back-off, escaping, S3's XML, what errors may show. */
#include "common/base64.h"
#include "net/fetch.h"
#include "net/retry.h"
#include "net/s3_xml.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <string.h>

static struct err err;

static void test_back_off(void **state)
{
    (void)state;
    const struct retry_policy policy = {
        .tries_max = 6, .first_ms = 100, .most_ms = 1000, .total_ms = 5000};
    const int most[] = {0, 100, 200, 400, 800, 1000};
    for (int tries = 1; tries < 6; tries++) {
        int least_seen = 1 << 20, most_seen = -1;
        for (uint64_t random = 0; random < 5000; random++) {
            int delay = retry_delay_ms(&policy, tries, 0, 0, random);
            least_seen = delay < least_seen ? delay : least_seen;
            most_seen = delay > most_seen ? delay : most_seen;
        }
        assert_int_equal(least_seen, 0);
        assert_int_equal(most_seen, most[tries]);
    }
    assert_int_equal(retry_delay_ms(&policy, 6, 0, 0, 0), -1);
    assert_int_equal(retry_delay_ms(&policy, 1, 4999, 0, 0), 0);
    assert_int_equal(retry_delay_ms(&policy, 1, 5000, 0, 0), -1);
    assert_int_equal(retry_delay_ms(&policy, 1, 0, 3000, 50), 3000);
    assert_int_equal(retry_delay_ms(&policy, 1, 0, 60000, 0), -1);
}

static int64_t stopped_ns(void *user)
{
    return *(int64_t *)user;
}

static void test_retry_counts(void **state)
{
    (void)state;
    const struct retry_policy policy = {
        .tries_max = 3, .first_ms = 1, .most_ms = 1, .total_ms = 1000};
    int64_t now = 0;
    const struct clock clock = {stopped_ns, stopped_ns, &now};
    struct retry retry;
    retry_begin(&retry, &policy, &clock);
    assert_true(retry_wait(&retry, 0));
    assert_true(retry_wait(&retry, 0));
    retry_progress(&retry);
    assert_true(retry_wait(&retry, 0));
    now = 400 * 1000000LL;
    assert_int_equal(retry_left_ms(&retry), 600);
    assert_true(retry_wait(&retry, 0));
    assert_false(retry_wait(&retry, 0));
    now = 2000 * 1000000LL;
    assert_int_equal(retry_left_ms(&retry), 1);
}

static void test_escape(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 1000);
    s3_escape(&out, "a/B-1._~ +%\xC3\xA9?&=", true);
    assert_string_equal(out.data, "a/B-1._~%20%2B%25%C3%A9%3F%26%3D");
    buf_clear(&out);
    s3_escape(&out, "a/b", false);
    assert_string_equal(out.data, "a%2Fb");
    buf_release(&out);
}

static void test_uri(void **state)
{
    (void)state;
    char bucket[8];
    const char *key;
    assert_true(s3_parse_uri("s3://b/k/l", bucket, sizeof(bucket), &key));
    assert_string_equal(bucket, "b");
    assert_string_equal(key, "k/l");
    const char *wrong[] = {"s3://",   "s3://b",          "s3://b/",
                           "s3:///k", "s3://a-bucket/k", "http://b/k"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_false(s3_parse_uri(wrong[i], bucket, sizeof(bucket), &key));
}

static bool text_of(const char *xml, char *out, size_t out_size)
{
    return s3_xml_text(xml, strlen(xml), "Key", out, out_size);
}

static void test_xml_text(void **state)
{
    (void)state;
    char out[16];
    assert_true(text_of("<Keys>no</Keys><Key a='1'>a&lt;&amp;&#233;&#x41;</Key>", out, 16));
    assert_string_equal(out, "a<&\xC3\xA9"
                             "A");
    assert_true(text_of("<Key></Key>", out, 16));
    assert_string_equal(out, "");
    assert_true(text_of("<Key>123456789012345</Key>", out, 16));
    const char *wrong[] = {"",
                           "<Key",
                           "<Key>",
                           "<Key>a",
                           "<Key>a</Ke",
                           "<Key/>",
                           "<Key>1234567890123456</Key>",
                           "<Key>&unknown;</Key>",
                           "<Key>&#xD800;</Key>",
                           "<Key>&#0;</Key>",
                           "<Key>&#1114112;</Key>",
                           "<Key>a<b/></Key>"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_false(text_of(wrong[i], out, 16));
        assert_string_equal(out, "");
    }
}

static void test_xml_error(void **state)
{
    (void)state;
    char code[16], message[32];
    const char *xml = "<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code><Message>less, "
                      "&quot;please&quot;</Message></Error>";
    s3_xml_error(xml, strlen(xml), code, sizeof(code), message, sizeof(message));
    assert_string_equal(code, "SlowDown");
    assert_string_equal(message, "less, \"please\"");
    s3_xml_error("<html>", 6, code, sizeof(code), message, sizeof(message));
    assert_string_equal(code, "");
}

static int collect(void *user, const struct s3_listed *object, struct err *unused)
{
    char *text = user;
    (void)unused;
    sprintf(text + strlen(text), "%s:%d ", object->key, (int)object->bytes);
    return object->bytes == 99 ? 7 : 0;
}

#define ENTRY(key, size)                                                                           \
    "<Contents><Size>" size "</Size><ETag>&quot;e&quot;</ETag><Key>" key "</Key></Contents>"

static int list(const char *entries, const char *tail, char *seen, char *next)
{
    char xml[1000];
    snprintf(xml, sizeof(xml),
             "<ListBucketResult xmlns=\"x\"><Name>b</Name>%s%s</ListBucketResult>", entries, tail);
    *seen = '\0';
    return s3_xml_list(xml, strlen(xml), collect, seen, next, 16, &err);
}

static void test_xml_list(void **state)
{
    (void)state;
    char seen[200], next[16];
    const char *more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t=</"
                       "NextContinuationToken>";
    assert_int_equal(list(ENTRY("a&amp;b", "3") ENTRY("c", "4"), more, seen, next), 0);
    assert_string_equal(seen, "a&b:3 c:4 ");
    assert_string_equal(next, "t=");
    assert_int_equal(list("", "<IsTruncated>false</IsTruncated>", seen, next), 0);
    assert_string_equal(next, "");
    assert_int_equal(list(ENTRY("a", "99") ENTRY("b", "1"), more, seen, next), 7);
    assert_string_equal(seen, "a:99 ");
    assert_int_equal(list("", "<IsTruncated>true</IsTruncated>", seen, next), -1);
    assert_int_equal(list("<Contents><Key>a</Key></Contents>", "", seen, next), -1);
    assert_int_equal(s3_xml_list("<x/>", 4, collect, seen, next, 16, &err), -1);
    assert_int_equal(err.class, ERR_RETRY);
}

static void test_what_errors_show(void **state)
{
    (void)state;
    char out[64];
    fetch_describe("https://user:pw@h.example/a@b.png?X-Amz-Signature=1#f", out, sizeof(out));
    assert_string_equal(out, "https://h.example/a@b.png");
    fetch_describe("data:image/png;base64,AAAA", out, sizeof(out));
    assert_string_equal(out, "data URI");
    fetch_describe("s3://b/k?v", out, sizeof(out));
    assert_string_equal(out, "s3://b/k?v");
}

static void test_fetch_without_a_network(void **state)
{
    (void)state;
    const struct fetch fetch = {0};
    struct buf out;
    buf_init(&out, 4);
    assert_int_equal(fetch_read(&fetch, "data:image/png;base64,AQIDBA==", &out, &err), 0);
    assert_memory_equal(out.data, "\1\2\3\4", 4);
    buf_clear(&out);
    assert_int_equal(fetch_read(&fetch, "data:image/png;base64,AQIDBAUGBwg=", &out, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    buf_clear(&out);
    const char *refused[] = {"https://h/x",   "s3://b/k",   "file:///etc/passwd",
                             "../secret.png", "gopher://h", "data:,x"};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        assert_int_equal(fetch_read(&fetch, refused[i], &out, &err), -1);
        assert_int_equal(err.class, ERR_REJECT);
        assert_int_equal(out.len, 0);
    }
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_back_off),
        cmocka_unit_test(test_retry_counts),
        cmocka_unit_test(test_escape),
        cmocka_unit_test(test_uri),
        cmocka_unit_test(test_xml_text),
        cmocka_unit_test(test_xml_error),
        cmocka_unit_test(test_xml_list),
        cmocka_unit_test(test_what_errors_show),
        cmocka_unit_test(test_fetch_without_a_network),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

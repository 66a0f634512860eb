#include "net/s3_xml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void s3_escape(struct buf *out, const char *text, bool is_path)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
            strchr("-._~", c) || (c == '/' && is_path))
            buf_char(out, (char)c);
        else
            buf_printf(out, "%%%02X", c);
    }
}

/* What is between <name …> and </name>; NULL where there is no such element. */
static const char *find_element(const char *text, size_t len, const char *name, size_t *content_len)
{
    char close[80];
    size_t name_len = strlen(name);
    int close_len = snprintf(close, sizeof(close), "</%s>", name);
    const char *end = text + len, *at = text;
    while ((at = memchr(at, '<', (size_t)(end - at))) != NULL) {
        at++;
        if ((size_t)(end - at) <= name_len || memcmp(at, name, name_len) != 0 ||
            !strchr(" >\t\r\n", at[name_len]) || at[name_len] == '\0')
            continue;
        const char *begin = memchr(at, '>', (size_t)(end - at));
        if (!begin)
            return NULL;
        begin++;
        const char *stop = memmem(begin, (size_t)(end - begin), close, (size_t)close_len);
        if (!stop)
            return NULL;
        *content_len = (size_t)(stop - begin);
        return begin;
    }
    return NULL;
}

static int put_utf8(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(0xF00 >> n | c);
    return n;
}

/* Decodes the entity at text[0..len), which begins with '&'. Returns its bytes in the text, or 0.
 */
static size_t decode_entity(const char *text, size_t len, char out[4], int *out_len)
{
    static const struct {
        const char *name;
        char c;
    } names[] = {{"&lt;", '<'}, {"&gt;", '>'}, {"&amp;", '&'}, {"&quot;", '"'}, {"&apos;", '\''}};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        size_t n = strlen(names[i].name);
        if (len >= n && memcmp(text, names[i].name, n) == 0) {
            out[0] = names[i].c;
            *out_len = 1;
            return n;
        }
    }
    const char *semicolon = memchr(text, ';', len < 12 ? len : 12);
    if (!semicolon || len < 4 || text[1] != '#')
        return 0;
    bool hex = text[2] == 'x';
    char *end;
    unsigned long c = strtoul(text + 2 + hex, &end, hex ? 16 : 10);
    if (end != semicolon || c == 0 || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
        return 0;
    *out_len = put_utf8((uint32_t)c, out);
    return (size_t)(semicolon - text) + 1;
}

bool s3_xml_text(const char *text, size_t len, const char *name, char *out, size_t out_size)
{
    size_t used = 0;
    *out = '\0';
    text = find_element(text, len, name, &len);
    if (!text)
        return false;
    while (len > 0) {
        char bytes[4] = {*text};
        int count = 1;
        size_t taken = *text == '&' ? decode_entity(text, len, bytes, &count) : 1;
        if (taken == 0 || *text == '<' || *text == '\0' || used + (size_t)count >= out_size) {
            *out = '\0';
            return false;
        }
        memcpy(out + used, bytes, (size_t)count);
        used += (size_t)count;
        text += taken;
        len -= taken;
    }
    out[used] = '\0';
    return true;
}

void s3_xml_error(const char *text, size_t len, char *code, size_t code_size, char *message,
                  size_t message_size)
{
    *code = *message = '\0';
    text = find_element(text, len, "Error", &len);
    if (!text)
        return;
    s3_xml_text(text, len, "Code", code, code_size);
    s3_xml_text(text, len, "Message", message, message_size);
}

int s3_xml_list(const char *text, size_t len,
                int (*see)(void *user, const struct s3_listed *object, struct err *err), void *user,
                char *next, size_t next_size, struct err *err)
{
    char key[S3_KEY_MAX_BYTES + 1], number[32];
    size_t list_len, entry_len;
    *next = '\0';
    const char *list = find_element(text, len, "ListBucketResult", &list_len);
    if (!list)
        return err_set(err, ERR_FORMAT, ERR_RETRY, "a list without ListBucketResult");
    const char *end = list + list_len, *entry, *at = list;
    while ((entry = find_element(at, (size_t)(end - at), "Contents", &entry_len)) != NULL) {
        if (!s3_xml_text(entry, entry_len, "Key", key, sizeof(key)) ||
            !s3_xml_text(entry, entry_len, "Size", number, sizeof(number)))
            return err_set(err, ERR_FORMAT, ERR_RETRY, "a listed object without key or size");
        struct s3_listed listed = {key, strtoull(number, NULL, 10)};
        int rc = see(user, &listed, err);
        if (rc != 0)
            return rc;
        at = entry + entry_len;
    }
    if (s3_xml_text(list, list_len, "IsTruncated", number, sizeof(number)) &&
        strcmp(number, "true") == 0 &&
        (!s3_xml_text(list, list_len, "NextContinuationToken", next, next_size) || !*next))
        return err_set(err, ERR_FORMAT, ERR_RETRY, "a cut list without a token to go on with");
    return 0;
}

bool s3_parse_uri(const char *uri, char *bucket, size_t bucket_size, const char **key)
{
    if (strncmp(uri, "s3://", 5) != 0)
        return false;
    const char *slash = strchr(uri + 5, '/');
    size_t len = slash ? (size_t)(slash - uri) - 5 : 0;
    if (len == 0 || len >= bucket_size || !slash[1])
        return false;
    memcpy(bucket, uri + 5, len);
    bucket[len] = '\0';
    *key = slash + 1;
    return true;
}

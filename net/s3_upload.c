/*
 * Objects above the part size: begun, sent part by part, completed; or aborted, so that no parts
 * stay that nobody sees and somebody pays for. A part that fails is sent again by http_call, alone.
 */
#include "net/s3_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define UPLOAD_ID_BYTES 1024
#define ANSWER_MAX_BYTES (64u << 10)
#define COMPLETE_MAX_BYTES (4u << 20)

struct upload {
    struct s3 *s3;
    struct s3_object object;
    char id[UPLOAD_ID_BYTES];
    struct buf query; /* "uploadId=…", escaped */
    struct buf parts; /* of the completing request */
};

/* Calls with a small XML answer, which goes to `out`. */
static int call_xml(struct upload *upload, struct s3_request *request, struct buf *out,
                    struct http_answer *answer, struct err *err)
{
    struct http_buf_sink sink;
    http_buf_sink(&sink, out, request->http.what);
    request->http.sink = &sink.sink;
    return s3_request_call(upload->s3, request, ERR_FATAL, answer, err);
}

static int begin(struct upload *upload, const char *content_type, struct err *err)
{
    struct s3_request request;
    struct http_answer answer;
    struct buf text;
    buf_init(&text, ANSWER_MAX_BYTES);
    int rc =
        s3_request_init(&request, upload->s3, "POST", upload->object, "uploads=", NULL, 0, err);
    s3_request_type(&request, content_type);
    if (rc == 0)
        rc = call_xml(upload, &request, &text, &answer, err);
    if (rc == 0 && !s3_xml_text(text.data, text.len, "UploadId", upload->id, sizeof(upload->id)))
        rc =
            err_set(err, ERR_FORMAT, ERR_RETRY, "%s: no UploadId in the answer", request.http.what);
    if (rc == 0) {
        buf_str(&upload->query, "uploadId=");
        s3_escape(&upload->query, upload->id, false);
    }
    s3_request_release(&request);
    buf_release(&text);
    return rc;
}

static void put_xml(struct buf *out, const char *text)
{
    for (; *text; text++)
        if (*text == '"')
            buf_str(out, "&quot;");
        else if (*text == '<' || *text == '>' || *text == '&')
            buf_printf(out, "&#%d;", *text);
        else
            buf_char(out, *text);
}

static int send_part(struct upload *upload, int number, const void *bytes, size_t len,
                     struct err *err)
{
    struct s3_request request;
    struct http_answer answer;
    struct buf query;
    buf_init(&query, HTTP_URL_MAX_BYTES);
    buf_printf(&query, "partNumber=%d&%s", number, upload->query.data);
    int rc =
        s3_request_init(&request, upload->s3, "PUT", upload->object, query.data, bytes, len, err);
    if (rc == 0)
        rc = s3_request_call(upload->s3, &request, ERR_RETRY, &answer, err);
    if (rc == 0) {
        buf_printf(&upload->parts, "<Part><PartNumber>%d</PartNumber><ETag>", number);
        put_xml(&upload->parts, answer.etag);
        buf_str(&upload->parts, "</ETag></Part>");
    }
    s3_request_release(&request);
    buf_release(&query);
    return rc;
}

/* The upload is not known any more, perhaps because it was completed by a try whose answer was
 * lost. */
static int find_completed(struct upload *upload, size_t len, struct err *err)
{
    struct s3_head head;
    struct err own;
    if (s3_head(upload->s3, upload->object, &head, &own) == 0 && head.exists && head.bytes == len)
        return 0;
    err->class = ERR_RETRY;
    return -1;
}

static int complete(struct upload *upload, size_t len, enum s3_put_mode mode, struct err *err)
{
    struct s3_request request;
    struct http_answer answer = {0};
    struct buf text;
    char code[64], message[200];
    buf_init(&text, ANSWER_MAX_BYTES);
    buf_str(&upload->parts, "</CompleteMultipartUpload>");
    if (upload->parts.failed)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for an upload");
    int rc = s3_request_init(&request, upload->s3, "POST", upload->object, upload->query.data,
                             upload->parts.data, upload->parts.len, err);
    s3_request_type(&request, "application/xml");
    if (mode == S3_NEW && s3_creates_only(upload->s3))
        s3_request_header(&request, "If-None-Match: *");
    if (rc == 0)
        rc = call_xml(upload, &request, &text, &answer, err);
    if (rc != 0 && answer.status == 404)
        rc = find_completed(upload, len, err);
    else if (rc == 0) { /* a long completion sends 200 first and may fail later */
        s3_xml_error(text.data, text.len, code, sizeof(code), message, sizeof(message));
        if (*code)
            rc = err_set(err, ERR_IO, ERR_RETRY, "POST %s: %s: %s", request.http.what, code,
                         message);
    }
    s3_request_release(&request);
    buf_release(&text);
    return rc;
}

static void abandon(struct upload *upload)
{
    struct s3_request request;
    struct http_answer answer;
    struct err unused;
    if (s3_request_init(&request, upload->s3, "DELETE", upload->object, upload->query.data, NULL, 0,
                        &unused) == 0 &&
        http_call(upload->s3->http, &request.http, &answer, &unused) != 0) {
        /* The store's own rule for uploads that nobody completed is the second net. */
    }
    s3_request_release(&request);
}

int s3_upload(struct s3 *s3, const char *key, const void *bytes, size_t len, enum s3_put_mode mode,
              const char *content_type, struct err *err)
{
    struct upload upload = {.s3 = s3, .object = {NULL, key}};
    size_t part_bytes = s3->options.part_bytes;
    if ((len + part_bytes - 1) / part_bytes > S3_PARTS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "%s: %zu bytes are more than %d parts", key, len,
                       S3_PARTS_MAX);
    buf_init(&upload.query, HTTP_URL_MAX_BYTES / 2);
    buf_init(&upload.parts, COMPLETE_MAX_BYTES);
    buf_str(&upload.parts, "<CompleteMultipartUpload>");
    int rc = begin(&upload, content_type, err);
    if (rc == 0) {
        int number = 1;
        for (size_t at = 0; at < len && rc == 0; at += part_bytes) {
            size_t n = len - at < part_bytes ? len - at : part_bytes;
            rc = send_part(&upload, number++, (const char *)bytes + at, n, err);
        }
        if (rc == 0)
            rc = complete(&upload, len, mode, err);
        if (rc != 0)
            abandon(&upload);
    }
    buf_release(&upload.query);
    buf_release(&upload.parts);
    return rc;
}

#include "cli/report.h"

#include "common/json.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES (1u << 20)
#define TEXT_SHOWN_BYTES 200

int report_open(struct report *report, const char *dir, const char *name, struct err *err)
{
    char temp[64];
    *report = (struct report){0};
    snprintf(temp, sizeof(temp), FILE_TEMP_PREFIX "%s", name);
    if (file_join(report->path, dir, name, err) != 0)
        return -1;
    return file_join(report->temp, dir, temp, err);
}

static int write_line(struct report *report, struct buf *line, struct err *err)
{
    int rc = 0;
    buf_char(line, '\n');
    if (!report->out)
        report->out = fopen(report->temp, "we");
    if (line->failed)
        rc = err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory to write %s", report->path);
    else if (!report->out || fwrite(line->data, 1, line->len, report->out) != line->len)
        rc = file_error(err, errno, "write", report->temp);
    report->count += rc == 0;
    buf_release(line);
    return rc;
}

static void put_text(struct buf *line, const char *key, const char *text, size_t len)
{
    buf_printf(line, ",\"%s\":", key);
    json_write_string(line, text, len);
}

int report_rejected(struct report *report, uint64_t number, const char *id, const char *text,
                    size_t len, const struct job_problems *problems, struct err *err)
{
    struct buf line;
    buf_init(&line, LINE_MAX_BYTES);
    buf_printf(&line, "{\"line\":%llu", (unsigned long long)number);
    if (id)
        put_text(&line, "id", id, strlen(id));
    buf_str(&line, ",\"problems\":");
    job_problems_write(problems, &line);
    put_text(&line, "text", text, len < TEXT_SHOWN_BYTES ? len : TEXT_SHOWN_BYTES);
    buf_char(&line, '}');
    return write_line(report, &line, err);
}

int report_failed(struct report *report, uint64_t number, const char *id, int attempts,
                  const struct err *reason, struct err *err)
{
    struct buf line;
    buf_init(&line, LINE_MAX_BYTES);
    buf_printf(&line, "{\"line\":%llu", (unsigned long long)number);
    put_text(&line, "id", id, strlen(id));
    buf_printf(&line, ",\"code\":\"%s\",\"class\":\"%s\",\"attempts\":%d",
               err_code_name(reason->code), err_class_name(reason->class), attempts);
    put_text(&line, "error", reason->message, strlen(reason->message));
    buf_char(&line, '}');
    return write_line(report, &line, err);
}

int report_close(struct report *report, struct err *err)
{
    if (!report->out) {
        unlink(report->path);
        return 0;
    }
    int error = fflush(report->out) == 0 && fsync(fileno(report->out)) == 0 ? 0 : errno;
    if (fclose(report->out) != 0 && error == 0)
        error = errno;
    report->out = NULL;
    if (error == 0 && rename(report->temp, report->path) != 0)
        error = errno;
    if (error == 0)
        return 0;
    unlink(report->temp);
    return file_error(err, error, "write", report->path);
}

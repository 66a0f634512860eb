#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Cuts a message that did not fit before a half-written UTF-8 character. */
static void trim_partial_character(char *text, size_t len)
{
    size_t start = len;
    while (start > 0 && len - start < 4 && ((unsigned char)text[start - 1] & 0xC0) == 0x80)
        start--;
    if (start == 0 || (unsigned char)text[start - 1] < 0xC0)
        return;
    unsigned char lead = (unsigned char)text[start - 1];
    size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (len - (start - 1) < want)
        text[start - 1] = '\0';
}

static void flatten(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7F)
            *text = ' ';
}

static void vformat(char out[ERR_MESSAGE_MAX_BYTES], const char *format, va_list args)
{
    int n = vsnprintf(out, ERR_MESSAGE_MAX_BYTES, format, args);
    if (n >= ERR_MESSAGE_MAX_BYTES)
        trim_partial_character(out, ERR_MESSAGE_MAX_BYTES - 1);
    flatten(out);
}

int err_set(struct err *err, enum err_code code, enum err_class class, const char *format, ...)
{
    if (!err)
        return -1;
    /* An argument may be the message that is being replaced. */
    char message[ERR_MESSAGE_MAX_BYTES];
    va_list args;
    va_start(args, format);
    vformat(message, format, args);
    va_end(args);
    err->code = code;
    err->class = class;
    memcpy(err->message, message, sizeof(message));
    return -1;
}

int err_prefix(struct err *err, const char *format, ...)
{
    if (!err)
        return -1;
    char message[ERR_MESSAGE_MAX_BYTES];
    va_list args;
    va_start(args, format);
    vformat(message, format, args);
    va_end(args);
    size_t used = strlen(message);
    int n = snprintf(message + used, sizeof(message) - used, ": %s", err->message);
    if (used + (size_t)n >= sizeof(message))
        trim_partial_character(message, sizeof(message) - 1);
    memcpy(err->message, message, sizeof(message));
    return -1;
}

const char *err_code_name(enum err_code code)
{
    switch (code) {
    case ERR_NONE:
        return "none";
    case ERR_INVALID:
        return "invalid";
    case ERR_FORMAT:
        return "format";
    case ERR_NOT_FOUND:
        return "not_found";
    case ERR_CONFLICT:
        return "conflict";
    case ERR_UNSUPPORTED:
        return "unsupported";
    case ERR_LIMIT:
        return "limit";
    case ERR_MEMORY:
        return "memory";
    case ERR_IO:
        return "io";
    case ERR_DEVICE:
        return "device";
    case ERR_CANCELLED:
        return "cancelled";
    }
    return "unknown";
}

const char *err_class_name(enum err_class class)
{
    switch (class) {
    case ERR_REJECT:
        return "reject";
    case ERR_RETRY:
        return "retry";
    case ERR_FATAL:
        return "fatal";
    }
    return "unknown";
}

_Noreturn void assert_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}

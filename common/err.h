/*
 * err.h: the one error type.
 *
 * The caller owns a `struct err` (usually on its stack) and passes it as the last parameter; a
 * function that fails fills it in and returns -1. Nothing is allocated, so failing never fails.
 * The class decides a job's fate; the code is for programs, the message for people: it names the
 * file or field and says what to do.
 *
 *     struct err err;
 *     if (tensor_file_open(&file, path, &err) != 0)
 *         fprintf(stderr, "%s\n", err.message);
 */
#ifndef ATELIER_COMMON_ERR_H
#define ATELIER_COMMON_ERR_H

#define ERR_MESSAGE_MAX_BYTES 768

#define must_check __attribute__((warn_unused_result))

enum err_class {
    ERR_REJECT, /* the request or its input is at fault: trying again cannot help */
    ERR_RETRY,  /* circumstances are: the same request may succeed later or elsewhere */
    ERR_FATAL,  /* this process cannot go on */
};

enum err_code {
    ERR_NONE,
    ERR_INVALID,     /* a value out of its range, a contradiction */
    ERR_FORMAT,      /* bytes that do not parse */
    ERR_NOT_FOUND,   /* a named thing that is not there */
    ERR_CONFLICT,    /* the same name with other content */
    ERR_UNSUPPORTED, /* understood, but not offered */
    ERR_LIMIT,       /* over a stated maximum */
    ERR_MEMORY,
    ERR_IO,
    ERR_DEVICE,
    ERR_CANCELLED,
};

struct err {
    enum err_code code;
    enum err_class class;
    char message[ERR_MESSAGE_MAX_BYTES]; /* one sentence, no newline, cut to fit */
};

/* Fills in `err` (which may be NULL) and returns -1, so that `return err_set(...)` reads well. */
int err_set(struct err *err, enum err_code code, enum err_class class, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "context: " before the message that is already there. Returns -1. */
int err_prefix(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The code's name in lower case with underscores ("not_found"), as records carry it. */
const char *err_code_name(enum err_code code);

/* The class's name in lower case ("reject", "retry", "fatal"). */
const char *err_class_name(enum err_class class);

/*
 * ASSERT is for bugs only, stays on in release, has no side effects, and never judges input.
 */
#define ASSERT(condition) ((condition) ? (void)0 : assert_failed(#condition, __FILE__, __LINE__))
_Noreturn void assert_failed(const char *condition, const char *file, int line);

#endif

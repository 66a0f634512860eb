#include "common/conf_file.h"

#include "common/file.h"
#include "common/nearest.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define KEYS_MAX 256
#define FROM_BYTES 256

static const char *const programs[] = {"atelier", "atelier-coordinator", "atelier-worker"};

#define PROGRAM_COUNT (sizeof(programs) / sizeof(programs[0]))

char *conf_text(const char *path, struct err *err)
{
    struct buf text;
    char *copy = NULL;
    buf_init(&text, CONF_FILE_MAX_BYTES);
    if (file_read(&text, path, err) != 0) {
        buf_release(&text);
        return NULL;
    }
    copy = mmap(NULL, text.len + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) {
        copy = NULL;
        file_error(err, errno, "map memory for", path);
    } else {
        memcpy(copy, text.data, text.len); /* the mapping is zeroed: the NUL is there */
    }
    buf_release(&text);
    return copy;
}

/* Whether the section is `table`'s program: the first word of its command. */
static bool is_own(const struct conf_table *table, const char *section)
{
    size_t len = strcspn(table->command, " ");
    return strlen(section) == len && memcmp(section, table->command, len) == 0;
}

static int check_section(const char *path, size_t line, const char *section, struct err *err)
{
    char hint[NEAREST_HINT_BYTES];
    for (size_t i = 0; i < PROGRAM_COUNT; i++)
        if (strcmp(section, programs[i]) == 0)
            return 0;
    nearest_hint(hint, section, programs, PROGRAM_COUNT);
    return err_set(err, ERR_INVALID, ERR_FATAL,
                   "%s:%zu: \"[%.80s]\" is no program; there are [atelier], [atelier-coordinator] "
                   "and [atelier-worker]%s",
                   path, line, section, hint);
}

static bool is_of_family(const struct conf_table *table, const char *key)
{
    for (const struct conf_table *const *other = table->family; other && *other; other++)
        if (conf_find(*other, key, strlen(key)))
            return true;
    return false;
}

/* Adds the table's keys, each once. */
static size_t gather(const struct conf_table *table, const char *names[KEYS_MAX], size_t count)
{
    for (size_t i = 0; i < table->row_count && count < KEYS_MAX; i++) {
        size_t at = 0;
        while (at < count && strcmp(names[at], table->rows[i].key) != 0)
            at++;
        names[at] = table->rows[i].key;
        count += at == count;
    }
    return count;
}

static int fail_unknown(const struct conf_table *table, const char *path, size_t line,
                        const char *key, bool shared, struct err *err)
{
    const char *names[KEYS_MAX];
    char hint[NEAREST_HINT_BYTES];
    size_t count = gather(table, names, 0);
    for (const struct conf_table *const *other = table->family; other && *other; other++)
        count = gather(*other, names, count);
    nearest_hint(hint, key, names, count);
    return err_set(err, ERR_INVALID, ERR_FATAL, "%s:%zu: unknown key \"%.80s\"%s%s", path, line,
                   key, hint,
                   shared ? " (what is one program's alone goes under [atelier], "
                            "[atelier-coordinator] or [atelier-worker])"
                          : "");
}

/* Cuts white space off both ends, in place. */
static char *trim(char *text)
{
    text += strspn(text, " \t\r");
    size_t len = strlen(text);
    while (len > 0 && strchr(" \t\r", text[len - 1]))
        text[--len] = '\0';
    return text;
}

struct reading {
    const struct conf_table *table;
    const char *path;
    size_t line;
    bool own, shared; /* the section is this program's, is none yet */
};

static int take_section(struct reading *reading, char *text, struct err *err)
{
    size_t len = strlen(text);
    if (text[len - 1] != ']')
        return err_set(err, ERR_FORMAT, ERR_FATAL, "%s:%zu: a section is [program]", reading->path,
                       reading->line);
    text[len - 1] = '\0';
    char *name = trim(text + 1);
    reading->shared = false;
    reading->own = is_own(reading->table, name);
    return reading->own ? 0 : check_section(reading->path, reading->line, name, err);
}

/* The row that a line sets, its value in `value`; NULL with 0 where it is not this table's. */
static int take_line(const struct reading *reading, char *text, const struct conf_row **row,
                     char **value, struct err *err)
{
    char *equals = strchr(text, '=');
    *row = NULL;
    if (!equals || equals == text)
        return err_set(err, ERR_FORMAT, ERR_FATAL, "%s:%zu: a line is `key = value`", reading->path,
                       reading->line);
    *equals = '\0';
    char *key = trim(text);
    *value = trim(equals + 1);
    if (!reading->own)
        return 0;
    *row = conf_find(reading->table, key, strlen(key));
    return *row || is_of_family(reading->table, key)
               ? 0
               : fail_unknown(reading->table, reading->path, reading->line, key, reading->shared,
                              err);
}

int conf_file_read(const struct conf_table *table, const char *path,
                   int (*set)(const struct conf_row *row, void *options, const char *from,
                              const char *text, struct err *err),
                   void *options, struct err *err)
{
    struct reading reading = {.table = table, .path = path, .own = true, .shared = true};
    const struct conf_row *row;
    char *rest = conf_text(path, err), *line, *value, from[FROM_BYTES];
    if (!rest) {
        err->class = ERR_FATAL;
        return err_prefix(err, "the configuration file");
    }
    while ((line = strsep(&rest, "\n")) != NULL) {
        reading.line++;
        line = trim(line);
        if (line[0] == '\0' || line[0] == '#')
            continue;
        if (line[0] == '[') {
            if (take_section(&reading, line, err) != 0)
                return -1;
            continue;
        }
        if (take_line(&reading, line, &row, &value, err) != 0)
            return -1;
        if (!row)
            continue;
        snprintf(from, sizeof(from), "%.180s:%zu: %s", path, reading.line, row->key);
        if (set(row, options, from, value, err) != 0)
            return -1;
    }
    return 0;
}

#include "common/conf.h"

#include "common/conf_file.h"
#include "common/nearest.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX 64
#define HELP_COLUMN 28

const struct conf_row *conf_find(const struct conf_table *table, const char *key, size_t len)
{
    for (size_t i = 0; i < table->row_count; i++)
        if (strlen(table->rows[i].key) == len && memcmp(table->rows[i].key, key, len) == 0)
            return &table->rows[i];
    return NULL;
}

static int bad(struct err *err, const char *from, const char *value, const char *wanted)
{
    return err_set(err, ERR_INVALID, ERR_FATAL, "%s: \"%.80s\" is not %s", from, value, wanted);
}

static int parse_flag(bool *out, const char *from, const char *text, struct err *err)
{
    static const struct {
        const char *word;
        bool value;
    } words[] = {{"yes", true},    {"no", false}, {"true", true},
                 {"false", false}, {"1", true},   {"0", false}};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(text, words[i].word) == 0) {
            *out = words[i].value;
            return 0;
        }
    return bad(err, from, text, "yes or no");
}

static int parse_number(const struct conf_row *row, double *out, const char *from, const char *text,
                        struct err *err)
{
    char *end, wanted[96];
    *out = strtod(text, &end);
    bool whole = row->type != CONF_INT || *out == floor(*out);
    if (end != text && *end == '\0' && isfinite(*out) && whole && *out >= row->min &&
        *out <= row->max)
        return 0;
    snprintf(wanted, sizeof(wanted), "%s from %.15g to %.15g",
             row->type == CONF_INT ? "a whole number" : "a number", row->min, row->max);
    return bad(err, from, text, wanted);
}

static int parse_bytes(uint64_t *out, const char *from, const char *text, struct err *err)
{
    static const char units[] = "KMGT";
    char *end;
    double value = strtod(text, &end);
    bool given = end != text;
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit) {
        value *= exp2(10.0 * (double)(unit - units + 1));
        end++;
        if (strcmp(end, "iB") == 0)
            end += 2;
    }
    if (!given || *end != '\0' || !(value >= 0 && value < 0x1p60))
        return bad(err, from, text, "a size such as 800M or 12G");
    *out = (uint64_t)value;
    return 0;
}

/* Whether the text is the choice, or has a number where the choice has its N. */
static bool is_choice(const char *choice, const char *text)
{
    size_t len = strlen(choice), digits;
    if (len < 2 || strcmp(choice + len - 2, ":N") != 0)
        return strcmp(choice, text) == 0;
    if (strncmp(choice, text, len - 1) != 0)
        return false;
    digits = strspn(text + len - 1, "0123456789");
    return digits > 0 && digits <= 3 && text[len - 1 + digits] == '\0';
}

static int parse_choice(const struct conf_row *row, const char *from, const char *text,
                        struct err *err)
{
    char wanted[256];
    size_t used = 0;
    for (const char *const *choice = row->choices; *choice; choice++) {
        if (is_choice(*choice, text))
            return 0;
        used += (size_t)snprintf(wanted + used, sizeof(wanted) - used, "%s%s",
                                 used == 0 ? "one of " : ", ", *choice);
        ASSERT(used < sizeof(wanted));
    }
    return bad(err, from, text, wanted);
}

/* A secret is often written with an editor: newlines at the end are not of it. */
static int parse_file(const char **out, const char *from, const char *path, struct err *err)
{
    char *text = conf_text(path, err);
    if (!text) {
        err->class = ERR_FATAL;
        return err_prefix(err, "%s", from);
    }
    size_t len = strlen(text);
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        text[--len] = '\0';
    *out = text;
    return 0;
}

/* `from` names where the text came from, for messages. */
static int set(const struct conf_row *row, void *options, const char *from, const char *text,
               struct err *err)
{
    void *at = (char *)options + row->offset;
    double number;
    switch (row->type) {
    case CONF_FLAG:
        return parse_flag(at, from, text, err);
    case CONF_INT:
        if (parse_number(row, &number, from, text, err) != 0)
            return -1;
        *(int64_t *)at = (int64_t)number;
        return 0;
    case CONF_NUMBER:
        return parse_number(row, at, from, text, err);
    case CONF_BYTES:
        return parse_bytes(at, from, text, err);
    case CONF_CHOICE:
        if (parse_choice(row, from, text, err) != 0)
            return -1;
        *(const char **)at = text;
        return 0;
    case CONF_STRING:
        *(const char **)at = text;
        return 0;
    case CONF_FILE:
        return parse_file(at, from, text, err);
    }
    return 0;
}

static void variable_name(const struct conf_row *row, char *out, size_t size)
{
    snprintf(out, size, "ATELIER_%s", row->key);
    for (char *c = out; *c; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

static int set_defaults(const struct conf_table *table, void *options, struct err *err)
{
    for (size_t i = 0; i < table->row_count; i++) {
        const struct conf_row *row = &table->rows[i];
        if (row->fallback && set(row, options, row->key, row->fallback, err) != 0)
            return -1;
    }
    return 0;
}

static int set_environment(const struct conf_table *table, void *options, struct err *err)
{
    for (size_t i = 0; i < table->row_count; i++) {
        const struct conf_row *row = &table->rows[i];
        char variable[80];
        variable_name(row, variable, sizeof(variable));
        const char *text = getenv(variable);
        if (text && *text && set(row, options, variable, text, err) != 0)
            return -1;
    }
    return 0;
}

/* Looked for before the other flags, which count for more than what the file says. NULL: none. */
static const char *find_file(int argc, char **argv)
{
    const char *path = getenv("ATELIER_CONFIG");
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strncmp(argv[i], "--config=", 9) == 0)
            path = argv[i] + 9;
        else if (strcmp(argv[i], "--config") == 0 && i + 1 < argc)
            path = argv[++i];
    }
    return path && path[0] != '\0' ? path : NULL;
}

static int fail_unknown(const struct conf_table *table, const char *word, struct err *err)
{
    const char *names[ROWS_MAX];
    char hint[NEAREST_HINT_BYTES];
    ASSERT(table->row_count < ROWS_MAX);
    for (size_t i = 0; i < table->row_count; i++)
        names[i] = table->rows[i].key;
    names[table->row_count] = "config";
    char key[80];
    snprintf(key, sizeof(key), "%.*s", (int)strcspn(word + 2, "="), word + 2);
    nearest_hint(hint, key, names, table->row_count + 1);
    return err_set(err, ERR_INVALID, ERR_FATAL, "unknown option --%s%s", key, hint);
}

/* Takes argv[*i] and, where it has one, its value. */
static int parse_option(const struct conf_table *table, void *options, int argc, char **argv,
                        int *i, struct err *err)
{
    const char *word = argv[*i];
    size_t len = strcspn(word + 2, "=");
    const struct conf_row *row = conf_find(table, word + 2, len);
    char from[96];
    if (len == 6 && strncmp(word, "--config", 8) == 0) { /* find_file has it */
        if (word[8] != '=' && ++*i >= argc)
            return err_set(err, ERR_INVALID, ERR_FATAL, "--config needs a value: FILE");
        return 0;
    }
    if (!row)
        return fail_unknown(table, word, err);
    snprintf(from, sizeof(from), "--%s", row->key);
    if (word[2 + len] == '=')
        return set(row, options, from, word + 2 + len + 1, err);
    if (row->type == CONF_FLAG)
        return set(row, options, from, "yes", err);
    if (*i + 1 >= argc)
        return err_set(err, ERR_INVALID, ERR_FATAL, "%s needs a value: %s", from, row->value_name);
    return set(row, options, from, argv[++*i], err);
}

int conf_parse(const struct conf_table *table, void *options, int argc, char **argv,
               struct err *err)
{
    const char *file = find_file(argc, argv);
    if (set_defaults(table, options, err) != 0 ||
        (file && conf_file_read(table, file, set, options, err) != 0) ||
        set_environment(table, options, err) != 0)
        return -1;
    const char **positional =
        table->positional ? (const char **)((char *)options + table->positional_offset) : NULL;
    bool only_words = false;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (!only_words && strcmp(word, "--") == 0) {
            only_words = true;
        } else if (!only_words && (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)) {
            return 1;
        } else if (!only_words && strncmp(word, "--", 2) == 0) {
            if (parse_option(table, options, argc, argv, &i, err) != 0)
                return -1;
        } else if (!only_words && word[0] == '-' && word[1] != '\0') {
            return err_set(err, ERR_INVALID, ERR_FATAL, "unknown option %s (see: %s --help)", word,
                           table->command);
        } else if (!positional || *positional) {
            return err_set(err, ERR_INVALID, ERR_FATAL, "one word too many: \"%.80s\" (usage: %s)",
                           word, table->usage);
        } else {
            *positional = word;
        }
    }
    return 0;
}

void conf_help(const struct conf_table *table, struct buf *out)
{
    buf_printf(out, "%s\n\nusage: %s\n\n", table->summary, table->usage);
    for (size_t i = 0; i < table->row_count; i++) {
        const struct conf_row *row = &table->rows[i];
        char left[80];
        int n = snprintf(left, sizeof(left), "  --%s%s%s", row->key, row->value_name ? " " : "",
                         row->value_name ? row->value_name : "");
        buf_printf(out, "%s%*s%s", left, n < HELP_COLUMN ? HELP_COLUMN - n : 1, "", row->help);
        if (row->type == CONF_CHOICE) {
            buf_str(out, ":");
            for (const char *const *choice = row->choices; *choice; choice++)
                buf_printf(out, "%s %s", choice == row->choices ? "" : ",", *choice);
        }
        if (row->fallback)
            buf_printf(out, " [%s]", row->fallback);
        buf_char(out, '\n');
    }
    buf_printf(out, "%-*s%s", HELP_COLUMN, "  --config FILE",
               "lines of `key = value` for the options above; flags and ATELIER_… variables come "
               "first\n");
}

static void write_range(const struct conf_row *row, struct buf *out)
{
    if (row->type == CONF_INT || row->type == CONF_NUMBER)
        buf_printf(out, "%.15g … %.15g", row->min, row->max);
    else if (row->type == CONF_BYTES)
        buf_str(out, "bytes, or with K, M, G, T");
    else if (row->type == CONF_FLAG)
        buf_str(out, "flag");
    else if (row->type == CONF_CHOICE)
        for (const char *const *choice = row->choices; *choice; choice++)
            buf_printf(out, "%s`%s`", choice == row->choices ? "" : ", ", *choice);
    else
        buf_str(out, row->type == CONF_FILE ? "a file that holds it" : "text");
}

void conf_markdown(const struct conf_table *table, struct buf *out)
{
    buf_printf(out, "## %s\n\n%s\n\n    %s\n\n", table->command, table->summary, table->usage);
    if (table->row_count == 0)
        return;
    buf_str(out, "| flag | environment | value | default | meaning |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < table->row_count; i++) {
        const struct conf_row *row = &table->rows[i];
        char variable[80];
        variable_name(row, variable, sizeof(variable));
        buf_printf(out, "| `--%s%s%s` | `%s` | ", row->key, row->value_name ? " " : "",
                   row->value_name ? row->value_name : "", variable);
        write_range(row, out);
        buf_printf(out, " | %s | %s |\n", row->fallback ? row->fallback : "", row->help);
    }
    buf_char(out, '\n');
}

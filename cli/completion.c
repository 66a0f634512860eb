/*
 * atelier completion: a script that teaches a shell the commands, their options and the values that
 * an option can have, all from the tables that read them.
 */
#include "cli/command.h"
#include "common/buf.h"
#include "common/conf.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define SCRIPT_MAX_BYTES (1u << 20)

/* Whether the option's value names a file or a directory, as its help calls it. */
static bool is_path(const struct conf_row *row)
{
    return row->value_name &&
           (strcmp(row->value_name, "FILE") == 0 || strcmp(row->value_name, "DIR") == 0);
}

static void put_choices(const struct conf_row *row, struct buf *out)
{
    for (const char *const *choice = row->choices; *choice; choice++)
        if (!strchr(*choice, ':')) /* one with a number to fill in */
            buf_printf(out, "%s%s", choice == row->choices ? "" : " ", *choice);
}

/* ---- bash ---- */

static void put_bash_values(const struct command *command, struct buf *out)
{
    const struct conf_table *table = command->table;
    for (size_t i = 0; table && i < table->row_count; i++) {
        const struct conf_row *row = &table->rows[i];
        if (row->type == CONF_FLAG || is_path(row))
            continue;
        buf_printf(out, "    '%s --%s') values='", command->name, row->key);
        if (row->type == CONF_CHOICE)
            put_choices(row, out);
        buf_str(out, "' ;;\n");
    }
}

static void put_bash_words(const struct command *command, struct buf *out)
{
    const struct conf_table *table = command->table;
    buf_printf(out, "    %s) words='%s", command->name, command->words ? command->words : "");
    for (size_t i = 0; table && i < table->row_count; i++)
        buf_printf(out, " --%s", table->rows[i].key);
    buf_printf(out, "%s' ;;\n", table ? " --config --help" : "");
}

/* A word that the tables do not know (a job, a file) is left to bash's own way with files. */
static void write_bash(struct buf *out)
{
    buf_str(out, "# bash completion of atelier: source <(atelier completion bash)\n"
                 "_atelier()\n{\n"
                 "    local word=\"${COMP_WORDS[COMP_CWORD]}\" words= values=-\n"
                 "    local place=\"${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD - 1]}\"\n"
                 "    COMPREPLY=()\n"
                 "    if ((COMP_CWORD == 1)); then\n"
                 "        mapfile -t COMPREPLY < <(compgen -W '");
    for (const struct command *command = cli_commands; command->name; command++)
        buf_printf(out, "%s ", command->name);
    buf_str(out, "' -- \"$word\")\n        return\n    fi\n    case \"$place\" in\n");
    for (const struct command *command = cli_commands; command->name; command++)
        put_bash_values(command, out);
    buf_str(out, "    esac\n"
                 "    if [[ $values != - ]]; then\n"
                 "        mapfile -t COMPREPLY < <(compgen -W \"$values\" -- \"$word\")\n"
                 "        return\n    fi\n"
                 "    case \"${COMP_WORDS[1]}\" in\n");
    for (const struct command *command = cli_commands; command->name; command++)
        put_bash_words(command, out);
    buf_str(out, "    esac\n"
                 "    if [[ $word == -* || $words != \" \"* ]]; then\n"
                 "        mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n"
                 "    fi\n}\n"
                 "complete -o default -F _atelier atelier\n");
}

/* ---- zsh ---- */

/* Text in single quotes inside an _arguments specification. */
static void put_zsh_text(const char *text, struct buf *out)
{
    for (; *text; text++) {
        if (*text == '\'')
            buf_str(out, "'\\''");
        else if (strchr("[]:\\", *text))
            buf_printf(out, "\\%c", *text);
        else
            buf_char(out, *text);
    }
}

static void put_zsh_row(const struct conf_row *row, struct buf *out)
{
    buf_printf(out, " \\\n            '--%s[", row->key);
    put_zsh_text(row->help, out);
    buf_char(out, ']');
    if (row->type != CONF_FLAG) {
        buf_char(out, ':');
        put_zsh_text(row->value_name, out);
        buf_char(out, ':');
    }
    if (row->type == CONF_CHOICE) {
        buf_char(out, '(');
        put_choices(row, out);
        buf_char(out, ')');
    } else if (is_path(row)) {
        buf_str(out, "_files");
    }
    buf_char(out, '\'');
}

static void put_zsh_command(const struct command *command, struct buf *out)
{
    const struct conf_table *table = command->table;
    buf_printf(out, "    %s)\n        _arguments", command->name);
    for (size_t i = 0; table && i < table->row_count; i++)
        put_zsh_row(&table->rows[i], out);
    if (table)
        buf_str(out, " \\\n            '--config[a file of options]:FILE:_files' "
                     "'--help[say more]'");
    if (command->words)
        buf_printf(out, " \\\n            '1:word:(%s)'", command->words);
    buf_str(out, " \\\n            '*:file:_files'\n        ;;\n");
}

static void write_zsh(struct buf *out)
{
    buf_str(out,
            "#compdef atelier\n"
            "# zsh completion of atelier: source <(atelier completion zsh), or as _atelier in a\n"
            "# folder of $fpath\n"
            "_atelier()\n{\n    local -a commands=(\n");
    for (const struct command *command = cli_commands; command->name; command++) {
        buf_printf(out, "        '%s:", command->name);
        put_zsh_text(command->help, out);
        buf_str(out, "'\n");
    }
    buf_str(out, "    )\n"
                 "    if ((CURRENT == 2)); then\n"
                 "        _describe command commands\n"
                 "        return\n    fi\n"
                 "    shift words\n    ((CURRENT--))\n"
                 "    case $words[1] in\n");
    for (const struct command *command = cli_commands; command->name; command++)
        put_zsh_command(command, out);
    buf_str(out, "    esac\n}\n"
                 "if [[ $funcstack[1] == _atelier ]]; then\n    _atelier \"$@\"\n"
                 "else\n    compdef _atelier atelier\nfi\n");
}

int command_completion(int argc, char **argv)
{
    struct buf out;
    bool bash = argc == 1 && strcmp(argv[0], "bash") == 0;
    if (!bash && (argc != 1 || strcmp(argv[0], "zsh") != 0)) {
        fprintf(stderr, "usage: atelier completion bash|zsh\n"
                        "in ~/.bashrc: source <(atelier completion bash)\n");
        return EXIT_USAGE;
    }
    buf_init(&out, SCRIPT_MAX_BYTES);
    if (bash)
        write_bash(&out);
    else
        write_zsh(&out);
    fputs(out.data, stdout);
    buf_release(&out);
    return EXIT_ALL_DONE;
}

/* atelier model inspect: what a checkpoint is, from its headers. */
#include "cli/command.h"
#include "common/conf.h"
#include "engine/engine.h"

#include <stdio.h>
#include <string.h>

struct model_command_options {
    const char *path;
    bool json;
};

static const struct conf_row rows[] = {
    {"json", CONF_FLAG, offsetof(struct model_command_options, json), NULL, NULL, 0, 0, NULL,
     "a JSON object"},
};

const struct conf_table model_table = {
    .command = "atelier model inspect",
    .family = cli_tables,
    .usage = "atelier model inspect PATH [--json]",
    .summary = "Says what a model file or folder is: family, parts, shapes, and what would be "
               "refused.",
    .rows = rows,
    .row_count = 1,
    .positional = "PATH",
    .positional_offset = offsetof(struct model_command_options, path),
};

int command_model(int argc, char **argv)
{
    struct model_command_options options = {0};
    struct err err;
    struct buf out;
    int rc = -1;
    buf_init(&out, 64u << 20);
    if (argc < 1 || strcmp(argv[0], "inspect") != 0) {
        fprintf(stderr, "usage: %s\n", model_table.usage);
        return EXIT_USAGE;
    }
    rc = conf_parse(&model_table, &options, argc - 1, argv + 1, &err);
    if (rc > 0) {
        conf_help(&model_table, &out);
        fputs(out.data, stdout);
        buf_release(&out);
        return EXIT_ALL_DONE;
    }
    if (rc < 0 || !options.path) {
        fprintf(stderr, "atelier model: %s\n", rc < 0 ? err.message : model_table.usage);
        return EXIT_USAGE;
    }
    rc = model_inspect(options.path, options.json, &out, &err);
    fputs(out.data, stdout);
    if (rc != 0)
        fprintf(stderr, "atelier model: %s\n", err.message);
    buf_release(&out);
    return rc == 0 ? EXIT_ALL_DONE : EXIT_FATAL;
}

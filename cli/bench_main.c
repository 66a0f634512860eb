/* The benchmark as a program of its own, for machines that have nothing else: see preset cuda. */
#include "cli/command.h"
#include "common/conf.h"

#include <stddef.h>

const struct conf_table *const cli_tables[] = {&bench_table, NULL};

int main(int argc, char **argv)
{
    return command_bench(argc - 1, argv + 1);
}

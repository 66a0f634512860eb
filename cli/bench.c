/*
 * atelier bench: what the engine makes of this machine, with the published networks at full size
 * and random weights.
 */
#include "cli/bench.h"

#include "cli/command.h"
#include "common/conf.h"
#include "engine/measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const FAMILIES[] = {"sd1", "sdxl", NULL};
static const char *const PRECISIONS[] = {"auto", "f32", "bf16", "f16", NULL};

#define AT(member) offsetof(struct bench_options, member)

static const struct conf_row rows[] = {
    {"device", CONF_STRING, AT(backend), "NAME", "auto", 0, 0, NULL,
     "back end: auto, cpu, cuda, dnnl or ref"},
    {"isa", CONF_STRING, AT(isa), "NAME", "auto", 0, 0, NULL,
     "highest instruction set: auto, generic, avx2, avx512, avx512_bf16, amx_bf16"},
    {"precision", CONF_CHOICE, AT(precision), "NAME", "auto", 0, 0, PRECISIONS, "computing type"},
    {"threads", CONF_INT, AT(threads), "N", "0", 0, 512, NULL, "0: one per core"},
    {"family", CONF_CHOICE, AT(family), "NAME", "sd1", 0, 0, FAMILIES,
     "whose networks: SD1.5's or SDXL's; of engine"},
    {"width", CONF_INT, AT(width), "N", "512", 64, 2048, NULL,
     "pixels; of engine, and of tune with a model"},
    {"height", CONF_INT, AT(height), "N", "512", 64, 2048, NULL,
     "pixels; of engine, and of tune with a model"},
    {"batch", CONF_INT, AT(batch), "N", "1", 1, 16, NULL, "pictures at once; of engine and tune"},
    {"steps", CONF_INT, AT(steps), "N", "2", 2, 500, NULL, "steps of each picture; of scenes"},
    {"weights-16bit", CONF_FLAG, AT(weights_16bit), NULL, NULL, 0, 0, NULL,
     "keep 16-bit weights 16-bit when computing in f32"},
    {"json", CONF_FLAG, AT(json), NULL, NULL, 0, 0, NULL, "a JSON object; not of tune"},
    {"model", CONF_STRING, AT(model), "PATH", NULL, 0, 0, NULL,
     "the layers of this model at width and height, instead of SD1.5's and SDXL's at theirs; of "
     "tune"},
    {"out", CONF_STRING, AT(out), "FILE", NULL, 0, 0, NULL,
     "keeps the lines of C that are printed at the end, as they come; of tune"},
};

const struct conf_table bench_table = {
    .command = "atelier bench",
    .family = cli_tables,
    .usage = "atelier bench engine|switch|scenes|tune [options]  (or: atelier bench fleet --help)",
    .summary = "Measures the engine with models at full size and random weights. engine: seconds "
               "per step and per decode, the machine's ceiling, memory, what a new size costs. "
               "switch: changing models and LoRAs. scenes: the field's five scenes. tune: which "
               "tiles a card computes each layer fastest with, as lines for engine/cuda/tuned.c.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "engine|switch|scenes|tune",
    .positional_offset = AT(what),
};

static const struct {
    const char *name;
    int (*run)(struct engine *engine, const struct bench_options *options, struct err *err);
    const char *backend; /* instead of "auto" */
} BENCHMARKS[] = {{"engine", bench_engine, "auto"},
                  {"switch", bench_switch, "auto"},
                  {"scenes", bench_scenes, "auto"},
                  {"tune", bench_tune, "cuda"}};

/* ---- shared ---- */

double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void bench_say(const struct bench_options *o, const char *what)
{
    if (!o->json)
        fprintf(stderr, "measuring %s\n", what);
}

const char *bench_precision(enum precision precision)
{
    return PRECISIONS[precision];
}

int bench_temporary(char path[BENCH_PATH_BYTES], struct err *err)
{
    const char *folder = getenv("TMPDIR");
    int length, fd;

    folder = folder != NULL && *folder != '\0' ? folder : "/tmp";
    length = snprintf(path, BENCH_PATH_BYTES, "%s/atelier-bench-XXXXXX.safetensors", folder);
    fd = length < BENCH_PATH_BYTES ? mkstemps(path, (int)strlen(".safetensors")) : -1;
    if (fd < 0)
        return err_set(err, ERR_IO, ERR_FATAL, "%s: no file can be made there; TMPDIR says where",
                       folder);
    close(fd);
    return 0;
}

/* ---- a LoRA ---- */

static int write_lora(const struct model *model, const char *path, struct err *err)
{
    FILE *file = fopen(path, "wb");
    bool written = false;
    struct buf bytes;
    int rc;

    buf_init(&bytes, (size_t)1 << 30);
    rc = measure_lora(model, BENCH_LORA_RANK, &bytes, err);
    if (file != NULL && rc == 0)
        written = fwrite(bytes.data, 1, bytes.len, file) == bytes.len;
    if (file != NULL && fclose(file) != 0)
        written = false;
    if (rc == 0 && !written)
        rc = err_set(err, ERR_IO, ERR_FATAL, "%s cannot be written", path);
    buf_release(&bytes);
    return rc;
}

static int load_lora(struct model *model, const char *path, struct adapter **adapter,
                     struct bench_lora *lora, struct err *err)
{
    double begin = bench_now(), seconds;

    if (engine_load_adapter(adapter, model, path, err) != 0)
        return -1;
    seconds = bench_now() - begin;
    lora->load = seconds < lora->load ? seconds : lora->load;
    if (measure_switch(model, *adapter, &seconds, err) != 0)
        return -1;
    lora->change = seconds < lora->change ? seconds : lora->change;
    return 0;
}

int bench_load_lora(struct model *model, struct adapter **adapter, struct bench_lora *lora,
                    struct err *err)
{
    char path[BENCH_PATH_BYTES];
    int rc;

    *adapter = NULL;
    *lora = (struct bench_lora){.load = 1e30, .change = 1e30};
    if (bench_temporary(path, err) != 0)
        return -1;
    rc = write_lora(model, path, err);
    for (int i = 0; i <= BENCH_REPEATS && rc == 0; i++) {
        engine_unload_adapter(*adapter);
        *adapter = NULL;
        rc = load_lora(model, path, adapter, lora, err);
    }
    unlink(path);
    if (rc == 0)
        lora->is = *adapter_info(*adapter);
    return rc;
}

/* ---- the command ---- */

/* What is free now, less a tenth: a benchmark has the machine with others. 0: not known. */
static size_t free_memory(void)
{
    char line[256];
    size_t kib = 0;
    FILE *file = fopen("/proc/meminfo", "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "MemAvailable: %zu kB", &kib) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return (kib << 10) / 10 * 9;
}

static int run(const struct bench_options *o, size_t benchmark)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct engine *engine;
    struct err err;
    int rc;

    options.backend = strcmp(o->backend, "auto") == 0 ? BENCHMARKS[benchmark].backend : o->backend;
    options.isa = o->isa;
    options.threads = (int)o->threads;
    options.weights_16bit = o->weights_16bit;
    if (strcmp(options.backend, "cuda") != 0)
        options.memory_max_bytes = free_memory();
    for (int p = 0; PRECISIONS[p] != NULL; p++)
        if (strcmp(o->precision, PRECISIONS[p]) == 0)
            options.precision = (enum precision)p;
    if (engine_create(&engine, &options, &err) != 0) {
        fprintf(stderr, "atelier bench: %s\n", err.message);
        return exit_status_of(&err);
    }
    rc = BENCHMARKS[benchmark].run(engine, o, &err);
    if (rc != 0)
        fprintf(stderr, "atelier bench: %s\n", err.message);
    engine_free(engine);
    return rc == 0 ? EXIT_ALL_DONE : EXIT_FATAL;
}

int command_bench(int argc, char **argv)
{
    struct bench_options options = {0};
    struct err err;
#ifdef ATELIER_FLEET
    if (argc > 0 && strcmp(argv[0], "fleet") == 0)
        return bench_fleet(argc, argv);
#endif
    int rc = conf_parse(&bench_table, &options, argc, argv, &err);

    if (rc > 0) {
        struct buf out;
        buf_init(&out, 1u << 20);
        conf_help(&bench_table, &out);
        fputs(out.data, stdout);
        buf_release(&out);
        return EXIT_ALL_DONE;
    }
    for (size_t i = 0; rc == 0 && i < sizeof(BENCHMARKS) / sizeof(BENCHMARKS[0]); i++)
        if (options.what != NULL && strcmp(options.what, BENCHMARKS[i].name) == 0)
            return run(&options, i);
    fprintf(stderr, "atelier bench: %s\n", rc < 0 ? err.message : bench_table.usage);
    return EXIT_USAGE;
}

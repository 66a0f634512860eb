/*
 * atelier bench engine: SD1.5 or SDXL at full size beside the machine's own ceiling in the same
 * run.
 */
#include "cli/bench.h"
#include "common/json.h"
#include "engine/measure.h"

#include <stdio.h>
#include <string.h>

#define PICTURES_MAX 16 /* as --batch allows */

/* All times in seconds; 0: not measured. */
struct figures {
    struct engine_info info;
    char library[512]; /* what computes products beside the engine's own kernels */
    struct ceiling ceiling;
    double load, text, step, first_step, decode, first_decode;
    double new_first, new_step;
    struct profile step_profile, decode_profile;
    struct bench_lora lora;
    double lora_step;
    struct memory_use memory;
    size_t peak_bytes;
};

/* A second size of about as many pixels, to see what a new one costs. */
static int new_width(const struct bench_options *o)
{
    return (int)o->width / 64 * 56;
}

static int new_height(const struct bench_options *o)
{
    return (int)o->height / 64 * 72;
}

/* The process's largest resident set so far. */
static size_t peak_bytes(void)
{
    char line[256];
    size_t kib = 0;
    FILE *file = fopen("/proc/self/status", "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "VmHWM: %zu kB", &kib) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return kib << 10;
}

static void release(struct session **sessions, int count)
{
    for (int i = 0; i < count; i++)
        session_free(sessions[i]);
}

static int create_sessions(struct model *model, struct session **sessions, int count, int width,
                           int height, int steps, struct err *err)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = "a lighthouse on a cliff at dusk, oil painting";
    draw.width = width;
    draw.height = height;
    draw.steps = steps;
    draw.sampler = SAMPLER_DDIM;
    for (int i = 0; i < count; i++) {
        draw.seed = (uint64_t)i;
        if (session_create(&sessions[i], model, &draw, NULL, err) != 0) {
            release(sessions, i);
            return -1;
        }
    }
    return 0;
}

/* Creates `count` sessions of one size and steps them: the first step's time and the best of the
 * others. Sessions stay open for decoding. */
static int run_steps(struct model *model, struct session **sessions, int count, int width,
                     int height, int steps, double *text, double *first, double *best,
                     struct err *err)
{
    double begin = bench_now(), least = 1e30;

    if (create_sessions(model, sessions, count, width, height, steps, err) != 0)
        return -1;
    *text = (bench_now() - begin) / (2 * count);
    for (int i = 0; i < steps; i++) {
        begin = bench_now();
        if (engine_step(model, sessions, count, err) != 0) {
            release(sessions, count);
            return -1;
        }
        if (i == 0)
            *first = bench_now() - begin;
        else if (bench_now() - begin < least)
            least = bench_now() - begin;
    }
    *best = least;
    return 0;
}

static int run_decodes(struct session *session, double *first, double *best, struct err *err)
{
    double least = 1e30;

    for (int i = 0; i <= BENCH_REPEATS; i++) {
        struct image image;
        double begin = bench_now(), seconds;
        if (session_decode(session, &image, err) != 0)
            return -1;
        seconds = bench_now() - begin;
        image_release(&image);
        if (i == 0)
            *first = seconds;
        else if (seconds < least)
            least = seconds;
    }
    *best = least;
    return 0;
}

/* A LoRA's times, and a step with it. */
static int run_lora(struct model *model, const struct bench_options *o, struct figures *f,
                    struct err *err)
{
    struct adapter *adapter;
    struct session *session = NULL;
    struct draw draw = DRAW_INIT;
    double least = 1e30;
    int rc = bench_load_lora(model, &adapter, &f->lora, err);

    if (rc != 0) {
        f->lora = (struct bench_lora){0};
        return -1;
    }
    draw.prompt = "a lighthouse";
    draw.width = (int)o->width;
    draw.height = (int)o->height;
    draw.steps = 1 + BENCH_REPEATS;
    draw.sampler = SAMPLER_DDIM;
    draw.adapters[draw.adapter_count++] = (struct draw_adapter){.adapter = adapter, .scale = 0.75};
    rc = session_create(&session, model, &draw, NULL, err);
    for (int i = 0; i <= BENCH_REPEATS && rc == 0; i++) {
        double begin = bench_now(), seconds;
        rc = engine_step(model, &session, 1, err);
        seconds = bench_now() - begin;
        least = i > 0 && seconds < least ? seconds : least;
    }
    f->lora_step = rc == 0 ? least : 0;
    session_free(session);
    engine_unload_adapter(adapter);
    return rc;
}

/* One more step of as many pictures, and one more decode, with every operator timed. */
static int run_profiles(struct engine *engine, struct model *model, const struct bench_options *o,
                        struct figures *f, struct err *err)
{
    struct session *sessions[PICTURES_MAX];
    struct image image;
    int count = (int)o->batch, rc;

    if (create_sessions(model, sessions, count, (int)o->width, (int)o->height, 1, err) != 0)
        return -1;
    engine_profile(engine, &f->step_profile);
    rc = engine_step(model, sessions, count, err);
    if (rc == 0) {
        engine_profile(engine, &f->decode_profile);
        rc = session_decode(sessions[0], &image, err);
    }
    engine_profile(engine, NULL);
    release(sessions, count);
    if (rc == 0)
        image_release(&image);
    return rc;
}

/* Steps and decodes at the size that was asked for. */
static int run_size(struct engine *engine, struct model *model, const struct bench_options *o,
                    struct figures *f, struct err *err)
{
    struct session *sessions[PICTURES_MAX];
    int count = (int)o->batch, rc;

    if (run_steps(model, sessions, count, (int)o->width, (int)o->height, 1 + BENCH_REPEATS,
                  &f->text, &f->first_step, &f->step, err) != 0)
        return -1;
    rc = run_decodes(sessions[0], &f->first_decode, &f->decode, err);
    release(sessions, count);
    f->memory = engine_memory(engine);
    f->peak_bytes = peak_bytes();
    return rc;
}

static int run_new_size(struct model *model, const struct bench_options *o, struct figures *f,
                        struct err *err)
{
    struct session *sessions[PICTURES_MAX];
    int count = (int)o->batch;
    double text;

    if (run_steps(model, sessions, count, new_width(o), new_height(o), 1 + BENCH_REPEATS, &text,
                  &f->new_first, &f->new_step, err) != 0)
        return -1;
    release(sessions, count);
    return 0;
}

/* What matters most first: what was measured before a failure is reported all the same. */
static int measure(struct engine *engine, const struct bench_options *o, struct figures *f,
                   struct err *err)
{
    struct model *model;
    double begin;

    f->info = *engine_info(engine);
    measure_library(engine, f->library, sizeof(f->library));
    bench_say(o, "the ceiling");
    if (engine_ceiling(engine, &f->ceiling, err) != 0)
        return -1;
    bench_say(o, "loading");
    begin = bench_now();
    if (engine_load_synthetic(&model, engine, o->family, err) != 0)
        return -1;
    f->load = bench_now() - begin;
    bench_say(o, "steps and decoding");
    if (run_size(engine, model, o, f, err) != 0)
        return -1;
    bench_say(o, "operators");
    if (run_profiles(engine, model, o, f, err) != 0)
        return -1;
    bench_say(o, "a new size");
    if (run_new_size(model, o, f, err) != 0)
        return -1;
    bench_say(o, "a LoRA");
    return run_lora(model, o, f, err);
}

/* ---- reporting ---- */

static double total_flop(const struct profile *p)
{
    double flop = 0;
    for (int i = 0; i < OP_KIND_COUNT; i++)
        flop += p->ops[i].flop;
    return flop;
}

static void print_profile(const char *title, const struct profile *p, double ceiling)
{
    double total = 0;

    for (int i = 0; i < OP_KIND_COUNT; i++)
        total += p->ops[i].seconds;
    printf("\n%-14s  calls   seconds   share    GFLOP/s  of ceiling\n", title);
    for (int i = 0; i < OP_KIND_COUNT; i++) {
        const struct op_time *t = &p->ops[i];
        if (t->calls == 0)
            continue;
        printf("  %-12s  %5ld  %8.3f  %5.1f %%", op_kind_name((enum op_kind)i), t->calls,
               t->seconds, 100 * t->seconds / total);
        if (t->flop > 0)
            printf("  %9.0f  %7.0f %%", t->flop / t->seconds / 1e9,
                   100 * t->flop / t->seconds / ceiling);
        printf("\n");
    }
}

static void print_text(const struct bench_options *o, const struct figures *f)
{
    double flop = total_flop(&f->step_profile);
    double decode_flop = total_flop(&f->decode_profile);

    printf("%s, %s, %s, %s, %d threads\n", f->info.processor, f->info.backend, f->info.isa,
           bench_precision(f->info.precision), f->info.threads);
    if (f->library[0] != 0)
        printf("%s\n", f->library);
    printf("ceiling: matmul %.0f GFLOP/s, direct 3x3 convolution %.0f GFLOP/s\n",
           f->ceiling.matmul / 1e9, f->ceiling.direct / 1e9);
    printf("%s: load %.2f s, text encoding %.3f s per prompt\n", o->family, f->load, f->text);
    printf("step, %d x %lld x %lld with guidance: %.3f s (first %.3f s), %.0f GFLOP/s, %.0f %% of "
           "matmul\n",
           (int)o->batch, (long long)o->width, (long long)o->height, f->step, f->first_step,
           flop / f->step / 1e9, 100 * flop / f->step / f->ceiling.matmul);
    printf("VAE decode: %.3f s (first %.3f s), %.0f GFLOP/s, %.0f %% of matmul\n", f->decode,
           f->first_decode, decode_flop / f->decode / 1e9,
           100 * decode_flop / f->decode / f->ceiling.matmul);
    printf("new size %d x %d: first step %.3f s, next %.3f s, ratio %.2f\n", new_width(o),
           new_height(o), f->new_first, f->new_step, f->new_first / f->new_step);
    printf("LoRA, rank %d, %d layers, %.0f MB: load %.1f ms, switch %.1f ms, step of one picture "
           "%.3f s\n",
           BENCH_LORA_RANK, f->lora.is.layers, (double)f->lora.is.bytes / 1e6, 1e3 * f->lora.load,
           1e3 * f->lora.change, f->lora_step);
    printf(
        "memory: weights %.0f MB (transformed ones included), activations %.0f MB, peak %.0f MB, "
        "peak over weights %.0f MB\n",
        (double)f->memory.weights_bytes / 1e6, (double)f->memory.activations_bytes / 1e6,
        (double)f->peak_bytes / 1e6,
        ((double)f->peak_bytes - (double)f->memory.weights_bytes) / 1e6);
    print_profile("step", &f->step_profile, f->ceiling.matmul);
    print_profile("decode", &f->decode_profile, f->ceiling.matmul);
}

static void json_profile(struct buf *out, const char *name, const struct profile *p)
{
    const char *comma = "";

    buf_printf(out, "\"%s\":[", name);
    for (int i = 0; i < OP_KIND_COUNT; i++) {
        const struct op_time *t = &p->ops[i];
        if (t->calls == 0)
            continue;
        buf_printf(out, "%s{\"kind\":\"%s\",\"calls\":%ld,\"seconds\":%.6f,\"flop\":%.4g}", comma,
                   op_kind_name((enum op_kind)i), t->calls, t->seconds, t->flop);
        comma = ",";
    }
    buf_str(out, "],");
}

static void print_json(const struct bench_options *o, const struct figures *f)
{
    const char *precision = bench_precision(f->info.precision);
    struct buf out;

    buf_init(&out, 1u << 20);
    buf_str(&out, "{\"processor\":");
    json_write_string(&out, f->info.processor, strlen(f->info.processor));
    buf_printf(&out,
               ",\"family\":\"%s\",\"backend\":\"%s\",\"isa\":\"%s\",\"precision\":\"%s\","
               "\"threads\":%d,"
               "\"width\":%lld,\"height\":%lld,\"batch\":%lld,"
               "\"ceiling_matmul_flops\":%.4g,\"ceiling_direct_flops\":%.4g,"
               "\"load_s\":%.6f,\"text_s\":%.6f,\"step_s\":%.6f,\"first_step_s\":%.6f,"
               "\"decode_s\":%.6f,\"first_decode_s\":%.6f,\"new_size_first_s\":%.6f,"
               "\"new_size_step_s\":%.6f,\"lora_load_s\":%.5f,\"lora_switch_s\":%.5f,"
               "\"lora_step_s\":%.6f,\"step_flop\":%.4g,\"decode_flop\":%.4g,"
               "\"weights_bytes\":%zu,\"activations_bytes\":%zu,\"peak_bytes\":%zu,",
               o->family, f->info.backend, f->info.isa, bench_precision(f->info.precision),
               f->info.threads, (long long)o->width, (long long)o->height, (long long)o->batch,
               f->ceiling.matmul, f->ceiling.direct, f->load, f->text, f->step, f->first_step,
               f->decode, f->first_decode, f->new_first, f->new_step, f->lora.load, f->lora.change,
               f->lora_step, total_flop(&f->step_profile), total_flop(&f->decode_profile),
               f->memory.weights_bytes, f->memory.activations_bytes, f->peak_bytes);
    buf_str(&out, "\"library\":");
    json_write_string(&out, f->library, strlen(f->library));
    buf_char(&out, ',');
    json_profile(&out, "step_operators", &f->step_profile);
    json_profile(&out, "decode_operators", &f->decode_profile);
    /* A guided picture is two rows of the UNet. */
    buf_printf(&out,
               "\"results\":[{\"network\":\"unet\",\"precision\":\"%s\",\"width\":%lld,"
               "\"height\":%lld,\"batch\":%lld,\"seconds\":%.6f},"
               "{\"network\":\"vae_decode\",\"precision\":\"%s\",\"width\":%lld,"
               "\"height\":%lld,\"batch\":1,\"seconds\":%.6f}]}\n",
               precision, (long long)o->width, (long long)o->height, (long long)(2 * o->batch),
               f->step, precision, (long long)o->width, (long long)o->height, f->decode);
    fputs(out.data, stdout);
    buf_release(&out);
}

int bench_engine(struct engine *engine, const struct bench_options *o, struct err *err)
{
    struct figures figures = {0};
    int rc = measure(engine, o, &figures, err);

    if (o->json && figures.step > 0)
        print_json(o, &figures);
    else if (rc == 0)
        print_text(o, &figures);
    return rc;
}

/*
 * atelier bench tune: fills engine/cuda/tuned.c. Each product of the published networks, or of one
 * model, is timed with every tile; the fastest are printed as lines of C, and kept in a file that
 * is whole after each product, so that an interruption loses one.
 */
#include "cli/bench.h"
#include "common/buf.h"
#include "common/file.h"
#include "engine/tune.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define LINES_MAX_BYTES (1u << 20)

struct tuning {
    const char *out; /* a file, or NULL */
    struct buf lines;
    int done, of;
    double gain; /* the sum of what choose_tile takes over what is fastest */
    struct err err;
    bool failed;
};

static volatile sig_atomic_t interrupted;

static void interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

static bool stop(void *user)
{
    const struct tuning *t = user;

    return interrupted || t->failed;
}

static void save(struct tuning *t)
{
    if (t->out != NULL &&
        file_write(t->out, t->lines.data, t->lines.len, FILE_REPLACE, &t->err) != 0)
        t->failed = true;
}

static void print_tile(const struct product_tile *tile, char text[32])
{
    if (tile->library) {
        snprintf(text, 32, "cublas");
        return;
    }
    snprintf(text, 32, "%dx%dx%d%s", tile->rows, tile->columns, tile->splits,
             tile->group ? "g" : "");
}

static void listed(void *user, int count)
{
    struct tuning *t = user;

    t->of = count;
    fprintf(stderr, "%d products\n", count);
}

static void found(void *user, const struct tune_result *r)
{
    const struct tuned *is = &r->tuned;
    double flop = 2.0 * (double)is->rows * is->out * is->taps * is->in;
    struct tuning *t = user;
    char best[32], as[32];

    print_tile(&is->tile, best);
    print_tile(&r->as, as);
    fprintf(stderr, "%3d/%d  %8lld x %5d, sum %d x %5d  %-10s %9.1f us  %7.1f TFLOP/s  ", r->number,
            r->count, (long long)is->rows, is->out, is->taps, is->in, best, 1e6 * r->seconds,
            r->samples * flop / r->seconds / 1e12);
    if (r->as_seconds > 0)
        fprintf(stderr, "%-10s %4.2f x\n", as, r->as_seconds / r->seconds);
    else
        fprintf(stderr, "%-10s\n", as);
    t->gain += r->as_seconds > 0 ? r->as_seconds / r->seconds : 1;
    t->done++;
    buf_printf(&t->lines, "%s\n", r->line);
    save(t);
}

static int report(struct tuning *t, const struct engine_info *info, int rc, struct err *err)
{
    if (t->lines.len > 0)
        fputs(t->lines.data, stdout);
    if (rc == 0 && t->failed) {
        *err = t->err;
        rc = -1;
    }
    if (t->done > 0)
        fprintf(
            stderr,
            "%s, %s, %s: %d of %d products%s; tiles as they were chosen take %.2f times as long "
            "on average\n",
            info->processor, info->isa, bench_precision(info->precision), t->done, t->of,
            interrupted ? ", interrupted" : "", t->gain / t->done);
    return rc;
}

int bench_tune(struct engine *engine, const struct bench_options *o, struct err *err)
{
    struct tuning tuning = {.out = o->out};
    struct tune_options options = {.model = o->model,
                                   .width = (int)o->width,
                                   .height = (int)o->height,
                                   .pictures = (int)o->batch,
                                   .listed = listed,
                                   .found = found,
                                   .stop = stop,
                                   .user = &tuning};
    struct sigaction action = {.sa_handler = interrupt};
    int rc;

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    buf_init(&tuning.lines, LINES_MAX_BYTES);
    fprintf(stderr, "listing products\n");
    rc = engine_tune(engine, &options, err);
    rc = report(&tuning, engine_info(engine), rc, err);
    buf_release(&tuning.lines);
    return rc;
}

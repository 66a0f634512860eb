/*
 * `atelier bench tune` without its printing: which products the published networks have, and that
 * what is found for a small model is a table that choose_tile goes by. Exit status 77: no card.
 */
#include "engine/tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL "tests/golden/models/sd1-small"
#define RESULTS_MAX 8 /* the emulator takes a while for each */

struct results {
    int listed, count;
    struct tuned at[RESULTS_MAX];
};

static void must(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "FAIL: %s\n", what);
    exit(1);
}

static void listed(void *user, int count)
{
    ((struct results *)user)->listed = count;
}

static bool is_same(const struct product_tile *a, const struct product_tile *b)
{
    return a->rows == b->rows && a->columns == b->columns && a->splits == b->splits &&
           a->group == b->group;
}

static void check_candidate(const struct tune_result *r)
{
    const struct tuned *t = &r->tuned;
    struct product_tile tiles[CANDIDATES_MAX];
    int count = choose_candidates(t->sm, t->rows, t->out, t->taps, t->in, tiles), found = 0;

    for (int i = 0; i < count; i++)
        found += is_same(&tiles[i], &t->tile);
    must(found == 1, "the tile is one of the candidates");
    must(r->tried == count + r->by_library, "every candidate was tried");
    must(!r->by_library || t->taps == 1, "the library is for linear layers");
    must(r->by_library || t->taps > 1 || getenv("ATELIER_EMULATED_BLAS") == NULL,
         "the library is tried where there is one");
    must(r->by_library || !t->tile.library, "the library is not taken where it was not tried");
    must(r->seconds > 0 && r->as_seconds >= r->seconds, "no candidate is faster");
}

/* The line says what the result does. */
static void check_line(const struct tune_result *r)
{
    struct tuned t;
    long long rows;
    char group[8], library[8];
    int end = 0;
    bool read = sscanf(r->line, " {%d, %d, %d, %d, %lld, {%d, %d, %d, %7[a-z], %7[a-z]}},%n", &t.sm,
                       &t.out, &t.taps, &t.in, &rows, &t.tile.rows, &t.tile.columns, &t.tile.splits,
                       group, library, &end) == 10;

    t.rows = rows;
    t.tile.group = strcmp(group, "true") == 0;
    t.tile.library = strcmp(library, "true") == 0;
    must(read && r->line[end] == '\0', "the line is an entry");
    must(tuned_compare(&t, &r->tuned) == 0 && is_same(&t.tile, &r->tuned.tile) &&
             t.tile.library == r->tuned.tile.library,
         "the line is the result's");
}

static void found(void *user, const struct tune_result *r)
{
    struct results *results = user;

    must(results->count < RESULTS_MAX, "it stops when it is told to");
    must(r->number == results->count + 1 && r->count == results->listed, "they are counted");
    must(results->count == 0 || tuned_compare(&results->at[results->count - 1], &r->tuned) < 0,
         "they come sorted");
    check_candidate(r);
    check_line(r);
    results->at[results->count++] = r->tuned;
}

static bool at_once(void *user)
{
    (void)user;
    return true;
}

static bool after_some(void *user)
{
    return ((const struct results *)user)->count == RESULTS_MAX;
}

static void tune(struct engine *engine, const char *model, bool (*stop)(void *),
                 struct results *results)
{
    struct tune_options options = {.model = model,
                                   .width = 64,
                                   .height = 64,
                                   .pictures = 1,
                                   .listed = listed,
                                   .found = found,
                                   .stop = stop,
                                   .user = results};
    struct err err;

    *results = (struct results){.listed = 0};
    if (engine_tune(engine, &options, &err) != 0)
        must(false, err.message);
}

/* Each entry with another tile than the formula's, so that it shows who answered. */
static void check_table(struct results *results)
{
    const struct tuned_table table = {results->at, results->count};

    for (int i = 0; i < results->count; i++)
        results->at[i].tile.splits = 7;
    for (int i = 0; i < results->count; i++) {
        const struct tuned *t = &results->at[i];
        struct product_tile tile = choose_tile_from(&table, t->sm, t->rows, t->out, t->taps, t->in);
        must(is_same(&tile, &t->tile), "choose_tile goes by the table");
    }
}

int main(void)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct results published, small;
    struct engine *engine;
    struct err err;

    options.backend = "cuda";
    if (engine_create(&engine, &options, &err) != 0) {
        printf("SKIP: %s\n", err.message);
        return 77;
    }
    tune(engine, NULL, at_once, &published);
    must(published.listed > 100 && published.count == 0, "the published networks' products");
    must(engine_memory(engine).weights_bytes == 0, "listing leaves nothing behind");
    tune(engine, MODEL, after_some, &small);
    must(small.count == RESULTS_MAX, "products of a small model");
    must(engine_memory(engine).weights_bytes == 0, "trials leave nothing behind");
    check_table(&small);
    engine_free(engine);
    printf("passed: %d products of the published networks, %d of %d tuned\n", published.listed,
           small.count, small.listed);
    return 0;
}

/* Decoding in tiles: what memory does not hold whole comes out nearly the same, with no seams. */
#include "engine/engine.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>

#define MODEL "tests/golden/models/sd1-small"
#define WIDTH 640
#define HEIGHT 448

static void draw(size_t memory_max_bytes, struct image *image)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct draw draw = DRAW_INIT;
    struct engine *engine;
    struct model *model;
    struct session *session;
    struct err err;

    options.precision = PRECISION_F32;
    options.threads = 2;
    options.memory_max_bytes = memory_max_bytes;
    draw.prompt = "a house";
    draw.width = WIDTH;
    draw.height = HEIGHT;
    draw.steps = 1;
    draw.guidance_scale = 1;
    assert_int_equal(engine_create(&engine, &options, &err), 0);
    assert_int_equal(engine_load(&model, engine, MODEL, NULL, &err), 0);
    if (session_create(&session, model, &draw, NULL, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(engine_step(model, &session, 1, &err), 0);
    if (session_decode(session, image, &err) != 0)
        fail_msg("%s", err.message);
    session_free(session);
    engine_free(engine);
}

/* Bytes that whole decoding needs beside everything else, measured by drawing. */
static size_t memory_of_whole(struct image *image)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct engine *engine;
    struct model *model;
    struct err err;
    size_t plan, small;

    options.precision = PRECISION_F32;
    options.threads = 2;
    assert_int_equal(engine_create(&engine, &options, &err), 0);
    assert_int_equal(engine_load(&model, engine, MODEL, NULL, &err), 0);
    assert_int_equal(model_plan(model, WIDTH, HEIGHT, 1, &plan, &err), 0);
    assert_int_equal(model_plan(model, 256, 256, 1, &small, &err), 0);
    assert_true(small < plan / 2);
    engine_free(engine);
    draw(0, image);
    return plan;
}

static double difference(const struct image *a, const struct image *b, int x, int y)
{
    double sum = 0;
    for (int c = 0; c < 3; c++) {
        size_t at = 3 * ((size_t)y * WIDTH + (size_t)x) + (size_t)c;
        double d = (double)a->rgb[at] - b->rgb[at];
        sum += d * d;
    }
    return sum;
}

static void test_tiles_are_close_to_the_whole(void **state)
{
    struct image whole = {0}, tiled = {0};
    size_t plan = memory_of_whole(&whole);
    double sum = 0, psnr;

    (void)state;
    draw(plan / 4 * 3, &tiled);
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++)
            sum += difference(&whole, &tiled, x, y);
    psnr = 10 * log10(255.0 * 255.0 * 3 * WIDTH * HEIGHT / (sum + 1e-9));
    print_message("tiled against whole: %.1f dB\n", psnr);
    assert_true(sum > 0); /* it was tiled */
    assert_true(psnr > 25);
    image_release(&whole);
    image_release(&tiled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles_are_close_to_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * A second pass with everything that may go along: hints, a mask, a refiner. It has its size from
 * its first step on, a session that is saved at any step ends in the same bytes, and what does not
 * go with it is refused by name.
 */
#include "engine/engine.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODELS "tests/golden/models/"
#define STATE_MAX_BYTES (64u << 20)
#define WIDTH 72
#define HEIGHT 64

struct fixture {
    struct engine *engine;
    struct model *model, *refiner;
    struct control *control;
    uint8_t pixels[3 * WIDTH * HEIGHT], light[3 * WIDTH * HEIGHT];
    struct image init, mask;
};

/* What a fixture consists of; NULL: none. */
struct kind {
    const char *model, *refiner, *control;
    bool masked;
};

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

static void open_in(struct fixture *f, const struct kind *kind, size_t memory_max_bytes)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct err err;

    *f = (struct fixture){.init = {WIDTH, HEIGHT, f->pixels}, .mask = {WIDTH, HEIGHT, f->light}};
    options.threads = 2;
    options.memory_max_bytes = memory_max_bytes;
    options.precision = PRECISION_F32;
    must(engine_create(&f->engine, &options, &err), &err);
    must(engine_load(&f->model, f->engine, kind->model, NULL, &err), &err);
    if (kind->refiner != NULL)
        must(engine_load(&f->refiner, f->engine, kind->refiner, NULL, &err), &err);
    if (kind->control != NULL)
        must(engine_load_control(&f->control, f->model, kind->control, &err), &err);
    for (size_t i = 0; i < sizeof(f->pixels); i++) {
        f->pixels[i] = (uint8_t)(i * 7 % 251);
        f->light[i] = i / 3 % WIDTH < 40 ? 255 : 0;
    }
}

static void open_fixture(struct fixture *f, const struct kind *kind)
{
    open_in(f, kind, 0);
}

/* Four steps, then three of five in another size. */
static struct draw twice(struct fixture *f, const struct kind *kind, int width, int height)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = "a house";
    draw.width = WIDTH;
    draw.height = HEIGHT;
    draw.steps = 4;
    draw.seed = 5;
    draw.sampler = SAMPLER_EULER_A;
    draw.hires.width = width;
    draw.hires.height = height;
    draw.hires.strength = 0.6;
    draw.hires.steps = 5;
    draw.hires.enlargement = ENLARGE_BICUBIC;
    draw.strength = 1;
    draw.init_image = kind->masked ? &f->init : NULL;
    draw.mask = kind->masked ? &f->mask : NULL;
    draw.refiner = f->refiner;
    draw.switch_at = 0.7;
    if (f->control != NULL)
        draw.controls[draw.control_count++] = (struct draw_control){
            .control = f->control, .image = &f->init, .scale = 0.8, .end = 1, .mode = -1};
    return draw;
}

static struct session *begin(struct fixture *f, const struct draw *draw)
{
    struct session *session;
    struct err err;

    must(session_create(&session, f->model, draw, NULL, &err), &err);
    return session;
}

static void step(struct session *session)
{
    struct err err;

    must(engine_step(session_model(session), &session, 1, &err), &err);
}

/* The state after the last step, and the pixels; takes the session itself. */
static void finish(struct session *session, struct buf *end)
{
    struct image image;
    struct err err;

    while (session_steps_left(session) > 0)
        step(session);
    buf_init(end, STATE_MAX_BYTES);
    must(session_save(session, end, &err), &err);
    must(session_decode(session, &image, &err), &err);
    buf_append(end, image.rgb, 3 * (size_t)image.width * (size_t)image.height);
    image_release(&image);
    session_free(session);
}

static void assert_same(const struct buf *a, const struct buf *b)
{
    assert_int_equal(a->len, b->len);
    assert_memory_equal(a->data, b->data, a->len);
}

static void assert_size(const struct session *session, int width, int height)
{
    assert_int_equal(session_width(session), width);
    assert_int_equal(session_height(session), height);
}

static const struct kind PLAIN = {.model = MODELS "sd1-plain"};

static void test_its_size(void **state)
{
    struct session *sessions[2];
    struct image image;
    struct fixture f;
    struct draw draw;
    struct err err;

    (void)state;
    open_fixture(&f, &PLAIN);
    draw = twice(&f, &PLAIN, 104, 88);
    sessions[0] = begin(&f, &draw);
    assert_int_equal(session_steps_total(sessions[0]), 4 + 3);
    for (int i = 0; i < 4; i++) {
        assert_size(sessions[0], WIDTH, HEIGHT);
        step(sessions[0]);
    }
    assert_size(sessions[0], 104, 88);
    assert_int_equal(session_steps_left(sessions[0]), 3);
    assert_int_equal(session_steps_total(sessions[0]), 4 + 3);
    sessions[1] = begin(&f, &draw); /* one model, and two sizes */
    assert_int_equal(engine_step(f.model, sessions, 2, &err), -1);
    while (session_steps_left(sessions[0]) > 0)
        step(sessions[0]);
    must(session_decode(sessions[0], &image, &err), &err);
    assert_int_equal(image.width, 104);
    assert_int_equal(image.height, 88);
    image_release(&image);
    session_free(sessions[0]);
    session_free(sessions[1]);
    engine_free(f.engine);
}

/* Saved before, at and after each change of size and of model. */
static void test_it_is_restored(void **state)
{
    const struct kind *kind = *state;
    struct buf whole, saved, end;
    struct session *session;
    struct fixture f;
    struct draw draw;
    struct err err;

    open_fixture(&f, kind);
    draw = twice(&f, kind, 88, 104);
    session = begin(&f, &draw);
    int total = session_steps_total(session);
    finish(session, &whole);
    for (int after = 0; after <= total; after++) {
        session = begin(&f, &draw);
        for (int n = 0; n < after; n++)
            step(session);
        assert_int_equal(session_steps_total(session), total);
        buf_init(&saved, STATE_MAX_BYTES);
        must(session_save(session, &saved, &err), &err);
        session_free(session);
        must(session_restore(&session, f.model, f.refiner, saved.data, saved.len, NULL, &err),
             &err);
        assert_int_equal(session_steps_left(session), total - after);
        finish(session, &end);
        assert_same(&end, &whole);
        buf_release(&saved);
        buf_release(&end);
    }
    buf_release(&whole);
    engine_free(f.engine);
}

/* A refiner draws the end of the second pass, and nothing of the first. */
static void test_a_refiner_takes_over_in_it(void **state)
{
    const struct kind *kind = *state;
    struct session *session;
    struct fixture f;
    struct draw draw;

    open_fixture(&f, kind);
    draw = twice(&f, kind, 88, 104);
    session = begin(&f, &draw);
    for (int i = 0; i < 4; i++) {
        assert_ptr_equal(session_model(session), f.model);
        step(session);
    }
    assert_ptr_equal(session_model(session), f.model);
    assert_size(session, 88, 104);
    while (session_steps_left(session) > 1)
        step(session);
    assert_ptr_equal(session_model(session), f.refiner);
    assert_size(session, 88, 104);
    session_free(session);
    draw.switch_at = 0.1; /* all of the second pass is the refiner's */
    session = begin(&f, &draw);
    for (int i = 0; i < 4; i++)
        step(session);
    assert_ptr_equal(session_model(session), f.refiner);
    session_free(session);
    engine_free(f.engine);
}

static struct image picture_of(struct fixture *f, const struct draw *draw)
{
    struct session *session = begin(f, draw);
    struct image image;
    struct err err;

    while (session_steps_left(session) > 0)
        step(session);
    must(session_decode(session, &image, &err), &err);
    session_free(session);
    return image;
}

/* The second pass has fewer steps than the time says. */
static void test_times_in_a_prompt_begin_anew(void **state)
{
    struct image scheduled, plain;
    struct fixture f;
    struct draw draw;

    (void)state;
    open_fixture(&f, &PLAIN);
    draw = twice(&f, &PLAIN, 88, 104);
    draw.dialect = DIALECT_A1111;
    draw.prompt = "a [house:tree:4]";
    scheduled = picture_of(&f, &draw);
    draw.prompt = "a house";
    plain = picture_of(&f, &draw);
    assert_memory_equal(scheduled.rgb, plain.rgb, 3 * 88 * 104);
    image_release(&scheduled);
    image_release(&plain);
    engine_free(f.engine);
}

static void count_stage(void *user, const struct stage *stage)
{
    (void)stage;
    ++*(int *)user;
}

/* Before anything is computed, the first pass's text included. */
static void test_memory_for_both_passes_is_asked_for_first(void **state)
{
    const struct kind kind = {
        .model = MODELS "sd1-plain", .control = MODELS "controlnets/sd1-canny", .masked = true};
    int stages = 0;
    struct stage_observer observer = {.see = count_stage, .user = &stages};
    struct session *session;
    struct fixture f;
    struct draw draw;
    struct err err;

    (void)state;
    open_in(&f, &kind, 32 << 20);
    draw = twice(&f, &kind, 88, 104);
    session_free(begin(&f, &draw));
    draw = twice(&f, &kind, 1024, 1024);
    assert_int_equal(session_create(&session, f.model, &draw, &observer, &err), -1);
    assert_int_equal(err.code, ERR_MEMORY);
    assert_contains(err.message, "1024 × 1024 needs");
    assert_int_equal(stages, 0);
    engine_free(f.engine);
}

static void assert_refused(struct fixture *f, const struct draw *draw, const char *said)
{
    struct session *session;
    struct err err;

    assert_int_equal(session_create(&session, f->model, draw, NULL, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, said);
}

static void test_what_it_does_not_take(void **state)
{
    struct fixture f;
    struct draw draw;

    (void)state;
    open_fixture(&f, &PLAIN);
    draw = twice(&f, &PLAIN, 2056, 64);
    assert_refused(&f, &draw, "hires.width: 2056");
    draw = twice(&f, &PLAIN, 104, 100);
    assert_refused(&f, &draw, "hires.height: 100");
    draw = twice(&f, &PLAIN, 64, 64);
    assert_refused(&f, &draw, "hires: 64×64 is smaller than the first pass, 72×64");
    draw = twice(&f, &PLAIN, 104, 88);
    draw.hires.strength = 1.5;
    assert_refused(&f, &draw, "hires.strength");
    draw.hires.strength = 0.1;
    assert_refused(&f, &draw, "hires: strength: 0.1 of 5 steps is none");
    draw = twice(&f, &PLAIN, 104, 88);
    draw.hires.steps = 501;
    assert_refused(&f, &draw, "hires: steps");
    engine_free(f.engine);
}

static void test_what_models_and_networks_it_does_not_take(void **state)
{
    const struct kind pix2pix = {.model = MODELS "sd1-pix2pix"};
    const struct kind adapted = {.model = MODELS "sdxl-small",
                                 .control = MODELS "controlnets/sdxl-sketch"};
    struct fixture f;
    struct draw draw;

    (void)state;
    open_fixture(&f, &pix2pix);
    draw = twice(&f, &pix2pix, 104, 88);
    draw.init_image = &f.init;
    assert_refused(&f, &draw, "hires: does not go with a model that follows instructions");
    engine_free(f.engine);
    open_fixture(&f, &adapted);
    draw = twice(&f, &adapted, 96, 88);
    draw.width = 64;
    assert_refused(&f, &draw, "controlnets[0].name: this T2I-Adapter draws in sizes that 16");
    engine_free(f.engine);
}

int main(void)
{
    static const struct kind KINDS[] = {
        {.model = MODELS "sd1-plain"},
        {.model = MODELS "sd1-plain", .masked = true},
        {.model = MODELS "sd1-plain", .control = MODELS "controlnets/sd1-canny"},
        {.model = MODELS "sd1-plain", .control = MODELS "controlnets/sd1-canny", .masked = true},
        {.model = MODELS "sd1-plain", .control = MODELS "controlnets/sd1-sketch"},
        {.model = MODELS "sd1-inpaint", .masked = true},
        {.model = MODELS "sdxl-small", .refiner = MODELS "sdxl-refiner"},
        {.model = MODELS "sdxl-small", .refiner = MODELS "sdxl-refiner", .masked = true},
        {.model = MODELS "sdxl-small",
         .refiner = MODELS "sdxl-refiner",
         .control = MODELS "controlnets/sdxl-canny",
         .masked = true},
    };
#define RESTORED(i) cmocka_unit_test_prestate(test_it_is_restored, (void *)&KINDS[i])
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_its_size),
        RESTORED(0),
        RESTORED(1),
        RESTORED(2),
        RESTORED(3),
        RESTORED(4),
        RESTORED(5),
        RESTORED(6),
        RESTORED(7),
        RESTORED(8),
        cmocka_unit_test_prestate(test_a_refiner_takes_over_in_it, (void *)&KINDS[6]),
        cmocka_unit_test(test_times_in_a_prompt_begin_anew),
        cmocka_unit_test(test_memory_for_both_passes_is_asked_for_first),
        cmocka_unit_test(test_what_it_does_not_take),
        cmocka_unit_test(test_what_models_and_networks_it_does_not_take),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

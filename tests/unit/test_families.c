/*
 * What a session promises holds for every family: its bytes depend on its request alone, wherever
 * it was saved; and what a family does not take is refused with the field's name.
 */
#include "engine/engine.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/golden/models/"
#define STATE_MAX_BYTES (64u << 20)
#define REQUESTS 3

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

struct fixture {
    struct engine *engine;
    struct model *model;
};

static void open_fixture(struct fixture *f, const char *name)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    char path[256];
    struct err err;

    options.threads = 2;
    options.precision = PRECISION_F32;
    snprintf(path, sizeof(path), GOLDEN "%s", name);
    must(engine_create(&f->engine, &options, &err), &err);
    must(engine_load(&f->model, f->engine, path, NULL, &err), &err);
}

static struct draw draw_of(const char *prompt, uint64_t seed)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = prompt;
    draw.width = 72;
    draw.height = 64;
    draw.steps = 4;
    draw.seed = seed;
    return draw;
}

/* Guided and not, with and without a negative prompt. */
static void make_requests(struct draw requests[REQUESTS])
{
    requests[0] = draw_of("a red cat", 1);
    requests[1] = draw_of("a house", 2);
    requests[1].negative_prompt = "blurry";
    requests[1].sampler = SAMPLER_EULER_A;
    requests[2] = draw_of("", 3);
    requests[2].guidance_scale = 1;
}

static struct session *begin(struct fixture *f, const struct draw *draw)
{
    struct session *session;
    struct err err;

    must(session_create(&session, f->model, draw, NULL, &err), &err);
    return session;
}

static void step(struct session *session, struct fixture *f)
{
    struct err err;

    must(engine_step(f->model, &session, 1, &err), &err);
}

/* The state after the last step; takes the session itself. */
static void finish(struct session *session, struct fixture *f, struct buf *end)
{
    struct image image;
    struct err err;

    while (session_steps_left(session) > 0)
        step(session, f);
    buf_init(end, STATE_MAX_BYTES);
    must(session_save(session, end, &err), &err);
    must(session_decode(session, &image, &err), &err);
    buf_append(end, image.rgb, 3 * (size_t)image.width * (size_t)image.height);
    image_release(&image);
    session_free(session);
}

static void assert_same(struct buf *a, struct buf *b)
{
    assert_int_equal(a->len, b->len);
    assert_memory_equal(a->data, b->data, a->len);
    buf_release(a);
    buf_release(b);
}

static void test_a_picture_does_not_depend_on_its_batch(void **state)
{
    struct draw requests[REQUESTS];
    struct session *together[REQUESTS];
    struct buf alone[REQUESTS], end;
    struct fixture f;
    struct err err;

    open_fixture(&f, *state);
    make_requests(requests);
    for (int i = 0; i < REQUESTS; i++)
        finish(begin(&f, &requests[i]), &f, &alone[i]);
    for (int i = 0; i < REQUESTS; i++)
        together[i] = begin(&f, &requests[i]);
    for (int i = 0; i < 3; i++)
        must(engine_step(f.model, together, REQUESTS, &err), &err);
    for (int i = 0; i < REQUESTS; i++) {
        finish(together[i], &f, &end);
        assert_same(&end, &alone[i]);
    }
    engine_free(f.engine);
}

static void test_a_restored_session_ends_in_the_same_bytes(void **state)
{
    struct draw requests[REQUESTS];
    struct session *session;
    struct buf whole, saved, end;
    struct fixture f;
    struct err err;

    open_fixture(&f, *state);
    make_requests(requests);
    for (int i = 0; i < REQUESTS; i++) {
        finish(begin(&f, &requests[i]), &f, &whole);
        session = begin(&f, &requests[i]);
        for (int n = 0; n < i + 1; n++)
            step(session, &f);
        buf_init(&saved, STATE_MAX_BYTES);
        must(session_save(session, &saved, &err), &err);
        session_free(session);
        must(session_restore(&session, f.model, saved.data, saved.len, NULL, &err), &err);
        buf_release(&saved);
        finish(session, &f, &end);
        assert_same(&end, &whole);
    }
    engine_free(f.engine);
}

static void assert_refused(struct fixture *f, const struct draw *draw, const char *field)
{
    struct session *session;
    struct err err;

    assert_int_equal(session_create(&session, f->model, draw, NULL, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, field);
}

static void test_what_a_family_does_not_take(void **state)
{
    struct draw draw;
    struct fixture f;

    (void)state;
    open_fixture(&f, "sd1-small");
    draw = draw_of("a", 1);
    draw.original_size[0] = draw.original_size[1] = 512;
    assert_refused(&f, &draw, "original_size");
    draw = draw_of("a", 1);
    draw.target_size[0] = draw.target_size[1] = 512;
    assert_refused(&f, &draw, "target_size");
    draw = draw_of("a", 1);
    draw.crop[0] = draw.crop[1] = 0;
    assert_refused(&f, &draw, "crop");
    engine_free(f.engine);
    open_fixture(&f, "sdxl-small");
    draw = draw_of("a", 1);
    draw.aesthetic_score = 6;
    assert_refused(&f, &draw, "aesthetic_score");
    draw = draw_of("a", 1);
    draw.clip_skip = 3; /* the smaller encoder has three layers, and the last is left out anyway */
    assert_refused(&f, &draw, "clip_skip");
    engine_free(f.engine);
}

static void test_what_a_model_draws_by_itself(void **state)
{
    static const struct {
        const char *name, *family;
        int steps, width;
        double guidance_scale;
    } MODELS[] = {
        {"sd1-small", "sd1", 50, 64, 7.5},        {"sd2-small", "sd2", 50, 64, 7.5},
        {"sdxl-small", "sdxl", 50, 96, 5},        {"sdxl-single.safetensors", "sdxl", 50, 1024, 5},
        {"sdxl-turbo", "sdxl", 4, 96, 0},         {"sd1-lcm", "sd1", 4, 64, 8.5},
        {"sd2-zsnr-sharded", "sd2", 50, 64, 7.5},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(MODELS) / sizeof(MODELS[0]); i++) {
        const struct model_info *info;
        struct fixture f;
        open_fixture(&f, MODELS[i].name);
        info = model_info(f.model);
        assert_string_equal(info->family, MODELS[i].family);
        assert_int_equal(info->steps, MODELS[i].steps);
        assert_int_equal(info->width, MODELS[i].width);
        assert_true(info->guidance_scale == MODELS[i].guidance_scale);
        engine_free(f.engine);
    }
}

int main(void)
{
#define MODEL(test, name) cmocka_unit_test_prestate(test, (void *)(name))
    const struct CMUnitTest tests[] = {
        MODEL(test_a_picture_does_not_depend_on_its_batch, "sdxl-small"),
        MODEL(test_a_restored_session_ends_in_the_same_bytes, "sdxl-small"),
        MODEL(test_a_restored_session_ends_in_the_same_bytes, "sdxl-turbo"),
        cmocka_unit_test(test_what_a_family_does_not_take),
        cmocka_unit_test(test_what_a_model_draws_by_itself),
    };
    return cmocka_run_group_tests_name("families", tests, NULL, NULL);
}

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

#define WIDTH 72
#define HEIGHT 64

struct fixture {
    struct engine *engine;
    struct model *model, *refiner;
    uint8_t pixels[3 * WIDTH * HEIGHT], light[3 * WIDTH * HEIGHT];
    struct image init, mask;
    bool from_image, masked; /* what requests of this model have */
};

static void load(struct fixture *f, struct model **model, const char *name, int len)
{
    char path[256];
    struct err err;

    snprintf(path, sizeof(path), GOLDEN "%.*s", len, name);
    must(engine_load(model, f->engine, path, NULL, &err), &err);
}

/* `name`: a model, or two with a plus between them, the second one a refiner. */
static void open_fixture(struct fixture *f, const char *name)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    const char *plus = strchr(name, '+');
    struct err err;

    *f = (struct fixture){0};
    options.threads = 2;
    options.precision = PRECISION_F32;
    must(engine_create(&f->engine, &options, &err), &err);
    load(f, &f->model, name, plus ? (int)(plus - name) : (int)strlen(name));
    if (plus != NULL)
        load(f, &f->refiner, plus + 1, (int)strlen(plus + 1));
    for (size_t i = 0; i < sizeof(f->pixels); i++) {
        f->pixels[i] = (uint8_t)(i * 7 % 251);
        f->light[i] = i / 3 % WIDTH < 40 ? 255 : 0;
    }
    f->init = (struct image){WIDTH, HEIGHT, f->pixels};
    f->mask = (struct image){WIDTH, HEIGHT, f->light};
    f->masked = strstr(name, "inpaint") != NULL || strstr(name, "plain") != NULL;
    f->from_image = f->masked || strstr(name, "pix2pix") != NULL;
}

static struct draw draw_of(const char *prompt, uint64_t seed)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = prompt;
    draw.width = WIDTH;
    draw.height = HEIGHT;
    draw.steps = 4;
    draw.seed = seed;
    return draw;
}

/* Guided and not, with and without a negative prompt, and two of three with the refiner if there is
 * one, which takes over at different steps. */
static void make_requests(const struct fixture *f, struct draw requests[REQUESTS])
{
    requests[0] = draw_of("a red cat", 1);
    requests[1] = draw_of("a house", 2);
    requests[1].negative_prompt = "blurry";
    requests[1].sampler = SAMPLER_EULER_A;
    requests[2] = draw_of("", 3);
    requests[2].guidance_scale = 1;
    requests[0].refiner = requests[2].refiner = f->refiner;
    requests[0].switch_at = 0.3;
    requests[2].switch_at = 0.6;
    for (int i = 0; i < REQUESTS; i++) {
        requests[i].init_image = f->from_image ? &f->init : NULL;
        requests[i].mask = f->masked ? &f->mask : NULL;
        requests[i].strength = 1;
    }
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

static void assert_same(struct buf *a, struct buf *b)
{
    assert_int_equal(a->len, b->len);
    assert_memory_equal(a->data, b->data, a->len);
    buf_release(a);
    buf_release(b);
}

/* One step of each that shares its model with the first that is not done. False: all are. */
static bool step_together(struct session *const sessions[], int count)
{
    struct session *going[REQUESTS];
    struct model *model = NULL;
    int n = 0;
    struct err err;

    for (int i = count - 1; i >= 0; i--) {
        if (session_steps_left(sessions[i]) == 0)
            continue;
        model = model == NULL ? session_model(sessions[i]) : model;
        if (session_model(sessions[i]) == model)
            going[n++] = sessions[i];
    }
    if (n > 0)
        must(engine_step(model, going, n, &err), &err);
    return n > 0;
}

static void test_a_picture_does_not_depend_on_its_batch(void **state)
{
    struct draw requests[REQUESTS];
    struct session *together[REQUESTS];
    struct buf alone[REQUESTS], end;
    struct fixture f;

    open_fixture(&f, *state);
    make_requests(&f, requests);
    for (int i = 0; i < REQUESTS; i++)
        finish(begin(&f, &requests[i]), &alone[i]);
    for (int i = 0; i < REQUESTS; i++)
        together[i] = begin(&f, &requests[i]);
    while (step_together(together, REQUESTS))
        continue;
    for (int i = 0; i < REQUESTS; i++) {
        finish(together[i], &end);
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
    make_requests(&f, requests);
    for (int i = 0; i < REQUESTS; i++)
        for (int after = 0; after <= 4; after++) {
            finish(begin(&f, &requests[i]), &whole);
            session = begin(&f, &requests[i]);
            for (int n = 0; n < after; n++)
                step(session);
            buf_init(&saved, STATE_MAX_BYTES);
            must(session_save(session, &saved, &err), &err);
            session_free(session);
            must(session_restore(&session, f.model, f.refiner, saved.data, saved.len, NULL, &err),
                 &err);
            buf_release(&saved);
            finish(session, &end);
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

static void test_a_refiner_takes_over(void **state)
{
    struct draw draw = draw_of("a house", 4);
    struct session *session;
    struct buf saved;
    struct fixture f;
    struct err err;

    (void)state;
    open_fixture(&f, "sdxl-small+sdxl-refiner");
    draw.refiner = f.refiner;
    draw.switch_at = 0.5; /* 751 and 501, then 251 and 1 */
    session = begin(&f, &draw);
    assert_int_equal(session_steps_total(session), 4);
    assert_ptr_equal(session_model(session), f.model);
    step(session);
    step(session);
    assert_ptr_equal(session_model(session), f.refiner);
    assert_int_equal(session_steps_left(session), 2);
    assert_int_equal(session_steps_total(session), 4);
    assert_int_equal(engine_step(f.model, &session, 1, &err), -1);
    /* A state that needs the refiner is not taken up without it. */
    buf_init(&saved, STATE_MAX_BYTES);
    must(session_save(session, &saved, &err), &err);
    session_free(session);
    assert_int_equal(session_restore(&session, f.model, NULL, saved.data, saved.len, NULL, &err),
                     -1);
    assert_contains(err.message, "another model");
    buf_release(&saved);
    draw.switch_at = 0;
    session = begin(&f, &draw);
    assert_ptr_equal(session_model(session), f.refiner);
    session_free(session);
    draw.switch_at = 1;
    session = begin(&f, &draw);
    for (int i = 0; i < 4; i++)
        step(session);
    assert_ptr_equal(session_model(session), f.model);
    session_free(session);
    engine_free(f.engine);
}

static void test_what_a_refiner_does_not_take(void **state)
{
    struct draw draw = draw_of("a house", 4);
    struct fixture f;

    (void)state;
    open_fixture(&f, "sdxl-refiner+sd1-small");
    assert_refused(&f, &draw, "init_image");
    engine_free(f.engine);
    open_fixture(&f, "sdxl-small+sd1-small");
    draw.refiner = f.refiner;
    assert_refused(&f, &draw, "refiner");
    draw.refiner = f.model;
    draw.switch_at = 1.5;
    assert_refused(&f, &draw, "refiner.switch_at");
    engine_free(f.engine);
}

static void test_what_pictures_a_model_does_not_take(void **state)
{
    struct draw draw = draw_of("a house", 4);
    struct fixture f;
    struct image small;

    (void)state;
    open_fixture(&f, "sd1-inpaint");
    assert_refused(&f, &draw, "mask: an inpainting model");
    draw.init_image = &f.init;
    assert_refused(&f, &draw, "mask: an inpainting model");
    small = (struct image){64, HEIGHT, f.light};
    draw.mask = &small;
    assert_refused(&f, &draw, "mask: is 64×64, but init_image is 72×64");
    draw.mask = &f.mask;
    draw.image_guidance_scale = 2;
    assert_refused(&f, &draw, "image_guidance_scale");
    engine_free(f.engine);
    open_fixture(&f, "sd1-pix2pix");
    assert_refused(&f, &draw, "mask: the model changes all");
    draw.mask = NULL;
    draw.init_image = NULL;
    assert_refused(&f, &draw, "init_image");
    engine_free(f.engine);
    open_fixture(&f, "sdxl-small+sdxl-refiner");
    draw = draw_of("a house", 4);
    draw.mask = &f.mask;
    assert_refused(&f, &draw, "mask: needs init_image");
    engine_free(f.engine);
    open_fixture(&f, "sdxl-inpaint+sdxl-refiner");
    draw.init_image = &f.init;
    draw.refiner = f.refiner;
    assert_refused(&f, &draw, "refiner: does not go with an inpainting model");
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
        {"sd2-zsnr-sharded", "sd2", 50, 64, 7.5}, {"sdxl-refiner", "sdxl-refiner", 50, 96, 5},
        {"sdxl-inpaint", "sdxl", 50, 96, 7.5},    {"sd1-pix2pix", "sd1", 100, 64, 7.5},
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
        MODEL(test_a_picture_does_not_depend_on_its_batch, "sdxl-small+sdxl-refiner"),
        MODEL(test_a_restored_session_ends_in_the_same_bytes, "sdxl-small+sdxl-refiner"),
        MODEL(test_a_picture_does_not_depend_on_its_batch, "sd1-plain"),
        MODEL(test_a_restored_session_ends_in_the_same_bytes, "sd1-plain"),
        MODEL(test_a_picture_does_not_depend_on_its_batch, "sd1-inpaint"),
        MODEL(test_a_restored_session_ends_in_the_same_bytes, "sd1-inpaint"),
        MODEL(test_a_picture_does_not_depend_on_its_batch, "sd1-pix2pix"),
        MODEL(test_a_restored_session_ends_in_the_same_bytes, "sd1-pix2pix"),
        cmocka_unit_test(test_what_pictures_a_model_does_not_take),
        cmocka_unit_test(test_a_refiner_takes_over),
        cmocka_unit_test(test_what_a_refiner_does_not_take),
        cmocka_unit_test(test_what_a_family_does_not_take),
        cmocka_unit_test(test_what_a_model_draws_by_itself),
    };
    return cmocka_run_group_tests_name("families", tests, NULL, NULL);
}

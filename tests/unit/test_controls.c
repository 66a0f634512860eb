/*
 * What ControlNets and T2I-Adapters promise on every back end and precision: a picture's bytes
 * depend on its request alone, whatever guides the others of its batch; a restored session needs
 * the same networks; memory comes back and is planned; and a file that does not fit is refused by
 * name and tensor.
 */
#include "engine/engine.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODELS "tests/golden/models/"
#define MODEL MODELS "sd1-plain"
#define CONTROLS MODELS "controlnets/"
#define STATE_MAX_BYTES (64u << 20)

struct device {
    const char *backend;
    enum precision precision;
};

enum { CANNY, POSE, SKETCH, POOLED, CONTROL_COUNT };

static const char *const PATHS[CONTROL_COUNT] = {CONTROLS "sd1-canny",
                                                 CONTROLS "sd1-pose.safetensors",
                                                 CONTROLS "sd1-sketch", CONTROLS "sd1-pooled"};

struct fixture {
    struct engine *engine;
    struct model *model;
    struct control *controls[CONTROL_COUNT];
    struct image hints[2]; /* of the pictures' size, and of another */
};

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

static struct image draw_hint(int width, int height)
{
    struct image hint = {
        .width = width, .height = height, .rgb = malloc((size_t)(3 * width * height))};

    for (int i = 0; i < 3 * width * height; i++)
        hint.rgb[i] = (uint8_t)(i * i / 7 + i % 13 * 17);
    return hint;
}

static void load_controls(struct fixture *f)
{
    struct err err;

    for (int i = 0; i < CONTROL_COUNT; i++)
        must(engine_load_control(&f->controls[i], f->model, PATHS[i], &err), &err);
}

static void open_or_skip(struct fixture *f, void **state, size_t memory_max_bytes)
{
    const struct device *device = *state;
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct err err;

    *f = (struct fixture){.hints = {draw_hint(72, 64), draw_hint(50, 81)}};
    options.threads = 2;
    options.backend = device->backend;
    options.precision = device->precision;
    options.memory_max_bytes = memory_max_bytes;
    if (engine_create(&f->engine, &options, &err) != 0) {
        image_release(&f->hints[0]);
        image_release(&f->hints[1]);
        assert_int_equal(err.code, ERR_UNSUPPORTED);
        skip();
    }
    must(engine_load(&f->model, f->engine, MODEL, NULL, &err), &err);
}

static void close_fixture(struct fixture *f)
{
    engine_free(f->engine);
    image_release(&f->hints[0]);
    image_release(&f->hints[1]);
}

/* Requests that differ in what guides them: nothing, one network, several in both orders, one
 * twice, guessing with and without guidance, for a part of the steps, pooled. */
#define REQUESTS 11

static void guide(const struct fixture *f, struct draw *draw, int control, int hint, double scale)
{
    draw->controls[draw->control_count++] = (struct draw_control){.control = f->controls[control],
                                                                  .image = &f->hints[hint],
                                                                  .scale = scale,
                                                                  .end = 1,
                                                                  .mode = -1};
}

static void make_requests(const struct fixture *f, struct draw requests[REQUESTS])
{
    for (int i = 0; i < REQUESTS; i++) {
        requests[i] = (struct draw)DRAW_INIT;
        requests[i].prompt = i % 2 ? "a red cat" : "a house";
        requests[i].width = 72;
        requests[i].height = 64;
        requests[i].steps = 3 + i % 2;
        requests[i].sampler = i % 2 ? SAMPLER_EULER : SAMPLER_DDIM;
        requests[i].guidance_scale = i == 6 ? 1 : 5;
        requests[i].seed = 10 + (uint64_t)i;
    }
    guide(f, &requests[1], CANNY, 0, 1);
    guide(f, &requests[2], CANNY, 1, 0.7);
    guide(f, &requests[2], POSE, 0, 1.2);
    guide(f, &requests[3], POSE, 0, 0.4);
    guide(f, &requests[3], CANNY, 1, 0.7);
    guide(f, &requests[4], POSE, 0, 1.2);
    guide(f, &requests[4], POSE, 1, 0.3);
    guide(f, &requests[4], CANNY, 1, 0.3);
    guide(f, &requests[5], CANNY, 1, 1);
    requests[5].controls[0].guess_mode = true;
    guide(f, &requests[6], CANNY, 0, 1);
    requests[6].controls[0].guess_mode = true;
    guide(f, &requests[7], CANNY, 0, 1);
    requests[7].controls[0].start = 0.25;
    guide(f, &requests[7], POSE, 1, 1);
    requests[7].controls[1].end = 0.5;
    guide(f, &requests[8], SKETCH, 1, 0.8);
    guide(f, &requests[8], CANNY, 0, 0.5);
    guide(f, &requests[8], SKETCH, 0, 0.7);
    requests[8].controls[2].end = 0.7;
    guide(f, &requests[9], POOLED, 1, 0.9);
    guide(f, &requests[10], POSE, 0, 0.4);
    guide(f, &requests[10], POOLED, 0, 1.1);
}

/* What a picture is told by: the whole state after the last step. */
static void finish(struct fixture *f, struct session *session, struct buf *out)
{
    struct err err;

    while (session_steps_left(session) > 0)
        must(engine_step(f->model, &session, 1, &err), &err);
    buf_init(out, STATE_MAX_BYTES);
    must(session_save(session, out, &err), &err);
    session_free(session);
}

static void draw_alone(struct fixture *f, const struct draw *request, struct buf *out)
{
    struct session *session;
    struct err err;

    must(session_create(&session, f->model, request, NULL, &err), &err);
    finish(f, session, out);
}

static void assert_same(const struct buf *a, const struct buf *b)
{
    assert_int_equal(a->len, b->len);
    assert_memory_equal(a->data, b->data, a->len);
}

static void test_a_picture_does_not_depend_on_its_batch(void **state)
{
    struct session *sessions[REQUESTS], *active[REQUESTS];
    struct buf alone[REQUESTS], mixed[REQUESTS];
    struct draw requests[REQUESTS];
    struct fixture f;
    struct err err;
    int left = 1;

    open_or_skip(&f, state, 0);
    load_controls(&f);
    make_requests(&f, requests);
    for (int i = 0; i < REQUESTS; i++) {
        draw_alone(&f, &requests[i], &alone[i]);
        must(session_create(&sessions[i], f.model, &requests[i], NULL, &err), &err);
    }
    while (left > 0) {
        int count = 0;
        left = 0;
        for (int i = REQUESTS - 1; i >= 0; i--)
            if (session_steps_left(sessions[i]) > 0)
                active[count++] = sessions[i];
        if (count > 0)
            must(engine_step(f.model, active, count, &err), &err);
        for (int i = 0; i < REQUESTS; i++)
            left += session_steps_left(sessions[i]);
    }
    for (int i = 0; i < REQUESTS; i++) {
        finish(&f, sessions[i], &mixed[i]);
        assert_same(&alone[i], &mixed[i]);
        buf_release(&alone[i]);
        buf_release(&mixed[i]);
    }
    close_fixture(&f);
}

/* Saved with a network that begins or has ended, and restored after the session is gone. */
static void test_a_restored_session_ends_in_the_same_bytes(void **state)
{
    struct draw requests[REQUESTS];
    struct buf whole, half, rest;
    struct session *session;
    struct fixture f;
    struct err err;

    open_or_skip(&f, state, 0);
    load_controls(&f);
    make_requests(&f, requests);
    for (int i = 1; i < REQUESTS; i++) {
        draw_alone(&f, &requests[i], &whole);
        must(session_create(&session, f.model, &requests[i], NULL, &err), &err);
        must(engine_step(f.model, &session, 1, &err), &err);
        buf_init(&half, STATE_MAX_BYTES);
        must(session_save(session, &half, &err), &err);
        session_free(session);
        must(session_restore(&session, f.model, NULL, half.data, half.len, NULL, &err), &err);
        finish(&f, session, &rest);
        assert_same(&whole, &rest);
        buf_release(&whole);
        buf_release(&rest);
        if (i + 1 < REQUESTS)
            buf_release(&half);
    }
    engine_unload_control(f.controls[POOLED]);
    assert_int_equal(session_restore(&session, f.model, NULL, half.data, half.len, NULL, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "sd1-pooled"));
    half.data[half.len / 2] ^= 1;
    assert_int_equal(session_restore(&session, f.model, NULL, half.data, half.len, NULL, &err), -1);
    assert_int_equal(err.code, ERR_FORMAT);
    buf_release(&half);
    close_fixture(&f);
}

static void test_memory_comes_back(void **state)
{
    struct draw requests[REQUESTS];
    size_t before, loaded, planned;
    struct session *sessions[2];
    struct fixture f;
    struct buf out;
    struct err err;

    open_or_skip(&f, state, 0);
    make_requests(&f, requests);
    draw_alone(&f, &requests[0], &out);
    buf_release(&out);
    before = engine_memory(f.engine).weights_bytes;
    load_controls(&f);
    make_requests(&f, requests);
    loaded = engine_memory(f.engine).weights_bytes;
    assert_true(loaded - before >= control_info(f.controls[CANNY])->bytes);
    assert_string_equal(control_info(f.controls[POSE])->kind, "ControlNet");
    assert_string_equal(control_info(f.controls[SKETCH])->kind, "T2I-Adapter");
    for (int i = 0; i < 2; i++)
        must(session_create(&sessions[i], f.model, &requests[2 * i], NULL, &err), &err);
    assert_true(engine_memory(f.engine).weights_bytes > loaded); /* the hints' embeddings */
    must(engine_plan(sessions, 2, &planned, &err), &err);
    must(engine_step(f.model, sessions, 2, &err), &err);
    assert_true(engine_memory(f.engine).activations_bytes <= planned);
    session_free(sessions[0]);
    session_free(sessions[1]);
    for (int i = 0; i < CONTROL_COUNT; i++)
        engine_unload_control(f.controls[i]);
    assert_int_equal(engine_memory(f.engine).weights_bytes, before);
    close_fixture(&f);
}

/* A budget that holds the model but not the networks. */
static void test_a_network_that_finds_no_room(void **state)
{
    struct control *control;
    size_t weights;
    struct fixture f;
    struct err err;

    open_or_skip(&f, state, 0);
    weights = engine_memory(f.engine).weights_bytes;
    close_fixture(&f);
    open_or_skip(&f, state, weights + 4096);
    assert_int_equal(engine_load_control(&control, f.model, PATHS[CANNY], &err), -1);
    assert_int_equal(err.code, ERR_MEMORY);
    assert_non_null(strstr(err.message, "sd1-canny"));
    assert_int_equal(engine_memory(f.engine).weights_bytes, weights);
    close_fixture(&f);
}

static void refuses_file(struct fixture *f, const char *path, const char *said)
{
    struct control *control;
    struct err err;

    assert_int_equal(engine_load_control(&control, f->model, path, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    if (strstr(err.message, said) == NULL || strstr(err.message, path) == NULL)
        fail_msg("'%s' says nothing of %s and '%s'", err.message, path, said);
}

static void test_files_that_do_not_fit(void **state)
{
    struct control *control;
    struct fixture f;
    struct err err;

    open_or_skip(&f, state, 0);
    /* Without its folder's configuration one is read all the same. */
    must(engine_load_control(&control, f.model,
                             CONTROLS "sd1-canny/diffusion_pytorch_model.safetensors", &err),
         &err);
    refuses_file(&f, CONTROLS "sdxl-canny",
                 "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight' has the shape "
                 "[12, 40], the model needs [16, 16]");
    refuses_file(&f, MODELS "sd2-lines.safetensors",
                 "' has the shape [16, 32], the model needs [8, 16]");
    refuses_file(&f, CONTROLS "sdxl-sketch", "the model needs [");
    refuses_file(&f, CONTROLS "sd1-color.safetensors", "the model needs [");
    refuses_file(&f, CONTROLS "none", "No such file");
    refuses_file(&f, MODELS "loras/sd1-kohya.safetensors", "another family");
    refuses_file(&f, MODELS "sd1-plain/unet",
                 "controlnet_cond_embedding.conv_in.weight' is missing");
    refuses_file(&f, MODELS "sd1-plain/vae", "another family");
    close_fixture(&f);
}

static void refuses(struct fixture *f, const struct draw *draw, const char *said)
{
    struct session *session;
    struct err err;

    assert_int_equal(session_create(&session, f->model, draw, NULL, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_non_null(strstr(err.message, said));
}

static void test_requests_that_are_none(void **state)
{
    struct draw requests[REQUESTS];
    struct model *other;
    struct fixture f;
    struct err err;

    open_or_skip(&f, state, 0);
    load_controls(&f);
    make_requests(&f, requests);
    requests[1].controls[0].image = NULL;
    refuses(&f, &requests[1], "controlnets[0].image: is missing");
    requests[8].controls[0].guess_mode = true;
    refuses(&f, &requests[8], "controlnets[0].guess_mode: is for ControlNets");
    requests[3].controls[1].start = 0.7;
    requests[3].controls[1].end = 0.6;
    refuses(&f, &requests[3], "controlnets[1].start");
    must(engine_load(&other, f.engine, MODELS "sd1-old", NULL, &err), &err);
    f.model = other;
    refuses(&f, &requests[2], "controlnets[0].name: was loaded for another model");
    close_fixture(&f);
}

/* Of a ControlNet-Union for SDXL: two hints of different kinds beside a plain network. */
static struct draw see_two_kinds(struct fixture *f, struct control *kinds, struct control *plain)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = "a house";
    draw.width = 72;
    draw.height = 64;
    draw.steps = 3;
    draw.guidance_scale = 4;
    draw.seed = 7;
    f->controls[0] = kinds;
    f->controls[1] = plain;
    guide(f, &draw, 0, 0, 0.7);
    guide(f, &draw, 1, 1, 0.4);
    guide(f, &draw, 0, 1, 0.5);
    draw.controls[0].mode = 4;
    draw.controls[2].mode = 1;
    draw.controls[2].start = 0.3;
    return draw;
}

static void restores_to_the_same(struct fixture *f, const struct draw *draw)
{
    struct buf whole, half, rest;
    struct session *session;
    size_t planned;
    struct err err;

    draw_alone(f, draw, &whole);
    must(session_create(&session, f->model, draw, NULL, &err), &err);
    must(engine_plan(&session, 1, &planned, &err), &err);
    must(engine_step(f->model, &session, 1, &err), &err);
    assert_true(engine_memory(f->engine).activations_bytes <= planned);
    buf_init(&half, STATE_MAX_BYTES);
    must(session_save(session, &half, &err), &err);
    session_free(session);
    must(session_restore(&session, f->model, NULL, half.data, half.len, NULL, &err), &err);
    finish(f, session, &rest);
    assert_same(&whole, &rest);
    buf_release(&whole);
    buf_release(&half);
    buf_release(&rest);
}

static void test_hints_of_a_union(void **state)
{
    struct control *kinds, *plain;
    struct fixture f;
    struct draw draw;
    struct err err;

    open_or_skip(&f, state, 0);
    must(engine_load(&f.model, f.engine, MODELS "sdxl-small", NULL, &err), &err);
    must(engine_load_control(&plain, f.model, CONTROLS "sdxl-canny", &err), &err);
    must(engine_load_control(&kinds, f.model,
                             CONTROLS "sdxl-union/diffusion_pytorch_model.safetensors", &err),
         &err);
    assert_string_equal(control_info(kinds)->kind, "ControlNet-Union");
    draw = see_two_kinds(&f, kinds, plain);
    restores_to_the_same(&f, &draw);
    draw.controls[2].guess_mode = true;
    refuses(&f, &draw, "controlnets[2].guess_mode: must be the same");
    draw.controls[2].mode = -1;
    refuses(&f, &draw, "controlnets[2].mode: must say which kind of hint it is");
    draw.controls[0].mode = 5;
    refuses(&f, &draw,
            "controlnets[0].mode: must say which kind of hint it is to this "
            "ControlNet-Union, 0 to 4");
    draw.controls[0].mode = 4;
    draw.controls[1].mode = 0;
    refuses(&f, &draw, "controlnets[1].mode: is for ControlNet-Unions");
    close_fixture(&f);
}

int main(void)
{
    static struct device devices[] = {
        {"ref", PRECISION_F32}, {"dnnl", PRECISION_F32}, {"dnnl", PRECISION_BF16}};
    int failures = 0;

    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        void *device = &devices[i];
        const struct CMUnitTest tests[] = {
            cmocka_unit_test_prestate(test_a_picture_does_not_depend_on_its_batch, device),
            cmocka_unit_test_prestate(test_a_restored_session_ends_in_the_same_bytes, device),
            cmocka_unit_test_prestate(test_memory_comes_back, device),
            cmocka_unit_test_prestate(test_a_network_that_finds_no_room, device),
            cmocka_unit_test_prestate(test_files_that_do_not_fit, device),
            cmocka_unit_test_prestate(test_requests_that_are_none, device),
            cmocka_unit_test_prestate(test_hints_of_a_union, device),
        };
        failures += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failures;
}

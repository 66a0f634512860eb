/*
 * A model without its weights refuses what the model refuses, in the same words, and computes
 * nothing.
 */
#include "engine/engine.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <string.h>

#define GOLDEN "tests/golden/models/"
#define SIDE 64

static uint8_t pixels[3 * SIDE * SIDE];
static const struct image picture = {SIDE, SIDE, pixels};

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

static struct engine *open_engine(const char *backend)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct engine *engine;
    struct err err;

    options.backend = backend;
    options.precision = PRECISION_F32;
    options.threads = 1;
    must(engine_create(&engine, &options, &err), &err);
    return engine;
}

/* Something is wrong with each for some of the models, and for each model with some. */
enum { REQUESTS = 12 };

static void make_requests(struct draw requests[REQUESTS])
{
    for (int i = 0; i < REQUESTS; i++) {
        requests[i] = (struct draw)DRAW_INIT;
        requests[i].prompt = "a red cat";
        requests[i].width = requests[i].height = SIDE;
        requests[i].steps = 2;
    }
    requests[1].clip_skip = 12;
    requests[2].sampler = SAMPLER_LCM;
    requests[2].steps = 60;
    requests[3].target_size[0] = requests[3].target_size[1] = SIDE;
    requests[4].aesthetic_score = 6;
    requests[5].init_image = &picture;
    requests[5].strength = 0;
    requests[6].init_image = requests[6].mask = &picture;
    requests[7].width = 60;
    requests[8].hires = (struct draw_hires){.width = 32, .height = 32, .strength = 0.5};
    requests[9].schedule = SCHEDULE_KARRAS;
    requests[10].prompt = "a AND b";
    requests[10].dialect = DIALECT_A1111;
    requests[11].image_guidance_scale = 2;
}

static void test_refuses_as_the_model_does(void **state)
{
    (void)state;
    static const char *const models[] = {
        "sd1-small", "sd1-lcm",    "sd1-inpaint",  "sd1-pix2pix",
        "sd2-small", "sdxl-small", "sdxl-refiner", "sdxl-single.safetensors"};
    struct engine *whole = open_engine("ref"), *hollow = open_engine("outline");
    struct draw requests[REQUESTS];
    int refused = 0, taken = 0;

    make_requests(requests);
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        struct model *model, *outline;
        struct err err, said;
        char path[256];
        snprintf(path, sizeof(path), GOLDEN "%s", models[m]);
        must(engine_load(&model, whole, path, NULL, &err), &err);
        must(engine_load(&outline, hollow, path, NULL, &err), &err);
        assert_int_equal(model_info(model)->steps, model_info(outline)->steps);
        for (int i = 0; i < REQUESTS; i++) {
            struct session *session = NULL;
            int rc = session_create(&session, model, &requests[i], NULL, &err);
            assert_int_equal(session_check(outline, &requests[i], &said), rc);
            if (rc != 0)
                assert_string_equal(said.message, err.message);
            refused += rc != 0;
            taken += rc == 0;
            session_free(session);
        }
        engine_unload(outline);
        engine_unload(model);
    }
    assert_true(refused > 40 && taken > 20);
    assert_int_equal(engine_memory(hollow).weights_bytes, 0);
    engine_free(hollow);
    engine_free(whole);
}

static void test_computes_nothing(void **state)
{
    (void)state;
    struct engine *engine = open_engine("outline");
    struct draw requests[REQUESTS];
    struct session *session;
    struct model *outline;
    struct err err;
    size_t bytes;

    make_requests(requests);
    must(engine_load(&outline, engine, GOLDEN "sd1-small", NULL, &err), &err);
    must(session_check(outline, &requests[0], &err), &err);
    assert_int_equal(session_create(&session, outline, &requests[0], NULL, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_int_equal(model_plan(outline, SIDE, SIDE, 1, &bytes, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    engine_free(engine);
}

static void test_adapters_and_controls_have_to_fit(void **state)
{
    (void)state;
    struct engine *engine = open_engine("outline");
    struct adapter *adapter;
    struct control *control;
    struct inversion *inversion;
    struct model *outline, *guided;
    struct err err;

    must(engine_load(&outline, engine, GOLDEN "sd1-small", NULL, &err), &err);
    must(engine_load(&guided, engine, GOLDEN "sd1-plain", NULL, &err), &err);
    must(engine_load_adapter(&adapter, outline, GOLDEN "loras/sd1-peft.safetensors", &err), &err);
    must(engine_load_control(&control, guided, GOLDEN "controlnets/sd1-canny", &err), &err);
    must(engine_load_inversion(&inversion, outline, GOLDEN "embeddings/toy.safetensors", &err),
         &err);
    engine_unload_inversion(inversion);
    assert_int_equal(
        engine_load_adapter(&adapter, outline, GOLDEN "loras/sdxl-peft.safetensors", &err), -1);
    assert_non_null(strstr(err.message, "matches nothing"));
    assert_int_equal(engine_load_control(&control, outline, GOLDEN "controlnets/sdxl-canny", &err),
                     -1);
    assert_int_equal(
        engine_load_inversion(&inversion, outline, GOLDEN "embeddings/xl-mood.safetensors", &err),
        -1);
    engine_free(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_as_the_model_does),
        cmocka_unit_test(test_computes_nothing),
        cmocka_unit_test(test_adapters_and_controls_have_to_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

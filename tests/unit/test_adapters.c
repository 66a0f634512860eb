/*
 * What adapters promise on every back end and precision: a picture's bytes depend on its request
 * alone, whatever other adapters are in its batch and whatever was drawn before; the model itself
 * is never touched; memory comes back; and a file that does not fit is refused by name and key.
 */
#include "engine/engine.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL "tests/golden/models/sd1-small"
#define ADAPTERS "tests/golden/models/loras/"
#define STATE_MAX_BYTES (64u << 20)

struct device {
    const char *backend;
    enum precision precision;
};

static const char *const NAMES[] = {"sd1-peft",  "sd1-kohya", "sd1-locon",
                                    "sd1-first", "sd1-dora",  "sd1-lycoris"};
#define NAME_COUNT 6

struct fixture {
    struct engine *engine;
    struct model *model;
    struct adapter *adapters[NAME_COUNT];
};

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

static void load_adapters(struct fixture *f)
{
    char path[256];
    struct err err;

    for (int i = 0; i < NAME_COUNT; i++) {
        snprintf(path, sizeof(path), ADAPTERS "%s.safetensors", NAMES[i]);
        must(engine_load_adapter(&f->adapters[i], f->model, path, &err), &err);
    }
}

static void open_or_skip(struct fixture *f, void **state, size_t memory_max_bytes)
{
    const struct device *device = *state;
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct err err;

    *f = (struct fixture){0};
    options.threads = 2;
    options.backend = device->backend;
    options.precision = device->precision;
    options.memory_max_bytes = memory_max_bytes;
    if (engine_create(&f->engine, &options, &err) != 0) {
        assert_int_equal(err.code, ERR_UNSUPPORTED);
        skip();
    }
    must(engine_load(&f->model, f->engine, MODEL, NULL, &err), &err);
}

/* Requests that differ in their adapters: none, each kind alone, several at once. */
#define REQUESTS 7

static void add(const struct fixture *f, struct draw *draw, int adapter, double scale)
{
    draw->adapters[draw->adapter_count++] =
        (struct draw_adapter){.adapter = f->adapters[adapter], .scale = scale};
}

static void make_requests(const struct fixture *f, struct draw requests[REQUESTS])
{
    for (int i = 0; i < REQUESTS; i++) {
        requests[i] = (struct draw)DRAW_INIT;
        requests[i].prompt = i % 2 ? "a red cat" : "a house";
        requests[i].width = 72;
        requests[i].height = 64;
        requests[i].steps = 2 + i % 2;
        requests[i].sampler = i % 2 ? SAMPLER_EULER : SAMPLER_DDIM;
        requests[i].guidance_scale = i == 3 ? 1 : 5;
        requests[i].seed = 10 + (uint64_t)i;
    }
    add(f, &requests[1], 0, 1);
    add(f, &requests[2], 2, -0.7);
    add(f, &requests[3], 1, 0.5);
    add(f, &requests[3], 3, 1.5);
    add(f, &requests[4], 4, 0.8);
    add(f, &requests[5], 5, 0.6);
    add(f, &requests[5], 1, 1);
    add(f, &requests[6], 0, 1);
    add(f, &requests[6], 4, 0.3);
    add(f, &requests[6], 5, -0.4);
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

static bool differ(const struct buf *a, const struct buf *b)
{
    size_t tail = 4096; /* the latents' history ends the state */

    return a->len != b->len || memcmp(a->data + a->len - tail, b->data + b->len - tail, tail) != 0;
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
    load_adapters(&f);
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
    }
    for (int i = 0; i < REQUESTS; i++) {
        buf_release(&alone[i]);
        buf_release(&mixed[i]);
    }
    engine_free(f.engine);
}

/* Before, between and after: the same plain picture. And an adapter does change one. */
static void test_the_model_is_not_touched(void **state)
{
    struct draw requests[REQUESTS], plain;
    struct buf before, with, after;
    struct fixture f;

    open_or_skip(&f, state, 0);
    make_requests(&f, requests);
    draw_alone(&f, &requests[0], &before);
    load_adapters(&f);
    for (int i = 1; i < REQUESTS; i++) {
        make_requests(&f, requests);
        draw_alone(&f, &requests[i], &with);
        plain = requests[i];
        plain.adapter_count = 0;
        draw_alone(&f, &plain, &after);
        assert_true(differ(&with, &after));
        buf_release(&with);
        buf_release(&after);
    }
    draw_alone(&f, &requests[0], &after);
    assert_same(&before, &after);
    buf_release(&before);
    buf_release(&after);
    engine_free(f.engine);
}

static void test_a_restored_session_ends_in_the_same_bytes(void **state)
{
    struct draw requests[REQUESTS];
    struct buf whole, half, rest;
    struct session *session;
    struct fixture f;
    struct err err;

    open_or_skip(&f, state, 0);
    load_adapters(&f);
    make_requests(&f, requests);
    for (int i = 3; i < REQUESTS; i++) {
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
    engine_unload_adapter(f.adapters[4]);
    assert_int_equal(session_restore(&session, f.model, NULL, half.data, half.len, NULL, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "sd1-dora.safetensors"));
    buf_release(&half);
    engine_free(f.engine);
}

/* All that adapters took is given back with them. */
static void test_memory_comes_back(void **state)
{
    struct draw requests[REQUESTS];
    size_t before, loaded, used;
    struct fixture f;
    struct buf out;

    open_or_skip(&f, state, 0);
    make_requests(&f, requests);
    draw_alone(&f, &requests[0], &out);
    buf_release(&out);
    before = engine_memory(f.engine).weights_bytes;
    load_adapters(&f);
    loaded = engine_memory(f.engine).weights_bytes;
    assert_true(loaded > before);
    make_requests(&f, requests);
    draw_alone(&f, &requests[4], &out);
    buf_release(&out);
    used = engine_memory(f.engine).weights_bytes;
    assert_true(used > loaded); /* a copy is kept */
    draw_alone(&f, &requests[4], &out);
    buf_release(&out);
    assert_int_equal(engine_memory(f.engine).weights_bytes, used);
    for (int i = 0; i < NAME_COUNT; i++)
        engine_unload_adapter(f.adapters[i]);
    assert_int_equal(engine_memory(f.engine).weights_bytes, before);
    engine_free(f.engine);
}

/* With room for one set of copies, two combinations take turns and draw what they drew before. */
static void test_copies_make_room_for_others(void **state)
{
    struct buf roomy[2], tight;
    struct draw requests[REQUESTS];
    struct session *session;
    struct image image;
    size_t most, planned;
    struct fixture f;
    struct err err;

    open_or_skip(&f, state, 0);
    load_adapters(&f);
    make_requests(&f, requests);
    must(session_create(&session, f.model, &requests[4], NULL, &err), &err);
    must(session_decode(session, &image, &err), &err); /* prepares the decoder */
    image_release(&image);
    session_free(session);
    draw_alone(&f, &requests[4], &roomy[0]);
    draw_alone(&f, &requests[5], &roomy[1]);
    must(model_plan(f.model, 72, 64, 2, &planned, &err), &err);
    most = engine_memory(f.engine).weights_bytes + planned;
    engine_free(f.engine);
    open_or_skip(&f, state, most);
    load_adapters(&f);
    make_requests(&f, requests);
    for (int i = 0; i < 4; i++) {
        draw_alone(&f, &requests[4 + i % 2], &tight);
        assert_same(&roomy[i % 2], &tight);
        buf_release(&tight);
    }
    for (int i = 0; i < 20; i++) { /* ever new ones */
        requests[4].adapters[0].scale += 0.01;
        draw_alone(&f, &requests[4], &tight);
        buf_release(&tight);
    }
    assert_true(engine_memory(f.engine).weights_bytes <= most);
    buf_release(&roomy[0]);
    buf_release(&roomy[1]);
    engine_free(f.engine);
}

/* ---- files that do not fit ---- */

/* A safetensors file of f32 zeros; `header` without its braces. */
static const char *write_file(const char *header, size_t data_bytes)
{
    static char path[] = "/tmp/atelier-adapter-test.safetensors";
    char text[4096];
    uint64_t len = (uint64_t)snprintf(text, sizeof(text), "{%s}", header);
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    fwrite(&len, sizeof(len), 1, file);
    fwrite(text, 1, len, file);
    for (size_t i = 0; i < data_bytes; i++)
        fputc(0, file);
    fclose(file);
    return path;
}

static void refuses(struct fixture *f, const char *path, const char *said)
{
    struct adapter *adapter;
    struct err err;

    assert_int_equal(engine_load_adapter(&adapter, f->model, path, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    if (strstr(err.message, said) == NULL || strstr(err.message, path) == NULL)
        fail_msg("'%s' says nothing of %s and '%s'", err.message, path, said);
}

#define F32(name, shape, begin, end)                                                               \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]" \
    "}"
#define Q "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"

static void test_files_that_do_not_fit(void **state)
{
    struct fixture f;

    open_or_skip(&f, state, 0);
    refuses(&f, ADAPTERS "sdxl-kohya.safetensors", "matches nothing in " MODEL);
    refuses(&f, ADAPTERS "sdxl-peft.safetensors", "'");
    refuses(&f, ADAPTERS "none.safetensors", "No such file");
    refuses(&f, MODEL "/vae/diffusion_pytorch_model.safetensors", "matches nothing");
    refuses(&f, write_file(F32(Q ".lora_down.weight", "2,32", 0, 256), 256),
            Q ".lora_down.weight' stands without its lora_up");
    refuses(&f,
            write_file(F32(Q ".lora_down.weight", "2,31", 0, 248) "," F32(Q ".lora_up.weight",
                                                                          "32,2", 248, 504),
                       504),
            Q ".lora_down.weight' has the shape [2, 31], the model needs [2, 32]");
    refuses(&f,
            write_file(F32(Q ".lora_down.weight", "2,32", 0, 256) "," F32(Q ".lora_up.weight",
                                                                          "32,3", 256, 640),
                       640),
            Q ".lora_up.weight' has the shape [32, 3], the model needs [32, 2]");
    refuses(&f, write_file(F32(Q ".lora_down.weight", "0,32", 0, 0), 0), "stands without");
    refuses(
        &f,
        write_file(
            F32(Q ".lora_down.weight", "0,32", 0, 0) "," F32(Q ".lora_up.weight", "32,0", 0, 0), 0),
        "a rank that is not");
    refuses(&f, write_file(F32(Q ".alpha", "", 0, 4), 4), Q ".alpha' stands without its weights");
    refuses(&f, write_file(F32(Q ".lora_down.bias", "2", 0, 8), 8), Q ".lora_down.bias' matches");
    refuses(&f,
            write_file(F32(Q ".diff", "32,32", 0, 4096) "," F32(Q ".hada_w1_a", "32,1", 4096, 4224),
                       4224),
            "of another kind than the layer's other keys");
    refuses(&f,
            write_file(F32(Q ".lokr_w1", "5,4", 0, 80) "," F32(Q ".lokr_w2", "8,8", 80, 336), 336),
            "does not divide the layer");
    refuses(&f, write_file("", 0), "holds no tensors");
    refuses(&f, write_file(F32("bundle_emb.x.string_to_param.*", "1,40", 0, 160), 160),
            "textual inversion");
    unlink(write_file("", 0));
    engine_free(f.engine);
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
            cmocka_unit_test_prestate(test_the_model_is_not_touched, device),
            cmocka_unit_test_prestate(test_a_restored_session_ends_in_the_same_bytes, device),
            cmocka_unit_test_prestate(test_memory_comes_back, device),
            cmocka_unit_test_prestate(test_copies_make_room_for_others, device),
            cmocka_unit_test_prestate(test_files_that_do_not_fit, device),
        };
        failures += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failures;
}

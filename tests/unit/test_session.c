/*
 * What a session promises, on every back end and precision: its bytes depend on its request alone,
 * not on what it was stepped with, on where it was saved and restored, or on what was drawn before.
 */
#include "engine/engine.h"
#include "engine/measure.h"

#include "tests/unit/unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL "tests/golden/models/sd1-small"
#define OTHER_MODEL "tests/golden/models/sd2-small"
#define STATE_MAX_BYTES (64u << 20)

struct device {
    const char *backend;
    enum precision precision;
};

struct fixture {
    struct engine *engine;
    struct model *model;
};

/* What a picture is told by: the whole state after the last step, and the pixels. */
struct drawn {
    struct buf state;
    struct image image;
};

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

/* -1: this build has no such back end, or this machine no such device. */
static int open_fixture(struct fixture *f, const struct device *device, size_t memory_max_bytes)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct err err;

    *f = (struct fixture){0};
    options.backend = device->backend;
    options.precision = device->precision;
    options.memory_max_bytes = memory_max_bytes;
    if (engine_create(&f->engine, &options, &err) != 0)
        return err.code == ERR_UNSUPPORTED || err.code == ERR_DEVICE ? -1 : (must(-1, &err), -1);
    must(engine_load(&f->model, f->engine, MODEL, NULL, &err), &err);
    return 0;
}

static void open_or_skip(struct fixture *f, void **state)
{
    if (open_fixture(f, *state, 0) != 0)
        skip();
}

static void close_fixture(struct fixture *f)
{
    engine_free(f->engine);
}

static struct session *begin(struct fixture *f, const struct draw *draw)
{
    struct session *session;
    struct err err;

    must(session_create(&session, f->model, draw, NULL, &err), &err);
    return session;
}

static void step(struct fixture *f, struct session *session, int steps)
{
    struct err err;

    for (int i = 0; i < steps; i++)
        must(engine_step(f->model, &session, 1, &err), &err);
}

static void save(const struct session *session, struct buf *out)
{
    struct err err;

    buf_init(out, STATE_MAX_BYTES);
    must(session_save(session, out, &err), &err);
}

/* Takes the remaining steps and the session itself. */
static struct drawn finish(struct fixture *f, struct session *session)
{
    struct drawn drawn = {0};
    struct err err;

    step(f, session, session_steps_left(session));
    save(session, &drawn.state);
    must(session_decode(session, &drawn.image, &err), &err);
    session_free(session);
    return drawn;
}

static void drop(struct drawn *drawn)
{
    buf_release(&drawn->state);
    image_release(&drawn->image);
}

static void assert_same(const struct drawn *a, const struct drawn *b)
{
    assert_int_equal(a->state.len, b->state.len);
    assert_memory_equal(a->state.data, b->state.data, a->state.len);
    assert_int_equal(a->image.width, b->image.width);
    assert_int_equal(a->image.height, b->image.height);
    assert_memory_equal(a->image.rgb, b->image.rgb,
                        3 * (size_t)a->image.width * (size_t)a->image.height);
}

#define CHANGING "a [(red:1.3)|blue] cat AND a (dog:0.8) BREAK on a hill :0.6"

static struct draw draw_of(const char *prompt, int width, int height, int steps)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = prompt;
    draw.width = width;
    draw.height = height;
    draw.steps = steps;
    draw.seed = 5;
    return draw;
}

/* ---- batches ---- */

/* One of each sampler, with prompts, step counts, guidance and seeds that all differ. */
static void make_mix(struct draw mix[SAMPLER_COUNT])
{
    static const char *PROMPTS[] = {"a red cat", "", "two dogs, blue and green, on a hill",
                                    "UPPER case & 7 signs!"};

    for (int i = 0; i < SAMPLER_COUNT; i++) {
        mix[i] = draw_of(PROMPTS[i % 4], 72, 64, 2 + i % 3);
        mix[i].negative_prompt = i % 2 ? "blurry" : NULL;
        if (i % 5 == 0)
            mix[i].prompt = CHANGING;
        mix[i].dialect = (enum dialect)(i % DIALECT_COUNT);
        mix[i].guidance_scale = i % 3 == 1 ? 1 : 2 + i;
        mix[i].sampler = (enum sampler)i;
        mix[i].eta = i == SAMPLER_DDIM || i == SAMPLER_TCD ? 0.5 : 0;
        mix[i].seed = 100 + (uint64_t)i;
    }
}

static void test_a_picture_does_not_depend_on_its_batch(void **state)
{
    struct session *sessions[SAMPLER_COUNT], *going[SAMPLER_COUNT];
    struct drawn alone[SAMPLER_COUNT];
    struct draw mix[SAMPLER_COUNT];
    struct fixture f;
    struct err err;
    int count;

    open_or_skip(&f, state);
    make_mix(mix);
    for (int i = 0; i < SAMPLER_COUNT; i++)
        alone[i] = finish(&f, begin(&f, &mix[i]));
    for (int i = 0; i < SAMPLER_COUNT; i++)
        sessions[i] = begin(&f, &mix[i]);
    do {
        count = 0;
        for (int i = SAMPLER_COUNT - 1; i >= 0; i--)
            if (session_steps_left(sessions[i]) > 0)
                going[count++] = sessions[i];
        if (count > 0)
            must(engine_step(f.model, going, count, &err), &err);
    } while (count > 0);
    for (int i = 0; i < SAMPLER_COUNT; i++) {
        struct drawn together = finish(&f, sessions[i]);
        assert_same(&alone[i], &together);
        drop(&together);
        drop(&alone[i]);
    }
    close_fixture(&f);
}

static void test_what_cannot_be_stepped_together(void **state)
{
    struct draw a = draw_of("a", 64, 64, 1), b = draw_of("a", 72, 64, 1);
    struct session *pair[2];
    struct fixture f;
    struct err err;

    open_or_skip(&f, state);
    pair[0] = begin(&f, &a);
    pair[1] = begin(&f, &b);
    assert_int_equal(engine_step(f.model, pair, 2, &err), -1);
    assert_int_equal(engine_step(f.model, pair, 0, &err), -1);
    assert_int_equal(session_steps_left(pair[0]), session_steps_total(pair[0]));
    step(&f, pair[0], session_steps_left(pair[0]));
    assert_int_equal(engine_step(f.model, pair, 1, &err), -1);
    session_free(pair[0]);
    session_free(pair[1]);
    close_fixture(&f);
}

/* ---- saving ---- */

/* The state after the last step; takes the session itself. */
static void finish_state(struct fixture *f, struct session *session, struct buf *out)
{
    step(f, session, session_steps_left(session));
    save(session, out);
    session_free(session);
}

static void assert_ends_in(struct fixture *f, const struct buf *saved, const struct buf *end)
{
    struct session *session;
    struct err err;
    struct buf now;

    must(session_restore(&session, f->model, NULL, saved->data, saved->len, NULL, &err), &err);
    finish_state(f, session, &now);
    assert_int_equal(now.len, end->len);
    assert_memory_equal(now.data, end->data, end->len);
    buf_release(&now);
}

static void check_saving(struct fixture *f, struct fixture *fresh, const struct draw *draw)
{
    struct session *session = begin(f, draw);
    struct buf saved[4], end;

    for (int after = 0; after <= 3; after++) {
        save(session, &saved[after]);
        step(f, session, 1);
    }
    finish_state(f, session, &end);
    for (int after = 0; after <= 3; after++) {
        assert_ends_in(after % 2 ? f : fresh, &saved[after], &end);
        buf_release(&saved[after]);
    }
    buf_release(&end);
}

static void test_a_restored_session_ends_in_the_same_bytes(void **state)
{
    struct fixture f, fresh;

    open_or_skip(&f, state);
    assert_int_equal(open_fixture(&fresh, *state, 0), 0);
    for (int i = 0; i < SAMPLER_COUNT; i++) {
        struct draw draw = draw_of(i % 4 ? "a red cat" : CHANGING, 64, 64, 4);
        draw.dialect = i % 4 ? DIALECT_DIFFUSERS : DIALECT_A1111;
        draw.sampler = (enum sampler)i;
        draw.guidance_rescale = i % 3 ? 0 : 0.5;
        draw.guidance_interval[0] = i % 2 ? 0.4 : -1;
        draw.guidance_interval[1] = 6;
        if (i % 5 == 0)
            draw.freeu = (struct freeu){.b1 = 1.3, .b2 = 1.4, .s1 = 0.9, .s2 = 0.2};
        if (i > SAMPLER_MODEL && sampler_has_schedule(draw.sampler, SCHEDULE_KARRAS))
            draw.schedule = i % 2 ? SCHEDULE_KARRAS : SCHEDULE_NORMAL;
        draw.eta = i == SAMPLER_DDIM || i == SAMPLER_TCD ? 1 : 0;
        draw.guidance_scale = i % 2 ? 1 : 5;
        draw.rng = i % 3 == 0 ? RNG_PHILOX : RNG_TORCH;
        check_saving(&f, &fresh, &draw);
    }
    close_fixture(&fresh);
    close_fixture(&f);
}

static void assert_not_restored(struct fixture *f, const char *bytes, size_t len)
{
    struct session *session;
    struct err err;

    assert_int_equal(session_restore(&session, f->model, NULL, bytes, len, NULL, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, "saved session");
}

static void test_damaged_states_are_refused(void **state)
{
    struct draw draw = draw_of("a red cat", 64, 64, 4);
    struct session *session;
    struct fixture f;
    struct buf saved;
    struct err err;
    struct model *other;
    char *copy;

    open_or_skip(&f, state);
    session = begin(&f, &draw);
    step(&f, session, 2);
    save(session, &saved);
    session_free(session);
    copy = calloc(1, saved.len + 1);
    memcpy(copy, saved.data, saved.len);
    for (size_t len = 0; len < saved.len; len += len < 128 ? 1 : 997) {
        char *part = malloc(len + 1); /* of that size, so that a sanitizer sees a read beyond it */
        memcpy(part, saved.data, len);
        assert_not_restored(&f, part, len);
        free(part);
    }
    assert_not_restored(&f, copy, saved.len + 1);
    for (size_t at = 0; at < saved.len; at += at < 256 ? 1 : 89) {
        copy[at] ^= (char)(1 << at % 8);
        assert_not_restored(&f, copy, saved.len);
        copy[at] = saved.data[at];
    }
    must(engine_load(&other, f.engine, OTHER_MODEL, NULL, &err), &err);
    assert_int_equal(session_restore(&session, other, NULL, copy, saved.len, NULL, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_contains(err.message, OTHER_MODEL);
    free(copy);
    buf_release(&saved);
    close_fixture(&f);
}

/* ---- dialects ---- */

/* 16 KiB of text in each dialect, and marks that mean nothing, which are taken literally. */
static void test_long_and_strange_prompts(void **state)
{
    static const char *const UNITS[] = {"a ", "(a:1.2.3) ", "[a:b ", "((", "))", "a:1.5) ", "\\"};
    static char text[16385];
    struct fixture f;
    struct err err;

    open_or_skip(&f, state);
    for (size_t u = 0; u < sizeof(UNITS) / sizeof(UNITS[0]); u++) {
        size_t len = strlen(UNITS[u]), long_bytes = u == 0 ? sizeof(text) - 1 : 300;
        for (size_t i = 0; i < long_bytes; i++)
            text[i] = UNITS[u][i % len];
        text[long_bytes] = '\0';
        for (int dialect = 0; dialect < DIALECT_COUNT; dialect++) {
            struct draw draw = draw_of(text, 64, 64, 1);
            struct session *session = NULL;
            draw.dialect = (enum dialect)dialect;
            draw.guidance_scale = 1;
            must(session_create(&session, f.model, &draw, NULL, &err), &err);
            if (u == 0)
                step(&f, session, 1);
            session_free(session);
        }
    }
    close_fixture(&f);
}

static void assert_refused(struct fixture *f, const struct draw *draw, const char *said)
{
    struct session *session;
    struct err err;

    assert_int_equal(session_create(&session, f->model, draw, NULL, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, said);
}

static void test_prompts_that_are_too_much(void **state)
{
    static char text[16385];
    struct draw draw = draw_of(text, 64, 64, 2);
    struct fixture f;

    open_or_skip(&f, state);
    draw.dialect = DIALECT_A1111;
    for (int i = 0; i < 17; i++)
        strcat(text, "a AND ");
    assert_refused(&f, &draw, "prompt: has more than 16 parts");
    text[0] = '\0';
    for (int i = 0; i < 300; i++)
        strcat(text, "BREAK a ");
    assert_refused(&f, &draw, "256 chunks");
    draw.negative_prompt = text;
    draw.prompt = "a";
    assert_refused(&f, &draw, "negative_prompt");
    close_fixture(&f);
}

static void test_guidance_that_is_none(void **state)
{
    struct draw draw = draw_of("a", 64, 64, 2), bad = draw;
    struct fixture f;

    open_or_skip(&f, state);
    bad.guidance_rescale = 1.5;
    assert_refused(&f, &bad, "guidance_rescale: must be a number from 0 to 1");
    bad = draw;
    bad.guidance_interval[0] = 3;
    bad.guidance_interval[1] = 3;
    assert_refused(&f, &bad, "guidance_interval: must be two sigmas");
    bad = draw;
    bad.freeu.b1 = 1.2;
    assert_refused(&f, &bad, "freeu: needs b1, b2, s1 and s2");
    close_fixture(&f);
}

/* ---- sizes and memory ---- */

static void test_sizes_in_any_order(void **state)
{
    const struct device *device = *state;
    const int longest =
        strcmp(device->backend, "ref") == 0 ? 264 : ENGINE_SIZE_MAX; /* it is slow */
    const int SIZES[][2] = {{64, 64}, {72, 120}, {longest, 64}, {64, longest}, {120, 72}};
    enum { COUNT = sizeof(SIZES) / sizeof(SIZES[0]) };
    struct drawn up[COUNT];
    struct fixture f, other;

    open_or_skip(&f, state);
    assert_int_equal(open_fixture(&other, *state, 0), 0);
    for (int i = 0; i < COUNT; i++) {
        struct draw draw = draw_of("a red cat", SIZES[i][0], SIZES[i][1], 1);
        up[i] = finish(&f, begin(&f, &draw));
        assert_int_equal(up[i].image.width, SIZES[i][0]);
        assert_int_equal(up[i].image.height, SIZES[i][1]);
    }
    for (int i = COUNT - 1; i >= 0; i--) {
        struct draw draw = draw_of("a red cat", SIZES[i][0], SIZES[i][1], 1);
        struct drawn down = finish(&other, begin(&other, &draw));
        assert_same(&up[i], &down);
        drop(&down);
        drop(&up[i]);
    }
    close_fixture(&other);
    close_fixture(&f);
}

static void test_sizes_that_are_none(void **state)
{
    static const int SIZES[] = {8, 56, 63, 65, 68, 2056, 4096, -64, 1 << 30};
    struct draw draw;
    struct session *session;
    struct fixture f;
    struct err err;

    open_or_skip(&f, state);
    for (size_t i = 0; i < sizeof(SIZES) / sizeof(SIZES[0]); i++) {
        draw = draw_of("a", SIZES[i], 64, 1);
        assert_int_equal(session_create(&session, f.model, &draw, NULL, &err), -1);
        assert_int_equal(err.class, ERR_REJECT);
        assert_contains(err.message, "width");
        draw = draw_of("a", 64, SIZES[i], 1);
        assert_int_equal(session_create(&session, f.model, &draw, NULL, &err), -1);
        assert_contains(err.message, "height");
    }
    close_fixture(&f);
}

static void count_stages(void *user, const struct stage *stage)
{
    (void)stage;
    ++*(int *)user;
}

/* Room for pictures of 128 × 128: one of 2048 × 2048 is refused before anything is computed, and
 * the smaller one is drawn. */
static void test_a_size_that_does_not_fit(void **state)
{
    struct draw fits = draw_of("a", 128, 128, 3), large = draw_of("a", 2048, 2048, 1);
    struct memory_use use;
    struct session *session;
    struct stage_observer observer;
    struct fixture f, small;
    struct drawn drawn;
    struct err err;
    int stages = 0;

    open_or_skip(&f, state);
    drawn = finish(&f, begin(&f, &fits));
    drop(&drawn);
    use = engine_memory(f.engine);
    close_fixture(&f);
    /* Planning the large one may already have brought some weights into another form. */
    assert_int_equal(
        open_fixture(&small, *state, use.weights_bytes + use.activations_bytes + (128u << 10)), 0);
    observer = (struct stage_observer){.see = count_stages, .user = &stages};
    assert_int_equal(session_create(&session, small.model, &large, &observer, &err), -1);
    assert_int_equal(err.code, ERR_MEMORY);
    assert_contains(err.message, "width");
    assert_contains(err.message, "height");
    assert_contains(err.message, "2048");
    assert_int_equal(stages, 0);
    assert_int_equal(engine_memory(small.engine).activations_bytes, 0);
    drawn = finish(&small, begin(&small, &fits));
    drop(&drawn);
    close_fixture(&small);
}

/* A size that was drawn once needs nothing more: neither activations nor forms of weights. */
static void test_memory_stays(void **state)
{
    struct draw draw = draw_of("a red cat", 120, 72, 3), smaller = draw_of("a", 64, 64, 1);
    struct memory_use first, now;
    struct session *session;
    struct fixture f;
    struct drawn drawn;

    open_or_skip(&f, state);
    drawn = finish(&f, begin(&f, &draw));
    drop(&drawn);
    first = engine_memory(f.engine);
    assert_true(first.activations_bytes > 0);
    session = begin(&f, &draw);
    while (session_steps_left(session) > 0) {
        step(&f, session, 1);
        now = engine_memory(f.engine);
        assert_int_equal(now.activations_bytes, first.activations_bytes);
        assert_int_equal(now.weights_bytes, first.weights_bytes);
    }
    drawn = finish(&f, session);
    drop(&drawn);
    drawn = finish(&f, begin(&f, &smaller));
    drop(&drawn);
    assert_int_equal(engine_memory(f.engine).activations_bytes, first.activations_bytes);
    close_fixture(&f);
}

/* The plan is what a run takes, and it is known before anything runs. */
static void test_the_plan_holds(void **state)
{
    struct draw draw = draw_of("a red cat", 256, 192, 1);
    struct fixture f;
    struct drawn drawn;
    struct err err;
    size_t planned;

    open_or_skip(&f, state);
    must(model_plan(f.model, 256, 192, 1, &planned, &err), &err);
    assert_int_equal(engine_memory(f.engine).activations_bytes, 0);
    drawn = finish(&f, begin(&f, &draw));
    drop(&drawn);
    assert_true(engine_memory(f.engine).activations_bytes <= planned);
    close_fixture(&f);
}

/* ---- texts ---- */

/* How many matrix products a session's beginning takes: none without encoding its texts. */
static long products_to_begin(struct fixture *f, const struct draw *draw, struct session **session)
{
    struct profile profile = {0};

    engine_profile(f->engine, &profile);
    *session = begin(f, draw);
    engine_profile(f->engine, NULL);
    return profile.ops[OP_MATMUL].calls;
}

/* The same prompts again, with another seed, take no encoding and give what a new engine gives. */
static void test_texts_are_encoded_once(void **state)
{
    struct draw draw = draw_of("a red cat", 64, 64, 1), other;
    struct session *session;
    struct fixture f, fresh;
    struct drawn again, anew;

    open_or_skip(&f, state);
    draw.negative_prompt = "blurry";
    assert_true(products_to_begin(&f, &draw, &session) > 0);
    session_free(session);
    draw.seed = 6;
    assert_int_equal(products_to_begin(&f, &draw, &session), 0);
    again = finish(&f, session);
    other = draw;
    other.clip_skip = 1;
    assert_true(products_to_begin(&f, &other, &session) > 0);
    session_free(session);
    other = draw;
    other.negative_prompt = "dark";
    assert_true(products_to_begin(&f, &other, &session) > 0);
    session_free(session);
    close_fixture(&f);
    open_or_skip(&fresh, state);
    anew = finish(&fresh, begin(&fresh, &draw));
    assert_same(&again, &anew);
    drop(&again);
    drop(&anew);
    close_fixture(&fresh);
}

/* ---- loading meanwhile ---- */

#define LOADS_MAX 5 /* an emulated card runs one thread at a time, and not fairly */

struct loading {
    struct engine *engine;
    struct model *model; /* the last one */
    atomic_bool enough;
    int loads;
};

static void *load_once(void *user)
{
    struct loading *loading = user;
    struct err err;

    must(engine_load(&loading->model, loading->engine, OTHER_MODEL, NULL, &err), &err);
    loading->loads++;
    return NULL;
}

static void *load_again_and_again(void *user)
{
    struct loading *loading = user;

    while (!loading->enough && loading->loads < LOADS_MAX) {
        load_once(loading);
        engine_unload(loading->model);
    }
    return NULL;
}

static void test_models_are_loaded_while_others_draw(void **state)
{
    struct draw draw = draw_of("a red cat", 64, 64, 2);
    struct drawn alone, beside;
    struct loading loading;
    struct fixture f;
    pthread_t thread;

    open_or_skip(&f, state);
    alone = finish(&f, begin(&f, &draw));
    loading = (struct loading){.engine = f.engine};
    assert_int_equal(pthread_create(&thread, NULL, load_again_and_again, &loading), 0);
    for (int i = 0; i < 2; i++) {
        beside = finish(&f, begin(&f, &draw));
        assert_same(&alone, &beside);
        drop(&beside);
    }
    loading.enough = true;
    pthread_join(thread, NULL);
    assert_true(loading.loads > 0);
    drop(&alone);
    close_fixture(&f);
}

/* Loads a model within a step and waits for it. */
static void load_within(void *user, const struct stage *stage)
{
    struct loading *loading = user;
    pthread_t thread;

    if (strcmp(stage->name, "latents.0") != 0)
        return;
    assert_int_equal(pthread_create(&thread, NULL, load_once, loading), 0);
    pthread_join(thread, NULL);
}

/* Where a load waited for the step that goes on, this would never end. */
static void test_a_load_does_not_wait_for_a_step(void **state)
{
    struct draw draw = draw_of("a red cat", 64, 64, 2);
    struct loading loading = {0};
    struct stage_observer observer = {.see = load_within, .user = &loading};
    struct session *session;
    struct fixture f;
    struct drawn drawn;
    struct err err;

    open_or_skip(&f, state);
    loading.engine = f.engine;
    must(session_create(&session, f.model, &draw, &observer, &err), &err);
    drawn = finish(&f, session);
    assert_int_equal(loading.loads, 1);
    engine_unload(loading.model);
    drop(&drawn);
    close_fixture(&f);
}

/* A session that was told it fits keeps its room, though it has not taken it yet. */
static void test_a_load_leaves_open_sessions_their_room(void **state)
{
    struct draw draw = draw_of("a", 64, 64, 1);
    struct memory_use use;
    struct session *session;
    struct model *other;
    struct fixture f, tight;
    struct drawn drawn;
    struct err err;

    open_or_skip(&f, state);
    drawn = finish(&f, begin(&f, &draw));
    drop(&drawn);
    use = engine_memory(f.engine);
    close_fixture(&f);
    assert_int_equal(open_fixture(&tight, *state, use.weights_bytes + use.activations_bytes), 0);
    session = begin(&tight, &draw);
    assert_int_equal(engine_load(&other, tight.engine, OTHER_MODEL, NULL, &err), -1);
    assert_int_equal(err.code, ERR_MEMORY);
    assert_int_equal(err.class, ERR_RETRY);
    drawn = finish(&tight, session);
    drop(&drawn);
    engine_unload(tight.model);
    must(engine_load(&other, tight.engine, OTHER_MODEL, NULL, &err), &err);
    close_fixture(&tight);
}

#define TEST(function) cmocka_unit_test_prestate(function, device)

/* What is a matter of the card's two streams; all else is the same code as on the processor. */
static int on_a_card(void)
{
    static const struct device CARD = {"cuda", PRECISION_BF16};
    void *device = (void *)&CARD;
    const struct CMUnitTest tests[] = {TEST(test_models_are_loaded_while_others_draw)};

    return cmocka_run_group_tests_name("session cuda bf16", tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    static const struct device DEVICES[] = {{"ref", PRECISION_F32},
                                            {"ref", PRECISION_BF16},
                                            {"dnnl", PRECISION_F32},
                                            {"dnnl", PRECISION_BF16}};
    int failed = 0;

    if (argc > 1 && strcmp(argv[1], "cuda") == 0)
        return on_a_card();
    for (size_t i = 0; i < sizeof(DEVICES) / sizeof(DEVICES[0]); i++) {
        void *device = (void *)&DEVICES[i];
        char name[64];
        const struct CMUnitTest tests[] = {
            TEST(test_a_picture_does_not_depend_on_its_batch),
            TEST(test_what_cannot_be_stepped_together),
            TEST(test_a_restored_session_ends_in_the_same_bytes),
            TEST(test_damaged_states_are_refused),
            TEST(test_long_and_strange_prompts),
            TEST(test_prompts_that_are_too_much),
            TEST(test_guidance_that_is_none),
            TEST(test_sizes_in_any_order),
            TEST(test_sizes_that_are_none),
            TEST(test_a_size_that_does_not_fit),
            TEST(test_memory_stays),
            TEST(test_the_plan_holds),
            TEST(test_texts_are_encoded_once),
            TEST(test_models_are_loaded_while_others_draw),
            TEST(test_a_load_does_not_wait_for_a_step),
            TEST(test_a_load_leaves_open_sessions_their_room),
        };
        snprintf(name, sizeof(name), "session %s %s", DEVICES[i].backend,
                 DEVICES[i].precision == PRECISION_F32 ? "f32" : "bf16");
        failed += cmocka_run_group_tests_name(name, tests, NULL, NULL);
    }
    return failed;
}

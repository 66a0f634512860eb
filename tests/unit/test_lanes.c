/*
 * What a card computes beside a step, several cards at once, and a card that is lost: each picture
 * is the same as when it is drawn alone. On the emulated card the meetings are arranged; on a real
 * one they happen as they may.
 */
#include "engine/engine.h"

#if defined(ATELIER_CUDA_EMULATED)
#include "tests/cuda/watch.h"
#endif
#include "tests/unit/unit.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MODEL "tests/golden/models/sd1-plain"
#define WAIT_S 120 /* for what happens within seconds; longer is for ever */

struct fixture {
    struct engine *engine;
    struct model *model;
};

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

static void open_card(struct fixture *f, const char *name, size_t memory_max_bytes)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct err err;

    options.backend = name;
    options.memory_max_bytes = memory_max_bytes;
    if (engine_cards() == 0)
        skip();
    must(engine_create(&f->engine, &options, &err), &err);
    must(engine_load(&f->model, f->engine, MODEL, NULL, &err), &err);
}

static struct draw draw_of(const char *prompt)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = prompt;
    draw.width = 64;
    draw.height = 64;
    draw.steps = 2;
    draw.seed = 5;
    return draw;
}

static struct session *begin(struct fixture *f, const char *prompt)
{
    struct draw draw = draw_of(prompt);
    struct session *session;
    struct err err;

    must(session_create(&session, f->model, &draw, NULL, &err), &err);
    return session;
}

static void step(struct fixture *f, struct session *session)
{
    struct err err;

    must(engine_step(f->model, &session, 1, &err), &err);
}

/* Takes the session. */
static struct image finish(struct fixture *f, struct session *session)
{
    struct image image;
    struct err err;

    while (session_steps_left(session) > 0)
        step(f, session);
    must(session_decode(session, &image, &err), &err);
    session_free(session);
    return image;
}

static void assert_same(const struct image *a, const struct image *b)
{
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_memory_equal(a->rgb, b->rgb, 3 * (size_t)a->width * (size_t)a->height);
}

/* ---- beside a step ---- */

/* A thread that draws, and when it has got where. */
struct drawing {
    struct fixture *f;
    const char *prompt;
    struct image image;
    pthread_t thread;
};

static void *draw_main(void *user)
{
    struct drawing *d = user;

    d->image = finish(d->f, begin(d->f, d->prompt));
    return NULL;
}

static void start(struct drawing *d, struct fixture *f, const char *prompt)
{
    *d = (struct drawing){.f = f, .prompt = prompt};
    assert_int_equal(pthread_create(&d->thread, NULL, draw_main, d), 0);
}

static void test_many_threads_draw(void **state)
{
    static const char *const PROMPTS[] = {"a red cat", "two dogs", "a hill", ""};
    enum { COUNT = sizeof(PROMPTS) / sizeof(PROMPTS[0]) };
    struct drawing drawings[COUNT];
    struct fixture f;

    (void)state;
    open_card(&f, "cuda", 0);
    for (int i = 0; i < COUNT; i++)
        start(&drawings[i], &f, PROMPTS[i]);
    for (int i = 0; i < COUNT; i++)
        pthread_join(drawings[i].thread, NULL);
    for (int i = 0; i < COUNT; i++) {
        struct image alone = finish(&f, begin(&f, PROMPTS[i]));
        assert_same(&alone, &drawings[i].image);
        image_release(&alone);
        image_release(&drawings[i].image);
    }
    engine_free(f.engine);
}

#if defined(ATELIER_CUDA_EMULATED)

/* A meeting of two threads: one stops in the middle of a step until the other has done its work. */
static struct meeting {
    pthread_t stepping; /* who stops, once `wanted` is set */
    _Atomic bool wanted, met, late;
    sem_t within, done;
} meeting;

static bool wait_for(sem_t *event)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    return sem_timedwait(event, &until) == 0;
}

static void stop_within(void *user)
{
    (void)user;
    if (!meeting.wanted || !pthread_equal(pthread_self(), meeting.stepping) || meeting.met)
        return;
    meeting.met = true;
    sem_post(&meeting.within);
    meeting.late = !wait_for(&meeting.done);
}

static void *step_main(void *user)
{
    struct drawing *d = user;
    struct session *session = begin(d->f, d->prompt);

    meeting.stepping = pthread_self();
    meeting.wanted = true;
    step(d->f, session);
    meeting.wanted = false;
    d->image = finish(d->f, session);
    return NULL;
}

/* Where one of them waited for the step that goes on, this would not end in time. */
static void test_texts_and_pictures_are_made_within_a_step(void **state)
{
    struct drawing d = {.prompt = "a red cat"};
    struct image alone[2], beside;
    struct fixture f;
    struct session *drawn;

    (void)state;
    open_card(&f, "cuda", 0);
    alone[0] = finish(&f, begin(&f, "a red cat"));
    alone[1] = finish(&f, begin(&f, "two dogs"));
    drawn = begin(&f, "two dogs");
    while (session_steps_left(drawn) > 0)
        step(&f, drawn);
    d.f = &f;
    sem_init(&meeting.within, 0, 0);
    sem_init(&meeting.done, 0, 0);
    emulated_watch(stop_within, NULL);
    assert_int_equal(pthread_create(&d.thread, NULL, step_main, &d), 0);
    assert_true(wait_for(&meeting.within));
    session_free(begin(&f, "something new"));
    beside = finish(&f, drawn);
    sem_post(&meeting.done);
    pthread_join(d.thread, NULL);
    emulated_watch(NULL, NULL);
    assert_false(meeting.late);
    assert_same(&alone[0], &d.image);
    assert_same(&alone[1], &beside);
    image_release(&d.image);
    image_release(&beside);
    image_release(&alone[0]);
    image_release(&alone[1]);
    engine_free(f.engine);
}

/* Two cards that have nothing in common but the program; a third one that is not there. */
static void test_two_cards(void **state)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct fixture f[2];
    struct drawing drawings[2];
    struct engine *third;
    struct err err;

    (void)state;
    setenv("ATELIER_EMULATED_CARDS", "2", 1);
    assert_int_equal(engine_cards(), 2);
    open_card(&f[0], "cuda:0", 0);
    open_card(&f[1], "cuda:1", 0);
    for (int i = 0; i < 2; i++)
        start(&drawings[i], &f[i], "a red cat");
    for (int i = 0; i < 2; i++)
        pthread_join(drawings[i].thread, NULL);
    assert_same(&drawings[0].image, &drawings[1].image);
    /* One thread for both, in turn. */
    for (int i = 0; i < 2; i++) {
        struct image again = finish(&f[i], begin(&f[i], "a red cat"));
        assert_same(&again, &drawings[i].image);
        image_release(&again);
        image_release(&drawings[i].image);
    }
    options.backend = "cuda:2";
    assert_int_equal(engine_create(&third, &options, &err), -1);
    assert_int_equal(err.code, ERR_DEVICE);
    assert_contains(err.message, "number 2");
    options.backend = "cuda:x";
    assert_int_equal(engine_create(&third, &options, &err), -1);
    assert_contains(err.message, "cuda:x");
    engine_free(f[0].engine);
    engine_free(f[1].engine);
    setenv("ATELIER_EMULATED_CARDS", "1", 1);
}

#endif

/* Room for one arena and not for two: all goes through the first lane, and gives the same. */
static void test_memory_for_one_lane(void **state)
{
    struct drawing drawings[3];
    struct memory_use use;
    struct fixture f;
    struct image alone;
    size_t largest;
    struct err err;

    (void)state;
    open_card(&f, "cuda", 0);
    alone = finish(&f, begin(&f, "a red cat"));
    use = engine_memory(f.engine);
    must(model_plan(f.model, 64, 64, 1, &largest, &err), &err);
    assert_true(largest < use.activations_bytes);
    engine_free(f.engine);
    open_card(&f, "cuda", use.weights_bytes + largest);
    for (int i = 0; i < 3; i++)
        start(&drawings[i], &f, "a red cat");
    for (int i = 0; i < 3; i++) {
        pthread_join(drawings[i].thread, NULL);
        assert_same(&alone, &drawings[i].image);
        image_release(&drawings[i].image);
    }
    assert_true(engine_memory(f.engine).activations_bytes <= largest);
    image_release(&alone);
    engine_free(f.engine);
}

#if defined(ATELIER_CUDA_EMULATED)

/* Others fill the card: what is asked of it meanwhile may be tried again, and then is the same. */
static void test_a_card_is_full_for_a_while(void **state)
{
    struct session *session;
    struct fixture f;
    struct image undisturbed, image;
    struct err err;

    (void)state;
    open_card(&f, "cuda", 0);
    undisturbed = finish(&f, begin(&f, "a red cat"));
    session = begin(&f, "a red cat");
    step(&f, session);
    for (int i = 0; i < 2; i++) { /* launched one by one, and as a graph */
        setenv("ATELIER_EMULATED_FULL", "1", 1);
        assert_int_equal(engine_step(f.model, &session, 1, &err), -1);
        assert_int_equal(err.code, ERR_MEMORY);
        assert_int_equal(err.class, ERR_RETRY);
        assert_contains(err.message, "no memory left to launch");
        unsetenv("ATELIER_EMULATED_FULL");
        step(&f, session);
    }
    image = finish(&f, session);
    assert_same(&undisturbed, &image);
    image_release(&image);
    image_release(&undisturbed);
    engine_free(f.engine);
}

/* The last test: the card does not come back. */
static void test_a_card_is_lost(void **state)
{
    struct session *session;
    struct fixture f;
    struct image image;
    struct err err;

    (void)state;
    open_card(&f, "cuda", 0);
    session = begin(&f, "a red cat");
    setenv("ATELIER_EMULATED_LOST", "1", 1);
    assert_int_equal(engine_step(f.model, &session, 1, &err), -1);
    assert_int_equal(err.code, ERR_DEVICE);
    assert_int_equal(err.class, ERR_FATAL);
    assert_contains(err.message, "the CUDA device failed");
    assert_int_equal(session_steps_left(session), session_steps_total(session));
    assert_int_equal(session_decode(session, &image, &err), -1);
    assert_int_equal(err.code, ERR_DEVICE);
    session_free(session);
    engine_free(f.engine);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_threads_draw),
        cmocka_unit_test(test_memory_for_one_lane),
#if defined(ATELIER_CUDA_EMULATED)
        cmocka_unit_test(test_texts_and_pictures_are_made_within_a_step),
        cmocka_unit_test(test_two_cards),
        cmocka_unit_test(test_a_card_is_full_for_a_while),
        cmocka_unit_test(test_a_card_is_lost),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

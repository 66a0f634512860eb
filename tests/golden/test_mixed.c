/*
 * Pictures drawn together against each drawn alone, byte for byte, and what a session that has
 * ended is saved as, in which the smallest difference shows: other prompts, lengths, dialects,
 * samplers and guidance, masks and second passes in one batch, on a small committed model. Needs no
 * test library; exit status 77: there is no such device.
 *
 *     test_mixed BACKEND PRECISION [MODEL [CONTROLNET]]
 *
 * MODEL may be full:sd1 or full:sdxl, such a network at full size with random weights, and pictures
 * of 576×512: a card's libraries choose by sizes that small models do not have.
 */
#include "common/buf.h"
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 8
#define FULL "full:"
#define FULL_SCALE 8
#define STATE_MAX_BYTES (64u << 20)
#define MANY "red roses, old walls and a broken cart in the rain, "

/* With a ControlNet the middle two are guided, each by another part of one picture. */
static struct control *control;
static uint8_t pixels[COUNT * 72 * 64 * 3];
static int scale = 1; /* of all sides */

/* Its lower half is redrawn. */
static uint8_t light[72 * 64 * 3];

/* A ControlNet-Union sees the picture as another kind each time, and of the second one another part
 * as a third. */
static void guide(struct draw *draw, int i, struct image *hint)
{
    bool is_union = strcmp(control_info(control)->kind, "ControlNet-Union") == 0;
    int count = is_union ? i : 1;

    *hint = (struct image){.width = 72, .height = 64 - 8 * i, .rgb = pixels + 72 * 3 * i};
    for (int k = 0; k < count; k++)
        draw->controls[draw->control_count++] =
            (struct draw_control){.control = control,
                                  .image = hint,
                                  .scale = 0.5 * i - 0.3 * k,
                                  .start = 0.3 * (i - 1) * (1 - k),
                                  .end = 1,
                                  .mode = is_union ? i + k : -1};
}

static struct draw request(int i)
{
    static const char *const PROMPTS[COUNT] = {
        "a red cat",
        "two boats at night",
        "a house",
        "",
        "a [(cat:1.4)|dog] BREAK on a hill",
        "a cat :0.7 AND a house AND " MANY MANY MANY MANY MANY MANY MANY,
        "a (house:1.3) " MANY MANY MANY MANY MANY MANY MANY,
        "a [cat:dog:2] by the sea"};
    static const enum dialect DIALECTS[COUNT] = {
        [4] = DIALECT_A1111, DIALECT_A1111, DIALECT_COMFYUI, DIALECT_A1111};
    static const enum sampler SAMPLERS[COUNT] = {SAMPLER_DDIM,  SAMPLER_EULER,   SAMPLER_EULER_A,
                                                 SAMPLER_DDIM,  SAMPLER_HEUN,    SAMPLER_DDIM,
                                                 SAMPLER_EULER, SAMPLER_DPMPP_2M};
    struct draw draw = DRAW_INIT;

    draw.prompt = PROMPTS[i];
    draw.dialect = DIALECTS[i];
    draw.width = 72 * scale;
    draw.height = 64 * scale;
    draw.steps = 2 + i % 3;
    draw.guidance_scale = i == 2 || i == 5 ? 1 : 5 + i;
    draw.sampler = SAMPLERS[i];
    draw.guidance_rescale = i == 1 ? 0.7 : 0;
    if (i % 3 == 1) {
        draw.guidance_interval[0] = 0.5;
        draw.guidance_interval[1] = 5;
    }
    if (i % 3 == 0)
        draw.freeu = (struct freeu){.b1 = 1.2 + i / 10.0, .b2 = 1.4, .s1 = 0.9, .s2 = 0.2};
    draw.seed = (uint64_t)i;
    return draw;
}

/* Two are drawn over a part of a picture. */
static void mask(struct draw *draw, int i, const struct image *picture, const struct image *light)
{
    if (scale > 1 || (i != 3 && i != 7)) /* the picture is small */
        return;
    draw->init_image = picture;
    draw->mask = light;
    draw->strength = i == 3 ? 1 : 0.9;
}

/* Three of them are drawn again in another size: a guided one, if any is, a masked one, and one. */
static void draw_again(struct draw *draw, int i)
{
    if (i != 2 && i != 3 && i != 6)
        return;
    draw->hires =
        (struct draw_hires){.width = 96 * scale, .height = 88 * scale, .strength = 0.7, .steps = 4};
    draw->hires.enlargement = i == 3 ? ENLARGE_BICUBIC : ENLARGE_BILINEAR;
}

/* Those with steps left that have the first one's size. */
static int take_going(struct session *const sessions[], int count, struct session *going[])
{
    int n = 0;

    for (int i = 0; i < count; i++)
        if (session_steps_left(sessions[i]) > 0 &&
            (n == 0 || session_width(sessions[i]) == session_width(going[0])))
            going[n++] = sessions[i];
    return n;
}

struct drawn {
    struct image image;
    struct buf state;
};

static void drawn_release(struct drawn *d)
{
    image_release(&d->image);
    buf_release(&d->state);
}

static int finish(struct session *session, struct drawn *d, struct err *err)
{
    buf_init(&d->state, STATE_MAX_BYTES);
    return session_save(session, &d->state, err) != 0 ? -1
                                                      : session_decode(session, &d->image, err);
}

/* Steps sessions[first … first + count) together until each has ended, then decodes them. */
static int draw_together(struct model *model, int first, int count, struct drawn drawn[],
                         struct err *err)
{
    const struct image picture = {.width = 72, .height = 64, .rgb = pixels};
    const struct image lower = {.width = 72, .height = 64, .rgb = light};
    struct session *sessions[COUNT] = {0};
    int rc = 0;

    for (int i = 0; i < count && rc == 0; i++) {
        struct draw draw = request(first + i);
        struct image hint;
        if (control != NULL && (first + i == 1 || first + i == 2))
            guide(&draw, first + i, &hint);
        mask(&draw, first + i, &picture, &lower);
        draw_again(&draw, first + i);
        rc = session_create(&sessions[i], model, &draw, NULL, err);
    }
    for (bool more = true; more && rc == 0;) {
        struct session *going[COUNT];
        int n = take_going(sessions, count, going);
        more = n > 0;
        rc = more ? engine_step(model, going, n, err) : 0;
    }
    for (int i = 0; i < count && rc == 0; i++)
        rc = finish(sessions[i], &drawn[i], err);
    for (int i = 0; i < count; i++)
        session_free(sessions[i]);
    return rc;
}

static bool equal(const struct drawn *a, const struct drawn *b)
{
    size_t bytes = (size_t)a->image.width * (size_t)a->image.height * 3;

    return a->state.len == b->state.len &&
           memcmp(a->state.data, b->state.data, a->state.len) == 0 &&
           memcmp(a->image.rgb, b->image.rgb, bytes) == 0;
}

static int compare(struct model *model, struct err *err)
{
    struct drawn together[COUNT] = {0}, alone = {0};
    int different = 0, rc = draw_together(model, 0, COUNT, together, err);

    for (int i = 0; i < COUNT && rc == 0; i++) {
        rc = draw_together(model, i, 1, &alone, err);
        if (rc == 0 && !equal(&alone, &together[i])) {
            printf("FAIL picture %d differs from itself alone\n", i);
            different++;
        }
        drawn_release(&alone);
        alone = (struct drawn){0};
    }
    for (int i = 0; i < COUNT; i++)
        drawn_release(&together[i]);
    return rc != 0 ? -1 : different;
}

static int load(struct model **model, struct engine *engine, const char *path, struct err *err)
{
    if (strncmp(path, FULL, strlen(FULL)) != 0)
        return engine_load(model, engine, path, NULL, err);
    scale = FULL_SCALE;
    return engine_load_synthetic(model, engine, path + strlen(FULL), err);
}

int main(int argc, char **argv)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    const char *path = argc > 3 ? argv[3] : "tests/golden/models/sd1-small";
    struct engine *engine;
    struct model *model;
    struct err err;
    int different;

    if (argc < 3) {
        fprintf(stderr, "usage: test_mixed BACKEND PRECISION [MODEL [CONTROLNET]]\n");
        return 2;
    }
    options.backend = argv[1];
    options.precision = strcmp(argv[2], "bf16") == 0  ? PRECISION_BF16
                        : strcmp(argv[2], "f16") == 0 ? PRECISION_F16
                                                      : PRECISION_F32;
    if (engine_create(&engine, &options, &err) != 0) {
        printf("SKIP %s\n", err.message);
        return 77;
    }
    for (size_t i = 0; i < sizeof(pixels); i++)
        pixels[i] = (uint8_t)(i * i / 11);
    memset(light + sizeof(light) / 2, 255, sizeof(light) / 2);
    different = load(&model, engine, path, &err);
    if (different == 0 && argc > 4)
        different = engine_load_control(&control, model, argv[4], &err);
    if (different == 0)
        different = compare(model, &err);
    if (different < 0)
        printf("FAIL %s\n", err.message);
    else
        printf("%s %s: %d pictures together and alone, %d differ\n", argv[1], argv[2], COUNT,
               different);
    engine_free(engine);
    return different != 0;
}

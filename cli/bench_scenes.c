/*
 * atelier bench scenes: the five scenes that engines are shown with, at full size: SD1.5 and SDXL
 * plain, SD1.5 with a LoRA and a ControlNet at mixed sizes, three models in turn, SDXL with its
 * refiner.
 *
 * Few steps of each picture are drawn; what a picture of the usual length takes follows from them.
 */
#include "cli/bench.h"
#include "common/json.h"
#include "engine/measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODELS_MAX 3
#define SD_STEPS 20 /* of a picture, as users ask for them */
#define XL_STEPS 30

/* Times in seconds. */
struct tally {
    int pictures, steps, first_steps;
    double text, step, first_step, decode; /* sums; first steps at a size by themselves */
    struct memory_use memory;              /* the most */
};

struct stage_set {
    struct engine *engine;
    int steps; /* of each picture */
    struct model *models[MODELS_MAX];
    int model_count;
    struct tally tally;
};

/* ---- drawing ---- */

static int add_model(struct stage_set *set, const char *family, struct err *err)
{
    if (engine_load_synthetic(&set->models[set->model_count], set->engine, family, err) != 0)
        return -1;
    set->model_count++;
    return 0;
}

/* `fresh`: the model has not drawn this size before. */
static int take_steps(struct stage_set *set, struct session *session, bool fresh, struct err *err)
{
    struct tally *tally = &set->tally;
    const struct model *before = NULL;

    while (session_steps_left(session) > 0) {
        struct model *model = session_model(session);
        bool first = fresh && model != before;
        double begin = bench_now(), seconds;
        if (engine_step(model, &session, 1, err) != 0)
            return -1;
        seconds = bench_now() - begin;
        *(first ? &tally->first_step : &tally->step) += seconds;
        *(first ? &tally->first_steps : &tally->steps) += 1;
        before = model;
    }
    return 0;
}

static int finish_picture(struct stage_set *set, struct session *session, struct err *err)
{
    struct memory_use now;
    struct image image;
    double begin = bench_now();

    if (session_decode(session, &image, err) != 0)
        return -1;
    set->tally.decode += bench_now() - begin;
    set->tally.pictures++;
    image_release(&image);
    now = engine_memory(set->engine);
    if (now.weights_bytes + now.activations_bytes >
        set->tally.memory.weights_bytes + set->tally.memory.activations_bytes)
        set->tally.memory = now;
    return 0;
}

static struct draw draw_of(const struct stage_set *set, int width, int height)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = "a lighthouse on a cliff at dusk, oil painting";
    draw.negative_prompt = "blurry";
    draw.width = width;
    draw.height = height;
    draw.steps = set->steps;
    draw.guidance_scale = 7;
    return draw;
}

static int draw_picture(struct stage_set *set, struct model *model, const struct draw *draw,
                        bool fresh, struct err *err)
{
    struct session *session;
    double begin = bench_now();
    int rc;

    if (session_create(&session, model, draw, NULL, err) != 0)
        return -1;
    set->tally.text += bench_now() - begin;
    rc = take_steps(set, session, fresh, err);
    if (rc == 0)
        rc = finish_picture(set, session, err);
    session_free(session);
    return rc;
}

/* ---- the scenes ---- */

static int draw_sd(struct stage_set *set, struct err *err)
{
    struct draw draw = draw_of(set, 512, 512);

    return add_model(set, "sd1", err) != 0 ? -1
                                           : draw_picture(set, set->models[0], &draw, true, err);
}

static int draw_xl(struct stage_set *set, struct err *err)
{
    struct draw draw = draw_of(set, 1024, 1024);

    return add_model(set, "sdxl", err) != 0 ? -1
                                            : draw_picture(set, set->models[0], &draw, true, err);
}

static int load_controlnet(struct model *model, struct control **control, struct err *err)
{
    char path[BENCH_PATH_BYTES];
    int rc;

    if (bench_temporary(path, err) != 0)
        return -1;
    rc = measure_controlnet(model, path, err);
    if (rc == 0)
        rc = engine_load_control(control, model, path, err);
    unlink(path);
    return rc;
}

/* A picture with both, guided by a picture of nothing: what it shows costs nothing. */
static int draw_guided(struct stage_set *set, struct adapter *adapter, struct control *control,
                       const int size[2], bool fresh, struct err *err)
{
    struct image hint = {.width = size[0], .height = size[1]};
    struct draw draw = draw_of(set, size[0], size[1]);
    int rc;

    hint.rgb = calloc((size_t)size[0] * (size_t)size[1], 3);
    if (hint.rgb == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a hint");
    draw.adapters[draw.adapter_count++] = (struct draw_adapter){.adapter = adapter, .scale = 0.75};
    draw.controls[draw.control_count++] = (struct draw_control){
        .control = control, .image = &hint, .scale = 0.8, .end = 1, .mode = -1};
    rc = draw_picture(set, set->models[0], &draw, fresh, err);
    image_release(&hint);
    return rc;
}

static int draw_adapted(struct stage_set *set, struct err *err)
{
    static const int SIZES[][2] = {{512, 512}, {640, 448}, {448, 640}, {512, 512}};
    struct control *control = NULL;
    struct adapter *adapter;
    struct bench_lora lora;
    int rc;

    if (add_model(set, "sd1", err) != 0 ||
        bench_load_lora(set->models[0], &adapter, &lora, err) != 0)
        return -1;
    rc = load_controlnet(set->models[0], &control, err);
    for (size_t i = 0; i < sizeof(SIZES) / sizeof(SIZES[0]) && rc == 0; i++)
        rc = draw_guided(set, adapter, control, SIZES[i], i < 3, err);
    engine_unload_control(control);
    engine_unload_adapter(adapter);
    return rc;
}

static int draw_in_turn(struct stage_set *set, struct err *err)
{
    struct draw draw = draw_of(set, 512, 512);

    for (int i = 0; i < MODELS_MAX; i++)
        if (add_model(set, "sd1", err) != 0)
            return -1;
    for (int i = 0; i < 2 * MODELS_MAX; i++)
        if (draw_picture(set, set->models[i % MODELS_MAX], &draw, i < MODELS_MAX, err) != 0)
            return -1;
    return 0;
}

static int draw_refined(struct stage_set *set, struct err *err)
{
    struct draw draw = draw_of(set, 1024, 1024);

    if (add_model(set, "sdxl", err) != 0 || add_model(set, "sdxl-refiner", err) != 0)
        return -1;
    draw.steps = 2 * set->steps; /* so that each of the two takes several */
    draw.refiner = set->models[1];
    draw.switch_at = 0.5;
    return draw_picture(set, set->models[0], &draw, true, err);
}

static const struct scene {
    const char *key, *name;
    int (*draw)(struct stage_set *set, struct err *err);
    int steps; /* of a picture, as users ask for it */
} SCENES[] = {
    {"sd15", "SD1.5 512x512", draw_sd, SD_STEPS},
    {"sdxl", "SDXL 1024x1024", draw_xl, XL_STEPS},
    {"sd15_lora_controlnet", "SD1.5, LoRA, ControlNet, sizes", draw_adapted, SD_STEPS},
    {"three_models", "three SD1.5 in turn, 512x512", draw_in_turn, SD_STEPS},
    {"sdxl_refiner", "SDXL and refiner 1024x1024", draw_refined, XL_STEPS},
};

static int play(struct stage_set *set, const struct scene *scene, struct err *err)
{
    int rc;

    set->tally = (struct tally){.pictures = 0};
    rc = scene->draw(set, err);
    while (set->model_count > 0)
        engine_unload(set->models[--set->model_count]);
    return rc;
}

/* ---- reporting ---- */

static double picture_seconds(const struct scene *scene, const struct tally *t)
{
    return (t->text + t->decode) / t->pictures + scene->steps * t->step / t->steps;
}

static void print_row(const struct scene *scene, const struct tally *t)
{
    printf("%-30s  %4d  %7.3f  %7.3f  %7.3f  %7.3f  %9.1f  %8.0f  %8.0f\n", scene->name,
           t->pictures, t->step / t->steps, t->first_step / t->first_steps, t->text / t->pictures,
           t->decode / t->pictures, picture_seconds(scene, t),
           (double)t->memory.weights_bytes / 1e6, (double)t->memory.activations_bytes / 1e6);
    fflush(stdout);
}

static void print_json(const struct engine_info *info, const struct tally tallies[])
{
    struct buf out;

    buf_init(&out, 1u << 16);
    buf_str(&out, "{\"processor\":");
    json_write_string(&out, info->processor, strlen(info->processor));
    buf_printf(&out, ",\"backend\":\"%s\",\"isa\":\"%s\",\"precision\":\"%s\",\"scenes\":[",
               info->backend, info->isa, bench_precision(info->precision));
    for (size_t i = 0; i < sizeof(SCENES) / sizeof(SCENES[0]); i++) {
        const struct tally *t = &tallies[i];
        if (t->pictures == 0)
            continue; /* did not fit */
        buf_printf(&out,
                   "%s{\"scene\":\"%s\",\"pictures\":%d,\"step_s\":%.6f,\"first_step_s\":%.6f,"
                   "\"prepare_s\":%.6f,\"decode_s\":%.6f,\"picture_s\":%.6f,\"steps\":%d,"
                   "\"weights_bytes\":%zu,\"activations_bytes\":%zu}",
                   out.data[out.len - 1] == '}' ? "," : "", SCENES[i].key, t->pictures,
                   t->step / t->steps, t->first_step / t->first_steps, t->text / t->pictures,
                   t->decode / t->pictures, picture_seconds(&SCENES[i], t), SCENES[i].steps,
                   t->memory.weights_bytes, t->memory.activations_bytes);
    }
    buf_str(&out, "]}\n");
    fputs(out.data, stdout);
    buf_release(&out);
}

int bench_scenes(struct engine *engine, const struct bench_options *o, struct err *err)
{
    struct tally tallies[sizeof(SCENES) / sizeof(SCENES[0])];
    struct stage_set set = {.engine = engine, .steps = (int)o->steps};
    const struct engine_info *info = engine_info(engine);

    if (!o->json)
        printf("%s, %s, %s, %s, %d threads\n%-30s  pics     step    first  prepare   decode  "
               "picture s  weights MB  act. MB\n",
               info->processor, info->backend, info->isa, bench_precision(info->precision),
               info->threads, "scene");
    for (size_t i = 0; i < sizeof(SCENES) / sizeof(SCENES[0]); i++) {
        bench_say(o, SCENES[i].name);
        bool fits = play(&set, &SCENES[i], err) == 0;
        if (!fits && err->code != ERR_MEMORY)
            return err_prefix(err, "%s", SCENES[i].name);
        tallies[i] = fits ? set.tally : (struct tally){.pictures = 0};
        if (!o->json && fits)
            print_row(&SCENES[i], &set.tally);
        else if (!o->json)
            printf("%-30s  does not fit: %s\n", SCENES[i].name, err->message);
    }
    if (o->json)
        print_json(info, tallies);
    return 0;
}

/*
 * The engine against diffusers, stage by stage: every job of jobs.jsonl is drawn with the committed
 * random models and each stage that diffusers dumped is compared.
 *
 *     test_golden BACKEND ISA PRECISION [JOB-PREFIX…]
 *
 * f32: relative error at most 1e-4 at every stage, image at least 50 dB. bf16, f16: image at least
 * 35 dB, or, for the few random networks that magnify rounding, at least as close as diffusers
 * itself comes in bf16 (bf16.json) less 2 dB; with AMX, which convolves in bf16 as diffusers does
 * and not in Winograd's f32, less 5 dB for a single one, for chance decides between equals, and on
 * the average no farther. Jobs marked `latents_only` are about their sampler:
 * they have no image, and run in f32 only. A build without codecs leaves out the jobs that begin
 * with a picture. Run from the source root. Prints the worst figures per model.
 */
#include "common/json.h"
#include "engine/engine.h"
#include "engine/tensor_file.h"
#if defined(GOLDEN_CODEC)
#include "worker/codec.h"
#endif

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STAGE_LIMIT 1e-4
#define PSNR_F32 50.0
#define PSNR_BF16 35.0
#define PSNR_SLACK 2.0
#define PSNR_SLACK_AMX 5.0
#define PSNR_AVERAGE_OF 20 /* so many jobs make an average */
#define GOLDEN "tests/golden/"

struct check {
    const struct tensor_file *golden;
    const char *job;
    bool exact; /* f32: every stage counts */
    bool latents_only;
    double worst_error, psnr;
    char worst_stage[64];
    int stages, failures;
};

static double relative_error(const struct stored_tensor *want, const float *got)
{
    double difference = 0, size = 0;

    for (int64_t i = 0; i < want->count; i++) {
        double w = element_to_f32(want->data, want->dtype, (size_t)i);
        difference += (got[i] - w) * (got[i] - w);
        size += w * w;
    }
    return sqrt(difference / (size + 1e-30));
}

static double psnr(const struct stored_tensor *want, const float *got)
{
    double sum = 0;

    for (int64_t i = 0; i < want->count; i++) {
        double d = got[i] - element_to_f32(want->data, want->dtype, (size_t)i);
        sum += d * d;
    }
    return sum == 0 ? 200 : -10 * log10(sum / (double)want->count);
}

/* Each fourth pixel of each fourth row, from the third on: what many dumps keep of a picture. */
static float *thin_out(const struct stage *stage, int64_t *count)
{
    int64_t h = stage->dims[0], w = stage->dims[1];
    float *thin = malloc((size_t)(h * w) * 3 * sizeof(float));

    *count = 0;
    for (int64_t y = 2; y < h; y += 4)
        for (int64_t x = 2; x < w; x += 4)
            for (int64_t c = 0; c < 3; c++)
                thin[(*count)++] = stage->data[(y * w + x) * 3 + c];
    return thin;
}

static void see_values(struct check *c, const char *name, const struct stored_tensor *want,
                       const float *got, int64_t count)
{
    double error;

    if (count != want->count) {
        printf("FAIL %s %s: %lld values, diffusers has %lld\n", c->job, name, (long long)count,
               (long long)want->count);
        c->failures++;
        return;
    }
    c->stages++;
    error = relative_error(want, got);
    if (strcmp(name, "image") == 0)
        c->psnr = psnr(want, got);
    if (!(error <= c->worst_error)) {
        c->worst_error = error;
        snprintf(c->worst_stage, sizeof(c->worst_stage), "%s", name);
    }
    if (c->exact && !(error <= STAGE_LIMIT)) {
        printf("FAIL %s %s: relative error %.2e\n", c->job, name, error);
        c->failures++;
    }
}

static void see(void *user, const struct stage *stage)
{
    struct check *c = user;
    const struct stored_tensor *want = tensor_file_find(c->golden, stage->name);
    const struct stored_tensor *thin = tensor_file_find(c->golden, "image.thin");
    int64_t count = 1;

    if (want != NULL && want->usable) {
        for (int i = 0; i < stage->rank; i++)
            count *= stage->dims[i];
        see_values(c, stage->name, want, stage->data, count);
    } else if (strcmp(stage->name, "image") == 0 && thin != NULL) {
        float *got = thin_out(stage, &count);
        see_values(c, stage->name, thin, got, count);
        free(got);
    }
}

#if !defined(GOLDEN_CODEC)
/* The engine built alone has no codecs. */
static int codec_decode(struct image *image, const void *bytes, size_t len, struct err *err)
{
    (void)image, (void)bytes, (void)len;
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT, "no codecs in this build");
}
#endif

static int read_picture(const char *name, struct image *image, struct err *err)
{
    char path[512];
    FILE *file;
    void *bytes;
    long len;
    int rc;

    snprintf(path, sizeof(path), GOLDEN "jobs/%s", name);
    file = fopen(path, "rb");
    if (file == NULL) {
        snprintf(path, sizeof(path), GOLDEN "%s", name);
        file = fopen(path, "rb");
    }
    if (file == NULL)
        return err_set(err, ERR_NOT_FOUND, ERR_REJECT, "%s", path);
    fseek(file, 0, SEEK_END);
    len = ftell(file);
    rewind(file);
    bytes = malloc((size_t)len);
    rc = fread(bytes, 1, (size_t)len, file) == (size_t)len
             ? codec_decode(image, bytes, (size_t)len, err)
             : err_set(err, ERR_IO, ERR_REJECT, "%s", path);
    fclose(file);
    free(bytes);
    return rc;
}

static void read_pair(const struct json *json, int pair[2])
{
    if (json == NULL)
        return;
    pair[0] = (int)json_int_or(json->child, 0);
    pair[1] = (int)json_int_or(json->child->next, 0);
}

static void read_range(const struct json *json, double range[2])
{
    if (json == NULL)
        return;
    range[0] = json_double_or(json->child, 0);
    range[1] = json_double_or(json->child->next, 0);
}

#define LOADED_ADAPTERS_MAX 16

/* A model's adapters and controls that jobs have asked for. */
struct adapters {
    struct model *model;
    int count, control_count;
    struct {
        struct adapter *adapter;
        char name[64];
    } items[LOADED_ADAPTERS_MAX];
    struct {
        struct control *control;
        char name[64];
    } controls[LOADED_ADAPTERS_MAX];
};

/* The models that are loaded, by name: the job's and its refiner. */
struct loaded {
    struct model *model;
    char name[128];
    struct adapters adapters;
};

static struct adapter *need_adapter(struct adapters *adapters, const char *name, struct err *err)
{
    char path[512];
    int i = 0;

    while (i < adapters->count && strcmp(adapters->items[i].name, name) != 0)
        i++;
    if (i < adapters->count)
        return adapters->items[i].adapter;
    snprintf(path, sizeof(path), GOLDEN "models/loras/%s.safetensors", name);
    if (i == LOADED_ADAPTERS_MAX ||
        engine_load_adapter(&adapters->items[i].adapter, adapters->model, path, err) != 0)
        return NULL;
    snprintf(adapters->items[i].name, sizeof(adapters->items[i].name), "%s", name);
    adapters->count++;
    return adapters->items[i].adapter;
}

static int read_loras(const struct json *job, struct adapters *adapters, struct draw *draw,
                      struct err *err)
{
    const struct json *loras = json_get(job, "loras");

    for (const struct json *l = loras ? loras->child : NULL; l != NULL; l = l->next) {
        struct draw_adapter *a = &draw->adapters[draw->adapter_count++];
        a->adapter = need_adapter(adapters, json_string_or(json_get(l, "name"), ""), err);
        a->scale = json_double_or(json_get(l, "scale"), 1);
        if (a->adapter == NULL)
            return -1;
    }
    return 0;
}

/* A folder or a file of its own, or one that is committed packed beside the models. */
static int load_control(struct control **control, struct model *model, const char *name,
                        struct err *err)
{
    static const char *const PLACES[] = {GOLDEN "models/controlnets/%s",
                                         GOLDEN "models/controlnets/%s.safetensors",
                                         GOLDEN "models/%s.safetensors"};
    char path[512];

    for (size_t i = 0; i < sizeof(PLACES) / sizeof(PLACES[0]); i++) {
        snprintf(path, sizeof(path), PLACES[i], name);
        if (access(path, R_OK) == 0)
            return engine_load_control(control, model, path, err);
    }
    return err_set(err, ERR_NOT_FOUND, ERR_REJECT, "no ControlNet %s", name);
}

static struct control *need_control(struct adapters *adapters, const char *name, struct err *err)
{
    int i = 0;

    while (i < adapters->control_count && strcmp(adapters->controls[i].name, name) != 0)
        i++;
    if (i < adapters->control_count)
        return adapters->controls[i].control;
    if (i == LOADED_ADAPTERS_MAX ||
        load_control(&adapters->controls[i].control, adapters->model, name, err) != 0)
        return NULL;
    snprintf(adapters->controls[i].name, sizeof(adapters->controls[i].name), "%s", name);
    adapters->control_count++;
    return adapters->controls[i].control;
}

/* The pictures that a job names; the caller releases them. */
struct pictures {
    struct image init, mask, hints[ENGINE_CONTROLS_MAX];
};

static int read_controls(const struct json *job, struct adapters *adapters, struct draw *draw,
                         struct pictures *pictures, struct err *err)
{
    const struct json *list = json_get(job, "controlnets");

    for (const struct json *c = list ? list->child : NULL; c != NULL; c = c->next) {
        struct image *hint = &pictures->hints[draw->control_count];
        struct draw_control *to = &draw->controls[draw->control_count++];
        *to = (struct draw_control){
            .control = need_control(adapters, json_string_or(json_get(c, "name"), ""), err),
            .image = hint,
            .scale = json_double_or(json_get(c, "scale"), 1),
            .start = json_double_or(json_get(c, "start"), 0),
            .end = json_double_or(json_get(c, "end"), 1),
            .guess_mode = json_bool_or(json_get(c, "guess_mode"), false),
            .mode = (int)json_int_or(json_get(c, "mode"), -1)};
        if (to->control == NULL ||
            read_picture(json_string_or(json_get(c, "image"), ""), hint, err) != 0)
            return -1;
    }
    return 0;
}

/* The caller unloads them. */
static int read_words(const struct json *job, const struct adapters *adapters, struct draw *draw,
                      struct err *err)
{
    const struct json *names = json_get(job, "embeddings");

    for (const struct json *n = names ? names->child : NULL; n != NULL; n = n->next) {
        struct inversion *inversion;
        char path[512];
        snprintf(path, sizeof(path), GOLDEN "models/embeddings/%s.safetensors",
                 json_string_or(n, ""));
        if (engine_load_inversion(&inversion, adapters->model, path, err) != 0)
            return -1;
        draw->inversions[draw->inversion_count++] =
            (struct draw_inversion){.inversion = inversion, .name = json_string_or(n, "")};
    }
    return 0;
}

static void read_hires(const struct json *json, struct draw_hires *hires)
{
    if (json == NULL)
        return;
    hires->width = (int)json_int_or(json_get(json, "width"), 0);
    hires->height = (int)json_int_or(json_get(json, "height"), 0);
    hires->strength = json_double_or(json_get(json, "strength"), 0.7);
    hires->steps = (int)json_int_or(json_get(json, "steps"), 0);
    hires->enlargement =
        (enum enlargement)enlargement_by_name(json_string_or(json_get(json, "upscaler"), "latent"));
}

static int draw_of(const struct json *job, struct adapters *adapters, struct draw *draw,
                   struct pictures *pictures, struct err *err)
{
    const char *mask_name = json_string_or(json_get(job, "mask"), NULL);
    const char *sampler = json_string_or(json_get(job, "sampler"), NULL);
    const char *schedule = json_string_or(json_get(job, "schedule"), NULL);
    const char *image = json_string_or(json_get(job, "init_image"), NULL);

    *draw = (struct draw)DRAW_INIT;
    draw->prompt = json_string_or(json_get(job, "prompt"), NULL);
    draw->negative_prompt = json_string_or(json_get(job, "negative_prompt"), NULL);
    draw->dialect =
        (enum dialect)dialect_by_name(json_string_or(json_get(job, "dialect"), "diffusers"));
    draw->width = (int)json_int_or(json_get(job, "width"), 0);
    draw->height = (int)json_int_or(json_get(job, "height"), 0);
    draw->steps = (int)json_int_or(json_get(job, "steps"), 0);
    draw->guidance_scale = json_double_or(json_get(job, "guidance_scale"), -1);
    draw->guidance_rescale = json_double_or(json_get(job, "guidance_rescale"), 0);
    const struct json *freeu = json_get(job, "freeu");
    draw->freeu = (struct freeu){.b1 = json_double_or(json_get(freeu, "b1"), 0),
                                 .b2 = json_double_or(json_get(freeu, "b2"), 0),
                                 .s1 = json_double_or(json_get(freeu, "s1"), 0),
                                 .s2 = json_double_or(json_get(freeu, "s2"), 0)};
    read_range(json_get(job, "guidance_interval"), draw->guidance_interval);
    draw->sampler = sampler ? (enum sampler)sampler_by_name(sampler) : SAMPLER_MODEL;
    draw->schedule = schedule ? (enum schedule)schedule_by_name(schedule) : SCHEDULE_MODEL;
    draw->eta = json_double_or(json_get(job, "eta"), 0);
    draw->seed = (uint64_t)json_int_or(json_get(job, "seed"), 0);
    draw->clip_skip = (int)json_int_or(json_get(job, "clip_skip"), 0);
    draw->strength = json_double_or(json_get(job, "strength"), 0.8);
    read_pair(json_get(job, "original_size"), draw->original_size);
    read_pair(json_get(job, "target_size"), draw->target_size);
    read_pair(json_get(job, "crop"), draw->crop);
    draw->aesthetic_score = json_double_or(json_get(job, "aesthetic_score"), -1);
    draw->negative_aesthetic_score = json_double_or(json_get(job, "negative_aesthetic_score"), -1);
    draw->switch_at = json_double_or(json_get(json_get(job, "refiner"), "switch_at"), 0);
    draw->image_guidance_scale = json_double_or(json_get(job, "image_guidance_scale"), -1);
    read_hires(json_get(job, "hires"), &draw->hires);
    if (read_loras(job, adapters, draw, err) != 0 || read_words(job, adapters, draw, err) != 0 ||
        read_controls(job, adapters, draw, pictures, err) != 0)
        return -1;
    if (image == NULL)
        return 0;
    draw->mask = mask_name ? &pictures->mask : NULL;
    if (mask_name != NULL && read_picture(mask_name, &pictures->mask, err) != 0)
        return -1;
    draw->init_image = &pictures->init;
    return read_picture(image, &pictures->init, err);
}

static int load_model(struct engine *engine, struct loaded *loaded, const char *name,
                      struct err *err)
{
    char path[512];

    if (loaded->model != NULL && strcmp(loaded->name, name) == 0)
        return 0;
    engine_unload(loaded->model);
    *loaded = (struct loaded){0};
    snprintf(loaded->name, sizeof(loaded->name), "%s", name);
    snprintf(path, sizeof(path), GOLDEN "models/%s", name);
    if (engine_load(&loaded->model, engine, path, NULL, err) == 0)
        return 0;
    snprintf(path, sizeof(path), GOLDEN "models/%s.safetensors", name);
    return engine_load(&loaded->model, engine, path, NULL, err);
}

static int need_model(struct engine *engine, struct loaded *loaded, const char *name,
                      struct err *err)
{
    int rc = load_model(engine, loaded, name, err);

    loaded->adapters.model = loaded->model;
    return rc;
}

static int need_models(struct engine *engine, struct loaded loaded[2], const struct json *job,
                       struct err *err)
{
    const char *refiner = json_string_or(json_get(json_get(job, "refiner"), "model"), NULL);

    if (need_model(engine, &loaded[0], json_string_or(json_get(job, "model"), ""), err) != 0)
        return -1;
    return refiner != NULL ? need_model(engine, &loaded[1], refiner, err) : 0;
}

static int draw_job(struct loaded loaded[2], const struct json *job, struct check *check,
                    struct err *err)
{
    struct stage_observer observer = {.see = see, .user = check};
    struct pictures pictures = {0};
    struct image image = {0};
    struct session *session = NULL;
    struct draw draw;
    int rc = -1;

    if (draw_of(job, &loaded[0].adapters, &draw, &pictures, err) != 0)
        goto out;
    if (json_get(job, "refiner") != NULL)
        draw.refiner = loaded[1].model;
    if (session_create(&session, loaded[0].model, &draw, &observer, err) != 0)
        goto out;
    while (session_steps_left(session) > 0)
        if (engine_step(session_model(session), &session, 1, err) != 0)
            goto out;
    rc = session_decode(session, &image, err);
out:
    for (int i = 0; i < draw.inversion_count; i++)
        engine_unload_inversion((struct inversion *)draw.inversions[i].inversion);
    session_free(session);
    image_release(&image);
    image_release(&pictures.init);
    image_release(&pictures.mask);
    for (int i = 0; i < ENGINE_CONTROLS_MAX; i++)
        image_release(&pictures.hints[i]);
    return rc;
}

static bool left_out(const struct json *job)
{
#if defined(GOLDEN_CODEC)
    (void)job;
    return false;
#else
    return json_get(job, "init_image") != NULL || json_get(job, "controlnets") != NULL;
#endif
}

/* How close pictures have to come, and how close they came. */
struct closeness {
    const struct json *bf16; /* diffusers' own */
    bool exact;
    double slack;
    double ours, theirs; /* sums over `count` jobs that bf16.json has */
    int count;
};

static double needed_psnr(const struct closeness *c, const char *job)
{
    double theirs = json_double_or(json_get(c->bf16, job), INFINITY) - c->slack;

    return c->exact ? PSNR_F32 : theirs < PSNR_BF16 ? theirs : PSNR_BF16;
}

static void note_psnr(struct closeness *c, const char *job, double psnr)
{
    double theirs = json_double_or(json_get(c->bf16, job), INFINITY);

    if (isfinite(theirs) && isfinite(psnr)) {
        c->ours += psnr;
        c->theirs += theirs;
        c->count++;
    }
}

/* Whether a bf16 run came as close to the goldens as diffusers' own on the average. */
static bool close_on_average(const struct closeness *c)
{
    if (c->exact || c->count < PSNR_AVERAGE_OF)
        return true;
    printf("%d jobs on the average: %.1f dB, diffusers in bf16 %.1f dB\n", c->count,
           c->ours / c->count, c->theirs / c->count);
    return c->ours >= c->theirs;
}

static int check_job(struct engine *engine, struct loaded *loaded, const struct json *job,
                     struct closeness *close)
{
    struct check check = {.job = json_string_or(json_get(job, "id"), "?"),
                          .exact = close->exact,
                          .latents_only = json_bool_or(json_get(job, "latents_only"), false)};
    struct tensor_file *golden = NULL;
    char path[512];
    struct err err;

    if (check.latents_only && !close->exact)
        return 0;
    snprintf(path, sizeof(path), GOLDEN "jobs/%s.safetensors", check.job);
    if (tensor_file_open(&golden, path, &err) != 0) {
        printf("FAIL %s: %s\n", check.job, err.message);
        return 1;
    }
    check.golden = golden;
    if (need_models(engine, loaded, job, &err) != 0 || draw_job(loaded, job, &check, &err) != 0) {
        printf("FAIL %s: %s\n", check.job, err.message);
        check.failures++;
    } else if (check.latents_only) {
        int wanted = (int)json_int_or(json_get(job, "steps"), 0) / 2 + 2;
        if (check.stages < wanted) {
            printf("FAIL %s: %d stages of at least %d\n", check.job, check.stages, wanted);
            check.failures++;
        }
    } else if (!(check.psnr >= needed_psnr(close, check.job))) {
        printf("FAIL %s: image %.1f dB, needs %.1f\n", check.job, check.psnr,
               needed_psnr(close, check.job));
        check.failures++;
    }
    printf("%-16s %3d stages, worst %.1e at %-22s", check.job, check.stages, check.worst_error,
           check.worst_stage);
    if (!check.latents_only) {
        printf(" image %.1f dB", check.psnr);
        note_psnr(close, check.job, check.psnr);
    }
    printf("\n");
    tensor_file_close(golden);
    return check.failures;
}

/* `prefixes` ends with NULL. */
static bool begins_with_any(const char *id, char **prefixes)
{
    for (; *prefixes != NULL; prefixes++)
        if (strncmp(id, *prefixes, strlen(*prefixes)) == 0)
            return true;
    return false;
}

int main(int argc, char **argv)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct loaded loaded[2] = {0};
    struct closeness close;
    struct json_doc *bf16;
    struct engine *engine;
    int failures = 0, jobs = 0;
    char line[65536];
    struct err err;
    FILE *file;

    if (argc < 4) {
        fprintf(stderr, "usage: test_golden BACKEND ISA PRECISION [JOB-PREFIX...]\n");
        return 2;
    }
    options.backend = argv[1];
    options.isa = argv[2];
    options.precision = strcmp(argv[3], "bf16") == 0  ? PRECISION_BF16
                        : strcmp(argv[3], "f16") == 0 ? PRECISION_F16
                                                      : PRECISION_F32;
    options.threads = 2;
    if (engine_create(&engine, &options, &err) != 0) {
        printf("SKIP %s\n", err.message);
        return 77;
    }
    if (json_parse_file(&bf16, GOLDEN "bf16.json", NULL, &err) != 0) {
        printf("FAIL %s\n", err.message);
        return 1;
    }
    close = (struct closeness){.bf16 = json_root(bf16),
                               .exact = options.precision == PRECISION_F32,
                               .slack = strcmp(options.isa, "amx_bf16") == 0 ? PSNR_SLACK_AMX
                                                                             : PSNR_SLACK};
    file = fopen(GOLDEN "jobs.jsonl", "r");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        struct json_doc *doc;
        const char *id;
        if (json_parse(&doc, line, strcspn(line, "\n"), NULL, &err) != 0) {
            printf("FAIL jobs.jsonl: %s\n", err.message);
            failures++;
            continue;
        }
        id = json_string_or(json_get(json_root(doc), "id"), "");
        if (argc >= 5 && !begins_with_any(id, argv + 4)) {
            json_doc_free(doc);
            continue;
        }
        if (left_out(json_root(doc))) {
            printf("%-16s left out: no codecs in this build\n", id);
        } else {
            failures += check_job(engine, loaded, json_root(doc), &close);
            jobs++;
        }
        json_doc_free(doc);
    }
    if (file != NULL)
        fclose(file);
    engine_free(engine);
    json_doc_free(bf16);
    if (!close_on_average(&close))
        failures++;
    printf("%d jobs, %d failures\n", jobs, failures);
    return failures > 0 || jobs == 0;
}

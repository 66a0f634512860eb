/* atelier generate: one picture, through the same contract as a jobs file's line. */
#include "cli/command.h"
#include "cli/generate_beside.h"
#include "cli/setup.h"
#include "common/file.h"
#include "common/json.h"
#include "common/plural.h"
#include "schema/job.h"
#include "worker/codec.h"
#include "worker/input.h"
#include "worker/models.h"
#include "worker/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

struct generate_options {
    struct setup_options setup;
    const char *model, *prompt, *negative_prompt;
    const char *sampler, *schedule, *init_image, *loras, *controlnets;
    const char *width, *height, *steps, *guidance_scale, *seed, *strength, *clip_skip;
    const char *out;
};

#define AT(member) offsetof(struct generate_options, member)
#define FIELD(key, member, value, help)                                                            \
    {                                                                                              \
        key, CONF_STRING, AT(member), value, NULL, 0, 0, NULL, help                                \
    }

static const struct conf_row rows[] = {
    FIELD("model", model, "NAME", "name in the models directory"),
    FIELD("prompt", prompt, "TEXT", "what to draw"),
    FIELD("negative-prompt", negative_prompt, "TEXT", "what not to draw"),
    {"out", CONF_STRING, AT(out), "FILE", "picture.png", 0, 0, NULL,
     "the picture's file; its ending, png, jpg or webp, decides the format"},
    FIELD("width", width, "N", "pixels; by default the model's own"),
    FIELD("height", height, "N", "pixels; by default the model's own"),
    FIELD("steps", steps, "N", "by default the model's"),
    FIELD("guidance-scale", guidance_scale, "X", "by default the model's"),
    FIELD("sampler", sampler, "NAME", "by default the model's"),
    FIELD("schedule", schedule, "NAME", "by default the model's"),
    FIELD("seed", seed, "N", "by default from the request, so that the same words draw the same"),
    FIELD("clip-skip", clip_skip, "N", "layers of the text encoder to leave out"),
    FIELD("init-image", init_image, "FILE", "picture to start from"),
    FIELD("strength", strength, "X", "how much of the init image to redraw"),
    FIELD("lora", loras, "NAME[:SCALE],…", "adapters in the models directory"),
    FIELD("controlnet", controlnets, "NAME[@MODE]=FILE[:SCALE],…",
          "ControlNets or T2I-Adapters in the models directory, and the picture that each one "
          "sees; of a ControlNet-Union with its mode"),
    SETUP_ROWS(struct generate_options, setup),
};

const struct conf_table generate_table = {
    .command = "atelier generate",
    .family = cli_tables,
    .usage = "atelier generate --model NAME --prompt TEXT [--out FILE] [options]",
    .summary = "Draws one picture.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
};

static void put_text(struct buf *out, const char *key, const char *text)
{
    if (!text)
        return;
    buf_printf(out, ",\"%s\":", key);
    json_write_string(out, text, strlen(text));
}

/* A number goes in as it was typed; what is none becomes a string, which the contract refuses. */
static void put_number(struct buf *out, const char *key, const char *text)
{
    struct json_doc *doc = NULL;
    if (!text)
        return;
    if (json_parse(&doc, text, strlen(text), NULL, NULL) == 0 &&
        json_root(doc)->type == JSON_NUMBER) {
        buf_printf(out, ",\"%s\":%s", key, json_root(doc)->text);
    } else {
        put_text(out, key, text);
    }
    json_doc_free(doc);
}

/* NULL where no format has the path's ending; PNG where it has none. */
static const char *format_of(const char *path)
{
    static const char *const FORMATS[][2] = {
        {".png", "png"}, {".jpg", "jpeg"}, {".jpeg", "jpeg"}, {".webp", "webp"}};
    const char *slash = strrchr(path, '/');
    const char *dot = strrchr(slash ? slash : path, '.');
    if (!dot)
        return "png";
    for (size_t i = 0; i < sizeof(FORMATS) / sizeof(FORMATS[0]); i++)
        if (strcasecmp(dot, FORMATS[i][0]) == 0)
            return FORMATS[i][1];
    return NULL;
}

static void write_request(const struct generate_options *options, struct buf *out)
{
    buf_printf(out, "{\"output\":{\"format\":\"%s\"}", format_of(options->out));
    put_text(out, "model", options->model);
    put_text(out, "prompt", options->prompt);
    put_text(out, "negative_prompt", options->negative_prompt);
    put_text(out, "sampler", options->sampler);
    put_text(out, "schedule", options->schedule);
    put_number(out, "width", options->width);
    put_number(out, "height", options->height);
    put_number(out, "steps", options->steps);
    put_number(out, "guidance_scale", options->guidance_scale);
    put_number(out, "seed", options->seed);
    put_number(out, "clip_skip", options->clip_skip);
    put_number(out, "strength", options->strength);
    /* The file is read from where the user stands; an absolute path is his to name. */
    if (options->init_image)
        put_text(out, "init_image", "init");
    beside_write(options->loras, options->controlnets, out);
    buf_char(out, '}');
}

static int problems_to_err(const struct job_problems *problems, struct err *err)
{
    struct buf text;
    buf_init(&text, ERR_MESSAGE_MAX_BYTES * 4);
    for (size_t i = 0; i < problems->count; i++)
        buf_printf(&text, "%s%s%s%s%s", i ? "; " : "", problems->items[i].field,
                   *problems->items[i].value ? " " : "", problems->items[i].value, ": "),
            buf_str(&text, problems->items[i].problem);
    err_set(err, ERR_INVALID, ERR_FATAL, "%s", text.data);
    buf_release(&text);
    return -1;
}

struct drawing {
    const struct generate_options *options;
    struct catalogue catalogue;
    struct engine *engine;
    struct models *models;
    struct job job;
    int number;
    struct model *model;
    struct session *session;
    struct image init, image;
    struct beside beside;
};

static int read_request(struct drawing *drawing, struct err *err)
{
    struct job_problems *problems = malloc(sizeof(*problems));
    struct buf text;
    char hint[512];
    int rc = -1;
    buf_init(&text, JOB_MAX_BYTES);
    write_request(drawing->options, &text);
    if (!problems || text.failed) {
        err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the request");
        goto out;
    }
    rc = job_parse(&drawing->job, text.data, text.len, problems, err);
    if (rc != 0 && problems->count == 0)
        goto out;
    if (drawing->job.root) {
        support_check(&drawing->job, engine_info(drawing->engine), problems);
        support_check_local(&drawing->job, problems);
    }
    drawing->number =
        drawing->job.model ? catalogue_find(&drawing->catalogue, drawing->job.model) : -1;
    if (drawing->job.model && drawing->number < 0) {
        catalogue_hint(&drawing->catalogue, drawing->job.model, hint, sizeof(hint));
        job_problem_add(problems, "model", drawing->job.model, "there is no such model in %.160s%s",
                        drawing->catalogue.dir, hint);
    }
    support_check_models(&drawing->job, &drawing->catalogue, problems);
    rc = problems->count > 0 ? problems_to_err(problems, err)
                             : job_identify(&drawing->job, "generate", 1, err);
out:
    buf_release(&text);
    free(problems);
    return rc;
}

static int open_all(struct drawing *drawing, struct err *err)
{
    char dir[FILE_PATH_MAX_BYTES];
    const struct generate_options *options = drawing->options;
    if (setup_models_dir(&options->setup, dir, err) != 0 ||
        catalogue_open(&drawing->catalogue, dir, err) != 0 ||
        setup_engine(&drawing->engine, &options->setup, NULL, NULL, err) != 0 ||
        models_create(&drawing->models, drawing->engine, &drawing->catalogue, err) != 0 ||
        read_request(drawing, err) != 0)
        return -1;
    catalogue_fill(&drawing->catalogue, drawing->number, &drawing->job);
    if (options->init_image && input_image(&drawing->init, options->init_image,
                                           *options->init_image == '/' ? "" : ".", err) != 0)
        return err_prefix(err, "init_image");
    return models_acquire(drawing->models, drawing->number, -1, &drawing->model, err);
}

static int draw(struct drawing *drawing, struct err *err)
{
    bool terminal = isatty(STDERR_FILENO);
    struct draw wanted;
    if (drawing->init.rgb) {
        drawing->job.width = drawing->init.width;
        drawing->job.height = drawing->init.height;
    }
    support_fill(&drawing->job, model_info(drawing->model));
    wanted = support_draw(&drawing->job, 0);
    wanted.init_image = drawing->init.rgb ? &drawing->init : NULL;
    if (beside_acquire(&drawing->beside, drawing->models, drawing->number, &drawing->job,
                       drawing->options->controlnets, &wanted, err) != 0 ||
        session_create(&drawing->session, drawing->model, &wanted, NULL, err) != 0)
        return -1;
    int total = session_steps_total(drawing->session);
    for (int left; (left = session_steps_left(drawing->session)) > 0;) {
        if (terminal)
            fprintf(stderr, "\rstep %d/%d ", total - left + 1, total);
        if (engine_step(drawing->model, &drawing->session, 1, err) != 0)
            return -1;
    }
    if (terminal)
        fprintf(stderr, "\r\033[K");
    return session_decode(drawing->session, &drawing->image, err);
}

static int save(struct drawing *drawing, struct err *err)
{
    struct buf bytes, request;
    buf_init(&bytes, CODEC_FILE_MAX_BYTES);
    buf_init(&request, JOB_ENCODED_MAX_BYTES);
    job_encode(&drawing->job, &request);
    int rc = codec_encode(&drawing->image, drawing->job.output.format, drawing->job.output.quality,
                          request.data, &bytes, err);
    if (rc == 0)
        rc = file_write(drawing->options->out, bytes.data, bytes.len, FILE_REPLACE, err);
    if (rc == 0)
        printf("%s: %d×%d, seed %lld, %d step%s of %s\n", drawing->options->out,
               drawing->image.width, drawing->image.height, (long long)drawing->job.seed,
               session_steps_total(drawing->session),
               plural((uint64_t)session_steps_total(drawing->session)), drawing->job.sampler);
    buf_release(&bytes);
    buf_release(&request);
    return rc;
}

static void close_all(struct drawing *drawing)
{
    image_release(&drawing->image);
    image_release(&drawing->init);
    session_free(drawing->session);
    beside_release(&drawing->beside);
    if (drawing->model)
        models_release(drawing->models, drawing->number);
    models_free(drawing->models);
    engine_free(drawing->engine);
    job_release(&drawing->job);
    catalogue_release(&drawing->catalogue);
}

/* Before the picture is drawn. */
static int check_out(const char *out, struct err *err)
{
    char dir[FILE_PATH_MAX_BYTES];
    const char *slash = strrchr(out, '/');
    if (!format_of(out))
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "--out: \"%.200s\" must end in .png, .jpg or .webp", out);
    snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - out + 1) : 1, slash ? out : ".");
    if (!file_is_dir(dir))
        return err_set(err, ERR_NOT_FOUND, ERR_FATAL, "--out: there is no directory %.200s", dir);
    return 0;
}

int command_generate(int argc, char **argv)
{
    struct generate_options options = {0};
    struct drawing drawing = {.options = &options};
    struct err err;
    struct buf help;
    int rc = conf_parse(&generate_table, &options, argc, argv, &err);
    if (rc > 0) {
        buf_init(&help, 1 << 20);
        conf_help(&generate_table, &help);
        fputs(help.data, stdout);
        buf_release(&help);
        return EXIT_ALL_DONE;
    }
    if (rc == 0 && (!options.model || !options.prompt))
        rc = err_set(&err, ERR_INVALID, ERR_FATAL, "--model and --prompt are needed; usage: %s",
                     generate_table.usage);
    if (rc == 0)
        rc = check_out(options.out, &err);
    if (rc != 0) {
        fprintf(stderr, "atelier generate: %s\n", err.message);
        return EXIT_USAGE;
    }
    rc = open_all(&drawing, &err);
    if (rc == 0)
        rc = draw(&drawing, &err);
    if (rc == 0)
        rc = save(&drawing, &err);
    if (rc != 0)
        fprintf(stderr, "atelier generate: %s\n", err.message);
    close_all(&drawing);
    return rc == 0 ? EXIT_ALL_DONE : exit_status_of(&err);
}

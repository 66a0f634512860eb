/* Samplers against diffusers' schedulers (tests/golden/samplers, whose maker describes the run). */
#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "engine/sampler.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/golden/samplers/"
#define VALUES_MAX 64
#define TOLERANCE 5e-6 /* of the largest latent; the worst run is off by half of it */

static double worst[SAMPLER_COUNT];
static int runs[SAMPLER_COUNT];

static void made_up_model(const float *x, float t, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(0.3 * x[i] * cos(t / 500.0) + 0.1);
}

static void wave(float *out, size_t n, double (*function)(double), double rate, double shift,
                 double scale)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(scale * function(rate * (double)i + shift));
}

static void start(const struct sampler_plan *plan, bool from_image, float *latents, size_t n)
{
    float noise[VALUES_MAX], image[VALUES_MAX];
    wave(noise, n, sin, 1.7, 0.3, 1.5);
    wave(image, n, cos, 0.9, 0, 1);
    sampler_noise(plan, latents, noise, from_image ? image : NULL, n);
}

/* Runs the plan to its end; the state is carried in a copy from step to step. */
static void run_plan(const struct sampler_plan *plan, float *latents, size_t n)
{
    float input[VALUES_MAX], output[VALUES_MAX], noise[VALUES_MAX];
    float history[SAMPLER_HISTORY * VALUES_MAX];
    for (size_t i = 0; i < SAMPLER_HISTORY * n; i++)
        history[i] = NAN; /* nothing is read before it is written */
    struct sampler_state state;
    sampler_begin(plan, &state);
    for (int call = 0; sampler_calls_left(plan, &state) > 0; call++) {
        struct sampler_state copy = state;
        assert_true(sampler_state_is_valid(plan, &copy));
        sampler_scale_input(plan, &copy, latents, input, n);
        made_up_model(input, sampler_timestep(plan, &copy), output, n);
        wave(noise, n, sin, 1.3, 0.7 * call, 1);
        sampler_step(plan, &copy, output, latents, history, sampler_draws(plan) ? noise : NULL, n);
        state = copy;
    }
}

static void check_timesteps(const struct sampler_plan *plan, const struct json *want,
                            const char *line)
{
    if ((size_t)sampler_calls_total(plan) != want->count)
        fail_msg("%d calls: %.100s", sampler_calls_total(plan), line);
    const float *got = plan->timesteps + plan->begin;
    for (const struct json *value = want->child; value; value = value->next, got++)
        if (!(fabs(*got - json_double_or(value, NAN)) <= 1e-3))
            fail_msg("timestep %g instead of %s: %.100s", *got, value->text, line);
}

static void check_latents(enum sampler sampler, const float *got, const struct json *want,
                          const char *line)
{
    double largest = 1, error = 0;
    for (const struct json *value = want->child; value; value = value->next, got++) {
        double expected = json_double_or(value, NAN);
        largest = fmax(largest, fabs(expected));
        double difference = fabs(*got - expected);
        error = difference <= error ? error : difference; /* a NaN stays */
    }
    runs[sampler]++;
    worst[sampler] = fmax(worst[sampler], error / largest);
    if (!(error <= TOLERANCE * largest))
        fail_msg("off by %g of %g: %.120s", error, largest, line);
}

static void check_run(const struct json *configs, const struct json *run, const char *line)
{
    struct err err;
    struct sampler_config config;
    struct sampler_plan plan;
    const char *name = json_string_or(json_get(run, "config"), "");
    const char *sampler = json_string_or(json_get(run, "sampler"), "");
    const char *schedule = json_string_or(json_get(run, "schedule"), "");
    const struct json *strength = json_get(run, "strength");
    struct sampler_request request = {
        .sampler = *sampler ? (enum sampler)sampler_by_name(sampler) : SAMPLER_MODEL,
        .schedule = *schedule ? (enum schedule)schedule_by_name(schedule) : SCHEDULE_MODEL,
        .steps = (int)json_int_or(json_get(run, "steps"), 0),
        .eta = json_double_or(json_get(run, "eta"), 0),
        .from_image = strength != NULL,
        .strength = json_double_or(strength, 0),
    };
    if (sampler_config_read(&config, json_get(configs, name), &err) != 0 ||
        sampler_plan_make(&plan, &config, &request, &err) != 0)
        fail_msg("%s: %.100s", err.message, line);
    size_t n = (size_t)json_int_or(json_get(run, "n"), 0);
    assert_in_range(n, 1, VALUES_MAX);
    float latents[VALUES_MAX];
    check_timesteps(&plan, json_get(run, "timesteps"), line);
    start(&plan, request.from_image, latents, n);
    run_plan(&plan, latents, n);
    check_latents(plan.sampler, latents, json_get(run, "latents"), line);
}

static void test_runs_match_diffusers(void **state)
{
    (void)state;
    struct json_doc *configs, *run;
    struct buf text;
    struct err err;
    buf_init(&text, 16 << 20);
    assert_int_equal(json_parse_file(&configs, GOLDEN "configs.json", NULL, &err), 0);
    assert_int_equal(file_read(&text, GOLDEN "runs.jsonl", &err), 0);
    int lines = 0;
    for (const char *line = text.data; *line; lines++) {
        size_t len = strcspn(line, "\n");
        assert_int_equal(json_parse(&run, line, len, NULL, &err), 0);
        check_run(json_root(configs), json_root(run), line);
        json_doc_free(run);
        line += len + (line[len] == '\n');
    }
    for (int i = SAMPLER_MODEL + 1; i < SAMPLER_COUNT; i++) {
        print_message("%-9s %4d runs, worst relative error %.1e\n", sampler_name((enum sampler)i),
                      runs[i], worst[i]);
        assert_true(runs[i] > 30);
    }
    json_doc_free(configs);
    buf_release(&text);
}

static void test_names(void **state)
{
    (void)state;
    for (int i = SAMPLER_MODEL + 1; i < SAMPLER_COUNT; i++)
        assert_int_equal(sampler_by_name(sampler_name((enum sampler)i)), i);
    for (int i = SCHEDULE_MODEL + 1; i < SCHEDULE_COUNT; i++)
        assert_int_equal(schedule_by_name(schedule_name((enum schedule)i)), i);
    assert_int_equal(sampler_by_name("Euler"), -1);
    assert_int_equal(schedule_by_name(""), -1);
    assert_true(sampler_has_schedule(SAMPLER_EULER, SCHEDULE_KARRAS));
    assert_false(sampler_has_schedule(SAMPLER_DDIM, SCHEDULE_KARRAS));
}

static void refused(const struct sampler_config *config, struct sampler_request request,
                    enum err_code code, const char *word)
{
    struct sampler_plan plan;
    struct err err = {0};
    assert_int_equal(sampler_plan_make(&plan, config, &request, &err), -1);
    assert_int_equal(err.code, code);
    assert_int_equal(err.class, ERR_REJECT);
    assert_non_null(strstr(err.message, word));
}

static void test_requests_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    struct sampler_config config = sampler_config_default(SAMPLER_PNDM, PREDICTION_EPSILON);
    struct sampler_request good = {.sampler = SAMPLER_DDIM, .steps = 10}, bad = good;
    bad.steps = 0;
    refused(&config, bad, ERR_INVALID, "steps");
    bad.steps = SAMPLER_STEPS_MAX + 1;
    refused(&config, bad, ERR_INVALID, "steps");
    bad = good;
    bad.eta = 1.5;
    refused(&config, bad, ERR_INVALID, "eta");
    bad = good;
    bad.from_image = true;
    bad.strength = NAN;
    refused(&config, bad, ERR_INVALID, "strength");
    bad.strength = 0.05; /* of 10 steps: none */
    refused(&config, bad, ERR_INVALID, "strength");
    config.own = SAMPLER_MODEL;
    bad = good;
    bad.sampler = SAMPLER_MODEL;
    refused(&config, bad, ERR_UNSUPPORTED, "sampler");
    struct sampler_config warms_up = config;
    warms_up.skip_prk_steps = CHOICE_UNSET;
    bad = good;
    bad.sampler = SAMPLER_PNDM;
    bad.steps = 3;
    refused(&warms_up, bad, ERR_INVALID, "steps");
}

static int read_text(struct sampler_config *config, const char *text, struct err *err)
{
    struct json_doc *doc;
    assert_int_equal(json_parse(&doc, text, strlen(text), NULL, err), 0);
    int result = sampler_config_read(config, json_root(doc), err);
    json_doc_free(doc);
    return result;
}

static void test_settings_that_nobody_honours_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "{\"thresholding\": true}",
        "{\"trained_betas\": [0.1, 0.2]}",
        "{\"prediction_type\": \"sample\"}",
        "{\"beta_schedule\": \"laplace\"}",
        "{\"num_train_timesteps\": 100000}",
        "{\"num_train_timesteps\": \"many\"}",
        "{\"beta_end\": -1}",
        "{\"use_exponential_sigmas\": true}",
        "{\"solver_order\": 9}",
        "{\"steps_offset\": 1e9}",
        "{\"predict_x0\": false}",
        "{\"interpolation_type\": \"log_linear\"}",
        "{\"disable_corrector\": [0]}",
        "{\"timestep_spacing\": \"wide\"}",
        "[]",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct sampler_config config;
        struct err err = {0};
        if (read_text(&config, bad[i], &err) != -1)
            fail_msg("accepted %s", bad[i]);
        assert_int_equal(err.class, ERR_REJECT);
    }
}

static void test_an_unknown_class_leaves_the_named_samplers(void **state)
{
    (void)state;
    struct sampler_config config;
    struct sampler_plan plan;
    struct err err;
    struct sampler_request request = {.sampler = SAMPLER_EULER, .steps = 4};
    const char *text = "{\"_class_name\": \"LCMScheduler\", \"beta_schedule\": \"scaled_linear\"}";
    assert_int_equal(read_text(&config, text, &err), 0);
    assert_int_equal(config.own, SAMPLER_MODEL);
    assert_int_equal(sampler_plan_make(&plan, &config, &request, &err), 0);
    request.sampler = SAMPLER_MODEL;
    refused(&config, request, ERR_UNSUPPORTED, "LCMScheduler");
}

static void test_defaults_are_the_published_files(void **state)
{
    (void)state;
    struct json_doc *configs;
    struct err err;
    assert_int_equal(json_parse_file(&configs, GOLDEN "configs.json", NULL, &err), 0);
    static const struct {
        const char *name;
        enum sampler own;
        enum prediction prediction;
    } rows[] = {{"sd1", SAMPLER_PNDM, PREDICTION_EPSILON}, {"sd2", SAMPLER_DDIM, PREDICTION_V}};
    for (int i = 0; i < 2; i++) {
        struct sampler_config read, made = sampler_config_default(rows[i].own, rows[i].prediction);
        const struct json *json = json_get(json_root(configs), rows[i].name);
        assert_int_equal(sampler_config_read(&read, json, &err), 0);
        assert_string_equal(read.own_class, made.own_class);
        struct sampler_plan a, b;
        for (int sampler = SAMPLER_MODEL; sampler < SAMPLER_COUNT; sampler++) {
            struct sampler_request request = {.sampler = (enum sampler)sampler, .steps = 7};
            assert_int_equal(sampler_plan_make(&a, &read, &request, &err), 0);
            assert_int_equal(sampler_plan_make(&b, &made, &request, &err), 0);
            assert_int_equal(a.sampler, b.sampler);
            assert_memory_equal(a.timesteps, b.timesteps, sizeof(a.timesteps));
            assert_memory_equal(a.alphas, b.alphas, sizeof(a.alphas));
            assert_true(a.final_alpha == b.final_alpha);
        }
    }
    json_doc_free(configs);
}

static void test_every_step_count_fits_its_plan(void **state)
{
    (void)state;
    struct sampler_config config = sampler_config_default(SAMPLER_PNDM, PREDICTION_EPSILON);
    config.spacing = SPACING_TRAILING;
    config.skip_prk_steps = CHOICE_NO;
    for (int steps = 4; steps <= SAMPLER_STEPS_MAX; steps++) {
        for (int sampler = SAMPLER_MODEL + 1; sampler < SAMPLER_COUNT; sampler++) {
            struct sampler_plan plan;
            struct err err;
            struct sampler_request request = {.sampler = (enum sampler)sampler, .steps = steps};
            assert_int_equal(sampler_plan_make(&plan, &config, &request, &err), 0);
            assert_in_range(plan.calls, steps, SAMPLER_CALLS_MAX);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_match_diffusers),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_requests_that_make_no_sense_are_refused),
        cmocka_unit_test(test_settings_that_nobody_honours_are_refused),
        cmocka_unit_test(test_an_unknown_class_leaves_the_named_samplers),
        cmocka_unit_test(test_defaults_are_the_published_files),
        cmocka_unit_test(test_every_step_count_fits_its_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

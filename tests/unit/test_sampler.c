/* Samplers against diffusers' schedulers (tests/golden/samplers, whose maker describes the run). */
#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "engine/sampler_parts.h"
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
        sampler_step(plan, &copy, output, latents, history,
                     sampler_draws(plan, &copy) ? noise : NULL, n);
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
        .sdxl = json_bool_or(json_get(run, "sdxl"), false),
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
        print_message("%-12s %4d runs, worst relative error %.1e\n", sampler_name((enum sampler)i),
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
    assert_int_equal(sampler_by_name("plms"), SAMPLER_PNDM);
    assert_int_equal(sampler_by_name("Euler"), -1);
    assert_int_equal(schedule_by_name(""), -1);
    assert_true(sampler_has_schedule(SAMPLER_EULER, SCHEDULE_KARRAS));
    assert_false(sampler_has_schedule(SAMPLER_DDIM, SCHEDULE_KARRAS));
    char names[SAMPLER_SCHEDULES_MAX_BYTES];
    assert_string_equal(sampler_schedules(SAMPLER_DDIM, names), "normal, sgm_uniform");
    assert_string_equal(sampler_schedules(SAMPLER_LCM, names), "normal");
    assert_string_equal(sampler_schedules(SAMPLER_EULER, names),
                        "normal, karras, exponential, sgm_uniform, simple, ays, beta");
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
    bad = good;
    bad.eta = 0.5;
    bad.sampler = SAMPLER_EULER_A;
    refused(&config, bad, ERR_INVALID, "eta: euler_a takes none");
    bad = good;
    bad.schedule = SCHEDULE_KARRAS;
    refused(&config, bad, ERR_INVALID, "schedule: ddim has no karras; it has normal, sgm_uniform");
    bad.sampler = SAMPLER_LCM;
    bad.schedule = SCHEDULE_NORMAL;
    bad.steps = 51;
    refused(&config, bad, ERR_INVALID, "steps: lcm takes at most 50");
    struct sampler_config short_training = config, predicts_sample = config;
    short_training.train_steps = 500;
    bad = good;
    bad.sampler = SAMPLER_EULER;
    bad.schedule = SCHEDULE_AYS;
    refused(&short_training, bad, ERR_UNSUPPORTED, "schedule: ays");
    predicts_sample.prediction = PREDICTION_SAMPLE;
    bad.sampler = SAMPLER_HEUN;
    refused(&predicts_sample, bad, ERR_UNSUPPORTED, "sampler: heun");
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
        "{\"prediction_type\": \"flow_prediction\"}",
        "{\"beta_schedule\": \"laplace\"}",
        "{\"num_train_timesteps\": 100000}",
        "{\"num_train_timesteps\": \"many\"}",
        "{\"beta_end\": -1}",
        "{\"use_lu_lambdas\": true}",
        "{\"use_exponential_sigmas\": true, \"use_beta_sigmas\": true}",
        "{\"variance_type\": \"learned_range\"}",
        "{\"original_inference_steps\": 1001}",
        "{\"timestep_scaling\": -1}",
        "{\"_class_name\": \"EDMEulerScheduler\"}",
        "{\"_class_name\": \"EDMDPMSolverMultistepScheduler\"}",
        "{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\"}",
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
    const char *text = "{\"_class_name\": \"DEISMultistepScheduler\", "
                       "\"beta_schedule\": \"scaled_linear\"}";
    assert_int_equal(read_text(&config, text, &err), 0);
    assert_int_equal(config.own, SAMPLER_MODEL);
    assert_int_equal(sampler_plan_make(&plan, &config, &request, &err), 0);
    request.sampler = SAMPLER_MODEL;
    refused(&config, request, ERR_UNSUPPORTED, "DEISMultistepScheduler");
    text = "{\"_class_name\": \"DPMSolverMultistepScheduler\", "
           "\"algorithm_type\": \"sde-dpmsolver\"}";
    assert_int_equal(read_text(&config, text, &err), 0);
    refused(&config, request, ERR_UNSUPPORTED, "algorithm_type");
}

/* One class of diffusers may be several samplers, told apart by the file's algorithm_type. */
static void test_own_samplers_by_class(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum sampler own;
    } rows[] = {
        {"\"DPMSolverMultistepScheduler\"", SAMPLER_DPMPP_2M},
        {"\"DPMSolverMultistepScheduler\", \"algorithm_type\": \"sde-dpmsolver++\", "
         "\"solver_order\": 3",
         SAMPLER_DPMPP_2M_SDE},
        {"\"DPMSolverSinglestepScheduler\"", SAMPLER_DPMPP_2S},
        {"\"DPMSolverSinglestepScheduler\", \"algorithm_type\": \"sde-dpmsolver++\"",
         SAMPLER_DPMPP_SDE},
        {"\"EulerDiscreteScheduler\", \"algorithm_type\": \"sde-dpmsolver++\"", SAMPLER_EULER},
        {"\"LCMScheduler\"", SAMPLER_LCM},
        {"\"TCDScheduler\"", SAMPLER_TCD},
        {"\"DDPMScheduler\", \"variance_type\": \"fixed_small\"", SAMPLER_DDPM},
        {"\"KDPM2DiscreteScheduler\"", SAMPLER_DPM2},
        {"\"KDPM2AncestralDiscreteScheduler\"", SAMPLER_DPM2_A},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char text[200];
        struct sampler_config config;
        struct err err;
        snprintf(text, sizeof(text), "{\"_class_name\": %s}", rows[i].text);
        assert_int_equal(read_text(&config, text, &err), 0);
        assert_int_equal(config.own, rows[i].own);
    }
}

/* How often noise is drawn in 4 steps, which is how far the picture's stream moves. */
static void test_draws(void **state)
{
    (void)state;
    static const struct {
        enum sampler sampler;
        double eta;
        int draws;
    } rows[] = {
        {SAMPLER_DDIM, 0, 0},       {SAMPLER_DDIM, 0.5, 4},       {SAMPLER_EULER, 0, 0},
        {SAMPLER_EULER_A, 0, 4},    {SAMPLER_DPM2, 0, 0},         {SAMPLER_DPM2_A, 0, 3},
        {SAMPLER_DPMPP_2S_A, 0, 3}, {SAMPLER_DPMPP_2S, 0, 0},     {SAMPLER_DPMPP_SDE, 0, 4},
        {SAMPLER_DPMPP_2M, 0, 0},   {SAMPLER_DPMPP_2M_SDE, 0, 4}, {SAMPLER_DPMPP_3M_SDE, 0, 4},
        {SAMPLER_DDPM, 0, 4},       {SAMPLER_LCM, 0, 3},          {SAMPLER_TCD, 0, 0},
        {SAMPLER_TCD, 0.3, 3},
    };
    struct sampler_config config = sampler_config_default(SAMPLER_PNDM, PREDICTION_EPSILON);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct sampler_plan plan;
        struct sampler_state at;
        struct err err;
        struct sampler_request request = {
            .sampler = rows[i].sampler, .steps = 4, .eta = rows[i].eta};
        assert_int_equal(sampler_plan_make(&plan, &config, &request, &err), 0);
        int draws = 0;
        sampler_begin(&plan, &at);
        for (; sampler_calls_left(&plan, &at) > 0; at.index++)
            draws += sampler_draws(&plan, &at);
        assert_int_equal(draws, rows[i].draws);
    }
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

/* scipy.stats.beta.ppf(p, 0.6, 0.6) at p = 1, 7/8 … 0, and near both ends. */
static void test_beta_quantiles(void **state)
{
    (void)state;
    static const double want[] = {1,   0.9428436363775859, 0.824319621347305, 0.6706185042786161,
                                  0.5, 0.3293814957213838, 0.175680378652695, 0.05715636362241408,
                                  0};
    for (int i = 0; i < 9; i++)
        assert_true(fabs(spread_sigma(SCHEDULE_BETA, 1, 0, 9, i) - want[i]) < 1e-14);
    double low = spread_sigma(SCHEDULE_BETA, 1, 0, 500, 498);
    double high = spread_sigma(SCHEDULE_BETA, 1, 0, 500, 1);
    assert_true(fabs(low - 5.911664875314773e-05) < 1e-16);
    assert_true(fabs(high - 0.9999408833512469) < 1e-15);
}

/* lcm and tcd end where the distillation did. */
static int steps_max(int sampler)
{
    return sampler == SAMPLER_LCM || sampler == SAMPLER_TCD ? 50 : SAMPLER_STEPS_MAX;
}

static void test_every_step_count_fits_its_plan(void **state)
{
    (void)state;
    struct sampler_config config = sampler_config_default(SAMPLER_PNDM, PREDICTION_EPSILON);
    config.spacing = SPACING_TRAILING;
    config.skip_prk_steps = CHOICE_NO;
    for (int sampler = SAMPLER_MODEL + 1; sampler < SAMPLER_COUNT; sampler++) {
        for (int steps = 4; steps <= steps_max(sampler); steps++) {
            struct sampler_plan plan;
            struct err err;
            struct sampler_request request = {.sampler = (enum sampler)sampler, .steps = steps};
            assert_int_equal(sampler_plan_make(&plan, &config, &request, &err), 0);
            assert_in_range(plan.calls, steps, SAMPLER_CALLS_MAX);
        }
    }
}

/* Whether noise falls from step to step, in whichever of its two measures the sampler counts. */
static bool falls(const struct sampler_plan *plan, int stride)
{
    const float *values = plan->sigmas[0] > 0 ? plan->sigmas : plan->timesteps;
    for (int i = 0; i + stride < plan->calls; i += stride)
        if (!(isfinite(values[i]) && values[i + stride] < values[i]))
            return false;
    return true;
}

static void check_combination(const struct sampler_config *config, struct sampler_request request)
{
    struct sampler_plan plan;
    struct err err;
    float latents[2];
    if (sampler_plan_make(&plan, config, &request, &err) != 0)
        fail_msg("%s", err.message);
    bool twice = request.sampler == SAMPLER_HEUN || request.sampler == SAMPLER_DPM2 ||
                 request.sampler == SAMPLER_DPM2_A || request.sampler == SAMPLER_DPMPP_2S_A;
    start(&plan, false, latents, 2);
    run_plan(&plan, latents, 2);
    if ((request.sampler != SAMPLER_PNDM && !falls(&plan, twice ? 2 : 1)) ||
        !isfinite(latents[0]) || !isfinite(latents[1]))
        fail_msg("%s, %s, %d steps", sampler_name(request.sampler), schedule_name(request.schedule),
                 request.steps);
}

static void test_every_combination_falls_to_a_finite_picture(void **state)
{
    (void)state;
    struct sampler_config config = sampler_config_default(SAMPLER_PNDM, PREDICTION_EPSILON);
    for (int sampler = SAMPLER_MODEL + 1; sampler < SAMPLER_COUNT; sampler++)
        for (int schedule = SCHEDULE_NORMAL; schedule < SCHEDULE_COUNT; schedule++)
            for (int steps = 1; steps <= 60 && steps <= steps_max(sampler); steps++)
                for (int sdxl = 0; sdxl < 2; sdxl++)
                    if (sampler_has_schedule((enum sampler)sampler, (enum schedule)schedule))
                        check_combination(
                            &config, (struct sampler_request){.sampler = (enum sampler)sampler,
                                                              .schedule = (enum schedule)schedule,
                                                              .steps = steps,
                                                              .sdxl = sdxl == 1});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_match_diffusers),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_requests_that_make_no_sense_are_refused),
        cmocka_unit_test(test_settings_that_nobody_honours_are_refused),
        cmocka_unit_test(test_an_unknown_class_leaves_the_named_samplers),
        cmocka_unit_test(test_own_samplers_by_class),
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_defaults_are_the_published_files),
        cmocka_unit_test(test_beta_quantiles),
        cmocka_unit_test(test_every_step_count_fits_its_plan),
        cmocka_unit_test(test_every_combination_falls_to_a_finite_picture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

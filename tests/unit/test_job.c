#include "common/file.h"
#include "common/json.h"
#include "common/sampling.h"
#include "schema/job.h"
#include "schema/manifest.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct job job;
static struct job_problems problems;
static struct err err;

static void parse(const char *text)
{
    if (job_parse(&job, text, strlen(text), &problems, &err) != 0)
        fail_msg("%s: %s", text, err.message);
    assert_int_equal(job_identify(&job, "jobs.jsonl", 1, &err), 0);
}

static char *encode(void)
{
    struct buf out;
    buf_init(&out, JOB_ENCODED_MAX_BYTES);
    job_encode(&job, &out);
    char *text = strdup(out.data);
    buf_release(&out);
    return text;
}

static void assert_problem(const char *text, const char *field, const char *part)
{
    assert_int_equal(job_parse(&job, text, strlen(text), &problems, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    job_release(&job);
    for (size_t i = 0; i < problems.count; i++)
        if (strcmp(problems.items[i].field, field) == 0 && strstr(problems.items[i].problem, part))
            return;
    fail_msg("%s: no problem of \"%s\" says \"%s\" (first: \"%s\" %s)", text, field, part,
             problems.items[0].field, problems.items[0].problem);
}

static void test_defaults(void **state)
{
    (void)state;
    parse("{\"model\":\"m\",\"prompt\":\"a cat\"}");
    assert_null(job.negative_prompt);
    assert_int_equal(job.width, 0);
    assert_int_equal(job.images, 1);
    assert_true(job.guidance_scale < 0);
    assert_string_equal(job.tenant, "default");
    assert_string_equal(job.output.format, "png");
    assert_true(job.output.metadata);
    assert_int_equal(job.max_attempts, 3);
    assert_true(job.deadline_ns == JOB_TIME_NONE);
    assert_true(job.seed >= 0);
    assert_true(job_id_valid(job.id));
    job_release(&job);
}

static void test_every_field_is_read(void **state)
{
    (void)state;
    parse(
        "{\"id\":\"j-1\",\"batch\":\"b\",\"tenant\":\"t\",\"priority\":\"bulk\",\"not_before\":"
        "\"2026-03-01T12:00:00Z\",\"deadline\":\"2026-03-02T12:00:00Z\",\"max_attempts\":5,"
        "\"tier\":\"fast\",\"confidential\":true,\"max_price\":0.5,\"callback\":\"https://h/x\","
        "\"model\":\"m\",\"prompt\":\"p\",\"negative_prompt\":\"\",\"width\":768,\"height\":64,"
        "\"steps\":30,\"guidance_scale\":0,\"guidance_rescale\":0.7,\"guidance_interval\":[0.25,5],"
        "\"freeu\":{\"b1\":1.3,\"b2\":1.4,\"s1\":0.9,\"s2\":0.2},\"sampler\":\"ddim\",\"schedule\":"
        "\"sgm_uniform\","
        "\"eta\":0.5,\"seed\":9223372036854775744,\"images\":64,\"clip_skip\":2,"
        "\"loras\":[{\"name\":\"l\",\"scale\":-0.5},{\"name\":\"k\"}],\"embeddings\":[\"e\"],"
        "\"controlnets\":[{\"name\":\"c\",\"image\":\"c.png\",\"end\":0.5},"
        "{\"name\":\"u\",\"image\":\"u.png\",\"mode\":0}],"
        "\"init_image\":\"in.png\",\"mask\":\"m.png\",\"image_guidance_scale\":1.25,\"refiner\":{"
        "\"model\":\"r\"},"
        "\"aesthetic_score\":6,\"original_size\":[512,768],\"crop\":[0,8],"
        "\"dialect\":\"a1111\",\"rng\":\"philox\",\"precision\":\"bf16\","
        "\"output\":{\"format\":\"webp\",\"quality\":80},\"labels\":{\"k\":\"v\"},\"x-own\":[1]}");
    assert_string_equal(job.id, "j-1");
    assert_true(job.seed == 9223372036854775744);
    assert_string_equal(job.negative_prompt, "");
    assert_true(job.guidance_scale == 0);
    assert_true(job.guidance_rescale == 0.7);
    assert_true(job.guidance_interval[0] == 0.25 && job.guidance_interval[1] == 5);
    assert_true(job.freeu.b1 == 1.3 && job.freeu.s2 == 0.2);
    assert_true(job.strength == 1); /* with a mask */
    assert_true(job.image_guidance_scale == 1.25);
    assert_int_equal(job.lora_count, 2);
    assert_true(job.loras[0].scale == -0.5 && job.loras[1].scale == 1);
    assert_true(job.controlnets[0].end == 0.5 && job.controlnets[0].scale == 1);
    assert_true(job.controlnets[0].mode == -1 && job.controlnets[1].mode == 0);
    assert_string_equal(job.refiner.model, "r");
    assert_int_equal(job.original_size[1], 768);
    assert_int_equal(job.target_size[0], -1);
    assert_string_equal(job.labels[0].value, "v");
    char *text = encode();
    job_release(&job);
    parse(text);
    char *again = encode();
    assert_string_equal(text, again);
    assert_contains(again, "\"x-own\":[1]");
    assert_contains(again, "\"deadline\":\"2026-03-02T12:00:00.000Z\"");
    free(text);
    free(again);
    job_release(&job);
}

static void test_a_second_pass(void **state)
{
    int width, height;

    (void)state;
    parse("{\"model\":\"m\",\"prompt\":\"p\",\"width\":520,\"height\":768,\"steps\":20,"
          "\"hires\":{\"scale\":1.5}}");
    assert_true(job_has_hires(&job));
    assert_true(job.hires.strength == 0.7);
    assert_string_equal(job.hires.upscaler, "latent");
    job_final_size(&job, &width, &height);
    assert_int_equal(width, 784); /* 780 */
    assert_int_equal(height, 1152);
    assert_true(job_pixel_steps(&job, 520, 768, 20) ==
                520.0 * 768 * 20 + 784.0 * 1152 * 20 * job.hires.strength);
    char *text = encode();
    assert_contains(text, "\"hires\":{\"scale\":1.5,\"strength\":0.7,\"upscaler\":\"latent\"}");
    free(text);
    job_release(&job);
    parse("{\"model\":\"m\",\"prompt\":\"p\",\"hires\":{\"width\":1024,\"height\":768,"
          "\"strength\":0.5,\"steps\":9,\"upscaler\":\"latent-bicubic\"}}");
    job_final_size(&job, &width, &height);
    assert_int_equal(width, 1024);
    assert_int_equal(height, 768);
    assert_int_equal(job.hires.steps, 9);
    job_release(&job);
    parse("{\"model\":\"m\",\"prompt\":\"p\"}");
    assert_false(job_has_hires(&job));
    text = encode();
    assert_null(strstr(text, "hires"));
    free(text);
    job_release(&job);
}

static void test_canonical_form_ignores_how_it_was_written(void **state)
{
    (void)state;
    parse("{\"id\":\"a\",\"model\":\"m\",\"prompt\":\"p\",\"steps\":20}");
    uint64_t content = job.content;
    job_release(&job);
    parse(
        " { \"steps\" : 2e1, \"images\": 1, \"prompt\":\"\\u0070\", \"model\":\"m\",\"id\":\"a\"}");
    assert_true(job.content == content);
    job_release(&job);
    parse("{\"id\":\"a\",\"model\":\"m\",\"prompt\":\"p\",\"steps\":21}");
    assert_true(job.content != content);
    job_release(&job);
}

static void test_identity(void **state)
{
    (void)state;
    static const char text[] = "{\"model\":\"m\",\"prompt\":\"p\"}";
    char first[JOB_NAME_MAX_BYTES + 1];
    parse(text);
    strcpy(first, job.id);
    int64_t seed = job.seed;
    job_release(&job);
    parse(text);
    assert_string_equal(job.id, first);
    assert_true(job.seed == seed);
    job_release(&job);
    assert_int_equal(job_parse(&job, text, strlen(text), &problems, &err), 0);
    assert_int_equal(job_identify(&job, "jobs.jsonl", 2, &err), 0);
    assert_string_not_equal(job.id, first);
    assert_true(job.seed != seed);
    job_release(&job);
}

static void test_problems_name_field_and_remedy(void **state)
{
    (void)state;
    static const struct {
        const char *member, *field, *part;
    } cases[] = {
        {"\"promt\":\"x\"", "promt", "did you mean \"prompt\""},
        {"\"Steps\":3", "Steps", "did you mean \"steps\""},
        {"\"zzzzzzzz\":3", "zzzzzzzz", "under labels or begin with x-"},
        {"\"width\":100", "width", "multiple of 8 from 64 to 2048"},
        {"\"width\":\"512\"", "width", "must be a number, not a string"},
        {"\"height\":4096", "height", "multiple of 8 from 64 to 2048"},
        {"\"steps\":0", "steps", "from 1 to 500"},
        {"\"steps\":1.5", "steps", "whole number from 1 to 500"},
        {"\"guidance_scale\":51", "guidance_scale", "from 0 to 50"},
        {"\"sampler\":\"dpm++2m\"", "sampler", "did you mean \"dpm++ 2m\""},
        {"\"schedule\":\"x\"", "schedule", "one of normal, karras"},
        {"\"eta\":0.5,\"sampler\":\"euler\"", "eta", "ddim and tcd only"},
        {"\"schedule\":\"karras\",\"sampler\":\"ddim\"", "schedule",
         "the sampler ddim has none such: it has normal, sgm_uniform"},
        {"\"schedule\":\"karas\"", "schedule", "did you mean \"karras\""},
        {"\"output\":{\"prefix\":\"a\"}", "output.prefix", "not supported by this version"},
        {"\"seed\":-1", "seed", "from 0 to 9223372036854775807"},
        {"\"seed\":9223372036854775808", "seed", "from 0 to 9223372036854775807"},
        {"\"seed\":9223372036854775807,\"images\":2", "seed", "must not pass"},
        {"\"images\":65", "images", "from 1 to 64"},
        {"\"clip_skip\":13", "clip_skip", "from 0 to 12"},
        {"\"loras\":[{\"scale\":1}]", "loras[0].name", "is required"},
        {"\"loras\":[{\"name\":\"a\",\"scale\":5}]", "loras[0].scale", "from -4 to 4"},
        {"\"loras\":[3]", "loras[0]", "must be an object"},
        {"\"loras\":[{\"name\":\"a\",\"weight\":1}]", "loras[0].weight",
         "unknown field; there are name, scale"},
        {"\"embeddings\":[\"\"]", "embeddings[0]", "must not be empty"},
        {"\"controlnets\":[{\"name\":\"c\",\"image\":\"ftp://x\"}]", "controlnets[0].image",
         "s3://"},
        {"\"controlnets\":[{\"name\":\"c\",\"image\":\"x\",\"mode\":32}]", "controlnets[0].mode",
         "from 0 to 31"},
        {"\"controlnets\":[{\"name\":\"c\",\"image\":\"x\",\"start\":1,\"end\":0}]",
         "controlnets[0].start", "after its end"},
        {"\"init_image\":\"/etc/passwd\"", "init_image", "relative to the jobs file"},
        {"\"strength\":0.5", "strength", "needs init_image"},
        {"\"mask\":\"m.png\"", "mask", "needs init_image"},
        {"\"refiner\":{}", "refiner.model", "is required"},
        {"\"dialect\":\"a1111\",\"negative_prompt\":\"a <lora:b:1>\"", "negative_prompt",
         "<lora:…> is not read in a prompt"},
        {"\"hires\":{}", "hires", "either scale or both"},
        {"\"hires\":{\"strength\":0.5}", "hires", "either scale or both"},
        {"\"hires\":{\"width\":512}", "hires", "either scale or both"},
        {"\"hires\":{\"scale\":2,\"width\":512,\"height\":512}", "hires", "either scale or both"},
        {"\"hires\":{\"scale\":5}", "hires.scale", "from 1 to 4"},
        {"\"width\":1024,\"hires\":{\"scale\":2.5}", "hires.scale", "makes a picture of 2560"},
        {"\"hires\":{\"width\":2056,\"height\":64}", "hires.width", "from 64 to 2048"},
        {"\"width\":512,\"hires\":{\"width\":256,\"height\":256}", "hires", "is smaller than"},
        {"\"hires\":{\"scale\":2,\"upscaler\":\"latent-bicubik\"}", "hires.upscaler",
         "latent-bicubic"},
        {"\"original_size\":[1]", "original_size", "two whole numbers"},
        {"\"id\":\"a/b\"", "id", "A-Z a-z 0-9"},
        {"\"id\":\"..\"", "id", "neither . nor .."},
        {"\"id\":\"\"", "id", "1 to 128"},
        {"\"deadline\":\"tomorrow\"", "deadline", "RFC 3339"},
        {"\"deadline\":\"2026-01-01T00:00:00Z\",\"not_before\":\"2026-01-02T00:00:00Z\"",
         "deadline", "earlier than not_before"},
        {"\"callback\":\"ftp://x\"", "callback", "https://"},
        {"\"confidential\":1", "confidential", "must be true or false"},
        {"\"output\":{\"format\":\"gif\"}", "output.format", "one of png, jpeg, webp"},
        {"\"output\":{\"quality\":0}", "output.quality", "from 1 to 100"},
        {"\"labels\":{\"a\":1}", "labels.a", "must be a string"},
        {"\"negative_prompt\":null", "negative_prompt", "must be a string, not null"},
        {"\"priority\":\"urgent\"", "priority", "one of interactive, normal, bulk"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[512];
        snprintf(text, sizeof(text), "{\"model\":\"m\",\"prompt\":\"p\",%s}", cases[i].member);
        assert_problem(text, cases[i].field, cases[i].part);
    }
    assert_problem("{\"prompt\":\"p\"}", "model", "is required");
    assert_problem("[1]", "", "must be a JSON object");
    assert_problem("{\"model\":\"m\",", "", "byte 13");
    assert_problem("{\"model\":\"\xFF\",\"prompt\":\"\"}", "", "not UTF-8");
    assert_problem("{\"model\":\"m\",\"model\":\"m\",\"prompt\":\"\"}", "", "appears twice");
}

/* The contract takes a sampler with a schedule if and only if the engine does. */
static void test_samplers_and_schedules(void **state)
{
    (void)state;
    for (const char *const *sampler = sampler_names; *sampler; sampler++)
        for (const char *const *schedule = schedule_names; *schedule; schedule++) {
            char text[256];
            enum sampler a = (enum sampler)sampler_by_name(*sampler);
            bool goes = sampler_has_schedule(a, (enum schedule)schedule_by_name(*schedule));
            snprintf(text, sizeof(text),
                     "{\"model\":\"m\",\"prompt\":\"p\",\"sampler\":\"%s\",\"schedule\":\"%s\"}",
                     *sampler, *schedule);
            assert_int_equal(job_parse(&job, text, strlen(text), &problems, &err), goes ? 0 : -1);
            job_release(&job);
        }
}

/* A sampler that was filled in since. */
static void test_sampling_is_checked_again(void **state)
{
    (void)state;
    parse("{\"model\":\"m\",\"prompt\":\"p\",\"schedule\":\"karras\",\"eta\":0.5}");
    job_check_sampling(&job, &problems);
    assert_int_equal(problems.count, 0);
    job.sampler = "lcm";
    job_check_sampling(&job, &problems);
    assert_int_equal(problems.count, 2);
    assert_string_equal(problems.items[0].field, "schedule");
    assert_string_equal(problems.items[1].field, "eta");
    job_release(&job);
}

static void test_errors_become_problems(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"clip_skip: too many", "clip_skip", "too many"},
        {"controlnets[1].image: in.png: cut off", "controlnets[1].image", "in.png: cut off"},
        {"hires: strength: none", "hires", "strength: none"},
        {"models/a.safetensors: tensor 'b' is missing", "",
         "models/a.safetensors: tensor 'b' is missing"},
        {"no memory", "", "no memory"},
    };
    problems.count = problems.dropped = 0;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        (void)err_set(&err, ERR_INVALID, ERR_REJECT, "%s", cases[i][0]);
        job_problem_add_error(&problems, &err);
        assert_string_equal(problems.items[i].field, cases[i][1]);
        assert_string_equal(problems.items[i].problem, cases[i][2]);
    }
}

static void test_all_problems_at_once(void **state)
{
    (void)state;
    static const char text[] = "{\"promt\":\"x\",\"width\":100,\"steps\":\"many\",\"seed\":-4}";
    assert_int_equal(job_parse(&job, text, strlen(text), &problems, &err), -1);
    assert_int_equal(problems.count, 6); /* and model, prompt are missing */
    struct buf out;
    buf_init(&out, 1 << 20);
    job_problems_write(&problems, &out);
    struct json_doc *doc;
    assert_int_equal(json_parse(&doc, out.data, out.len, NULL, &err), 0);
    assert_int_equal(json_root(doc)->count, 6);
    assert_string_equal(json_get(json_root(doc)->child, "field")->text, "promt");
    json_doc_free(doc);
    buf_release(&out);
    job_release(&job);
}

static void test_limits(void **state)
{
    (void)state;
    static char text[300 << 10];
    int n = sprintf(text, "{\"model\":\"m\",\"prompt\":\"");
    memset(text + n, 'a', 16385);
    strcpy(text + n + 16385, "\"}");
    assert_problem(text, "prompt", "16385 bytes; at most 16384");
    memset(text + n, 'a', 290 << 10);
    strcpy(text + n + (290 << 10), "\"}");
    assert_problem(text, "", "more than 262144");
    n = sprintf(text, "{\"model\":\"m\",\"prompt\":\"p\",\"labels\":{");
    for (int i = 0; i < 33; i++)
        n += sprintf(text + n, "%s\"k%d\":\"v\"", i ? "," : "", i);
    strcpy(text + n, "}}");
    assert_problem(text, "labels", "at most 32");
    n = sprintf(text, "{");
    for (int i = 0; i < 100; i++)
        n += sprintf(text + n, "%s\"k%d\":1", i ? "," : "", i);
    strcpy(text + n, "}");
    assert_int_equal(job_parse(&job, text, strlen(text), &problems, &err), -1);
    assert_int_equal(problems.count, JOB_PROBLEMS_MAX);
    assert_int_equal(problems.dropped, 102 - JOB_PROBLEMS_MAX);
    job_release(&job);
}

static void test_the_committed_schema_is_current(void **state)
{
    (void)state;
    struct buf made, committed;
    struct json_doc *doc;
    buf_init(&made, 1 << 20);
    buf_init(&committed, 1 << 20);
    job_schema_write(&made);
    assert_int_equal(json_parse(&doc, made.data, made.len, NULL, &err), 0);
    json_doc_free(doc);
    if (file_read(&committed, "schema/job.schema.json", &err) != 0)
        fail_msg("%s", err.message);
    if (strcmp(made.data, committed.data) != 0)
        fail_msg("schema/job.schema.json is stale: atelier schema job > schema/job.schema.json");
    buf_release(&made);
    buf_release(&committed);
}

static void test_manifest_reads_back(void **state)
{
    (void)state;
    struct manifest_file files[2] = {{.name = "0-ab.png",
                                      .sha256 = "ab",
                                      .bytes = 5,
                                      .seed = UINT64_MAX,
                                      .width = 64,
                                      .height = 8},
                                     {.name = "1-cd.png", .sha256 = "cd"}};
    struct manifest manifest = {.id = "j",
                                .tenant = "default",
                                .request = "{\"prompt\":\"p\"}",
                                .content = 0xfedcba9876543210,
                                .files = files,
                                .file_count = 2,
                                .device_class = "cpu",
                                .attempt = 1,
                                .times = {.total_s = 1.25}};
    struct manifest_view view;
    struct buf out;
    buf_init(&out, MANIFEST_MAX_BYTES);
    manifest_write(&manifest, &out);
    if (manifest_read(&view, out.data, out.len, &err) != 0)
        fail_msg("%s in %s", err.message, out.data);
    assert_string_equal(view.id, "j");
    assert_true(view.content == manifest.content);
    assert_true(view.total_s == 1.25);
    assert_int_equal(view.files->count, 2);
    assert_string_equal(json_get(view.request, "prompt")->text, "p");
    manifest_view_release(&view);
    assert_int_equal(manifest_read(&view, "{}", 2, &err), -1);
    buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_field_is_read),
        cmocka_unit_test(test_a_second_pass),
        cmocka_unit_test(test_canonical_form_ignores_how_it_was_written),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_problems_name_field_and_remedy),
        cmocka_unit_test(test_samplers_and_schedules),
        cmocka_unit_test(test_sampling_is_checked_again),
        cmocka_unit_test(test_errors_become_problems),
        cmocka_unit_test(test_all_problems_at_once),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_the_committed_schema_is_current),
        cmocka_unit_test(test_manifest_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

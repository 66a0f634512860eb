/* Damaged and foreign models, made from copies of the committed ones: what is refused says why. */
#include "common/buf.h"
#include "common/file.h"
#include "engine/engine.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN "tests/golden/models/"
#define FILE_MAX_BYTES (64u << 20)
#define UNET "unet/diffusion_pytorch_model.safetensors"
#define GONE "{\"weight_map\":{\"a\":\"gone.safetensors\"}}"
#define CONV_IN "\"conv_in.weight\":{\"dtype\":\"F32\",\"shape\":[16,4,3,3]"

struct fixture {
    struct engine *engine;
    char dir[64];
    char warning[ERR_MESSAGE_MAX_BYTES];
    int warnings;
};

static void warn(void *user, const char *message)
{
    struct fixture *f = user;

    f->warnings++;
    snprintf(f->warning, sizeof(f->warning), "%s", message);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct err err;

    options.backend = "ref";
    options.warn = warn;
    options.user = f;
    strcpy(f->dir, "/tmp/atelier-checkpoint-XXXXXX");
    *state = f;
    return mkdtemp(f->dir) != NULL ? engine_create(&f->engine, &options, &err) : -1;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[128];
    int rc;

    snprintf(command, sizeof(command), "rm -r %s", f->dir);
    rc = system(command);
    engine_free(f->engine);
    free(f);
    return rc;
}

static const char *path_of(const struct fixture *f, const char *name)
{
    static char path[512];

    snprintf(path, sizeof(path), "%s/%s", f->dir, name);
    return path;
}

/* A copy of a committed model that a test may damage: dir/<as>. */
static void copy_model(const struct fixture *f, const char *name, const char *as)
{
    char command[256];

    snprintf(command, sizeof(command), "cp -r " GOLDEN "%s %s/%s", name, f->dir, as);
    assert_int_equal(system(command), 0);
}

static void write_file(const struct fixture *f, const char *name, const void *bytes, size_t len)
{
    struct err err;

    if (file_write(path_of(f, name), bytes, len, FILE_REPLACE, &err) != 0)
        fail_msg("%s", err.message);
}

static void read_file(const struct fixture *f, const char *name, struct buf *out)
{
    struct err err;

    buf_init(out, FILE_MAX_BYTES);
    if (file_read(out, path_of(f, name), &err) != 0)
        fail_msg("%s", err.message);
}

/* A safetensors file of this header alone. */
static void write_header(const struct fixture *f, const char *name, const char *header)
{
    unsigned char bytes[1024];
    uint64_t len = strlen(header);

    memcpy(bytes, &len, 8);
    memcpy(bytes + 8, header, len);
    write_file(f, name, bytes, 8 + len);
}

/* Puts `text` where `old` stands in a safetensors header, and sets its length right. */
static void edit_header(const struct fixture *f, const char *name, const char *old,
                        const char *text)
{
    struct buf in, out;
    uint64_t len;
    char *at;

    read_file(f, name, &in);
    memcpy(&len, in.data, 8);
    at = memmem(in.data + 8, len, old, strlen(old));
    assert_non_null(at);
    len = len - strlen(old) + strlen(text);
    buf_init(&out, FILE_MAX_BYTES);
    buf_append(&out, &len, 8);
    buf_append(&out, in.data + 8, (size_t)(at - in.data) - 8);
    buf_str(&out, text);
    buf_append(&out, at + strlen(old), (size_t)(in.data + in.len - at) - strlen(old));
    write_file(f, name, out.data, out.len);
    buf_release(&in);
    buf_release(&out);
}

/* Loading dir/<name> is refused; the message holds every part up to NULL. */
static void assert_refused(struct fixture *f, const char *name, enum err_code code,
                           const char *const parts[])
{
    struct model *model;
    struct err err;

    assert_int_equal(engine_load(&model, f->engine, path_of(f, name), NULL, &err), -1);
    for (; *parts != NULL; parts++)
        assert_contains(err.message, *parts);
    assert_int_equal(err.class, ERR_REJECT);
    assert_int_equal(err.code, code);
}
#define PARTS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void assert_loads(struct fixture *f, const char *name)
{
    struct model *model;
    struct err err;

    f->warnings = 0;
    if (engine_load(&model, f->engine, path_of(f, name), NULL, &err) != 0)
        fail_msg("%s", err.message);
    engine_unload(model);
}

static void test_whole_models_load_silently(void **state)
{
    struct fixture *f = *state;
    static const char *NAMES[] = {"sd1-small",
                                  "sd2-small",
                                  "sd2-zsnr-sharded",
                                  "sd1-single.safetensors",
                                  "sd2-single.safetensors",
                                  "sdxl-small",
                                  "sdxl-single.safetensors"};

    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        copy_model(f, NAMES[i], NAMES[i]);
        assert_loads(f, NAMES[i]);
        assert_int_equal(f->warnings, 0);
    }
}

static void test_a_missing_tensor(void **state)
{
    struct fixture *f = *state;

    copy_model(f, "sd1-small", "m");
    edit_header(f, "m/" UNET, "\"conv_in.weight\"", "\"conv_in.other\"");
    assert_refused(f, "m", ERR_FORMAT, PARTS("m/" UNET, "tensor 'conv_in.weight'", "is missing"));
}

/* A single file's own name for it, not the diffusers one. */
static void test_a_missing_tensor_of_a_single_file(void **state)
{
    struct fixture *f = *state;

    copy_model(f, "sd1-single.safetensors", "m.safetensors");
    edit_header(f, "m.safetensors", "\"model.diffusion_model.time_embed.0.bias\"", "\"other\"");
    assert_refused(f, "m.safetensors", ERR_FORMAT,
                   PARTS("m.safetensors", "'model.diffusion_model.time_embed.0.bias'", "missing"));
}

static void test_extra_tensors(void **state)
{
    struct fixture *f = *state;
    const char *more =
        "{\"surplus.weight\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
        "\"surplus.bias\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},";

    copy_model(f, "sd1-small", "m");
    edit_header(f, "m/" UNET, "{", more);
    assert_loads(f, "m");
    assert_int_equal(f->warnings, 1);
    assert_contains(f->warning, "/m");
    assert_contains(f->warning, "2 tensors");
    assert_contains(f->warning, "surplus");
}

static void test_extra_tensors_that_are_known(void **state)
{
    struct fixture *f = *state;
    const char *more =
        "{\"model_ema.decay\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
        "\"cond_stage_model.transformer.text_model.embeddings.position_ids\":"
        "{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
        "\"betas\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},";

    copy_model(f, "sd1-single.safetensors", "m.safetensors");
    edit_header(f, "m.safetensors", "{", more);
    assert_loads(f, "m.safetensors");
    assert_int_equal(f->warnings, 0);
}

/* A single file, with `more` in its header and a step counter after its data, is read as this. */
static void assert_info(struct fixture *f, const char *name, const char *more, int64_t step,
                        const char *prediction, int width, int height)
{
    struct model *model;
    struct buf whole;
    char text[512];
    struct err err;
    uint64_t len;

    copy_model(f, name, "m.safetensors");
    read_file(f, "m.safetensors", &whole);
    memcpy(&len, whole.data, 8);
    buf_append(&whole, &step, sizeof(step));
    write_file(f, "m.safetensors", whole.data, whole.len);
    snprintf(text, sizeof(text),
             "{%s\"global_step\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[%llu,%llu]},",
             more, (unsigned long long)(whole.len - 16 - len),
             (unsigned long long)(whole.len - 8 - len));
    edit_header(f, "m.safetensors", "{\"__metadata__\":{\"format\":\"pt\"},", text);
    buf_release(&whole);
    if (engine_load(&model, f->engine, path_of(f, "m.safetensors"), NULL, &err) != 0)
        fail_msg("%s", err.message);
    assert_string_equal(model_info(model)->prediction, prediction);
    assert_int_equal(model_info(model)->width, width);
    assert_int_equal(model_info(model)->height, height);
    engine_unload(model);
}

static void test_what_a_single_file_says_of_itself(void **state)
{
#define MARKER(name) "\"" name "\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
#define META(key, value) "\"__metadata__\":{\"modelspec." key "\":\"" value "\"},"
    static const char *SD2 = "sd2-single.safetensors", *SDXL = "sdxl-single.safetensors";
    struct fixture *f = *state;

    /* By the weights alone, SD2 predicts v; then by what else the file says. */
    assert_info(f, SD2, "", 1, "v_prediction", 768, 768);
    assert_info(f, SD2, "", 875000, "epsilon", 512, 512);
    assert_info(f, SD2, META("prediction_type", "epsilon"), 1, "epsilon", 512, 512);
    assert_info(f, SD2, META("architecture", "stable-diffusion-v2-768-v"), 875000, "v_prediction",
                768, 768);
    assert_info(f, SD2, META("resolution", "640x448"), 1, "v_prediction", 640, 448);
    assert_info(f, SDXL, "", 875000, "epsilon", 1024, 1024);
    assert_info(f, SDXL, MARKER("v_pred") MARKER("ztsnr"), 1, "v_prediction", 1024, 1024);
}

static void test_a_fused_tensor_of_a_wrong_shape(void **state)
{
    struct fixture *f = *state;
    static const char *NAME = "resblocks.0.attn.in_proj_bias\":{\"dtype\":\"F16\",\"shape\":[";

    copy_model(f, "sd2-single.safetensors", "m.safetensors");
    char old[128], text[128];
    snprintf(old, sizeof(old), "%s48]", NAME);
    snprintf(text, sizeof(text), "%s16,3]", NAME);
    edit_header(f, "m.safetensors", old, text);
    assert_refused(f, "m.safetensors", ERR_FORMAT,
                   PARTS("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias",
                         "[16, 3]", "[16]"));
}

static void test_a_wrong_shape(void **state)
{
    struct fixture *f = *state;

    copy_model(f, "sd1-small", "m");
    edit_header(f, "m/" UNET, CONV_IN,
                "\"conv_in.weight\":{\"dtype\":\"F32\",\"shape\":[4,16,3,3]");
    assert_refused(f, "m", ERR_FORMAT,
                   PARTS("m/" UNET, "'conv_in.weight'", "[4, 16, 3, 3]", "[16, 4, 3, 3]"));
}

static void test_a_dtype_without_weights(void **state)
{
    struct fixture *f = *state;

    copy_model(f, "sd1-small", "m");
    edit_header(f, "m/" UNET, CONV_IN,
                "\"conv_in.weight\":{\"dtype\":\"I32\",\"shape\":[16,4,3,3]");
    assert_refused(f, "m", ERR_FORMAT, PARTS("m/" UNET, "'conv_in.weight'", "dtype"));
}

static void test_a_truncated_file(void **state)
{
    struct fixture *f = *state;

    copy_model(f, "sd1-small", "m");
    assert_int_equal(truncate(path_of(f, "m/" UNET), 1000000), 0);
    assert_refused(f, "m", ERR_FORMAT, PARTS("m/" UNET, "truncated"));
    assert_int_equal(truncate(path_of(f, "m/" UNET), 0), 0);
    assert_refused(f, "m", ERR_FORMAT, PARTS("m/" UNET, "too short"));
}

static void test_another_pipeline(void **state)
{
    struct fixture *f = *state;
    static const char *CLASSES[] = {"KandinskyPipeline", "FluxPipeline", "StableDiffusion3Pipeline",
                                    "StableDiffusionUpscalePipeline"};

    copy_model(f, "sd1-small", "m");
    for (size_t i = 0; i < sizeof(CLASSES) / sizeof(CLASSES[0]); i++) {
        char index[128];
        snprintf(index, sizeof(index), "{\"_class_name\": \"%s\"}", CLASSES[i]);
        write_file(f, "m/model_index.json", index, strlen(index));
        assert_refused(f, "m", ERR_UNSUPPORTED, PARTS("m/model_index.json", CLASSES[i], "SD1.x"));
    }
}

static void test_a_broken_index(void **state)
{
    struct fixture *f = *state;

    copy_model(f, "sd1-small", "m");
    write_file(f, "m/model_index.json", "{\"_class_name\":", 15);
    assert_refused(f, "m", ERR_FORMAT, PARTS("m/model_index.json"));
    write_file(f, "m/model_index.json", "{}", 2);
    assert_refused(f, "m", ERR_UNSUPPORTED, PARTS("m/model_index.json", "_class_name"));
    assert_int_equal(unlink(path_of(f, "m/model_index.json")), 0);
    assert_refused(f, "m", ERR_NOT_FOUND, PARTS("/m", "model_index.json"));
}

static void test_a_broken_shard_index(void **state)
{
    struct fixture *f = *state;
    const char *name = "m/unet/diffusion_pytorch_model.safetensors.index.fp16.json";
    static const char *WRONG[] = {"{\"weight_map\":{\"a\":\"../../secret.safetensors\"}}",
                                  "{\"weight_map\":{\"a\":\"\"}}",
                                  "{\"weight_map\":{\"a\":7}}",
                                  "{\"weight_map\":[]}",
                                  "{}",
                                  "{\"weight_map\":"};

    copy_model(f, "sd2-zsnr-sharded", "m");
    for (size_t i = 0; i < sizeof(WRONG) / sizeof(WRONG[0]); i++) {
        write_file(f, name, WRONG[i], strlen(WRONG[i]));
        assert_refused(f, "m", ERR_FORMAT, PARTS(name));
    }
    write_file(f, name, GONE, strlen(GONE));
    assert_refused(f, "m", ERR_NOT_FOUND, PARTS("m/unet/gone.safetensors"));
}

static void test_a_shard_that_is_not_there(void **state)
{
    struct fixture *f = *state;
    const char *shard = "m/unet/diffusion_pytorch_model.fp16-00002-of-00003.safetensors";

    copy_model(f, "sd2-zsnr-sharded", "m");
    assert_int_equal(unlink(path_of(f, shard)), 0);
    assert_refused(f, "m", ERR_NOT_FOUND, PARTS(shard));
}

static void test_a_tree_without_weights(void **state)
{
    struct fixture *f = *state;

    copy_model(f, "sd1-small", "m");
    assert_int_equal(unlink(path_of(f, "m/" UNET)), 0);
    assert_refused(f, "m", ERR_NOT_FOUND, PARTS("m/unet", "diffusion_pytorch_model.safetensors"));
}

static void test_no_model_at_all(void **state)
{
    struct fixture *f = *state;
    const char *lora = "{\"lora_unet_down.lora_up.weight\":"
                       "{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}";

    assert_refused(f, "nothing", ERR_NOT_FOUND, PARTS("/nothing"));
    write_file(f, "short.ckpt", "PK\3\4", 4);
    assert_refused(f, "short.ckpt", ERR_FORMAT, PARTS("short.ckpt", "too short"));
    write_file(f, "graph.onnx", "PK\3\4", 4);
    assert_refused(f, "graph.onnx", ERR_UNSUPPORTED, PARTS("graph.onnx", ".safetensors", ".ckpt"));
    write_header(f, "lora.safetensors", lora);
    assert_refused(f, "lora.safetensors", ERR_UNSUPPORTED, PARTS("lora.safetensors", "adapters"));
}

static void test_other_families(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *tensor, *family;
    } OTHERS[] = {
        {"control_model.time_embed.0.weight", "ControlNet"},
        {"edm_mean", "EDM"},
        {"edm_vpred.sigma_max", "EDM"},
    };

    for (size_t i = 0; i < sizeof(OTHERS) / sizeof(OTHERS[0]); i++) {
        char header[256];
        snprintf(header, sizeof(header),
                 "{\"%s\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
                 "\"model.diffusion_model.input_blocks.0.0.weight\":"
                 "{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                 OTHERS[i].tensor);
        write_header(f, "m.safetensors", header);
        assert_refused(f, "m.safetensors", ERR_UNSUPPORTED,
                       PARTS("m.safetensors", OTHERS[i].family));
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_whole_models_load_silently),
        TEST(test_a_missing_tensor),
        TEST(test_a_missing_tensor_of_a_single_file),
        TEST(test_extra_tensors),
        TEST(test_extra_tensors_that_are_known),
        TEST(test_what_a_single_file_says_of_itself),
        TEST(test_a_fused_tensor_of_a_wrong_shape),
        TEST(test_a_wrong_shape),
        TEST(test_a_dtype_without_weights),
        TEST(test_a_truncated_file),
        TEST(test_another_pipeline),
        TEST(test_a_broken_index),
        TEST(test_a_broken_shard_index),
        TEST(test_a_shard_that_is_not_there),
        TEST(test_a_tree_without_weights),
        TEST(test_no_model_at_all),
        TEST(test_other_families),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}

/* A VAE whose activations leave f16's range, as SDXL's does, drawn by an engine that computes in
 * f16: its picture is nearly the one that f32 makes, unless the model's files say that it stays
 * within. */
#include "common/buf.h"
#include "common/file.h"
#include "engine/engine.h"
#include "engine/tensor_file.h"

#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN "tests/golden/models/"
#define FILE_MAX_BYTES (1u << 20)
#define SIDE 64
#define LARGER 1e6f /* f16 ends at 65504 */

/* test_range [BACKEND] */
static const char *backend = "ref";

struct fixture {
    char dir[64], weights[128], config[128];
};

static void read_file(const char *path, struct buf *out)
{
    struct err err;

    buf_init(out, FILE_MAX_BYTES);
    if (file_read(out, path, &err) != 0)
        fail_msg("%s", err.message);
}

static void write_file(const char *path, struct buf *bytes)
{
    struct err err;

    if (file_write(path, bytes->data, bytes->len, FILE_REPLACE, &err) != 0)
        fail_msg("%s", err.message);
    buf_release(bytes);
}

/* The stream that the decoder's layers add to begins LARGER times as large. */
static void enlarge_activations(const struct fixture *f)
{
    const struct stored_tensor *t;
    struct tensor_file *file;
    struct buf bytes;
    struct err err;
    char *at;

    read_file(f->weights, &bytes);
    assert_int_equal(tensor_file_open_memory(&file, bytes.data, bytes.len, "vae", &err), 0);
    t = tensor_file_find(file, "decoder.conv_in.weight");
    assert_true(t != NULL && t->dtype == DTYPE_F32);
    at = (char *)(uintptr_t)t->data;
    for (int64_t i = 0; i < t->count; i++) {
        float value = LARGER * element_to_f32(at, t->dtype, (size_t)i);
        memcpy(at + sizeof(value) * (size_t)i, &value, sizeof(value));
    }
    tensor_file_close(file);
    write_file(f->weights, &bytes);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    char command[256];

    strcpy(f->dir, "/tmp/atelier-range-XXXXXX");
    *state = f;
    if (mkdtemp(f->dir) == NULL)
        return -1;
    snprintf(f->weights, sizeof(f->weights), "%s/m/vae/diffusion_pytorch_model.safetensors",
             f->dir);
    snprintf(f->config, sizeof(f->config), "%s/m/vae/config.json", f->dir);
    snprintf(command, sizeof(command),
             "cp -r " GOLDEN "sdxl-small %s/m && cp " GOLDEN "sd1-small/vae/* %s/m/vae", f->dir,
             f->dir);
    return system(command);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[128];
    int rc;

    snprintf(command, sizeof(command), "rm -r %s", f->dir);
    rc = system(command);
    free(f);
    return rc;
}

static void draw(const struct fixture *f, enum precision precision, struct image *image)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    struct draw draw = DRAW_INIT;
    struct engine *engine;
    struct session *session;
    struct model *model;
    char path[128];
    struct err err;

    snprintf(path, sizeof(path), "%s/m", f->dir);
    options.backend = backend;
    options.precision = precision;
    draw.prompt = "a house";
    draw.width = draw.height = SIDE;
    draw.steps = 1;
    if (engine_create(&engine, &options, &err) != 0) {
        assert_int_equal(err.code, ERR_DEVICE); /* no card */
        skip();
    }
    assert_int_equal(engine_load(&model, engine, path, NULL, &err), 0);
    if (session_create(&session, model, &draw, NULL, &err) != 0 ||
        engine_step(model, &session, 1, &err) != 0 || session_decode(session, image, &err) != 0)
        fail_msg("%s", err.message);
    session_free(session);
    engine_free(engine);
}

/* Of f16's picture against f32's, in dB. */
static double likeness(const struct fixture *f)
{
    struct image exact, image;
    double sum = 0;

    draw(f, PRECISION_F32, &exact);
    draw(f, PRECISION_F16, &image);
    for (int i = 0; i < 3 * SIDE * SIDE; i++)
        sum += (double)(exact.rgb[i] - image.rgb[i]) * (exact.rgb[i] - image.rgb[i]);
    image_release(&exact);
    image_release(&image);
    return 10 * log10(255.0 * 255.0 * 3 * SIDE * SIDE / (sum + 1e-9));
}

static void test_a_vae_beyond_f16(void **state)
{
    const struct fixture *f = *state;

    enlarge_activations(f);
    assert_true(likeness(f) > 30);
}

static void test_a_vae_that_says_it_stays_within(void **state)
{
    static const char SAID[] = "\"force_upcast\": true", SAYS[] = "\"force_upcast\":false";
    const struct fixture *f = *state;
    struct buf config;
    double wide;
    char *at;

    wide = likeness(f);
    read_file(f->config, &config);
    at = strstr(config.data, SAID);
    assert_non_null(at);
    memcpy(at, SAYS, strlen(SAYS));
    write_file(f->config, &config);
    assert_true(likeness(f) > wide + 3); /* f16 is more exact than bf16 */
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_vae_beyond_f16, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_vae_that_says_it_stays_within, set_up, tear_down),
    };

    backend = argc > 1 ? argv[1] : backend;
    return cmocka_run_group_tests_name("range", tests, NULL, NULL);
}

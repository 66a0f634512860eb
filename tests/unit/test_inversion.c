/*
 * Textual inversion: what a file must be, and how a word of several vectors is spelled out and
 * found as diffusers does it.
 */
#include "engine/inversion.h"
#include "engine/runtime.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MODELS "tests/golden/models/"

struct fixture {
    struct engine *engine;
    struct model *model;
};

static void must(int rc, const struct err *err)
{
    if (rc != 0)
        fail_msg("%s", err->message);
}

static void open_fixture(struct fixture *f, const char *name)
{
    struct engine_options options = ENGINE_OPTIONS_INIT;
    char path[256];
    struct err err;

    options.backend = "ref";
    snprintf(path, sizeof(path), MODELS "%s", name);
    must(engine_create(&f->engine, &options, &err), &err);
    must(engine_load(&f->model, f->engine, path, NULL, &err), &err);
}

static struct inversion *load(const struct fixture *f, const char *name)
{
    struct inversion *inversion;
    char path[256];
    struct err err;

    snprintf(path, sizeof(path), MODELS "embeddings/%s.safetensors", name);
    must(engine_load_inversion(&inversion, f->model, path, &err), &err);
    return inversion;
}

/* A safetensors file of f32 zeros; `header` without its braces. */
static const char *write_file(const char *header, size_t data_bytes)
{
    static const char *const path = "/tmp/atelier-inversion-test.safetensors";
    char text[4096];
    uint64_t len = (uint64_t)snprintf(text, sizeof(text), "{%s}", header);
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    fwrite(&len, sizeof(len), 1, file);
    fwrite(text, 1, len, file);
    for (size_t i = 0; i < data_bytes; i++)
        fputc(0, file);
    fclose(file);
    return path;
}

static void refuses(const struct fixture *f, const char *path, const char *said)
{
    struct inversion *inversion;
    struct err err;

    assert_int_equal(engine_load_inversion(&inversion, f->model, path, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    if (strstr(err.message, said) == NULL || strstr(err.message, path) == NULL)
        fail_msg("'%s' says nothing of %s and '%s'", err.message, path, said);
}

#define F32(name, shape, begin, end)                                                               \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]" \
    "}"

static void test_files_that_do_not_fit(void **state)
{
    struct fixture f;

    (void)state;
    open_fixture(&f, "sd1-small");
    refuses(&f, MODELS "embeddings/none.safetensors", "No such file");
    refuses(&f, MODELS "embeddings/sd2-tone.safetensors", "'string_to_param.*' is not as wide");
    refuses(&f, MODELS "embeddings/xl-mood.safetensors", "'clip_l' is not as wide");
    refuses(&f, MODELS "loras/sd1-kohya.safetensors", "is one too many");
    refuses(&f, write_file(F32("clip_g", "40", 0, 160), 160), "that the model does not have");
    refuses(&f, write_file(F32("emb_params", "76,40", 0, 12160), 12160), "is not 1 to 75 vectors");
    refuses(&f, write_file(F32("emb_params", "0,40", 0, 0), 0), "is not 1 to 75 vectors");
    refuses(&f, write_file(F32("emb_params", "", 0, 4), 4), "is not 1 to 75 vectors");
    refuses(&f,
            write_file("\"*\":{\"dtype\":\"I64\",\"shape\":[40],\"data_offsets\":[0,320]}", 320),
            "has a dtype that is not read");
    refuses(&f, write_file("", 0), "holds no tensors");
    unlink(write_file("", 0));
    engine_free(f.engine);
}

static void expands(const struct vocabulary *v, const char *prompt, const char *want)
{
    struct buf text;
    struct err err;

    buf_init(&text, TOKENIZER_TEXT_MAX_BYTES + 1);
    must(vocabulary_expand(v, prompt, &text, &err), &err);
    assert_string_equal(text.data, want);
    buf_release(&text);
}

static void test_words_are_spelled_out(void **state)
{
    struct draw_inversion inversions[2];
    struct vocabulary *v;
    uint32_t ids[77], first;
    size_t count;
    float values[40];
    struct fixture f;
    struct err err;

    (void)state;
    open_fixture(&f, "sd1-small");
    inversions[0] = (struct draw_inversion){load(&f, "flat"), "flat"};
    inversions[1] = (struct draw_inversion){load(&f, "toy"), "toy"};
    must(vocabulary_create(&v, f.model, 0, inversions, 2, &err), &err);
    expands(v, "a flat house", "a flat house");
    expands(v, "a toy, toy", "a toy toy_1 toy_2, toy toy_1 toy_2");
    expands(v, "<sculpture>s", "<sculpture> <sculpture>_1 <sculpture>_2s");
    expands(v, "TOY", "TOY"); /* found, but only as it is written is it spelled out */
    expands(v, "", "");
    first = tokenizer_vocabulary_size(f.model->encoders[0].tokenizer);
    must(tokenizer_encode_raw(vocabulary_tokenizer(v), "toy toy_2FLATtoy_1", 18, ids, 77, &count,
                              &err),
         &err);
    assert_int_equal(count, 4);
    assert_int_equal(ids[0], first + 1);
    assert_int_equal(ids[1], first + 3);
    assert_int_equal(ids[2], first);
    assert_int_equal(ids[3], first + 2);
    assert_true(vocabulary_row(v, first + 3, 5, values));
    assert_false(vocabulary_row(v, first - 1, 5, values));
    vocabulary_free(v);
    inversions[0].name =
        "a-name-that-is-far-longer-than-any-word-of-a-prompt-should-ever-need-to-be";
    assert_int_equal(vocabulary_create(&v, f.model, 0, inversions, 1, &err), -1);
    assert_non_null(strstr(err.message, "is too long"));
    inversions[0].name = "";
    assert_int_equal(vocabulary_create(&v, f.model, 0, inversions, 1, &err), -1);
    for (int i = 0; i < 2; i++)
        engine_unload_inversion((struct inversion *)inversions[i].inversion);
    engine_free(f.engine);
}

/* With clip_l and clip_g each encoder has vectors of its own. */
static void test_two_encoders(void **state)
{
    struct draw_inversion one;
    struct fixture f;
    struct err err;

    (void)state;
    open_fixture(&f, "sdxl-small");
    one = (struct draw_inversion){load(&f, "xl-mood"), "xl-mood"};
    for (int i = 0; i < 2; i++) {
        struct vocabulary *v;
        must(vocabulary_create(&v, f.model, i, &one, 1, &err), &err);
        expands(v, "xl-mood.", "xl-mood xl-mood_1.");
        vocabulary_free(v);
    }
    engine_unload_inversion((struct inversion *)one.inversion);
    engine_free(f.engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_that_do_not_fit),
        cmocka_unit_test(test_words_are_spelled_out),
        cmocka_unit_test(test_two_encoders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

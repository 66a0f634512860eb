#include "engine/inversion.h"

#include "engine/runtime.h"

#include <stdio.h>
#include <stdlib.h>

#define WORD_MAX_BYTES 64

struct inversion {
    const struct model *model;
    struct tensor_file *file;
    char token[WORD_MAX_BYTES];                        /* that the file is named for; empty: none */
    const struct stored_tensor *tensors[ENCODERS_MAX]; /* NULL: the encoder learns nothing */
};

/* ---- files ---- */

static int64_t width_of(const struct stored_tensor *t)
{
    return t->rank > 0 ? t->dims[t->rank - 1] : 0;
}

static int vectors_of(const struct stored_tensor *t)
{
    return t == NULL ? 0 : t->rank > 1 ? (int)t->dims[0] : 1;
}

static int bad(const struct inversion *v, const struct stored_tensor *t, const char *problem,
               struct err *err)
{
    return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: key '%.120s' %s", tensor_file_path(v->file),
                   t->name, problem);
}

static int check_tensor(const struct inversion *v, const struct stored_tensor *t, struct err *err)
{
    if (!t->usable)
        return bad(v, t, "has a dtype that is not read; F32, F16 and BF16 are", err);
    if (t->rank < 1 || t->rank > 2 || vectors_of(t) < 1 || t->dims[0] > INT32_MAX ||
        (t->rank > 1 && t->dims[0] > INVERSION_VECTORS_MAX))
        return bad(v, t, "is not 1 to 75 vectors", err);
    return 0;
}

static int find_encoder(const struct model *model, enum component component)
{
    for (int i = 0; i < model->encoder_count; i++)
        if (model->encoders[i].component == component)
            return i;
    return -1;
}

/* A tensor that names its encoder. */
static int take_named(struct inversion *v, const struct stored_tensor *t, enum component component,
                      struct err *err)
{
    int i = find_encoder(v->model, component);

    if (i < 0)
        return bad(v, t, "is for a text encoder that the model does not have", err);
    if (check_tensor(v, t, err) != 0)
        return -1;
    if (width_of(t) != v->model->encoders[i].clip.config.hidden)
        return bad(v, t, "is not as wide as the model's text encoder; it was made for another kind",
                   err);
    v->tensors[i] = t;
    return 0;
}

/* A tensor alone: its width tells the encoder, its key may be the token. */
static int take_only(struct inversion *v, const struct stored_tensor *t, struct err *err)
{
    static const char *const NO_TOKENS[] = {"emb_params", "string_to_param.*", "*"};
    const char *said = tensor_file_metadata(v->file, "name"); /* as A1111's trainer writes it */
    bool token = strlen(t->name) < sizeof(v->token);

    if (check_tensor(v, t, err) != 0)
        return -1;
    for (int i = 0; i < v->model->encoder_count && v->tensors[0] == NULL; i++)
        if (width_of(t) == v->model->encoders[i].clip.config.hidden) {
            v->tensors[i] = t;
            for (int j = 0; j < 3; j++)
                token = token && strcmp(t->name, NO_TOKENS[j]) != 0;
            if (token)
                snprintf(v->token, sizeof(v->token), "%s", t->name);
            else if (said != NULL && strlen(said) < sizeof(v->token))
                snprintf(v->token, sizeof(v->token), "%s", said);
            return 0;
        }
    return bad(v, t, "is not as wide as a text encoder of the model; it was made for another kind",
               err);
}

static int read_file(struct inversion *v, struct err *err)
{
    const struct stored_tensor *l = tensor_file_find(v->file, "clip_l");
    const struct stored_tensor *g = tensor_file_find(v->file, "clip_g");
    size_t count = tensor_file_count(v->file), known = (l != NULL) + (g != NULL);

    if (known > 0 && count == known) {
        if (l != NULL && take_named(v, l, COMPONENT_TEXT, err) != 0)
            return -1;
        if (l != NULL && g != NULL && vectors_of(l) != vectors_of(g))
            return bad(v, g, "does not have as many vectors as clip_l", err);
        return g != NULL ? take_named(v, g, COMPONENT_TEXT_2, err) : 0;
    }
    if (count == 1)
        return take_only(v, tensor_file_at(v->file, 0), err);
    if (count == 0)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: holds no tensors",
                       tensor_file_path(v->file));
    return bad(v, tensor_file_at(v->file, l == tensor_file_at(v->file, 0) ? 1 : 0),
               "is one too many: a textual inversion is one tensor, or clip_l and clip_g", err);
}

int engine_load_inversion(struct inversion **out, const struct model *model, const char *path,
                          struct err *err)
{
    struct inversion *v = calloc(1, sizeof(*v));

    if (v == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a textual inversion");
    v->model = model;
    if (tensor_file_open(&v->file, path, err) != 0 || read_file(v, err) != 0) {
        engine_unload_inversion(v);
        return -1;
    }
    *out = v;
    return 0;
}

void engine_unload_inversion(struct inversion *v)
{
    if (v == NULL)
        return;
    tensor_file_close(v->file);
    free(v);
}

/* ---- vocabularies ---- */

/* A token that was added. */
struct added {
    char text[WORD_MAX_BYTES + 8];
    const struct stored_tensor *tensor;
    int vector; /* of the tensor; 0: the word itself */
};

struct vocabulary {
    const struct encoder *encoder;
    struct tokenizer *tokenizer;
    struct added *added;
    int count;
    uint32_t first; /* id */
    struct prompt_word *words;
    int word_count;
};

static int add_word(struct vocabulary *v, const char *word, const struct stored_tensor *tensor,
                    struct err *err)
{
    int vectors = vectors_of(tensor);
    struct added *grown = realloc(v->added, (size_t)(v->count + vectors) * sizeof(*grown));

    if (grown == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a textual inversion");
    v->added = grown;
    if (strlen(word) >= WORD_MAX_BYTES - 4)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "embeddings: \"%.80s\" is too long to stand in a prompt: at most %d bytes",
                       word, WORD_MAX_BYTES - 5);
    for (int i = 0; i < vectors; i++) {
        struct added *a = &grown[v->count++];
        *a = (struct added){.tensor = tensor, .vector = i};
        snprintf(a->text, sizeof(a->text), i ? "%s_%d" : "%s", word, i);
    }
    return 0;
}

static int extend(struct vocabulary *v, struct err *err)
{
    const char **texts = calloc((size_t)v->count + 1, sizeof(*texts));
    int rc;

    if (texts == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a textual inversion");
    for (int i = 0; i < v->count; i++)
        texts[i] = v->added[i].text;
    v->first = tokenizer_vocabulary_size(v->encoder->tokenizer);
    rc = tokenizer_extend(&v->tokenizer, v->encoder->tokenizer, texts, (size_t)v->count, err);
    free(texts);
    return rc == 0 ? 0 : err_prefix(err, "embeddings");
}

/* The added tokens that begin a word. */
static int list_words(struct vocabulary *v, struct err *err)
{
    v->words = calloc((size_t)v->count + 1, sizeof(*v->words));
    if (v->words == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a textual inversion");
    for (int i = 0; i < v->count; i++)
        if (v->added[i].vector == 0)
            v->words[v->word_count++] =
                (struct prompt_word){.name = v->added[i].text,
                                     .first = v->first + (uint32_t)i,
                                     .vectors = vectors_of(v->added[i].tensor)};
    return 0;
}

int vocabulary_create(struct vocabulary **out, const struct model *model, int number,
                      const struct draw_inversion *inversions, int count, struct err *err)
{
    struct vocabulary *v = calloc(1, sizeof(*v));
    int rc = v != NULL ? 0 : err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a vocabulary");

    if (v != NULL)
        v->encoder = &model->encoders[number];
    for (int i = 0; i < count && rc == 0; i++) {
        const struct inversion *inversion = inversions[i].inversion;
        const struct stored_tensor *tensor = inversion->tensors[number];
        ASSERT(inversion->model == model);
        if (tensor == NULL)
            continue;
        rc = add_word(v, inversions[i].name, tensor, err);
        if (rc == 0 && inversion->token[0] != '\0' &&
            strcmp(inversion->token, inversions[i].name) != 0)
            rc = add_word(v, inversion->token, tensor, err);
    }
    if (rc != 0 || extend(v, err) != 0 || list_words(v, err) != 0) {
        vocabulary_free(v);
        return -1;
    }
    *out = v;
    return 0;
}

void vocabulary_free(struct vocabulary *v)
{
    if (v == NULL)
        return;
    tokenizer_free(v->tokenizer);
    free(v->added);
    free(v->words);
    free(v);
}

const struct prompt_word *vocabulary_words(const struct vocabulary *v, int *count)
{
    *count = v->word_count;
    return v->words;
}

const struct tokenizer *vocabulary_tokenizer(const struct vocabulary *v)
{
    return v->tokenizer;
}

/* Every `word` of `text` with what its further vectors are called. */
static void spell_out(const char *text, const struct added *word, int vectors, struct buf *out)
{
    size_t len = strlen(word->text);

    for (const char *at; (at = strstr(text, word->text)) != NULL; text = at + len) {
        buf_append(out, text, (size_t)(at - text));
        buf_str(out, word->text);
        for (int i = 1; i < vectors; i++)
            buf_printf(out, " %s", word[i].text);
    }
    buf_str(out, text);
}

/* Whether the token is anywhere in the text as it is tokenized. */
static int occurs(const struct vocabulary *v, const char *text, uint32_t id, bool *found,
                  struct err *err)
{
    size_t count;
    uint32_t *ids;

    *found = false;
    if (tokenizer_encode_all(v->tokenizer, text, strlen(text), &ids, &count, err) != 0)
        return -1;
    for (size_t i = 0; i < count; i++)
        *found = *found || ids[i] == id;
    free(ids);
    return 0;
}

int vocabulary_expand(const struct vocabulary *v, const char *prompt, struct buf *out,
                      struct err *err)
{
    struct buf next;
    int rc = 0;

    buf_str(out, prompt);
    for (int i = 0; i < v->count && rc == 0; i++) {
        int vectors = vectors_of(v->added[i].tensor);
        bool found;
        if (v->added[i].vector > 0 || vectors == 1)
            continue;
        rc = occurs(v, prompt, v->first + (uint32_t)i, &found, err);
        if (rc != 0 || !found)
            continue;
        buf_init(&next, TOKENIZER_TEXT_MAX_BYTES + 1);
        spell_out(out->data, &v->added[i], vectors, &next);
        buf_release(out);
        *out = next;
    }
    if (rc == 0 && out->failed)
        rc = err_set(err, ERR_LIMIT, ERR_REJECT,
                     "with its embeddings spelled out the text has more than %u bytes",
                     TOKENIZER_TEXT_MAX_BYTES);
    return rc;
}

bool vocabulary_row(const struct vocabulary *v, uint32_t id, int position, float *values)
{
    const struct embedding *positions = &v->encoder->clip.positions;
    size_t width = (size_t)positions->columns;
    const struct added *a;

    if (id < v->first)
        return false;
    ASSERT(id - v->first < (uint32_t)v->count);
    a = &v->added[id - v->first];
    for (size_t i = 0; i < width; i++)
        values[i] =
            element_to_f32(a->tensor->data, a->tensor->dtype, (size_t)a->vector * width + i) +
            element_to_f32(positions->stored.data, positions->stored.dtype,
                           (size_t)position * width + i);
    return true;
}

/*
 * Prompts to conditioning: what diffusers' encode_prompt and _get_add_time_ids make of a request.
 *
 * SD reads the last hidden state after the final norm, SDXL the one before it, raw, from each of
 * its encoders; clip skip counts on from there and never reaches the negative prompt.
 */
#include "engine/inversion.h"
#include "engine/runtime.h"

#include <stdio.h>
#include <stdlib.h>

#define AESTHETIC_SCORE 6.0
#define NEGATIVE_AESTHETIC_SCORE 2.5

static bool is_xl(const struct model *model)
{
    return model->unet.config.pooled > 0;
}

static bool has_score(const struct model *model)
{
    return is_xl(model) && model->unet.config.ids == UNET_IDS_MAX - 1;
}

static int layers_left_out(const struct model *model, int clip_skip)
{
    return clip_skip + (is_xl(model) ? 1 : 0);
}

static int check_layers(const struct model *model, int clip_skip, struct err *err)
{
    for (int i = 0; i < model->encoder_count; i++)
        if (clip_skip < 0 ||
            layers_left_out(model, clip_skip) > model->encoders[i].clip.config.layers)
            return session_refuse(err, "clip_skip",
                                  "the model's text encoder does not have so many layers");
    return 0;
}

int session_check_text(const struct model *model, const struct draw *d, struct err *err)
{
    static const char *const NO_SIZES = "the model is told no sizes; leave it out";
    static const char *const NO_SCORE = "only an SDXL refiner is told a score; leave it out";
    bool xl = is_xl(model), score = has_score(model) || (d->refiner && has_score(d->refiner));

    if (check_layers(model, d->clip_skip, err) != 0 ||
        (d->refiner != NULL && check_layers(d->refiner, d->clip_skip, err) != 0))
        return -1;
    if (!xl && d->original_size[0] >= 0)
        return session_refuse(err, "original_size", NO_SIZES);
    if ((!xl || has_score(model)) && d->target_size[0] >= 0)
        return session_refuse(err, "target_size", NO_SIZES);
    if (!xl && d->crop[0] >= 0)
        return session_refuse(err, "crop", NO_SIZES);
    if (!score && d->aesthetic_score >= 0)
        return session_refuse(err, "aesthetic_score", NO_SCORE);
    if (!score && d->negative_aesthetic_score >= 0)
        return session_refuse(err, "negative_aesthetic_score", NO_SCORE);
    return 0;
}

/* ---- prompts ---- */

/* One prompt on its way to one row. */
struct prompt {
    const struct session *session; /* whose observer sees its stages */
    struct model *model;
    struct conditioning *to;
    const char *field; /* of the request */
    const char *text;
    const char *prefix; /* of its stages' names, after the model's */
    int skip;           /* layers that are left out */
    int row;
    struct vocabulary *const
        *vocabularies; /* each encoder's, with inversions; entries NULL: none */
};

/* A prompt's tokens and the vectors of those that the encoder's table does not have. */
struct words {
    int ids[TOKENIZER_CLIP_TOKENS];
    struct clip_row rows[TOKENIZER_CLIP_TOKENS];
    int row_count;
    float *values; /* of the rows; owned */
};

static int tokenize_inverted(const struct vocabulary *v, const struct prompt *p, uint32_t *tokens,
                             struct err *err)
{
    struct buf text;
    int rc;

    buf_init(&text, TOKENIZER_TEXT_MAX_BYTES + 1);
    rc = vocabulary_expand(v, p->text, &text, err);
    if (rc == 0)
        rc = tokenizer_encode(vocabulary_tokenizer(v), text.data, text.len, tokens,
                              (size_t)p->model->tokens, NULL, err);
    buf_release(&text);
    return rc;
}

/* Takes the vectors of tokens that were added. -1: no memory. */
static int take_rows(const struct vocabulary *v, int width, int count, struct words *words)
{
    words->values = malloc((size_t)count * (size_t)width * sizeof(float));
    if (words->values == NULL)
        return -1;
    for (int i = 0; i < count; i++) {
        float *values = words->values + words->row_count * width;
        if (vocabulary_row(v, (uint32_t)words->ids[i], i, values))
            words->rows[words->row_count++] = (struct clip_row){.at = i, .values = values};
    }
    return 0;
}

static int tokenize(const struct encoder *e, const struct prompt *p, const struct vocabulary *v,
                    struct words *words, struct err *err)
{
    const struct model *m = p->model;
    uint32_t tokens[TOKENIZER_CLIP_TOKENS], known = tokenizer_vocabulary_size(e->tokenizer);
    int rc = v != NULL ? tokenize_inverted(v, p, tokens, err)
                       : tokenizer_encode(e->tokenizer, p->text, strlen(p->text), tokens,
                                          (size_t)m->tokens, NULL, err);

    *words = (struct words){.row_count = 0};
    if (rc != 0)
        return err_prefix(err, "%s", p->field);
    for (int i = 0; i < m->tokens; i++) {
        bool added = v != NULL && tokens[i] >= known;
        if (!added && tokens[i] >= (uint32_t)e->clip.tokens.rows)
            return err_set(err, ERR_INVALID, ERR_REJECT,
                           "%s: token %u is not in the model's vocabulary of %d", p->field,
                           tokens[i], e->clip.tokens.rows);
        words->ids[i] = (int)tokens[i];
    }
    if (v != NULL && take_rows(v, e->clip.config.hidden, m->tokens, words) != 0)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to encode a prompt");
    return 0;
}

/* Token by token instead of channel by channel, as the host wants it. */
static struct tensor as_rows(const struct tensor *t)
{
    struct tensor rows = *t;

    rows.n = t->w;
    rows.w = 1;
    return rows;
}

/* One encoder's run over one prompt: embeds is tokens × hidden, pooled clip_pooled_width. */
static int run_encoder(const struct prompt *p, int number, const struct words *words, int skip,
                       float *embeds, float *pooled, struct err *err)
{
    const struct session *s = p->session;
    struct model *m = p->model;
    struct adapted_rows adapted = {.count = 0};
    const struct clip *clip = &m->encoders[number].clip;
    struct clip_reading reading = {.rows = words->rows,
                                   .row_count = words->row_count,
                                   .skip = skip,
                                   .raw = is_xl(m),
                                   .pooled_at =
                                       clip_pooled_position(&clip->config, words->ids, m->tokens)};
    int ids[TOKENIZER_CLIP_TOKENS];
    struct work_plan plan;
    struct tensor y, vector, rows;
    struct pass pass;

    adapted_rows_add(&adapted, p->to == &s->conditioning ? s->adaptation : NULL,
                     m->encoders[number].component, 1);
    if (work_plan_find_adapted(m, WORK_TEXT + (enum work)number, 1, 1, m->tokens, &adapted, &plan,
                               err) != 0 ||
        work_begin(m, &plan, DTYPE_F32, &pass, err) != 0)
        return -1;
    pass_adapt(&pass, &adapted);
    memcpy(ids, words->ids, sizeof(ids));
    for (int i = 0; i < words->row_count; i++)
        ids[words->rows[i].at] = 0;
    y = pass_tensor_of(&pass, DTYPE_F32, 1, 1, m->tokens, clip->config.hidden);
    vector = pass_tensor_of(&pass, DTYPE_F32, 1, 1, 1, clip_pooled_width(&clip->config));
    clip_forward(&pass, clip, ids, &reading, &y, &vector);
    rows = as_rows(&y);
    op_download(&pass, embeds, &rows);
    op_download(&pass, pooled, &vector);
    pass_drop(&pass, &vector);
    pass_drop(&pass, &y);
    return pass.failed ? -1 : 0;
}

/* A sequel's stages begin with "refiner.". */
static void show(const struct prompt *p, const char *name, const float *data, int rank,
                 const int64_t *dims)
{
    const struct session *s = p->session;
    char full[64];

    snprintf(full, sizeof(full), "%s%s%s", p->to != &s->conditioning ? "refiner." : "", p->prefix,
             name);
    session_show(s, full, data, rank, dims);
}

static void show_tokens(const struct prompt *p, int number, const int *ids)
{
    float values[TOKENIZER_CLIP_TOKENS];
    int count = p->model->tokens;

    for (int i = 0; i < count; i++)
        values[i] = (float)ids[i];
    show(p, p->model->encoders[number].component == COMPONENT_TEXT ? "tokens" : "tokens_2", values,
         2, (int64_t[]){1, count});
}

/* One encoder's part of a row. `scratch` holds its embeddings and its pooled vector. */
static int encode_part(const struct prompt *p, int number, int first_column, float *scratch,
                       struct err *err)
{
    struct model *m = p->model;
    const struct encoder *e = &m->encoders[number];
    const struct conditioning *c = p->to;
    int hidden = e->clip.config.hidden, width = clip_pooled_width(&e->clip.config);
    float *pooled = scratch + (size_t)m->tokens * (size_t)hidden;
    float *text = conditioning_text(c, p->row) + first_column;
    struct words words;
    int rc = tokenize(e, p, p->vocabularies[number], &words, err);

    if (rc == 0)
        rc = run_encoder(p, number, &words, p->skip, scratch, pooled, err);
    free(words.values);
    if (rc != 0)
        return -1;
    show_tokens(p, number, words.ids);
    for (int i = 0; i < m->tokens; i++)
        memcpy(text + (size_t)i * (size_t)c->width, scratch + (size_t)i * (size_t)hidden,
               (size_t)hidden * sizeof(float));
    if (number + 1 < m->encoder_count)
        return 0;
    if (c->pooled_width == 0)
        show(p, "pooled", pooled, 2, (int64_t[]){1, width});
    if (c->pooled_width > 0)
        memcpy(conditioning_pooled(c, p->row), pooled, (size_t)width * sizeof(float));
    return 0;
}

static void show_row(const struct prompt *p)
{
    const struct conditioning *c = p->to;

    show(p, "prompt_embeds", conditioning_text(c, p->row), 3, (int64_t[]){1, c->tokens, c->width});
    if (c->pooled_width == 0)
        return;
    show(p, "pooled", conditioning_pooled(c, p->row), 2, (int64_t[]){1, c->pooled_width});
    show(p, "time_ids", c->ids[p->row], 2, (int64_t[]){1, c->id_count});
}

static int encode_prompt(const struct prompt *p, struct err *err)
{
    const struct model *m = p->model;
    int context = p->to->width, column = 0, rc = 0;
    int pooled = clip_pooled_width(&m->encoders[m->encoder_count - 1].clip.config);
    size_t values = (size_t)m->tokens * (size_t)context + (size_t)(pooled + context);
    float *scratch = malloc(values * sizeof(float));

    if (scratch == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to encode a prompt");
    for (int i = 0; i < m->encoder_count && rc == 0; i++) {
        rc = encode_part(p, i, column, scratch, err);
        column += m->encoders[i].clip.config.hidden;
    }
    free(scratch);
    if (rc == 0)
        show_row(p);
    return rc;
}

/* ---- numbers ---- */

static void put_pair(float *ids, const int pair[2], int first, int second)
{
    ids[0] = (float)(pair[0] >= 0 ? pair[0] : first);
    ids[1] = (float)(pair[0] >= 0 ? pair[1] : second);
}

/* Original size, crop, and target size or score. A refiner's negative row is told of no crop. */
static void put_ids(const struct session *s, const struct model *m, const struct draw *d,
                    bool negative, float *ids)
{
    static const int NONE[2] = {-1, -1};
    bool crops = !negative || !has_score(m);

    put_pair(ids, d->original_size, s->height, s->width);
    put_pair(ids + 2, crops ? d->crop : NONE, 0, 0);
    put_pair(ids + 4, d->target_size, s->height, s->width);
    if (has_score(m)) {
        double score = negative ? d->negative_aesthetic_score : d->aesthetic_score;
        double otherwise = negative ? NEGATIVE_AESTHETIC_SCORE : AESTHETIC_SCORE;
        ids[4] = (float)(score >= 0 ? score : otherwise);
        ids[5] = 0;
    }
}

static int encode_with(const struct session *s, struct model *m, struct conditioning *c,
                       struct vocabulary *const vocabularies[], const struct draw *d,
                       struct err *err)
{
    struct prompt positive = {.session = s,
                              .model = m,
                              .to = c,
                              .field = "prompt",
                              .text = d->prompt,
                              .prefix = "",
                              .skip = layers_left_out(m, d->clip_skip),
                              .row = c->rows == 3 ? 0 : c->rows - 1,
                              .vocabularies = vocabularies};
    struct prompt negative = {.session = s,
                              .model = m,
                              .to = c,
                              .field = "negative_prompt",
                              .text = d->negative_prompt ? d->negative_prompt : "",
                              .prefix = "negative_",
                              .skip = layers_left_out(m, 0),
                              .row = c->rows == 3 ? 1 : 0,
                              .vocabularies = vocabularies};

    c->guidance_scale = d->guidance_scale;
    for (int row = 0; row < c->rows; row++)
        put_ids(s, m, d, row != positive.row, c->ids[row]);
    if (encode_prompt(&positive, err) != 0)
        return -1;
    if (c->rows == 1)
        return 0;
    if (!m->zero_negative || d->negative_prompt != NULL) {
        if (encode_prompt(&negative, err) != 0)
            return -1;
    } else {
        show_row(&negative); /* zero already */
    }
    if (c->rows == 3)
        conditioning_copy_row(c, 2, negative.row);
    return 0;
}

/* Inversions are of the session's model; a sequel reads the prompts as they are. */
static int encode_for(const struct session *s, struct model *m, struct conditioning *c,
                      const struct draw *d, struct err *err)
{
    struct vocabulary *vocabularies[ENCODERS_MAX] = {NULL};
    int rc = 0;

    for (int i = 0; i < m->encoder_count && m == s->model && d->inversion_count > 0 && rc == 0; i++)
        rc = vocabulary_create(&vocabularies[i], m, i, d->inversions, d->inversion_count, err);
    if (rc == 0)
        rc = encode_with(s, m, c, vocabularies, d, err);
    for (int i = 0; i < ENCODERS_MAX; i++)
        vocabulary_free(vocabularies[i]);
    return rc;
}

int session_encode_text(struct session *s, const struct draw *d, struct err *err)
{
    struct sequel *sequel = s->sequel;

    if (encode_for(s, s->model, &s->conditioning, d, err) != 0)
        return -1;
    return sequel ? encode_for(s, sequel->model, &sequel->conditioning, d, err) : 0;
}

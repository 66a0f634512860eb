/*
 * Prompts to conditioning: what diffusers' encode_prompt and _get_add_time_ids make of a request,
 * and what the programs of the dialects make of longer texts with weights.
 *
 * SD reads the last hidden state after the final norm, SDXL the one before it, raw, from each of
 * its encoders; clip skip counts on from there and never reaches the negative prompt. A longer text
 * is encoded chunk by chunk; its pooled vector is the first chunk's (zs[0].pooled in a1111's
 * sd_hijack_clip.py, first_pooled in comfyui's sd1_clip.py).
 */
#include "engine/inversion.h"
#include "engine/reading.h"

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
            return err_set(err, ERR_INVALID, ERR_REJECT,
                           "clip_skip: the model's text encoder has %d layers; at most %d can be "
                           "left out",
                           model->encoders[i].clip.config.layers,
                           model->encoders[i].clip.config.layers - layers_left_out(model, 0));
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

/* ---- one chunk ---- */

/* A chunk's tokens and the vectors of those that the encoder's table does not have. */
struct words {
    int ids[TOKENIZER_CLIP_TOKENS];
    struct clip_row rows[TOKENIZER_CLIP_TOKENS];
    int row_count;
    float *values; /* of the rows; owned */
};

/* One part on its way to its texts. */
struct encoding {
    struct session *session; /* whose observer sees the stages */
    struct conditioning *to;
    const struct reading *reading;
    const struct reading_part *part;
    int number;     /* of the encoder */
    float *scratch; /* texts × chunks × tokens × hidden, then `empty`, then `pooled` */
    float *empty;   /* tokens × hidden: a chunk without text */
    float *pooled;  /* texts × pooled width */
    struct err *err;
};

static const struct encoder *encoder_of(const struct encoding *e)
{
    return &e->reading->model->encoders[e->number];
}

/* Takes the vectors of tokens that were added. -1: no memory. */
static int take_words(const struct encoding *e, const uint32_t *ids, struct words *words)
{
    const struct vocabulary *v = e->reading->vocabularies[e->number];
    int count = e->reading->model->tokens, width = encoder_of(e)->clip.config.hidden;

    *words = (struct words){.row_count = 0};
    for (int i = 0; i < count; i++)
        words->ids[i] = (int)ids[i];
    if (v == NULL)
        return 0;
    words->values = malloc((size_t)count * (size_t)width * sizeof(float));
    if (words->values == NULL)
        return err_set(e->err, ERR_MEMORY, ERR_RETRY, "no memory to encode a prompt");
    for (int i = 0; i < count; i++) {
        float *values = words->values + words->row_count * width;
        if (vocabulary_row(v, ids[i], i, values))
            words->rows[words->row_count++] = (struct clip_row){.at = i, .values = values};
    }
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

/* diffusers' pooled vector is where the configuration says, which may be a learned vector; the
 * programs' is the end's. */
static int pooled_at(const struct encoding *e, const struct words *words)
{
    const struct encoder *encoder = encoder_of(e);
    int end = (int)tokenizer_end_id(encoder->tokenizer), i = 0;

    if (e->reading->dialect == DIALECT_DIFFUSERS)
        return clip_pooled_position(&encoder->clip.config, words->ids, e->reading->model->tokens);
    while (words->ids[i] != end)
        i++;
    return i;
}

/* The sequel whose text it is; NULL: the session's own. */
static const struct sequel *sequel_of(const struct encoding *e)
{
    const struct sequel *sequel = e->session->sequel;

    if (e->to == &e->session->conditioning)
        return NULL;
    while (&sequel->conditioning != e->to)
        sequel = sequel->next;
    return sequel;
}

/* What the encoder's layers are changed by. A second pass keeps its adapters, a refiner has none.
 */
static struct adapted_rows adapted_of(const struct encoding *e)
{
    const struct sequel *sequel = sequel_of(e);
    bool own = sequel == NULL || sequel->redraws;
    struct adapted_rows adapted = {.count = 0};

    adapted_rows_add(&adapted, own ? e->session->adaptation : NULL, encoder_of(e)->component, 1);
    return adapted;
}

/* One encoder's run over one chunk: embeds is tokens × hidden, pooled clip_pooled_width. */
static int run_encoder(const struct encoding *e, const struct words *words, float *embeds,
                       float *pooled)
{
    struct model *m = e->reading->model;
    struct adapted_rows adapted = adapted_of(e);
    const struct clip *clip = &encoder_of(e)->clip;
    struct clip_reading reading = {.rows = words->rows,
                                   .row_count = words->row_count,
                                   .skip = layers_left_out(m, e->part->clip_skip),
                                   .raw = is_xl(m),
                                   .pooled_at = pooled_at(e, words)};
    int ids[TOKENIZER_CLIP_TOKENS];
    struct work_plan plan;
    struct tensor y, vector, rows;
    struct pass pass;

    if (work_plan_find_adapted(m, WORK_TEXT + (enum work)e->number, 1, 1, m->tokens, &adapted,
                               &plan, e->err) != 0 ||
        work_begin(m, &plan, &pass, e->err) != 0)
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
    work_end(m, &pass);
    return pass.failed ? -1 : 0;
}

static struct text_key key_of(const struct encoding *e, const struct words *words)
{
    const int tokens = e->reading->model->tokens, width = encoder_of(e)->clip.config.hidden;
    const struct adapted_rows adapted = adapted_of(e);
    struct text_key key;

    memset(&key, 0, sizeof(key));
    key.adapted = adapted.changed ? adapted.id : 0;
    key.encoder = e->number;
    key.skip = layers_left_out(e->reading->model, e->part->clip_skip);
    key.pooled_at = pooled_at(e, words);
    for (int i = 0; i < tokens; i++)
        key.ids[i] = words->ids[i];
    for (int i = 0; i < words->row_count; i++) {
        key.learned = text_key_mix(key.learned + 1, &words->rows[i].at, sizeof(int));
        key.learned =
            text_key_mix(key.learned, words->rows[i].values, (size_t)width * sizeof(float));
    }
    return key;
}

static int encode_words(const struct encoding *e, const struct words *words, float *embeds,
                        float *pooled)
{
    const size_t pooled_count = (size_t)clip_pooled_width(&encoder_of(e)->clip.config);
    const size_t embed_count =
        (size_t)e->reading->model->tokens * (size_t)encoder_of(e)->clip.config.hidden;
    struct text_cache *cache = &e->reading->model->texts;
    const struct text_key key = key_of(e, words);
    const float *known = text_cache_find(cache, &key);

    if (known != NULL) {
        memcpy(embeds, known, embed_count * sizeof(float));
        memcpy(pooled, known + embed_count, pooled_count * sizeof(float));
        return 0;
    }
    if (run_encoder(e, words, embeds, pooled) != 0)
        return -1;
    text_cache_add(cache, &key, embeds, embed_count, pooled, pooled_count);
    return 0;
}

static int encode_chunk(const struct encoding *e, const uint32_t *ids, float *embeds, float *pooled)
{
    struct words words;
    int rc = take_words(e, ids, &words);

    if (rc == 0)
        rc = encode_words(e, &words, embeds, pooled);
    free(words.values);
    return rc;
}

/* ---- what observers see ---- */

/* A sequel's stages begin with "refiner." or "hires."; texts after a prompt's first have a number.
 */
static void show(const struct encoding *e, int text, const char *name, const float *data, int rank,
                 const int64_t *dims)
{
    const struct sequel *sequel = sequel_of(e);
    const char *whose = sequel == NULL ? "" : sequel->redraws ? "hires." : "refiner.";
    char full[64], number[16] = "";

    if (e->part->before + text > 0)
        snprintf(number, sizeof(number), ".%d", e->part->before + text);
    snprintf(full, sizeof(full), "%s%s%s%s", whose, e->part->prefix, name, number);
    session_show(e->session, full, data, rank, dims);
}

static void show_tokens(const struct encoding *e, int text)
{
    const struct prompt_tokens *tokens = &e->part->texts[text].tokens[e->number];
    float values[PROMPT_CHUNKS_MAX * TOKENIZER_CLIP_TOKENS];

    for (int i = 0; i < tokens->chunks * tokens->length; i++)
        values[i] = (float)tokens->ids[i];
    show(e, text, encoder_of(e)->component == COMPONENT_TEXT ? "tokens" : "tokens_2", values, 2,
         (int64_t[]){tokens->chunks, tokens->length});
}

static void show_text(const struct encoding *e, int text, const float *ids)
{
    const struct conditioning *c = e->to;
    int number = e->part->texts[text].text;

    show(e, text, "prompt_embeds", conditioning_text(c, number), 3,
         (int64_t[]){1, conditioning_tokens(c, number), c->width});
    if (c->pooled_width == 0)
        return;
    show(e, text, "pooled", conditioning_pooled(c, number), 2, (int64_t[]){1, c->pooled_width});
    show(e, text, "time_ids", ids, 2, (int64_t[]){1, c->id_count});
}

/* ---- parts ---- */

static size_t chunk_values(const struct encoding *e)
{
    return (size_t)e->reading->model->tokens * (size_t)encoder_of(e)->clip.config.hidden;
}

static float *embeds_of(const struct encoding *e, int text)
{
    return e->scratch + (size_t)text * (size_t)e->part->chunks * chunk_values(e);
}

static int encode_texts(const struct encoding *e)
{
    const struct model *m = e->reading->model;
    int width = clip_pooled_width(&encoder_of(e)->clip.config);

    for (int t = 0; t < e->part->text_count; t++) {
        const struct prompt_tokens *tokens = &e->part->texts[t].tokens[e->number];
        for (int i = tokens->chunks - 1; i >= 0; i--) /* the first one's pooled vector stays */
            if (encode_chunk(e, tokens->ids + (size_t)i * (size_t)m->tokens,
                             embeds_of(e, t) + (size_t)i * chunk_values(e),
                             e->pooled + (size_t)t * (size_t)width) != 0)
                return -1;
    }
    return 0;
}

/* What comfyui's weights count from. */
static int encode_empty(const struct encoding *e)
{
    struct prompt_tokens none = {.length = e->reading->model->tokens};
    float *pooled = malloc((size_t)clip_pooled_width(&encoder_of(e)->clip.config) * sizeof(float));
    int rc = pooled == NULL ? err_set(e->err, ERR_MEMORY, ERR_RETRY, "no memory to encode a prompt")
                            : prompt_tokens_pad(&none, 1, encoder_of(e)->tokenizer, e->err);

    if (rc == 0)
        rc = encode_chunk(e, none.ids, e->empty, pooled);
    prompt_tokens_release(&none);
    free(pooled);
    return rc;
}

static int weigh(const struct encoding *e)
{
    const struct reading_part *part = e->part;
    struct prompt_embeds *texts;
    bool weighed = false;
    int rc = 0;

    ASSERT(part->text_count > 0);
    texts = calloc((size_t)part->text_count, sizeof(*texts));
    if (texts == NULL)
        return err_set(e->err, ERR_MEMORY, ERR_RETRY, "no memory to encode a prompt");
    for (int t = 0; t < part->text_count; t++) {
        texts[t] = (struct prompt_embeds){.tokens = &part->texts[t].tokens[e->number],
                                          .values = embeds_of(e, t),
                                          .uses = part->texts[t].uses};
        weighed = weighed || prompt_is_weighed(texts[t].tokens);
    }
    if (weighed && e->reading->dialect == DIALECT_COMFYUI)
        rc = encode_empty(e);
    if (rc == 0)
        prompt_weigh(e->reading->dialect, texts, part->text_count,
                     encoder_of(e)->clip.config.hidden, e->empty);
    free(texts);
    return rc;
}

/* Into a text's columns from `first_column` on, the last token's again where the text is longer. */
static void put_embeds(const struct encoding *e, int text, int first_column)
{
    const struct conditioning *c = e->to;
    size_t hidden = (size_t)encoder_of(e)->clip.config.hidden;
    int number = e->part->texts[text].text, made = e->part->chunks * e->reading->model->tokens;

    for (int i = 0; i < conditioning_tokens(c, number); i++)
        memcpy(conditioning_text(c, number) + (size_t)i * (size_t)c->width + first_column,
               embeds_of(e, text) + (size_t)(i < made ? i : made - 1) * hidden,
               hidden * sizeof(float));
}

static void put_pooled(const struct encoding *e, int text)
{
    const struct conditioning *c = e->to;
    int width = clip_pooled_width(&encoder_of(e)->clip.config);
    const float *pooled = e->pooled + (size_t)text * (size_t)width;

    if (e->number + 1 < e->reading->model->encoder_count)
        return;
    if (c->pooled_width > 0)
        memcpy(conditioning_pooled(c, e->part->texts[text].text), pooled,
               (size_t)width * sizeof(float));
    else
        show(e, text, "pooled", pooled, 2, (int64_t[]){1, width});
}

/* One encoder's columns of a part's texts. */
static int encode_columns(struct encoding *e, int first_column)
{
    const struct reading_part *part = e->part;
    size_t embeds = (size_t)part->text_count * (size_t)part->chunks * chunk_values(e);
    size_t pooled =
        (size_t)part->text_count * (size_t)clip_pooled_width(&encoder_of(e)->clip.config);
    int rc;

    e->scratch = malloc((embeds + chunk_values(e) + pooled) * sizeof(float));
    if (e->scratch == NULL)
        return err_set(e->err, ERR_MEMORY, ERR_RETRY, "no memory to encode a prompt");
    e->empty = e->scratch + embeds;
    e->pooled = e->empty + chunk_values(e);
    rc = encode_texts(e) != 0 || weigh(e) != 0 ? -1 : 0;
    for (int t = 0; t < part->text_count && rc == 0; t++) {
        show_tokens(e, t);
        put_embeds(e, t, first_column);
        put_pooled(e, t);
    }
    free(e->scratch);
    return rc;
}

static int encode_part(struct encoding *e, const float *ids)
{
    const struct model *m = e->reading->model;
    int column = 0;

    for (e->number = 0; e->number < m->encoder_count; e->number++) {
        if (encode_columns(e, column) != 0)
            return -1;
        column += encoder_of(e)->clip.config.hidden;
    }
    for (int t = 0; t < e->part->text_count; t++)
        show_text(e, t, ids);
    return 0;
}

/* ---- numbers ---- */

static void put_pair(float *ids, const int pair[2], int first, int second)
{
    ids[0] = (float)(pair[0] >= 0 ? pair[0] : first);
    ids[1] = (float)(pair[0] >= 0 ? pair[1] : second);
}

/* Original size, crop, and target size or score. A refiner's negative row is told of no crop. */
static void put_ids(const struct model *m, const struct draw *d, bool negative, float *ids)
{
    static const int NONE[2] = {-1, -1};
    bool crops = !negative || !has_score(m);

    put_pair(ids, d->original_size, d->height, d->width);
    put_pair(ids + 2, crops ? d->crop : NONE, 0, 0);
    put_pair(ids + 4, d->target_size, d->height, d->width);
    if (has_score(m)) {
        double score = negative ? d->negative_aesthetic_score : d->aesthetic_score;
        double otherwise = negative ? NEGATIVE_AESTHETIC_SCORE : AESTHETIC_SCORE;
        ids[4] = (float)(score >= 0 ? score : otherwise);
        ids[5] = 0;
    }
}

static bool is_negative(const struct conditioning *c, int row)
{
    return c->rows_are == ROWS_TEXT ? row == 0 : row > 0;
}

/* A prompt that is absent is zeros, as its text is already. */
static void show_absent(struct session *s, struct conditioning *c, const struct reading *r)
{
    int row = c->rows_are == ROWS_TEXT ? 0 : 1;
    struct reading_text text = {.text = conditioning_text_at(c, row, 0)};
    struct reading_part part = {.prefix = "negative_", .texts = &text};
    struct encoding e = {.session = s, .to = c, .reading = r, .part = &part};

    show_text(&e, 0, c->rows[row].ids);
}

int session_encode_text(struct session *s, struct conditioning *c, const struct reading *r,
                        const struct draw *d, struct err *err)
{
    struct encoding e = {.session = s, .to = c, .reading = r, .err = err};
    bool negative = false;

    for (int row = 0; row < c->row_count; row++)
        put_ids(r->model, d, is_negative(c, row), c->rows[row].ids);
    for (int i = 0; i < r->part_count; i++) {
        e.part = &r->parts[i];
        negative = negative || is_negative(c, e.part->row);
        if (encode_part(&e, c->rows[e.part->row].ids) != 0)
            return -1;
    }
    if (c->rows_are != ROWS_ALONE && !negative)
        show_absent(s, c, r);
    return 0;
}

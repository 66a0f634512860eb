#include "engine/reading.h"

#include "engine/inversion.h"

#include <limits.h>
#include <stdlib.h>

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to read a prompt");
}

/* One of the two prompts: parsed for each encoder, since diffusers spells words for vectors out. */
struct parsed {
    struct reading *reading;
    struct conditioning *to;
    const char *field, *prefix;
    int clip_skip;
    struct prompt prompts[ENCODERS_MAX];
};

/* ---- parsing ---- */

static int parse_one(struct parsed *p, int number, const char *text, int steps, bool joins,
                     struct err *err)
{
    const struct vocabulary *v = p->reading->vocabularies[number];
    struct buf spelled;
    int rc;

    if (v == NULL || p->reading->dialect != DIALECT_DIFFUSERS)
        return prompt_parse(&p->prompts[number], p->reading->dialect, text, steps, joins, err);
    buf_init(&spelled, TOKENIZER_TEXT_MAX_BYTES + 1);
    rc = vocabulary_expand(v, text, &spelled, err);
    if (rc == 0)
        rc =
            prompt_parse(&p->prompts[number], p->reading->dialect, spelled.data, steps, joins, err);
    buf_release(&spelled);
    return rc;
}

static int parse(struct parsed *p, const char *text, int steps, bool joins, struct err *err)
{
    for (int i = 0; i < p->reading->model->encoder_count; i++)
        if (parse_one(p, i, text, steps, joins, err) != 0)
            return err_prefix(err, "%s", p->field);
    return 0;
}

static void parsed_release(struct parsed *p)
{
    for (int i = 0; i < ENCODERS_MAX; i++)
        prompt_release(&p->prompts[i]);
}

/* ---- tokens ---- */

static struct prompt_reader reader_of(const struct reading *r, int number)
{
    const struct encoder *e = &r->model->encoders[number];
    const struct vocabulary *v = r->vocabularies[number];
    struct prompt_reader reader = {.tokenizer = e->tokenizer, .length = r->model->tokens};

    if (v != NULL && r->dialect == DIALECT_DIFFUSERS)
        reader.tokenizer = vocabulary_tokenizer(v);
    else if (v != NULL)
        reader.words = vocabulary_words(v, &reader.word_count);
    return reader;
}

/* Tokens of the encoder's table, or of the request's words. */
static int check_tokens(const struct reading *r, int number, const struct prompt_tokens *tokens,
                        struct err *err)
{
    const struct encoder *e = &r->model->encoders[number];
    uint32_t rows = (uint32_t)e->clip.tokens.rows;
    uint32_t known = tokenizer_vocabulary_size(e->tokenizer);

    for (int i = 0; i < tokens->chunks * tokens->length; i++) {
        bool added = r->vocabularies[number] != NULL && tokens->ids[i] >= known;
        if (!added && tokens->ids[i] >= rows)
            return err_set(err, ERR_INVALID, ERR_REJECT,
                           "token %u is not in the model's vocabulary of %u", tokens->ids[i], rows);
    }
    return 0;
}

static int tokenize(struct parsed *p, int stage, struct reading_text *text, struct err *err)
{
    const struct reading *r = p->reading;

    for (int i = 0; i < r->model->encoder_count; i++) {
        const struct prompt *prompt = &p->prompts[i];
        struct prompt_reader reader = reader_of(r, i);
        if (prompt_tokenize(&text->tokens[i], prompt, &prompt->stages[stage], &reader, err) != 0 ||
            check_tokens(r, i, &text->tokens[i], err) != 0)
            return err_prefix(err, "%s", p->field);
    }
    return 0;
}

/* ---- parts ---- */

static bool same_stage(const struct prompt *p, const struct prompt_stage *a,
                       const struct prompt_stage *b)
{
    if (a->text.len != b->text.len || a->piece_count != b->piece_count ||
        memcmp(a->text.data, b->text.data, a->text.len) != 0)
        return false;
    for (int i = 0; i < a->piece_count; i++) {
        const struct prompt_piece *x = &p->pieces[a->pieces_at + (size_t)i];
        const struct prompt_piece *y = &p->pieces[b->pieces_at + (size_t)i];
        if (x->at != y->at || x->len != y->len || x->weight != y->weight || x->chunk != y->chunk)
            return false;
    }
    return true;
}

/* The texts of a part, each once; `which` receives the text of each of its stages. */
static int read_part(struct parsed *p, int number, struct reading_part *part, int *which,
                     struct err *err)
{
    const struct prompt *prompt = &p->prompts[0];
    const struct prompt_part *source = &prompt->parts[number];
    int firsts[PROMPT_STAGES_MAX];

    part->texts = calloc((size_t)source->stage_count, sizeof(*part->texts));
    if (part->texts == NULL)
        return no_memory(err);
    for (int i = 0; i < source->stage_count; i++) {
        int stage = source->stages_at + i, text = 0;
        while (text < part->text_count &&
               !same_stage(prompt, &prompt->stages[firsts[text]], &prompt->stages[stage]))
            text++;
        if (text == part->text_count) {
            firsts[part->text_count++] = stage;
            if (tokenize(p, stage, &part->texts[text], err) != 0)
                return -1;
        }
        part->texts[text].uses++;
        which[i] = text;
    }
    return 0;
}

/* Gives all texts of a part, by all encoders, the same number of chunks. */
static int align_chunks(const struct reading *r, struct reading_part *part, struct err *err)
{
    bool shortest = r->dialect == DIALECT_COMFYUI;
    int encoders = r->model->encoder_count;

    part->chunks = part->texts[0].tokens[0].chunks;
    for (int i = 0; i < part->text_count * encoders; i++) {
        int chunks = part->texts[i / encoders].tokens[i % encoders].chunks;
        if (shortest ? chunks < part->chunks : chunks > part->chunks)
            part->chunks = chunks;
    }
    for (int i = 0; i < part->text_count * encoders; i++) {
        struct prompt_tokens *tokens = &part->texts[i / encoders].tokens[i % encoders];
        if (prompt_tokens_pad(tokens, part->chunks, r->model->encoders[i % encoders].tokenizer,
                              err) != 0)
            return err_prefix(err, "%s", part->field);
        tokens->chunks = part->chunks;
    }
    return 0;
}

/* The part as a row of the conditioning, whose texts have `tokens` each. */
static int add_row(const struct parsed *p, int number, struct reading_part *part, const int *which,
                   int tokens, struct err *err)
{
    const struct prompt *prompt = &p->prompts[0];
    const struct prompt_part *source = &prompt->parts[number];
    int rc = conditioning_add_row(p->to, source->weight);

    part->row = p->to->row_count - 1;
    for (int i = 0; i < part->text_count && rc == 0; i++) {
        part->texts[i].text = conditioning_add_text(p->to, tokens);
        rc = part->texts[i].text < 0 ? -1 : 0;
    }
    for (int i = 0; i < source->stage_count && rc == 0; i++)
        rc = conditioning_add_stage(p->to, prompt->stages[source->stages_at + i].until,
                                    part->texts[which[i]].text);
    if (rc != 0)
        return err_set(err, ERR_LIMIT, ERR_REJECT,
                       "%s: encoded, its texts need more than %u MiB; make it shorter or let it "
                       "change less",
                       part->field, CONDITIONING_MAX_BYTES >> 20);
    return 0;
}

/* All parts of a prompt that is parsed. */
static int read_parts(struct parsed *p, struct err *err)
{
    struct reading *r = p->reading;
    int count = p->prompts[0].part_count, first = r->part_count, most = 0, texts = 0;
    int which[PROMPT_STAGES_MAX];
    int *stages = which;

    ASSERT(first + count <= CONDITIONING_ROWS_MAX);
    for (int i = 0; i < count; i++) {
        struct reading_part *part = &r->parts[r->part_count++];
        *part = (struct reading_part){
            .field = p->field, .prefix = p->prefix, .clip_skip = p->clip_skip, .before = texts};
        if (read_part(p, i, part, stages, err) != 0 || align_chunks(r, part, err) != 0)
            return -1;
        stages += p->prompts[0].parts[i].stage_count;
        texts += part->text_count;
        most = part->chunks > most ? part->chunks : most;
    }
    stages = which;
    for (int i = 0; i < count; i++) {
        if (add_row(p, i, &r->parts[first + i], stages, most * r->model->tokens, err) != 0)
            return -1;
        stages += p->prompts[0].parts[i].stage_count;
    }
    return 0;
}

/* ---- requests ---- */

static int refuse_parts(struct err *err)
{
    return session_refuse(err, "prompt",
                          "the network was distilled from guidance or follows instructions, which "
                          "goes with neither AND nor a part's weight");
}

/* Guidance takes the negative prompt beside the prompt, unless the network was distilled from it. A
 * network that follows instructions is guided by both, prompt and picture, or by neither. Parts are
 * weighed against the negative prompt, whatever the scale. */
static int choose_rows(const struct prompt *prompt, const struct model *m, const struct draw *d,
                       enum conditioning_rows *rows, struct err *err)
{
    bool parts = prompt->part_count > 1 || prompt->parts[0].weight != 1;
    bool instructed = model_is_instructed(m), distilled = m->unet.config.guidance_width > 0;

    if (parts && (instructed || distilled))
        return refuse_parts(err);
    *rows = ROWS_ALONE;
    if (instructed && d->guidance_scale > 1 && d->image_guidance_scale >= 1)
        *rows = ROWS_BOTH;
    if (!instructed && !distilled && (parts || d->guidance_scale > 1))
        *rows = ROWS_TEXT;
    return 0;
}

static int make_vocabularies(struct reading *r, const struct draw *d, struct err *err)
{
    for (int i = 0; i < r->model->encoder_count && d->inversion_count > 0; i++)
        if (vocabulary_create(&r->vocabularies[i], r->model, i, d->inversions, d->inversion_count,
                              err) != 0)
            return -1;
    return 0;
}

/* A row that nobody encodes: it is told zeros. */
static int add_zeros(const struct reading *r, struct conditioning *c, struct err *err)
{
    int text = conditioning_add_text(c, r->model->tokens);

    if (text < 0 || conditioning_add_row(c, 1) != 0 ||
        conditioning_add_stage(c, INT_MAX, text) != 0)
        return no_memory(err);
    return 0;
}

static int read_negative(struct parsed *p, const struct draw *d, int steps, struct err *err)
{
    const char *text = d->negative_prompt != NULL ? d->negative_prompt : "";
    struct conditioning *c = p->to;
    int rc;

    if (d->negative_prompt == NULL && p->reading->model->zero_negative) {
        rc = add_zeros(p->reading, c, err);
    } else {
        rc = parse(p, text, steps, false, err);
        rc = rc == 0 ? read_parts(p, err) : rc;
    }
    if (rc == 0 && c->rows_are == ROWS_BOTH) {
        int told = conditioning_text_at(c, 1, 0);
        if (conditioning_add_row(c, 1) != 0 || conditioning_add_stage(c, INT_MAX, told) != 0)
            rc = no_memory(err);
    }
    return rc;
}

static int read_prompts(struct parsed *positive, struct parsed *negative, const struct draw *d,
                        int steps, struct err *err)
{
    struct conditioning *c = positive->to;

    if (parse(positive, d->prompt, steps, true, err) != 0 ||
        choose_rows(&positive->prompts[0], positive->reading->model, d, &c->rows_are, err) != 0)
        return -1;
    if (c->rows_are == ROWS_TEXT && read_negative(negative, d, steps, err) != 0)
        return -1;
    if (read_parts(positive, err) != 0)
        return -1;
    return c->rows_are == ROWS_BOTH ? read_negative(negative, d, steps, err) : 0;
}

int reading_make(struct reading *r, struct conditioning *c, struct model *model,
                 const struct draw *d, int steps, bool inversions, struct err *err)
{
    struct parsed positive = {
        .reading = r, .to = c, .field = "prompt", .prefix = "", .clip_skip = d->clip_skip};
    struct parsed negative = {
        .reading = r, .to = c, .field = "negative_prompt", .prefix = "negative_"};
    int rc;

    *r = (struct reading){.model = model, .dialect = d->dialect};
    conditioning_init(c, &model->unet.config);
    c->guidance_scale = d->guidance_scale;
    if (inversions && make_vocabularies(r, d, err) != 0)
        return -1;
    rc = read_prompts(&positive, &negative, d, steps, err);
    parsed_release(&positive);
    parsed_release(&negative);
    return rc;
}

void reading_release(struct reading *r)
{
    for (int i = 0; i < r->part_count; i++) {
        for (int t = 0; t < r->parts[i].text_count * ENCODERS_MAX; t++)
            prompt_tokens_release(&r->parts[i].texts[t / ENCODERS_MAX].tokens[t % ENCODERS_MAX]);
        free(r->parts[i].texts);
    }
    for (int i = 0; i < ENCODERS_MAX; i++)
        vocabulary_free(r->vocabularies[i]);
    *r = (struct reading){0};
}

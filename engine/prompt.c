#include "engine/prompt_parts.h"

#include <stdlib.h>
#include <string.h>

#define PIECES_FIRST 16
#define COMMA_BACKTRACK 20 /* tokens, a1111 */
#define LARGE_WORD 8       /* tokens, comfyui */

static const char *const NAMES[DIALECT_COUNT] = {"diffusers", "a1111", "comfyui"};

int dialect_by_name(const char *name)
{
    for (int i = 0; i < DIALECT_COUNT; i++)
        if (strcmp(NAMES[i], name) == 0)
            return i;
    return -1;
}

const char *dialect_name(enum dialect dialect)
{
    return (unsigned)dialect < DIALECT_COUNT ? NAMES[dialect] : NULL;
}

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a prompt");
}

/* ---- parsing ---- */

/* Takes the text over. */
static int add_stage(struct prompt *p, int until, struct buf *text, struct err *err)
{
    struct prompt_stage *bigger = NULL;
    int rc = 0;

    if (!text->failed && p->stage_count < PROMPT_STAGES_MAX)
        bigger = realloc(p->stages, (size_t)(p->stage_count + 1) * sizeof(*bigger));
    if (bigger == NULL) {
        buf_release(text);
        return p->stage_count < PROMPT_STAGES_MAX
                   ? no_memory(err)
                   : err_set(err, ERR_LIMIT, ERR_REJECT,
                             "changes more than %d times over its steps", PROMPT_STAGES_MAX);
    }
    p->stages = bigger;
    struct prompt_stage *stage = &p->stages[p->stage_count++];
    *stage = (struct prompt_stage){.until = until, .text = *text, .pieces_at = p->piece_count};
    if (p->dialect == DIALECT_A1111)
        rc = pieces_of_a1111(p, stage);
    else if (p->dialect == DIALECT_COMFYUI)
        rc = pieces_of_comfyui(p, stage);
    else
        rc = piece_add(p, stage, (struct prompt_piece){.len = text->len, .weight = 1});
    return rc == 0 ? 0 : no_memory(err);
}

static int add_stages(struct prompt *p, const char *text, size_t len, int steps, struct err *err)
{
    struct schedule_tree *tree = schedule_parse(text, len, steps);
    int rc = tree != NULL ? 0 : no_memory(err);

    for (int step = 1; rc == 0 && step <= steps; step++) {
        struct buf out;
        if (step < steps && !schedule_changes_after(tree, step))
            continue;
        buf_init(&out, 2 * TOKENIZER_TEXT_MAX_BYTES);
        schedule_text(tree, step, &out);
        rc = add_stage(p, step, &out, err);
    }
    schedule_free(tree);
    return rc;
}

static bool is_word(char c)
{
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (unsigned char)c >= 0x80;
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Where the next AND that is a word of its own begins, or the end. */
static size_t find_and(const char *text, size_t from)
{
    size_t i;

    for (i = from; text[i] != '\0'; i++)
        if (strncmp(text + i, "AND", 3) == 0 && !is_word(text[i + 3]) &&
            (i == 0 || !is_word(text[i - 1])))
            break;
    return i;
}

/* `text : weight` at the end of a part: cuts it off and returns the weight; 1 without. */
static float part_weight(const char *text, size_t *len)
{
    size_t end = *len, begin;
    char number[32], *rest;

    while (end > 0 && is_blank(text[end - 1]))
        end--;
    begin = end;
    while (begin > 0 && strchr("+-.0123456789", text[begin - 1]) != NULL)
        begin--;
    size_t digits = end - begin, colon = begin;
    while (colon > 0 && is_blank(text[colon - 1]))
        colon--;
    if (digits == 0 || digits >= sizeof(number) || colon == 0 || text[colon - 1] != ':')
        return 1;
    memcpy(number, text + begin, digits);
    number[digits] = '\0';
    double weight = strtod(number, &rest);
    if (*rest != '\0')
        return 1;
    for (colon--; colon > 0 && is_blank(text[colon - 1]); colon--)
        ;
    *len = colon;
    return (float)weight;
}

static int add_parts(struct prompt *p, const char *text, int steps, struct err *err)
{
    size_t begin = 0;

    for (;;) {
        size_t end = find_and(text, begin), len = end - begin;
        if (p->part_count == PROMPT_PARTS_MAX)
            return err_set(err, ERR_LIMIT, ERR_REJECT, "has more than %d parts joined by AND",
                           PROMPT_PARTS_MAX);
        struct prompt_part *part = &p->parts[p->part_count++];
        part->weight = part_weight(text + begin, &len);
        part->stages_at = p->stage_count;
        if (add_stages(p, text + begin, len, steps, err) != 0)
            return -1;
        part->stage_count = p->stage_count - part->stages_at;
        if (text[end] == '\0')
            return 0;
        begin = end + 3;
    }
}

int prompt_parse(struct prompt *p, enum dialect dialect, const char *text, int steps,
                 struct err *err)
{
    int rc;

    *p = (struct prompt){.dialect = dialect};
    if (strlen(text) > TOKENIZER_TEXT_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "is longer than %u bytes",
                       TOKENIZER_TEXT_MAX_BYTES);
    p->pieces = malloc(PIECES_FIRST * sizeof(*p->pieces));
    p->piece_cap = PIECES_FIRST;
    if (p->pieces == NULL)
        return no_memory(err);
    if (dialect == DIALECT_A1111) {
        rc = add_parts(p, text, steps, err);
    } else {
        p->part_count = 1;
        p->parts[0] = (struct prompt_part){.weight = 1, .stage_count = 1};
        struct buf all;
        buf_init(&all, TOKENIZER_TEXT_MAX_BYTES + 1);
        buf_str(&all, text);
        rc = add_stage(p, steps, &all, err);
    }
    if (rc != 0)
        prompt_release(p);
    return rc;
}

void prompt_release(struct prompt *p)
{
    for (int i = 0; i < p->stage_count; i++)
        buf_release(&p->stages[i].text);
    free(p->stages);
    free(p->pieces);
    *p = (struct prompt){.dialect = p->dialect};
}

const struct prompt_stage *prompt_stage_at(const struct prompt *p, int part, int step)
{
    const struct prompt_part *of = &p->parts[part];
    int i = of->stages_at, last = of->stages_at + of->stage_count - 1;

    while (i < last && p->stages[i].until < step)
        i++;
    return &p->stages[i];
}

/* ---- tokens ---- */

struct chunker {
    const struct tokenizer *tokenizer;
    struct prompt_tokens *tokens;
    uint32_t ids[PROMPT_CHUNK_TOKENS]; /* of the chunk that grows */
    float weights[PROMPT_CHUNK_TOKENS];
    int count, comma; /* `comma`: just after the latest one; 0: there is none */
    bool failed;
};

/* Writes the chunk that has grown; from the maximum on chunks are dropped. */
static void end_chunk(struct chunker *c)
{
    const size_t width = TOKENIZER_CLIP_TOKENS;
    struct prompt_tokens *t = c->tokens;
    size_t at = (size_t)t->chunks * width;
    uint32_t *ids;
    float *weights;

    if (t->chunks == PROMPT_CHUNKS_MAX) {
        c->count = c->comma = 0;
        return;
    }
    ids = realloc(t->ids, (at + width) * sizeof(*ids));
    if (ids != NULL)
        t->ids = ids;
    weights = realloc(t->weights, (at + width) * sizeof(*weights));
    if (weights != NULL)
        t->weights = weights;
    if (ids == NULL || weights == NULL) {
        c->failed = true;
        return;
    }
    for (size_t i = 0; i < width; i++) {
        ids[at + i] = tokenizer_pad_id(c->tokenizer);
        weights[at + i] = 1;
    }
    ids[at] = tokenizer_start_id(c->tokenizer);
    memcpy(ids + at + 1, c->ids, (size_t)c->count * sizeof(*ids));
    memcpy(weights + at + 1, c->weights, (size_t)c->count * sizeof(*weights));
    ids[at + 1 + (size_t)c->count] = tokenizer_end_id(c->tokenizer);
    t->chunks++;
    c->count = c->comma = 0;
}

static void put(struct chunker *c, uint32_t id, float weight)
{
    c->ids[c->count] = id;
    c->weights[c->count++] = weight;
}

/* Moves what follows a near comma to the next chunk, so that no phrase is cut. */
static void end_at_comma(struct chunker *c)
{
    uint32_t ids[COMMA_BACKTRACK];
    float weights[COMMA_BACKTRACK];
    int moved = c->count - c->comma;

    memcpy(ids, c->ids + c->comma, (size_t)moved * sizeof(*ids));
    memcpy(weights, c->weights + c->comma, (size_t)moved * sizeof(*weights));
    c->count = c->comma;
    end_chunk(c);
    for (int i = 0; i < moved; i++)
        put(c, ids[i], weights[i]);
}

static void put_a1111(struct chunker *c, uint32_t id, float weight, uint32_t comma)
{
    /* The original counts from the comma itself: 20 tokens with it. */
    if (id == comma)
        c->comma = c->count + 1;
    else if (c->count == PROMPT_CHUNK_TOKENS && c->comma > 0 &&
             c->count - c->comma < COMMA_BACKTRACK)
        end_at_comma(c);
    if (c->count == PROMPT_CHUNK_TOKENS)
        end_chunk(c); /* a comma that begins a chunk is none to end it at */
    put(c, id, weight);
}

/* A word stays in one chunk unless it is large. */
static void put_word(struct chunker *c, const uint32_t *ids, int count, float weight)
{
    bool large = count >= LARGE_WORD;

    while (count > 0 && !c->failed) {
        int room = PROMPT_CHUNK_TOKENS - c->count;
        int now = count <= room ? count : large ? room : 0;
        for (int i = 0; i < now; i++)
            put(c, ids[i], weight);
        ids += now;
        count -= now;
        if (count > 0)
            end_chunk(c);
    }
}

/* The ids of a text; the caller's to free. */
static int encode(const struct tokenizer *tokenizer, const char *text, size_t len, uint32_t **ids,
                  size_t *count, struct err *err)
{
    size_t most = len + 1; /* a byte makes at most one token */

    *ids = malloc(most * sizeof(**ids));
    if (*ids == NULL)
        return no_memory(err);
    return tokenizer_encode_raw(tokenizer, text, len, *ids, most, count, err);
}

static int chunk_a1111(struct chunker *c, const struct prompt_piece *piece, const char *text,
                       struct err *err)
{
    uint32_t *ids, comma = 0;
    size_t count, one;
    int rc;

    if (piece->chunk) {
        end_chunk(c);
        return 0;
    }
    rc = encode(c->tokenizer, text, piece->len, &ids, &count, err);
    if (rc == 0)
        rc = tokenizer_encode_raw(c->tokenizer, ",", 1, &comma, 1, &one, err);
    for (size_t i = 0; rc == 0 && i < count && !c->failed; i++)
        put_a1111(c, ids[i], piece->weight, comma);
    free(ids);
    return rc;
}

static int chunk_comfyui(struct chunker *c, const struct prompt_piece *piece, const char *text,
                         struct err *err)
{
    const char *end = text + piece->len;
    int rc = 0;

    while (rc == 0 && text < end && !c->failed) {
        const char *word = text;
        uint32_t *ids;
        size_t count;
        while (text < end && *text != ' ' && *text != '\n')
            text++;
        if (text > word) {
            rc = encode(c->tokenizer, word, (size_t)(text - word), &ids, &count, err);
            if (rc == 0)
                put_word(c, ids, (int)count, piece->weight);
            free(ids);
        }
        text += text < end;
    }
    return rc;
}

static int chunk_plain(struct chunker *c, const char *text, size_t len, struct err *err)
{
    struct prompt_tokens *t = c->tokens;

    end_chunk(c);
    if (c->failed)
        return no_memory(err);
    return tokenizer_encode(c->tokenizer, text, len, t->ids, TOKENIZER_CLIP_TOKENS, NULL, err);
}

int prompt_tokenize(struct prompt_tokens *tokens, const struct prompt *p,
                    const struct prompt_stage *stage, const struct tokenizer *tokenizer,
                    struct err *err)
{
    struct chunker c = {.tokenizer = tokenizer, .tokens = tokens};
    const struct prompt_piece *pieces = p->pieces + stage->pieces_at;
    int rc = 0;

    *tokens = (struct prompt_tokens){0};
    for (int i = 0; i < stage->piece_count && rc == 0 && !c.failed; i++) {
        const char *text = stage->text.data + pieces[i].at;
        rc = p->dialect == DIALECT_A1111     ? chunk_a1111(&c, &pieces[i], text, err)
             : p->dialect == DIALECT_COMFYUI ? chunk_comfyui(&c, &pieces[i], text, err)
                                             : chunk_plain(&c, text, pieces[i].len, err);
    }
    if (rc == 0 && !c.failed && (c.count > 0 || tokens->chunks == 0))
        end_chunk(&c);
    if (rc == 0 && c.failed)
        rc = no_memory(err);
    if (rc != 0)
        prompt_tokens_release(tokens);
    return rc;
}

void prompt_tokens_release(struct prompt_tokens *tokens)
{
    free(tokens->ids);
    free(tokens->weights);
    *tokens = (struct prompt_tokens){0};
}

/* ---- weights ---- */

/* Each vector times its weight, then all of the chunk times what restores its mean. */
static void weigh_a1111(const float *weights, int width, float *embeds)
{
    size_t count = (size_t)TOKENIZER_CLIP_TOKENS * (size_t)width;
    double before = 0, after = 0;

    for (size_t i = 0; i < count; i++)
        before += (double)embeds[i];
    for (size_t i = 0; i < count; i++) {
        embeds[i] *= weights[i / (size_t)width];
        after += (double)embeds[i];
    }
    float restore = (float)(before / after);
    for (size_t i = 0; i < count; i++)
        embeds[i] *= restore;
}

static bool is_weighed(const float *weights)
{
    for (int i = 0; i < TOKENIZER_CLIP_TOKENS; i++)
        if (weights[i] != 1)
            return true;
    return false;
}

void prompt_weigh(enum dialect dialect, const struct prompt_tokens *tokens, int width,
                  const float *empty, float *embeds)
{
    size_t count = (size_t)TOKENIZER_CLIP_TOKENS * (size_t)width;

    for (int chunk = 0; chunk < tokens->chunks; chunk++, embeds += count) {
        const float *weights = tokens->weights + (size_t)chunk * TOKENIZER_CLIP_TOKENS;
        if (!is_weighed(weights))
            continue;
        if (dialect == DIALECT_A1111)
            weigh_a1111(weights, width, embeds);
        for (size_t i = 0; dialect == DIALECT_COMFYUI && i < count; i++)
            embeds[i] = (embeds[i] - empty[i]) * weights[i / (size_t)width] + empty[i];
    }
}

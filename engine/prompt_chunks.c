/*
 * A stage's pieces into chunks of tokens, and the weights of what is made of them. Each dialect has
 * its own idea of where a chunk may end and of what a word for learned vectors looks like.
 */
#include "engine/prompt_parts.h"

#include <stdlib.h>
#include <string.h>

#define COMMA_BACKTRACK 20 /* tokens, a1111 */
#define LARGE_WORD 8       /* tokens, comfyui */
#define EMBEDDING "embedding:"

/* A word for vectors and its name's tokens. */
struct named {
    const struct prompt_word *word;
    uint32_t *ids; /* owned */
    int count;
};

struct chunker {
    const struct prompt_reader *reader;
    struct prompt_tokens *tokens;
    struct named *named;               /* reader.word_count, the longest first */
    uint32_t ids[PROMPT_CHUNK_TOKENS]; /* of the chunk that grows */
    float weights[PROMPT_CHUNK_TOKENS];
    int room;         /* tokens of a chunk without start and end */
    int count, comma; /* `comma`: just after the latest one; 0: there is none */
    struct err *err;
    bool failed;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a prompt");
}

/* ---- chunks ---- */

static int add_chunk(struct prompt_tokens *t, const uint32_t *ids, const float *weights, int count,
                     const struct tokenizer *tokenizer, struct err *err)
{
    size_t length = (size_t)t->length, at = (size_t)t->chunks * length;
    uint32_t *more_ids;
    float *more_weights;

    if (t->chunks == PROMPT_CHUNKS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "makes more than %d chunks of %d tokens",
                       PROMPT_CHUNKS_MAX, t->length - 2);
    more_ids = realloc(t->ids, (at + length) * sizeof(*more_ids));
    if (more_ids == NULL)
        return no_memory(err);
    t->ids = more_ids;
    more_weights = realloc(t->weights, (at + length) * sizeof(*more_weights));
    if (more_weights == NULL)
        return no_memory(err);
    t->weights = more_weights;
    for (size_t i = at; i < at + length; i++) {
        t->ids[i] = tokenizer_pad_id(tokenizer);
        t->weights[i] = 1;
    }
    t->ids[at] = tokenizer_start_id(tokenizer);
    for (int i = 0; i < count; i++) {
        t->ids[at + 1 + (size_t)i] = ids[i];
        t->weights[at + 1 + (size_t)i] = weights[i];
    }
    t->ids[at + 1 + (size_t)count] = tokenizer_end_id(tokenizer);
    t->chunks++;
    return 0;
}

static void end_chunk(struct chunker *c)
{
    if (!c->failed)
        c->failed =
            add_chunk(c->tokens, c->ids, c->weights, c->count, c->reader->tokenizer, c->err) != 0;
    c->count = c->comma = 0;
}

static void put(struct chunker *c, uint32_t id, float weight)
{
    c->ids[c->count] = id;
    c->weights[c->count++] = weight;
}

/* The ids of a text; the caller's to free. */
static int encode(struct chunker *c, const char *text, size_t len, uint32_t **ids, int *count)
{
    size_t made = 0;

    c->failed = tokenizer_encode_all(c->reader->tokenizer, text, len, ids, &made, c->err) != 0;
    *count = (int)made;
    return c->failed ? -1 : 0;
}

/* ---- a1111 ---- */

static int by_length(const void *a, const void *b)
{
    return ((const struct named *)b)->count - ((const struct named *)a)->count;
}

/* What the reader's words are in tokens. */
static void name_words(struct chunker *c)
{
    int count = c->reader->word_count;

    c->named = calloc((size_t)count + 1, sizeof(*c->named));
    if (c->named == NULL) {
        c->failed = true;
        (void)no_memory(c->err);
    }
    for (int i = 0; i < count && !c->failed; i++) {
        struct named *n = &c->named[i];
        n->word = &c->reader->words[i];
        if (encode(c, n->word->name, strlen(n->word->name), &n->ids, &n->count) != 0)
            break;
    }
    if (!c->failed)
        qsort(c->named, (size_t)count, sizeof(*c->named), by_length);
}

static void forget_words(struct chunker *c)
{
    for (int i = 0; c->named != NULL && i < c->reader->word_count; i++)
        free(c->named[i].ids);
    free(c->named);
}

/* The word that begins here, or NULL. */
static const struct named *find_word(const struct chunker *c, const uint32_t *ids, int count)
{
    for (int i = 0; i < c->reader->word_count; i++) {
        const struct named *n = &c->named[i];
        if (n->count > 0 && n->count <= count &&
            memcmp(n->ids, ids, (size_t)n->count * sizeof(*ids)) == 0)
            return n;
    }
    return NULL;
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

/* Ends the chunk where the token that comes next does not go into it. */
static void make_room_a1111(struct chunker *c, bool comma)
{
    /* The original counts from the comma itself: 20 tokens with it. */
    if (comma)
        c->comma = c->count + 1;
    else if (c->count == c->room && c->comma > 0 && c->count - c->comma < COMMA_BACKTRACK)
        end_at_comma(c);
    if (c->count == c->room)
        end_chunk(c); /* a comma that begins a chunk is none to end it at */
}

/* A word's vectors stay in one chunk. */
static void put_vectors(struct chunker *c, const struct prompt_word *word, float weight)
{
    int vectors = word->vectors < c->room ? word->vectors : c->room;

    if (c->count + vectors > c->room)
        end_chunk(c);
    for (int i = 0; i < vectors; i++)
        put(c, word->first + (uint32_t)i, weight);
}

static void chunk_a1111(struct chunker *c, const struct prompt_piece *piece, const char *text)
{
    uint32_t *ids = NULL, *comma = NULL;
    int count, one;

    if (piece->chunk) {
        end_chunk(c);
        return;
    }
    if (encode(c, text, piece->len, &ids, &count) == 0 && encode(c, ",", 1, &comma, &one) == 0)
        for (int i = 0; i < count && !c->failed;) {
            make_room_a1111(c, one == 1 && ids[i] == *comma);
            const struct named *named = find_word(c, ids + i, count - i);
            if (named != NULL)
                put_vectors(c, named->word, piece->weight);
            else
                put(c, ids[i], piece->weight);
            i += named != NULL ? named->count : 1;
        }
    free(comma);
    free(ids);
}

/* ---- comfyui ---- */

/* A word stays in one chunk unless it is large. */
static void put_group(struct chunker *c, const uint32_t *ids, int count, float weight)
{
    bool large = count >= LARGE_WORD;

    while (count > 0 && !c->failed) {
        int room = c->room - c->count;
        int now = count <= room ? count : large ? room : 0;
        for (int i = 0; i < now; i++)
            put(c, ids[i], weight);
        ids += now;
        count -= now;
        if (count > 0)
            end_chunk(c);
    }
}

static const struct prompt_word *find_name(const struct prompt_reader *r, const char *name,
                                           size_t len)
{
    for (int i = 0; i < r->word_count; i++)
        if (strlen(r->words[i].name) == len && memcmp(r->words[i].name, name, len) == 0)
            return &r->words[i];
    return NULL;
}

/* `embedding:name`, with or without commas after it: how much of the word that was; 0: it is none
 * such. Of a name that there is not the word is dropped, up to the commas. */
static size_t put_embedding(struct chunker *c, const char *text, size_t len, float weight)
{
    const size_t prefix = sizeof(EMBEDDING) - 1;
    const struct prompt_word *word;
    uint32_t ids[PROMPT_CHUNK_TOKENS];
    size_t name;

    if (len < prefix || memcmp(text, EMBEDDING, prefix) != 0)
        return 0;
    name = len - prefix;
    word = find_name(c->reader, text + prefix, name);
    if (word == NULL) {
        while (name > 0 && text[prefix + name - 1] == ',')
            name--;
        word = find_name(c->reader, text + prefix, name);
    }
    for (int i = 0; word != NULL && i < word->vectors; i++)
        ids[i] = word->first + (uint32_t)i;
    if (word != NULL)
        put_group(c, ids, word->vectors, weight);
    return prefix + name;
}

static void put_word(struct chunker *c, const char *text, size_t len, float weight)
{
    size_t taken = put_embedding(c, text, len, weight);
    uint32_t *ids = NULL;
    int count;

    if (taken == len || c->failed)
        return;
    if (encode(c, text + taken, len - taken, &ids, &count) == 0)
        put_group(c, ids, count, weight);
    free(ids);
}

static void chunk_comfyui(struct chunker *c, const struct prompt_piece *piece, const char *text)
{
    const char *end = text + piece->len;

    while (text < end && !c->failed) {
        const char *word = text;
        while (text < end && *text != ' ' && *text != '\n')
            text++;
        if (text > word)
            put_word(c, word, (size_t)(text - word), piece->weight);
        text += text < end;
    }
}

/* ---- all dialects ---- */

/* One chunk; a longer text loses its last tokens. */
static void chunk_plain(struct chunker *c, const struct prompt_piece *piece, const char *text)
{
    end_chunk(c);
    if (!c->failed)
        c->failed = tokenizer_encode(c->reader->tokenizer, text, piece->len, c->tokens->ids,
                                     (size_t)c->tokens->length, NULL, c->err) != 0;
}

static void chunk(struct chunker *c, const struct prompt *p, const struct prompt_piece *piece,
                  const char *text)
{
    if (p->dialect == DIALECT_A1111)
        chunk_a1111(c, piece, text);
    else if (p->dialect == DIALECT_COMFYUI)
        chunk_comfyui(c, piece, text);
    else
        chunk_plain(c, piece, text);
}

int prompt_tokenize(struct prompt_tokens *tokens, const struct prompt *p,
                    const struct prompt_stage *stage, const struct prompt_reader *reader,
                    struct err *err)
{
    struct chunker c = {.reader = reader, .tokens = tokens, .room = reader->length - 2, .err = err};
    const struct prompt_piece *pieces = p->pieces + stage->pieces_at;

    ASSERT(c.room >= 1 && c.room <= PROMPT_CHUNK_TOKENS);
    *tokens = (struct prompt_tokens){.length = reader->length};
    name_words(&c);
    for (int i = 0; i < stage->piece_count && !c.failed; i++)
        chunk(&c, p, &pieces[i], stage->text.data + pieces[i].at);
    if (!c.failed && (c.count > 0 || tokens->chunks == 0))
        end_chunk(&c);
    forget_words(&c);
    if (!c.failed)
        return 0;
    prompt_tokens_release(tokens);
    return -1;
}

int prompt_tokens_pad(struct prompt_tokens *tokens, int chunks, const struct tokenizer *tokenizer,
                      struct err *err)
{
    int rc = 0;

    while (rc == 0 && tokens->chunks < chunks)
        rc = add_chunk(tokens, NULL, NULL, 0, tokenizer, err);
    return rc;
}

void prompt_tokens_release(struct prompt_tokens *tokens)
{
    free(tokens->ids);
    free(tokens->weights);
    *tokens = (struct prompt_tokens){0};
}

/* ---- weights ---- */

bool prompt_is_weighed(const struct prompt_tokens *tokens)
{
    for (int i = 0; i < tokens->chunks * tokens->length; i++)
        if (tokens->weights[i] != 1)
            return true;
    return false;
}

/* One chunk of all stages: each vector times its weight, then all times what restores their mean.
 */
static void weigh_a1111(const struct prompt_embeds *stages, int count, int chunk, int width)
{
    double before = 0, after = 0;
    float restore;

    for (int s = 0; s < count; s++) {
        size_t length = (size_t)stages[s].tokens->length, values = length * (size_t)width;
        const float *weights = stages[s].tokens->weights + (size_t)chunk * length;
        float *embeds = stages[s].values + (size_t)chunk * values;
        for (size_t i = 0; i < values; i++) {
            before += (double)embeds[i] * stages[s].uses;
            embeds[i] *= weights[i / (size_t)width];
            after += (double)embeds[i] * stages[s].uses;
        }
    }
    if (before == after)
        return;
    restore = (float)(before / after);
    for (int s = 0; s < count; s++) {
        size_t values = (size_t)stages[s].tokens->length * (size_t)width;
        float *embeds = stages[s].values + (size_t)chunk * values;
        for (size_t i = 0; i < values; i++)
            embeds[i] *= restore;
    }
}

static void weigh_comfyui(const struct prompt_embeds *stage, int width, const float *empty)
{
    const struct prompt_tokens *tokens = stage->tokens;
    size_t values = (size_t)tokens->length * (size_t)width;

    for (size_t i = 0; i < (size_t)tokens->chunks * values; i++) {
        float weight = tokens->weights[i / (size_t)width], from = empty[i % values];
        if (weight != 1)
            stage->values[i] = (stage->values[i] - from) * weight + from;
    }
}

void prompt_weigh(enum dialect dialect, const struct prompt_embeds *stages, int count, int width,
                  const float *empty)
{
    bool weighed = false;

    for (int i = 0; i < count; i++)
        weighed = weighed || prompt_is_weighed(stages[i].tokens);
    if (!weighed)
        return;
    for (int chunk = 0; dialect == DIALECT_A1111 && chunk < stages->tokens->chunks; chunk++)
        weigh_a1111(stages, count, chunk, width);
    for (int i = 0; dialect == DIALECT_COMFYUI && i < count; i++)
        weigh_comfyui(&stages[i], width, empty);
}

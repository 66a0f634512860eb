/*
 * tokenizer.c: the way from a text to tokens, step by step.
 *
 *     text ─ cut at special tokens ─ NFC, lower case ─ cut at normalized ones ─ words ─ byte pairs
 *
 * The reference also turns each run of white space into one blank before it splits; as white space
 * only ever separates words, that changes no token and is left out.
 */
#include "engine/tokenizer.h"

#include "engine/tokenizer_bpe.h"
#include "engine/tokenizer_parts.h"
#include "engine/unicode.h"

#include <stdlib.h>
#include <string.h>

/* One encoding under way. */
struct run {
    const struct tokenizer *tokenizer;
    struct bpe_scratch *scratch;
    uint32_t *codes;      /* the text, room for one code point per byte */
    uint32_t *normalized; /* of one stretch between special tokens */
    uint32_t *composed;   /* the stretch in NFC, before lower case */
    uint32_t *ids;        /* the caller's */
    size_t max, count;
    bool failed; /* no memory */
};

static void run_release(struct run *run)
{
    bpe_scratch_free(run->scratch);
    free(run->codes);
    free(run->normalized);
    free(run->composed);
}

static int no_memory(size_t len, struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to tokenize %zu bytes", len);
}

static int run_init(struct run *run, const struct tokenizer *tokenizer, size_t len, uint32_t *ids,
                    size_t max, struct err *err)
{
    size_t composed = len * UNICODE_NFD_MAX;
    *run = (struct run){.tokenizer = tokenizer, .ids = ids, .max = max};
    run->codes = malloc((len + 1) * sizeof(uint32_t));
    run->composed = malloc((composed + 1) * sizeof(uint32_t));
    run->normalized = malloc((composed * UNICODE_LOWER_MAX + 1) * sizeof(uint32_t));
    run->scratch = bpe_scratch_create();
    if (run->codes && run->composed && run->normalized && run->scratch)
        return 0;
    run_release(run);
    return no_memory(len, err);
}

static void emit(struct run *run, uint32_t id)
{
    if (run->count < run->max)
        run->ids[run->count] = id;
    run->count++;
}

static void encode_word(struct run *run, const uint32_t *codes, size_t n)
{
    size_t len = 0, count = 0;
    unsigned char *bytes = bpe_scratch_word(run->scratch, 4 * n);
    run->failed |= !bytes;
    if (!bytes)
        return;
    for (size_t i = 0; i < n; i++)
        len += unicode_write(codes[i], (char *)bytes + len);
    const uint32_t *ids = bpe_encode(run->tokenizer->bpe, run->scratch, len, &count);
    for (size_t i = 0; i < count; i++)
        emit(run, ids[i]);
}

static bool starts_with(const uint32_t *codes, size_t n, const char *ascii, size_t len)
{
    if (len > n)
        return false;
    for (size_t i = 0; i < len; i++)
        if (codes[i] != (unsigned char)ascii[i])
            return false;
    return true;
}

/* How many code points at the start are one of the names of special tokens, of which the split
 * takes no notice except that it ends a word after each of their parts. */
static size_t bracketed_length(const uint32_t *codes, size_t n)
{
    static const char *const names[] = {TOKENIZER_START, TOKENIZER_END};
    for (size_t i = 0; i < 2; i++)
        if (starts_with(codes, n, names[i], strlen(names[i])))
            return strlen(names[i]);
    return 0;
}

/* The length of an English ending ('s, 't, …) at the start, or 0. */
static size_t ending_length(const uint32_t *codes, size_t n)
{
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++)
        if (starts_with(codes, n, endings[i], strlen(endings[i])))
            return strlen(endings[i]);
    return 0;
}

/* The length of the word at the start: an ending, a run of letters, one digit, or a run of anything
 * else that is no space. */
static size_t word_length(const uint32_t *codes, size_t n)
{
    enum unicode_class class = unicode_class(codes[0]);
    if (class == UNICODE_SPACE || class == UNICODE_NUMBER)
        return 1;
    size_t length = ending_length(codes, n);
    if (length > 0)
        return length;
    do {
        length++;
    } while (length < n && unicode_class(codes[length]) == class);
    return length;
}

static void encode_words(struct run *run, const uint32_t *codes, size_t n)
{
    size_t bracket_end = 0; /* a word that starts before it ends at it */
    for (size_t at = 0; at < n;) {
        if (at >= bracket_end)
            bracket_end = at + bracketed_length(codes + at, n - at);
        size_t limit = at < bracket_end ? bracket_end : n;
        size_t length = word_length(codes + at, limit - at);
        if (unicode_class(codes[at]) != UNICODE_SPACE)
            encode_word(run, codes + at, length);
        at += length;
    }
}

/* The longest special token at the start, or NULL. */
static const struct special *special_at(const struct tokenizer *tokenizer, const uint32_t *codes,
                                        size_t n, bool normalized)
{
    size_t own = tokenizer->specials_count, count = own + tokenizer->added_count;
    const struct special *best = NULL;
    for (size_t i = 0; i < count; i++) {
        const struct special *special =
            i < own ? &tokenizer->specials[i] : &tokenizer->added[i - own];
        bool fits = special->normalized == normalized && special->len <= n &&
                    (!best || special->len > best->len);
        if (fits && memcmp(special->codes, codes, special->len * sizeof(*codes)) == 0)
            best = special;
    }
    return best;
}

/* Calls `between` for each stretch of codes without special tokens, and emits the tokens. */
static void cut(struct run *run, const uint32_t *codes, size_t n, bool normalized,
                void (*between)(struct run *run, const uint32_t *codes, size_t n))
{
    size_t start = 0, at = 0;
    while (at < n) {
        const struct special *special = special_at(run->tokenizer, codes + at, n - at, normalized);
        if (!special) {
            at++;
            continue;
        }
        between(run, codes + start, at - start);
        emit(run, special->id);
        at += special->len;
        start = at;
    }
    between(run, codes + start, n - start);
}

static void encode_stretch(struct run *run, const uint32_t *codes, size_t n)
{
    size_t composed = unicode_to_nfc(codes, n, run->composed), length = 0;
    for (size_t i = 0; i < composed; i++)
        length += unicode_to_lower(run->composed[i], run->normalized + length);
    cut(run, run->normalized, length, true, encode_words);
}

static int decode(const char *text, size_t len, uint32_t *codes, size_t *n, struct err *err)
{
    *n = 0;
    for (size_t at = 0; at < len;) {
        uint32_t code = unicode_read(text, len, &at);
        if (code == UINT32_MAX)
            return err_set(err, ERR_INVALID, ERR_REJECT, "the text is not UTF-8 at byte %zu", at);
        codes[(*n)++] = code;
    }
    return 0;
}

/* A text as it is looked for: in NFC and lower case. */
static int read_added(struct special *special, const char *text, struct err *err)
{
    uint32_t codes[SPECIAL_MAX_BYTES], composed[SPECIAL_MAX_BYTES * UNICODE_NFD_MAX];
    uint32_t lower[UNICODE_LOWER_MAX];
    size_t len = strlen(text), n;
    if (len == 0 || len > SPECIAL_MAX_BYTES)
        return err_set(err, ERR_INVALID, ERR_REJECT, "\"%.80s\": a token has 1 … %d bytes", text,
                       SPECIAL_MAX_BYTES);
    if (decode(text, len, codes, &n, err) != 0)
        return -1;
    n = unicode_to_nfc(codes, n, composed);
    special->len = 0;
    for (size_t i = 0; i < n; i++) {
        size_t more = unicode_to_lower(composed[i], lower);
        if (special->len + more > SPECIAL_MAX_BYTES)
            return err_set(err, ERR_INVALID, ERR_REJECT, "\"%.80s\" is too long for a token", text);
        memcpy(special->codes + special->len, lower, more * sizeof(lower[0]));
        special->len += more;
    }
    special->normalized = true;
    return 0;
}

int tokenizer_extend(struct tokenizer **out, const struct tokenizer *base,
                     const char *const texts[], size_t count, struct err *err)
{
    struct tokenizer *t = malloc(sizeof(*t));
    struct special *added = calloc(count + 1, sizeof(*added));
    if (!t || !added) {
        free(t);
        free(added);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a tokenizer");
    }
    *t = *base;
    t->added = added;
    t->added_count = count;
    for (size_t i = 0; i < count; i++) {
        added[i].id = t->size++;
        if (read_added(&added[i], texts[i], err) != 0) {
            tokenizer_free(t);
            return -1;
        }
    }
    *out = t;
    return 0;
}

int tokenizer_encode_raw(const struct tokenizer *tokenizer, const char *text, size_t len,
                         uint32_t *ids, size_t max, size_t *count, struct err *err)
{
    if (len > TOKENIZER_TEXT_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "the text has %zu bytes; %u are allowed", len,
                       TOKENIZER_TEXT_MAX_BYTES);
    struct run run;
    if (run_init(&run, tokenizer, len, ids, max, err) != 0)
        return -1;
    size_t n = 0;
    int result = decode(text, len, run.codes, &n, err);
    if (result == 0)
        cut(&run, run.codes, n, false, encode_stretch);
    if (result == 0 && run.failed)
        result = no_memory(len, err);
    *count = run.count;
    run_release(&run);
    return result;
}

int tokenizer_encode_all(const struct tokenizer *tokenizer, const char *text, size_t len,
                         uint32_t **ids, size_t *count, struct err *err)
{
    size_t room = 0;

    *ids = NULL;
    *count = len + 1; /* enough for nearly every text */
    while (*count > room) {
        room = *count;
        free(*ids);
        *ids = malloc(room * sizeof(**ids));
        if (*ids == NULL)
            return no_memory(len, err);
        if (tokenizer_encode_raw(tokenizer, text, len, *ids, room, count, err) != 0) {
            free(*ids);
            *ids = NULL;
            return -1;
        }
    }
    return 0;
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len, uint32_t *ids,
                     size_t max_tokens, size_t *count, struct err *err)
{
    ASSERT(max_tokens >= 2);
    size_t words = 0;
    if (tokenizer_encode_raw(tokenizer, text, len, ids + 1, max_tokens - 2, &words, err) != 0)
        return -1;
    size_t kept = words < max_tokens - 2 ? words : max_tokens - 2;
    ids[0] = tokenizer->start;
    ids[kept + 1] = tokenizer->end;
    for (size_t i = kept + 2; i < max_tokens; i++)
        ids[i] = tokenizer->pad;
    if (count)
        *count = words + 2;
    return 0;
}

uint32_t tokenizer_start_id(const struct tokenizer *tokenizer)
{
    return tokenizer->start;
}

uint32_t tokenizer_end_id(const struct tokenizer *tokenizer)
{
    return tokenizer->end;
}

uint32_t tokenizer_pad_id(const struct tokenizer *tokenizer)
{
    return tokenizer->pad;
}

uint32_t tokenizer_vocabulary_size(const struct tokenizer *tokenizer)
{
    return tokenizer->size;
}

/*
 * What a stage's text weighs, piece by piece. Both dialects keep their originals' quirks, since a
 * prompt that was tuned there is to mean the same here: in a1111 a BREAK inside of brackets is a
 * word of negative weight; in comfyui a weight in brackets takes the place of what is around it.
 */
#include "engine/prompt_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROUND 1.1
#define BREAK "BREAK"
#define BREAK_WEIGHT (-1)

int piece_add(struct prompt *prompt, struct prompt_stage *stage, struct prompt_piece piece)
{
    if (prompt->piece_count == prompt->piece_cap) {
        size_t cap = 2 * prompt->piece_cap;
        struct prompt_piece *bigger = realloc(prompt->pieces, cap * sizeof(*bigger));
        if (bigger == NULL)
            return -1;
        prompt->pieces = bigger;
        prompt->piece_cap = cap;
    }
    prompt->pieces[prompt->piece_count++] = piece;
    stage->piece_count++;
    return 0;
}

/* Puts what was built in place of the stage's text. */
static int take_text(struct prompt_stage *stage, struct buf *out)
{
    if (out->failed) {
        buf_release(out);
        return -1;
    }
    buf_release(&stage->text);
    stage->text = *out;
    return 0;
}

/* A decimal number, nothing else, blanks around it aside. */
static bool read_number(const char *text, size_t len, double *value)
{
    char copy[40], *rest;

    while (len > 0 && strchr(" \t\r\n", text[0]) != NULL)
        text++, len--;
    while (len > 0 && strchr(" \t\r\n", text[len - 1]) != NULL)
        len--;
    if (len == 0 || len >= sizeof(copy))
        return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (strspn(copy, "+-.0123456789eE") != len)
        return false;
    *value = strtod(copy, &rest);
    return *rest == '\0' && isfinite(*value);
}

/* ---- a1111 ---- */

struct splitter {
    struct prompt *prompt;
    struct prompt_stage *stage;
    struct buf out;
    int *round, *square; /* open brackets: the number of the first piece inside */
    int round_count, square_count;
    bool failed;
};

static void add(struct splitter *s, const char *text, size_t len, float weight)
{
    struct prompt_piece piece = {.at = s->out.len, .len = len, .weight = weight};

    buf_append(&s->out, text, len);
    s->failed = s->failed || piece_add(s->prompt, s->stage, piece) != 0;
}

static struct prompt_piece *pieces_of(const struct splitter *s)
{
    return s->prompt->pieces + s->stage->pieces_at;
}

static void multiply_from(struct splitter *s, int first, double by)
{
    for (int i = first; i < s->stage->piece_count; i++)
        pieces_of(s)[i].weight = (float)(pieces_of(s)[i].weight * by);
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

/* The next BREAK that is a word of its own, or NULL. */
static const char *find_break(const char *text, const char *end)
{
    const size_t len = sizeof(BREAK) - 1;

    for (const char *at = text; at + len <= end; at++)
        if (memcmp(at, BREAK, len) == 0 && (at == text || !is_word(at[-1])) &&
            (at + len == end || !is_word(at[len])))
            return at;
    return NULL;
}

/* Text without brackets: parted at each BREAK, whose blanks go with it. */
static void add_words(struct splitter *s, const char *text, size_t len)
{
    const char *end = text + len, *at;

    while ((at = find_break(text, end)) != NULL) {
        const char *last = at;
        while (last > text && is_blank(last[-1]))
            last--;
        add(s, text, (size_t)(last - text), 1);
        add(s, BREAK, sizeof(BREAK) - 1, BREAK_WEIGHT);
        text = at + sizeof(BREAK) - 1;
        while (text < end && is_blank(*text))
            text++;
    }
    add(s, text, (size_t)(end - text), 1);
}

/* `: number )` with blanks: its length, or 0. */
static size_t weight_at(const char *text, double *weight)
{
    size_t begin = 1 + strspn(text + 1, " \t\r\n\v\f"), len;

    len = strspn(text + begin, "+-.0123456789");
    size_t end = begin + len + strspn(text + begin + len, " \t\r\n\v\f");
    return text[end] == ')' && read_number(text + begin, len, weight) ? end + 1 : 0;
}

/* One mark or run of words; returns its length. */
static size_t split_one(struct splitter *s, const char *text)
{
    double weight;
    size_t len;

    switch (text[0]) {
    case '\\':
        if (text[1] == '\0' || strchr("()[]\\", text[1]) == NULL)
            return 1;
        add(s, text + 1, 1, 1);
        return 2;
    case '(':
        s->round[s->round_count++] = s->stage->piece_count;
        return 1;
    case '[':
        s->square[s->square_count++] = s->stage->piece_count;
        return 1;
    case ')':
        if (s->round_count > 0)
            multiply_from(s, s->round[--s->round_count], ROUND);
        else
            add_words(s, text, 1);
        return 1;
    case ']':
        if (s->square_count > 0)
            multiply_from(s, s->square[--s->square_count], 1 / ROUND);
        else
            add_words(s, text, 1);
        return 1;
    case ':':
        len = weight_at(text, &weight);
        if (len > 0 && s->round_count > 0)
            multiply_from(s, s->round[--s->round_count], weight);
        else
            add_words(s, text, len > 0 ? len : (len = 1));
        return len;
    default:
        len = strcspn(text, "\\()[]:");
        add_words(s, text, len);
        return len;
    }
}

static void merge_equal(struct splitter *s)
{
    struct prompt_piece *pieces = pieces_of(s);
    int kept = 0;

    for (int i = 0; i < s->stage->piece_count; i++) {
        if (kept > 0 && pieces[kept - 1].weight == pieces[i].weight)
            pieces[kept - 1].len += pieces[i].len; /* one follows the other in the text */
        else
            pieces[kept++] = pieces[i];
    }
    s->prompt->piece_count -= (size_t)(s->stage->piece_count - kept);
    s->stage->piece_count = kept;
    for (int i = 0; i < kept; i++)
        pieces[i].chunk = pieces[i].weight == BREAK_WEIGHT && pieces[i].len == sizeof(BREAK) - 1 &&
                          memcmp(s->out.data + pieces[i].at, BREAK, sizeof(BREAK) - 1) == 0;
}

int pieces_of_a1111(struct prompt *prompt, struct prompt_stage *stage)
{
    size_t len = stage->text.len;
    struct splitter s = {.prompt = prompt, .stage = stage};

    buf_init(&s.out, 2 * TOKENIZER_TEXT_MAX_BYTES);
    s.round = malloc(2 * (len + 1) * sizeof(int));
    s.square = s.round + len + 1;
    s.failed = s.round == NULL;
    for (size_t at = 0; at < len && !s.failed;)
        at += split_one(&s, stage->text.data + at);
    while (!s.failed && s.round_count > 0)
        multiply_from(&s, s.round[--s.round_count], ROUND);
    while (!s.failed && s.square_count > 0)
        multiply_from(&s, s.square[--s.square_count], 1 / ROUND);
    free(s.round);
    if (s.failed) {
        buf_release(&s.out);
        return -1;
    }
    merge_equal(&s);
    return take_text(stage, &s.out);
}

/* ---- comfyui ---- */

/* No UTF-8 has these bytes; they stand for brackets that were escaped. */
#define ESCAPED_OPEN '\xfe'
#define ESCAPED_CLOSE '\xff'

static void add_unescaped(struct splitter *s, const char *text, size_t len, double weight)
{
    struct prompt_piece piece = {.at = s->out.len, .len = len, .weight = (float)weight};

    for (size_t i = 0; i < len; i++)
        buf_char(&s->out, text[i] == ESCAPED_OPEN ? '(' : text[i] == ESCAPED_CLOSE ? ')' : text[i]);
    s->failed = s->failed || piece_add(s->prompt, s->stage, piece) != 0;
}

static void split_comfyui(struct splitter *s, const char *text, size_t len, double weight);

/* One item of a text: in brackets as a whole, or free of weights. */
static void split_item(struct splitter *s, const char *item, size_t len, double around)
{
    double weight;
    size_t colon;

    if (len < 2 || item[0] != '(' || item[len - 1] != ')') {
        add_unescaped(s, item, len, around);
        return;
    }
    item++;
    len -= 2;
    for (colon = len; colon > 0 && item[colon - 1] != ':'; colon--)
        ;
    if (colon > 1 && read_number(item + colon, len - colon, &weight)) {
        around = weight;
        len = colon - 1;
    } else {
        around *= ROUND;
    }
    split_comfyui(s, item, len, around);
}

static void split_comfyui(struct splitter *s, const char *text, size_t len, double weight)
{
    size_t begin = 0;
    int nesting = 0;

    for (size_t i = 0; i < len && !s->failed; i++) {
        if (text[i] == '(' && nesting++ == 0 && i > begin) {
            split_item(s, text + begin, i - begin, weight);
            begin = i;
        } else if (text[i] == ')' && --nesting == 0) {
            split_item(s, text + begin, i + 1 - begin, weight);
            begin = i + 1;
        }
    }
    if (begin < len)
        split_item(s, text + begin, len - begin, weight);
}

int pieces_of_comfyui(struct prompt *prompt, struct prompt_stage *stage)
{
    struct splitter s = {.prompt = prompt, .stage = stage};
    struct buf text;

    buf_init(&text, 2 * TOKENIZER_TEXT_MAX_BYTES);
    buf_init(&s.out, 2 * TOKENIZER_TEXT_MAX_BYTES);
    for (const char *at = stage->text.data; *at != '\0'; at++) {
        bool escape = at[0] == '\\' && (at[1] == '(' || at[1] == ')');
        buf_char(&text, !escape ? at[0] : at[1] == '(' ? ESCAPED_OPEN : ESCAPED_CLOSE);
        at += escape;
    }
    s.failed = text.failed;
    if (!s.failed)
        split_comfyui(&s, text.data, text.len, 1);
    buf_release(&text);
    if (s.failed) {
        buf_release(&s.out);
        return -1;
    }
    return take_text(stage, &s.out);
}

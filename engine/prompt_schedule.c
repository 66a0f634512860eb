/*
 * The grammar of a1111's changing prompts, read by descent:
 *
 *     text      = (words | "(" text ")" | "(" text ":" text ")" | change)*
 *     change    = "[" text "]"                           stays as it is: a weight
 *               | "[" [text ":"] text ":" number "]"     the first up to the step, then the second
 *               | "[" text ("|" text)+ "]"               each in turn, a step each
 *
 * A bracket or colon that is part of none of these is itself at the outermost level, and ends an
 * attempt further in. A "|" or a "\" that is part of nothing leaves the whole prompt unchanging, as
 * the original's parser does. Nesting is bounded, so that no prompt exhausts the stack.
 */
#include "engine/prompt_parts.h"

#include <stdlib.h>
#include <string.h>

#define NESTING_MAX 200
#define NONE (-1)
#define FAILED (-2)

enum kind { WORDS, LIST, SCHEDULED, ALTERNATE };

struct node {
    enum kind kind;
    int first, next; /* children, siblings */
    size_t at, len;  /* WORDS */
    int when;        /* SCHEDULED: the last step of the first child */
};

struct schedule_tree {
    const char *text;
    size_t len;
    int steps;
    struct node *nodes;
    int count, cap;
    int root; /* the first of a list, or NONE */
    int depth;
    bool no_memory, unchanging;
};

/* A list under construction. */
struct list {
    int first, last;
};

static int new_node(struct schedule_tree *t, struct node node)
{
    if (t->count == t->cap) {
        int cap = t->cap ? 2 * t->cap : 64;
        struct node *bigger = realloc(t->nodes, (size_t)cap * sizeof(*bigger));
        if (bigger == NULL) {
            t->no_memory = true;
            return FAILED;
        }
        t->nodes = bigger;
        t->cap = cap;
    }
    node.next = NONE;
    t->nodes[t->count] = node;
    return t->count++;
}

static void append(struct schedule_tree *t, struct list *list, int node)
{
    if (node < 0)
        return;
    if (list->first == NONE)
        list->first = node;
    else
        t->nodes[list->last].next = node;
    list->last = node;
}

static void append_words(struct schedule_tree *t, struct list *list, size_t at, size_t len)
{
    if (len > 0)
        append(t, list, new_node(t, (struct node){.kind = WORDS, .at = at, .len = len}));
}

static char char_at(const struct schedule_tree *t, size_t at)
{
    return at < t->len ? t->text[at] : '\0';
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t skip_blanks(const struct schedule_tree *t, size_t at)
{
    while (is_blank(char_at(t, at)))
        at++;
    return at;
}

/* `number ]` with blanks around the number: sets the step and the place after the bracket. */
static bool read_when(const struct schedule_tree *t, size_t *at, int *when)
{
    size_t begin = skip_blanks(t, *at), end;
    size_t len = begin < t->len ? strspn(t->text + begin, "+-0123456789.eE") : 0;
    char number[32], *rest;

    if (len == 0 || len >= sizeof(number))
        return false;
    memcpy(number, t->text + begin, len);
    number[len] = '\0';
    double value = strtod(number, &rest);
    end = skip_blanks(t, begin + len);
    if (*rest != '\0' || char_at(t, end) != ']')
        return false;
    if (strchr(number, '.') != NULL)
        value *= t->steps;
    *when = value >= t->steps ? t->steps : value <= 0 ? 0 : (int)value;
    *at = end + 1;
    return true;
}

static int read_text(struct schedule_tree *t, size_t *at);

static int new_list(struct schedule_tree *t, int first)
{
    return new_node(t, (struct node){.kind = LIST, .first = first});
}

/* [a|b|…], from the first "|" on. */
static int read_alternate(struct schedule_tree *t, size_t *at, int first)
{
    struct list options = {NONE, NONE};

    append(t, &options, new_list(t, first));
    while (char_at(t, *at) == '|') {
        ++*at;
        int option = read_text(t, at);
        append(t, &options, new_list(t, option));
    }
    if (char_at(t, *at) != ']')
        return FAILED;
    ++*at;
    return new_node(t, (struct node){.kind = ALTERNATE, .first = options.first});
}

/* [a:when] and [a:b:when], from the first ":" on. */
static int read_scheduled(struct schedule_tree *t, size_t *at, int first)
{
    struct list both = {NONE, NONE};
    int when, before = NONE, after = first;

    ++*at;
    if (!read_when(t, at, &when)) {
        before = first;
        after = read_text(t, at);
        if (char_at(t, *at) != ':')
            return FAILED;
        ++*at;
        if (!read_when(t, at, &when))
            return FAILED;
    }
    append(t, &both, new_list(t, before));
    append(t, &both, new_list(t, after));
    return new_node(t, (struct node){.kind = SCHEDULED, .first = both.first, .when = when});
}

/* What keeps its brackets: the list `inside`, between the characters at `open` and at *at. */
static int keep(struct schedule_tree *t, size_t open, size_t *at, int inside)
{
    struct list list = {NONE, NONE};

    append_words(t, &list, open, 1);
    append(t, &list, new_list(t, inside));
    append_words(t, &list, *at, 1);
    ++*at;
    return new_list(t, list.first);
}

static int read_square(struct schedule_tree *t, size_t *at)
{
    size_t open = (*at)++;
    int first = read_text(t, at);

    switch (char_at(t, *at)) {
    case ']':
        return keep(t, open, at, first);
    case '|':
        return read_alternate(t, at, first);
    case ':':
        return read_scheduled(t, at, first);
    default:
        return FAILED;
    }
}

static int read_round(struct schedule_tree *t, size_t *at)
{
    size_t open = (*at)++;
    struct list inside = {NONE, NONE};

    append(t, &inside, new_list(t, read_text(t, at)));
    if (char_at(t, *at) == ':') {
        append_words(t, &inside, *at, 1);
        ++*at;
        append(t, &inside, new_list(t, read_text(t, at)));
    }
    return char_at(t, *at) == ')' ? keep(t, open, at, inside.first) : FAILED;
}

/* One construct in brackets; on failure nothing has been read. */
static int read_bracket(struct schedule_tree *t, size_t *at)
{
    size_t begin = *at;
    int count = t->count, node = FAILED;

    if (t->depth < NESTING_MAX) {
        t->depth++;
        node = char_at(t, begin) == '[' ? read_square(t, at) : read_round(t, at);
        t->depth--;
    }
    if (node == FAILED) {
        *at = begin;
        t->count = count;
    }
    return node;
}

/* Words, up to a character that means something. */
static size_t words_end(const struct schedule_tree *t, size_t at)
{
    while (at < t->len && strchr("[]():|", t->text[at]) == NULL) {
        if (t->text[at] == '\\' && at + 1 >= t->len)
            break;
        at += t->text[at] == '\\' ? 2 : 1;
    }
    return at;
}

/* Up to a character that does not belong to a text; returns the first of the list, or NONE. */
static int read_text(struct schedule_tree *t, size_t *at)
{
    struct list list = {NONE, NONE};

    while (*at < t->len && !t->no_memory) {
        size_t end = words_end(t, *at);
        append_words(t, &list, *at, end - *at);
        *at = end;
        if (char_at(t, end) != '[' && char_at(t, end) != '(')
            break;
        int node = read_bracket(t, at);
        if (node == FAILED)
            break;
        append(t, &list, node);
    }
    return list.first;
}

struct schedule_tree *schedule_parse(const char *text, size_t len, int steps)
{
    struct schedule_tree *t = calloc(1, sizeof(*t));
    struct list all = {NONE, NONE};
    size_t at = 0;

    if (t == NULL)
        return NULL;
    *t = (struct schedule_tree){.text = text, .len = len, .steps = steps, .root = NONE};
    while (at < len && !t->no_memory) {
        append(t, &all, new_list(t, read_text(t, &at)));
        if (at == len)
            break;
        t->unchanging = t->unchanging || text[at] == '|' || text[at] == '\\';
        append_words(t, &all, at, 1);
        at++;
    }
    t->root = all.first;
    if (t->no_memory) {
        schedule_free(t);
        return NULL;
    }
    return t;
}

void schedule_free(struct schedule_tree *t)
{
    if (t == NULL)
        return;
    free(t->nodes);
    free(t);
}

bool schedule_changes_after(const struct schedule_tree *t, int step)
{
    for (int i = 0; i < t->count && !t->unchanging; i++)
        if (t->nodes[i].kind == ALTERNATE ||
            (t->nodes[i].kind == SCHEDULED && t->nodes[i].when == step))
            return true;
    return false;
}

static void write_list(const struct schedule_tree *t, int node, int step, struct buf *out);

static void write_node(const struct schedule_tree *t, const struct node *node, int step,
                       struct buf *out)
{
    int chosen = node->first, count = 0;

    switch (node->kind) {
    case WORDS:
        buf_append(out, t->text + node->at, node->len);
        return;
    case LIST:
        write_list(t, node->first, step, out);
        return;
    case SCHEDULED:
        if (step > node->when)
            chosen = t->nodes[chosen].next;
        break;
    case ALTERNATE:
        for (int i = node->first; i != NONE; i = t->nodes[i].next)
            count++;
        for (int skip = (step - 1) % count; skip > 0; skip--)
            chosen = t->nodes[chosen].next;
        break;
    }
    write_node(t, &t->nodes[chosen], step, out);
}

static void write_list(const struct schedule_tree *t, int node, int step, struct buf *out)
{
    for (; node != NONE; node = t->nodes[node].next)
        write_node(t, &t->nodes[node], step, out);
}

void schedule_text(const struct schedule_tree *t, int step, struct buf *out)
{
    if (t->unchanging)
        buf_append(out, t->text, t->len);
    else
        write_list(t, t->root, step, out);
}

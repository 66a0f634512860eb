#include "engine/pickle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_MAX_BYTES ((size_t)1 << 29)
#define BLOCK_BYTES ((size_t)64 << 10)
#define STACK_MAX (1u << 20)
#define MEMO_MAX (1u << 22)

struct block {
    struct block *next;
    size_t used, bytes;
    char data[];
};

struct pickle {
    struct block *blocks; /* the newest first */
    size_t bytes;         /* of all */
    struct pickle_value *root;
};

/* The machine that a pickle is a program of. */
struct reader {
    struct pickle *pickle;
    const unsigned char *at, *end;
    struct pickle_value **stack; /* NULL: a mark */
    struct pickle_value **memo;
    size_t depth, stack_capacity, memo_capacity, memo_count;
    bool done;
    struct err *err;
};

/* ---- memory ---- */

void *pickle_alloc(struct pickle *p, size_t bytes)
{
    struct block *b = p->blocks;
    void *memory;

    bytes = (bytes + 15) & ~(size_t)15;
    if (b == NULL || b->bytes - b->used < bytes) {
        size_t size = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        if (size > MEMORY_MAX_BYTES - p->bytes || (b = malloc(sizeof(*b) + size)) == NULL)
            return NULL;
        *b = (struct block){.next = p->blocks, .bytes = size};
        p->blocks = b;
        p->bytes += size;
    }
    memory = b->data + b->used;
    b->used += bytes;
    return memory;
}

void pickle_free(struct pickle *p)
{
    while (p != NULL && p->blocks != NULL) {
        struct block *b = p->blocks;
        p->blocks = b->next;
        free(b);
    }
    free(p);
}

static int no_memory(struct reader *r)
{
    return err_set(r->err, ERR_MEMORY, ERR_RETRY, "no memory for what torch.save wrote");
}

static int bad(struct reader *r, const char *problem)
{
    return err_set(r->err, ERR_FORMAT, ERR_REJECT, "its pickle %s", problem);
}

static struct pickle_value *value_new(struct reader *r, enum pickle_type type)
{
    struct pickle_value *v = pickle_alloc(r->pickle, sizeof(*v));

    if (v == NULL)
        no_memory(r);
    else
        *v = (struct pickle_value){.type = type};
    return v;
}

static int add_item(struct reader *r, struct pickle_value *to, struct pickle_value *item)
{
    if (to->count == to->capacity) {
        size_t capacity = to->capacity ? 2 * to->capacity : 4;
        struct pickle_value **items = pickle_alloc(r->pickle, capacity * sizeof(*items));
        if (items == NULL)
            return no_memory(r);
        if (to->count > 0)
            memcpy(items, to->items, to->count * sizeof(*items));
        to->items = items;
        to->capacity = capacity;
    }
    to->items[to->count++] = item;
    return 0;
}

/* ---- the stack and the memo ---- */

static int push(struct reader *r, struct pickle_value *v)
{
    if (r->depth == r->stack_capacity) {
        size_t capacity = r->stack_capacity ? 2 * r->stack_capacity : 256;
        struct pickle_value **stack;
        if (capacity > STACK_MAX)
            return bad(r, "piles up too much");
        stack = realloc(r->stack, capacity * sizeof(*stack));
        if (stack == NULL)
            return no_memory(r);
        r->stack = stack;
        r->stack_capacity = capacity;
    }
    r->stack[r->depth++] = v;
    return 0;
}

static int push_new(struct reader *r, enum pickle_type type, int64_t number)
{
    struct pickle_value *v = value_new(r, type);

    if (v == NULL)
        return -1;
    v->number = number;
    return push(r, v);
}

/* NULL: there is none, which is an error by then. */
static struct pickle_value *pop(struct reader *r)
{
    if (r->depth == 0 || r->stack[r->depth - 1] == NULL) {
        bad(r, "takes what is not there");
        return NULL;
    }
    return r->stack[--r->depth];
}

static struct pickle_value *top(struct reader *r)
{
    struct pickle_value *v = pop(r);

    r->depth += v != NULL;
    return v;
}

/* Where the values above the last mark begin, which is taken away; SIZE_MAX: an error. */
static size_t find_mark(struct reader *r)
{
    for (size_t i = r->depth; i > 0; i--)
        if (r->stack[i - 1] == NULL)
            return i;
    bad(r, "closes what was not opened");
    return SIZE_MAX;
}

static int remember(struct reader *r, uint64_t at)
{
    struct pickle_value *v = top(r);

    if (v == NULL)
        return -1;
    if (at >= MEMO_MAX)
        return bad(r, "remembers too much");
    if (at >= r->memo_capacity) {
        size_t capacity = r->memo_capacity ? r->memo_capacity : 1024;
        struct pickle_value **memo;
        while (capacity <= at)
            capacity *= 2;
        memo = realloc(r->memo, capacity * sizeof(*memo));
        if (memo == NULL)
            return no_memory(r);
        memset(memo + r->memo_capacity, 0, (capacity - r->memo_capacity) * sizeof(*memo));
        r->memo = memo;
        r->memo_capacity = capacity;
    }
    r->memo_count += r->memo[at] == NULL;
    r->memo[at] = v;
    return 0;
}

static int recall(struct reader *r, uint64_t at)
{
    if (at >= r->memo_capacity || r->memo[at] == NULL)
        return bad(r, "recalls what it did not remember");
    return push(r, r->memo[at]);
}

/* ---- what lies between opcodes ---- */

static int take(struct reader *r, size_t bytes, const unsigned char **at)
{
    if ((size_t)(r->end - r->at) < bytes)
        return bad(r, "ends in the midst of a value");
    *at = r->at;
    r->at += bytes;
    return 0;
}

/* `bytes` of a little-endian number without sign. */
static int take_number(struct reader *r, int bytes, uint64_t *number)
{
    const unsigned char *at;

    if (take(r, (size_t)bytes, &at) != 0)
        return -1;
    *number = 0;
    for (int i = bytes - 1; i >= 0; i--)
        *number = *number << 8 | at[i];
    return 0;
}

static const char *text_of(struct reader *r, const unsigned char *from, size_t len)
{
    char *text = pickle_alloc(r->pickle, len + 1);

    if (text == NULL) {
        no_memory(r);
        return NULL;
    }
    memcpy(text, from, len);
    text[len] = '\0';
    return text;
}

/* A text, or bytes that nobody reads, whose length is in so many bytes. */
static int read_text(struct reader *r, int length_bytes, enum pickle_type type)
{
    const unsigned char *at;
    struct pickle_value *v;
    uint64_t len;

    if (take_number(r, length_bytes, &len) != 0 || take(r, len, &at) != 0 ||
        (v = value_new(r, type)) == NULL ||
        (type == PICKLE_TEXT && (v->text = text_of(r, at, len)) == NULL))
        return -1;
    return push(r, v);
}

static int read_unsigned(struct reader *r, int bytes)
{
    uint64_t number;

    return take_number(r, bytes, &number) != 0 ? -1 : push_new(r, PICKLE_NUMBER, (int64_t)number);
}

static int read_signed(struct reader *r)
{
    uint64_t number;

    return take_number(r, 4, &number) != 0 ? -1 : push_new(r, PICKLE_NUMBER, (int32_t)number);
}

/* Longer than 8 bytes: a number that no tensor has. */
static int read_long(struct reader *r)
{
    const unsigned char *at;
    uint64_t len, number;

    if (take_number(r, 1, &len) != 0 || take(r, len, &at) != 0)
        return -1;
    if (len > 8)
        return push_new(r, PICKLE_OTHER, 0);
    number = len > 0 && (at[len - 1] & 0x80) ? UINT64_MAX : 0;
    for (size_t i = len; i > 0; i--)
        number = number << 8 | at[i - 1];
    return push_new(r, PICKLE_NUMBER, (int64_t)number);
}

static int skip_bytes(struct reader *r, size_t bytes)
{
    const unsigned char *at;

    return take(r, bytes, &at);
}

static int read_fraction(struct reader *r)
{
    return skip_bytes(r, 8) != 0 ? -1 : push_new(r, PICKLE_OTHER, 0);
}

/* ---- values of values ---- */

static int push_class(struct reader *r, const char *module, size_t module_len, const char *name,
                      size_t name_len)
{
    struct pickle_value *v = value_new(r, PICKLE_CLASS);
    char *text = v != NULL ? pickle_alloc(r->pickle, module_len + name_len + 2) : NULL;

    if (text == NULL)
        return no_memory(r);
    memcpy(text, module, module_len);
    text[module_len] = ' ';
    memcpy(text + module_len + 1, name, name_len);
    text[module_len + 1 + name_len] = '\0';
    v->text = text;
    return push(r, v);
}

/* Two lines: module and name. */
static int read_class(struct reader *r)
{
    const unsigned char *lines[2];
    size_t lengths[2];

    for (int i = 0; i < 2; i++) {
        const unsigned char *end = memchr(r->at, '\n', (size_t)(r->end - r->at));
        if (end == NULL)
            return bad(r, "ends in the midst of a class's name");
        lines[i] = r->at;
        lengths[i] = (size_t)(end - r->at);
        r->at = end + 1;
    }
    return push_class(r, (const char *)lines[0], lengths[0], (const char *)lines[1], lengths[1]);
}

static int class_of_texts(struct reader *r)
{
    struct pickle_value *name = pop(r), *module = name != NULL ? pop(r) : NULL;

    if (module == NULL)
        return -1;
    if (name->type != PICKLE_TEXT || module->type != PICKLE_TEXT)
        return bad(r, "names a class by something else than texts");
    return push_class(r, module->text, strlen(module->text), name->text, strlen(name->text));
}

/* The values above the last mark as a list. */
static int list_of_marked(struct reader *r)
{
    struct pickle_value *list = value_new(r, PICKLE_LIST);
    size_t first = list != NULL ? find_mark(r) : SIZE_MAX;

    if (first == SIZE_MAX)
        return -1;
    for (size_t i = first; i < r->depth; i++)
        if (add_item(r, list, r->stack[i]) != 0)
            return -1;
    r->depth = first - 1;
    return push(r, list);
}

static int list_of(struct reader *r, int count)
{
    struct pickle_value *list = value_new(r, PICKLE_LIST), *items[3];

    if (list == NULL)
        return -1;
    for (int i = count - 1; i >= 0; i--)
        if ((items[i] = pop(r)) == NULL)
            return -1;
    for (int i = 0; i < count; i++)
        if (add_item(r, list, items[i]) != 0)
            return -1;
    return push(r, list);
}

/* The values above the last mark go into what is below it. A dictionary that something else than a
 * dictionary was made into (a class's) takes nothing. */
static int add_marked(struct reader *r, enum pickle_type type)
{
    size_t first = find_mark(r);
    struct pickle_value *to = first == SIZE_MAX || first < 2 ? NULL : r->stack[first - 2];

    if (first == SIZE_MAX)
        return -1;
    if (to == NULL)
        return bad(r, "fills what is not there");
    if (type == PICKLE_DICT && (r->depth - first) % 2 != 0)
        return bad(r, "has a key without a value");
    for (size_t i = first; i < r->depth && to->type == type; i++)
        if (add_item(r, to, r->stack[i]) != 0)
            return -1;
    r->depth = first - 1;
    return 0;
}

/* One item, or a key and its value, into what lies below. */
static int add_few(struct reader *r, enum pickle_type type)
{
    struct pickle_value *value = pop(r), *key = type == PICKLE_DICT && value ? pop(r) : NULL, *to;

    if (value == NULL || (type == PICKLE_DICT && key == NULL) || (to = top(r)) == NULL)
        return -1;
    if (to->type != type)
        return 0;
    return (key != NULL && add_item(r, to, key) != 0) ? -1 : add_item(r, to, value);
}

/* A class and its arguments become what they would have made; dictionaries that keep their order
 * are dictionaries. */
static int make(struct reader *r)
{
    struct pickle_value *arguments = pop(r), *class = arguments ? pop(r) : NULL, *made;
    bool ordered;

    if (class == NULL)
        return -1;
    ordered = class->type == PICKLE_CLASS && strcmp(class->text, "collections OrderedDict") == 0;
    made = value_new(r, ordered ? PICKLE_DICT : PICKLE_MADE);
    if (made == NULL ||
        (!ordered && (add_item(r, made, class) != 0 || add_item(r, made, arguments) != 0)))
        return -1;
    return push(r, made);
}

static int stored_elsewhere(struct reader *r)
{
    struct pickle_value *id = pop(r), *v = id != NULL ? value_new(r, PICKLE_ELSEWHERE) : NULL;

    return v == NULL || add_item(r, v, id) != 0 ? -1 : push(r, v);
}

static int drop(struct reader *r)
{
    if (r->depth == 0)
        return bad(r, "takes what is not there");
    r->depth--;
    return 0;
}

static int drop_marked(struct reader *r)
{
    size_t first = find_mark(r);

    if (first == SIZE_MAX)
        return -1;
    r->depth = first - 1;
    return 0;
}

static int numbered(struct reader *r, int bytes, int (*then)(struct reader *, uint64_t))
{
    uint64_t number;

    return take_number(r, bytes, &number) != 0 ? -1 : then(r, number);
}

static int unknown(struct reader *r, int opcode)
{
    char problem[64];

    snprintf(problem, sizeof(problem), "has the opcode 0x%02x, which is not read", opcode);
    return bad(r, problem);
}

static int step(struct reader *r, int opcode)
{
    switch (opcode) {
    case 0x80: /* PROTO */
        return skip_bytes(r, 1);
    case 0x95: /* FRAME */
        return skip_bytes(r, 8);
    case '.': /* STOP */
        r->done = true;
        r->pickle->root = top(r);
        return r->pickle->root != NULL ? 0 : -1;
    case '(': /* MARK */
        return push(r, NULL);
    case 'N': /* NONE */
        return push_new(r, PICKLE_NONE, 0);
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push_new(r, PICKLE_NUMBER, opcode == 0x88);
    case 'K': /* BININT1 */
        return read_unsigned(r, 1);
    case 'M': /* BININT2 */
        return read_unsigned(r, 2);
    case 'J': /* BININT */
        return read_signed(r);
    case 0x8a: /* LONG1 */
        return read_long(r);
    case 'G': /* BINFLOAT */
        return read_fraction(r);
    case 'X': /* BINUNICODE */
    case 'T': /* BINSTRING */
        return read_text(r, 4, PICKLE_TEXT);
    case 0x8c: /* SHORT_BINUNICODE */
    case 'U':  /* SHORT_BINSTRING */
        return read_text(r, 1, PICKLE_TEXT);
    case 'B': /* BINBYTES */
        return read_text(r, 4, PICKLE_OTHER);
    case 'C': /* SHORT_BINBYTES */
        return read_text(r, 1, PICKLE_OTHER);
    case ')':  /* EMPTY_TUPLE */
    case ']':  /* EMPTY_LIST */
    case 0x8f: /* EMPTY_SET */
        return push_new(r, PICKLE_LIST, 0);
    case '}': /* EMPTY_DICT */
        return push_new(r, PICKLE_DICT, 0);
    case 't':  /* TUPLE */
    case 'l':  /* LIST */
    case 0x91: /* FROZENSET */
        return list_of_marked(r);
    case 0x85: /* TUPLE1 */
    case 0x86: /* TUPLE2 */
    case 0x87: /* TUPLE3 */
        return list_of(r, opcode - 0x84);
    case 'a': /* APPEND */
        return add_few(r, PICKLE_LIST);
    case 'e':  /* APPENDS */
    case 0x90: /* ADDITEMS */
        return add_marked(r, PICKLE_LIST);
    case 's': /* SETITEM */
        return add_few(r, PICKLE_DICT);
    case 'u': /* SETITEMS */
        return add_marked(r, PICKLE_DICT);
    case 'c': /* GLOBAL */
        return read_class(r);
    case 0x93: /* STACK_GLOBAL */
        return class_of_texts(r);
    case 'R':  /* REDUCE */
    case 0x81: /* NEWOBJ */
        return make(r);
    case 'b': /* BUILD: a state that nobody asks for */
        return pop(r) == NULL || top(r) == NULL ? -1 : 0;
    case 'Q': /* BINPERSID */
        return stored_elsewhere(r);
    case 'q': /* BINPUT */
        return numbered(r, 1, remember);
    case 'r': /* LONG_BINPUT */
        return numbered(r, 4, remember);
    case 0x94: /* MEMOIZE */
        return remember(r, r->memo_count);
    case 'h': /* BINGET */
        return numbered(r, 1, recall);
    case 'j': /* LONG_BINGET */
        return numbered(r, 4, recall);
    case '0': /* POP */
        return drop(r);
    case '1': /* POP_MARK */
        return drop_marked(r);
    case '2': /* DUP */
        return top(r) == NULL ? -1 : push(r, top(r));
    }
    return unknown(r, opcode);
}

int pickle_read(struct pickle **out, const void *bytes, size_t len, struct err *err)
{
    struct reader r = {.at = bytes, .end = (const unsigned char *)bytes + len, .err = err};
    int rc = 0;

    if (len > PICKLE_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "its pickle has more than %u bytes",
                       PICKLE_MAX_BYTES);
    r.pickle = calloc(1, sizeof(*r.pickle));
    if (r.pickle == NULL)
        return no_memory(&r);
    while (rc == 0 && !r.done)
        rc = r.at < r.end ? step(&r, *r.at++) : bad(&r, "has no end");
    free(r.stack);
    free(r.memo);
    if (rc != 0) {
        pickle_free(r.pickle);
        return -1;
    }
    *out = r.pickle;
    return 0;
}

/* ---- asking ---- */

const struct pickle_value *pickle_root(const struct pickle *pickle)
{
    return pickle->root;
}

const struct pickle_value *pickle_get(const struct pickle_value *dict, const char *key)
{
    for (size_t i = 0; pickle_is(dict, PICKLE_DICT) && i + 1 < dict->count; i += 2)
        if (pickle_is(dict->items[i], PICKLE_TEXT) && strcmp(dict->items[i]->text, key) == 0)
            return dict->items[i + 1];
    return NULL;
}

const struct pickle_value *pickle_item(const struct pickle_value *list, size_t i)
{
    return pickle_is(list, PICKLE_LIST) && i < list->count ? list->items[i] : NULL;
}

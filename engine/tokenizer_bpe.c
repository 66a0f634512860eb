/*
 * tokenizer_bpe.c: byte pair encoding with a heap, so that a word of n bytes takes n log n.
 *
 * A word starts as one symbol per byte in a doubly linked list. The heap holds every pair of
 * neighbours that merge, the lowest rank first, then the leftmost; a pair whose symbols have
 * changed since it was pushed is stale and dropped when it comes up.
 */
#include "engine/tokenizer_bpe.h"

#include "engine/unicode.h"

#include <stdlib.h>
#include <string.h>

#define END_OF_WORD "</w>"
#define NOWHERE UINT32_MAX
#define ID_MAX (1u << 24)

struct word {
    uint32_t at, len; /* in the text of all words; len 0: the slot is free */
    uint32_t id;
};

struct merge {
    uint64_t pair;
    uint32_t rank; /* NOWHERE: the slot is free */
    uint32_t id;
};

struct bpe {
    struct word *words; /* hashed, a power of two of slots */
    size_t words_slots, words_count;
    char *text;
    size_t text_len, text_cap;
    struct merge *merges; /* hashed likewise */
    size_t merges_slots, merges_count, merges_max;
    uint32_t bytes[2][256]; /* ids of a byte inside and at the end of a word */
    uint32_t size;
};

static size_t slots_for(size_t count)
{
    size_t slots = 16;
    while (slots < 2 * count + 2)
        slots *= 2;
    return slots;
}

struct bpe *bpe_create(size_t words, size_t merges)
{
    struct bpe *bpe = calloc(1, sizeof(*bpe));
    if (!bpe)
        return NULL;
    bpe->words_slots = slots_for(words);
    bpe->merges_slots = slots_for(merges);
    bpe->merges_max = merges;
    bpe->words = calloc(bpe->words_slots, sizeof(*bpe->words));
    bpe->merges = malloc(bpe->merges_slots * sizeof(*bpe->merges));
    if (!bpe->words || !bpe->merges) {
        bpe_free(bpe);
        return NULL;
    }
    for (size_t i = 0; i < bpe->merges_slots; i++)
        bpe->merges[i].rank = NOWHERE;
    return bpe;
}

void bpe_free(struct bpe *bpe)
{
    if (!bpe)
        return;
    free(bpe->words);
    free(bpe->text);
    free(bpe->merges);
    free(bpe);
}

static struct word *word_slot(const struct bpe *bpe, const char *text, size_t len)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3u;
    size_t mask = bpe->words_slots - 1;
    for (size_t at = (hash ^ hash >> 32) & mask;; at = (at + 1) & mask) {
        struct word *word = &bpe->words[at];
        bool same = word->len == len && memcmp(bpe->text + word->at, text, len) == 0;
        if (word->len == 0 || same)
            return word;
    }
}

static bool text_append(struct bpe *bpe, const char *text, size_t len)
{
    if (bpe->text_cap - bpe->text_len < len) {
        size_t cap = 2 * bpe->text_cap + len + 4096;
        char *grown = cap < NOWHERE ? realloc(bpe->text, cap) : NULL;
        if (!grown)
            return false;
        bpe->text = grown;
        bpe->text_cap = cap;
    }
    memcpy(bpe->text + bpe->text_len, text, len);
    bpe->text_len += len;
    return true;
}

int bpe_add_word(struct bpe *bpe, const char *word, size_t len, uint32_t id)
{
    bool fits = len > 0 && len <= BPE_WORD_MAX_BYTES && id < ID_MAX;
    if (!fits || 2 * (bpe->words_count + 1) > bpe->words_slots)
        return -1;
    struct word *slot = word_slot(bpe, word, len);
    if (slot->len == 0) {
        size_t at = bpe->text_len;
        if (!text_append(bpe, word, len))
            return -1;
        *slot = (struct word){.at = (uint32_t)at, .len = (uint32_t)len};
        bpe->words_count++;
    }
    slot->id = id;
    if (id >= bpe->size)
        bpe->size = id + 1;
    return 0;
}

uint32_t bpe_find(const struct bpe *bpe, const char *word, size_t len)
{
    if (len == 0)
        return BPE_NONE;
    const struct word *slot = word_slot(bpe, word, len);
    return slot->len ? slot->id : BPE_NONE;
}

uint32_t bpe_size(const struct bpe *bpe)
{
    return bpe->size;
}

static struct merge *merge_slot(const struct bpe *bpe, uint64_t pair)
{
    size_t mask = bpe->merges_slots - 1;
    uint64_t hash = pair * 0x9e3779b97f4a7c15u;
    for (size_t at = (hash >> 32) & mask;; at = (at + 1) & mask) {
        struct merge *merge = &bpe->merges[at];
        if (merge->rank == NOWHERE || merge->pair == pair)
            return merge;
    }
}

static uint64_t pair_of(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

int bpe_add_merge(struct bpe *bpe, const char *left, size_t left_len, const char *right,
                  size_t right_len)
{
    char joined[2 * BPE_WORD_MAX_BYTES];
    bool fits = left_len <= BPE_WORD_MAX_BYTES && right_len <= BPE_WORD_MAX_BYTES;
    if (!fits || bpe->merges_count == bpe->merges_max)
        return -1;
    memcpy(joined, left, left_len);
    memcpy(joined + left_len, right, right_len);
    uint32_t left_id = bpe_find(bpe, left, left_len);
    uint32_t right_id = bpe_find(bpe, right, right_len);
    uint32_t id = bpe_find(bpe, joined, left_len + right_len);
    if (left_id == BPE_NONE || right_id == BPE_NONE || id == BPE_NONE)
        return -1;
    struct merge *slot = merge_slot(bpe, pair_of(left_id, right_id));
    *slot = (struct merge){pair_of(left_id, right_id), (uint32_t)bpe->merges_count++, id};
    return 0;
}

void bpe_letter(unsigned char byte, char out[5])
{
    uint32_t code = byte;
    if (byte <= 32) /* what cannot be printed moves past 255, in order */
        code = 256u + byte;
    else if (byte >= 127 && byte <= 160)
        code = 256u + 33 + (byte - 127u);
    else if (byte == 173)
        code = 256u + 67;
    out[unicode_write(code, out)] = '\0';
}

void bpe_finish(struct bpe *bpe, uint32_t unknown)
{
    for (int byte = 0; byte < 256; byte++) {
        char word[5 + sizeof(END_OF_WORD)];
        bpe_letter((unsigned char)byte, word);
        uint32_t inside = bpe_find(bpe, word, strlen(word));
        strcat(word, END_OF_WORD);
        uint32_t at_end = bpe_find(bpe, word, strlen(word));
        bpe->bytes[0][byte] = inside == BPE_NONE ? unknown : inside;
        bpe->bytes[1][byte] = at_end == BPE_NONE ? unknown : at_end;
    }
    free(bpe->words);
    free(bpe->text);
    bpe->words = NULL;
    bpe->text = NULL;
}

struct symbol {
    uint32_t id; /* BPE_NONE: merged into its left neighbour */
    uint32_t before, after;
};

struct candidate {
    uint64_t order; /* rank, then place */
    uint64_t pair;
    uint32_t id;
};

struct bpe_scratch {
    struct symbol *symbols;
    struct candidate *heap; /* each merge takes one pair off the list and pushes at most two */
    uint32_t *ids;
    unsigned char *bytes;
    size_t max_bytes, heap_count;
};

struct bpe_scratch *bpe_scratch_create(void)
{
    return calloc(1, sizeof(struct bpe_scratch));
}

static void scratch_clear(struct bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    free(scratch->ids);
    free(scratch->bytes);
    *scratch = (struct bpe_scratch){0};
}

void bpe_scratch_free(struct bpe_scratch *scratch)
{
    if (scratch)
        scratch_clear(scratch);
    free(scratch);
}

unsigned char *bpe_scratch_word(struct bpe_scratch *scratch, size_t max_bytes)
{
    if (max_bytes <= scratch->max_bytes)
        return scratch->bytes;
    size_t room = 2 * max_bytes + 64;
    scratch_clear(scratch);
    scratch->symbols = malloc(room * sizeof(*scratch->symbols));
    scratch->heap = malloc(3 * room * sizeof(*scratch->heap));
    scratch->ids = malloc(room * sizeof(*scratch->ids));
    scratch->bytes = malloc(room);
    if (!scratch->symbols || !scratch->heap || !scratch->ids || !scratch->bytes) {
        scratch_clear(scratch);
        return NULL;
    }
    scratch->max_bytes = room;
    return scratch->bytes;
}

static void heap_push(struct bpe_scratch *scratch, struct candidate item)
{
    struct candidate *heap = scratch->heap;
    size_t at = scratch->heap_count++;
    for (; at > 0 && heap[(at - 1) / 2].order > item.order; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = item;
}

static struct candidate heap_pop(struct bpe_scratch *scratch)
{
    struct candidate *heap = scratch->heap, top = heap[0];
    struct candidate last = heap[--scratch->heap_count];
    size_t at = 0, count = scratch->heap_count;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1].order < heap[child].order)
            child++;
        if (heap[child].order >= last.order)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

/* Pushes the pair that starts at `left`, if it merges. */
static void consider(const struct bpe *bpe, struct bpe_scratch *scratch, uint32_t left)
{
    const struct symbol *symbols = scratch->symbols;
    if (left == NOWHERE || symbols[left].after == NOWHERE)
        return;
    uint64_t pair = pair_of(symbols[left].id, symbols[symbols[left].after].id);
    const struct merge *merge = merge_slot(bpe, pair);
    if (merge->rank != NOWHERE)
        heap_push(scratch, (struct candidate){pair_of(merge->rank, left), pair, merge->id});
}

static void merge_best(const struct bpe *bpe, struct bpe_scratch *scratch)
{
    struct symbol *symbols = scratch->symbols;
    struct candidate best = heap_pop(scratch);
    uint32_t left = (uint32_t)best.order, right = symbols[left].after;
    if (symbols[left].id == BPE_NONE || right == NOWHERE ||
        pair_of(symbols[left].id, symbols[right].id) != best.pair)
        return;
    symbols[left].id = best.id;
    symbols[left].after = symbols[right].after;
    symbols[right].id = BPE_NONE;
    if (symbols[left].after != NOWHERE)
        symbols[symbols[left].after].before = left;
    consider(bpe, scratch, symbols[left].before);
    consider(bpe, scratch, left);
}

const uint32_t *bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, size_t len,
                           size_t *count)
{
    ASSERT(len > 0 && len <= scratch->max_bytes);
    for (uint32_t i = 0; i < len; i++) {
        bool last = i + 1 == len;
        scratch->symbols[i] = (struct symbol){.id = bpe->bytes[last][scratch->bytes[i]],
                                              .before = i ? i - 1 : NOWHERE,
                                              .after = last ? NOWHERE : i + 1};
    }
    scratch->heap_count = 0;
    for (uint32_t i = 0; i < len; i++)
        consider(bpe, scratch, i);
    while (scratch->heap_count > 0)
        merge_best(bpe, scratch);
    *count = 0;
    for (uint32_t i = 0; i != NOWHERE; i = scratch->symbols[i].after)
        scratch->ids[(*count)++] = scratch->symbols[i].id;
    return scratch->ids;
}

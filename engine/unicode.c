#include "engine/unicode.h"

#include "engine/unicode_tables.h"

#include <stdbool.h>
#include <stdlib.h>

/* Hangul syllables are computed from their parts (Unicode, section 3.12). */
#define SYLLABLE_FIRST 0xac00u
#define LEAD_FIRST 0x1100u
#define VOWEL_FIRST 0x1161u
#define TAIL_BEFORE 0x11a7u
#define LEADS 19u
#define VOWELS 21u
#define TAILS 28u
#define SYLLABLES (LEADS * VOWELS * TAILS)

static int compare(uint32_t a, uint32_t b)
{
    return (a > b) - (a < b);
}

static int compare_range(const void *key, const void *row)
{
    const struct unicode_range *range = row;
    uint32_t code = *(const uint32_t *)key;
    return code < range->first ? -1 : code > range->last;
}

static int compare_pair(const void *key, const void *row)
{
    return compare(*(const uint32_t *)key, ((const struct unicode_pair *)row)->from);
}

static int compare_split(const void *key, const void *row)
{
    return compare(*(const uint32_t *)key, ((const struct unicode_split *)row)->from);
}

static int compare_join(const void *key, const void *row)
{
    const struct unicode_join *a = key, *b = row;
    return a->first != b->first ? compare(a->first, b->first) : compare(a->second, b->second);
}

static uint8_t range_value(const struct unicode_range *ranges, size_t count, uint32_t code)
{
    const struct unicode_range *range =
        bsearch(&code, ranges, count, sizeof(*ranges), compare_range);
    return range ? range->value : 0;
}

enum unicode_class unicode_class(uint32_t code)
{
    return (enum unicode_class)range_value(unicode_classes, unicode_classes_count, code);
}

static uint8_t mark_class(uint32_t code)
{
    return code < 0x300 ? 0 : range_value(unicode_marks, unicode_marks_count, code);
}

size_t unicode_to_lower(uint32_t code, uint32_t out[UNICODE_LOWER_MAX])
{
    if (code == 0x130) { /* I with a dot */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    const struct unicode_pair *pair =
        bsearch(&code, unicode_lower, unicode_lower_count, sizeof(*unicode_lower), compare_pair);
    out[0] = pair ? pair->to : code;
    return 1;
}

static size_t split_syllable(uint32_t code, uint32_t *out)
{
    uint32_t index = code - SYLLABLE_FIRST;
    uint32_t tail = index % TAILS;
    out[0] = LEAD_FIRST + index / (VOWELS * TAILS);
    out[1] = VOWEL_FIRST + index / TAILS % VOWELS;
    out[2] = TAIL_BEFORE + tail;
    return tail ? 3 : 2;
}

static size_t split(uint32_t code, uint32_t out[UNICODE_NFD_MAX])
{
    if (code >= SYLLABLE_FIRST && code < SYLLABLE_FIRST + SYLLABLES)
        return split_syllable(code, out);
    const struct unicode_split *found = bsearch(&code, unicode_splits, unicode_splits_count,
                                                sizeof(*unicode_splits), compare_split);
    out[0] = code;
    if (!found)
        return 1;
    size_t n = 0;
    for (; n < UNICODE_NFD_MAX && found->parts[n]; n++)
        out[n] = found->parts[n];
    return n;
}

/* Puts the marks after each starter into the order of their classes, equal ones as they were. The
 * class rides along above the code point, so that it is looked up once. */
static void order_marks(uint32_t *codes, size_t n)
{
    const int class_shift = 24;
    for (size_t i = 0; i < n; i++) {
        uint32_t class = mark_class(codes[i]), code = codes[i] | class << class_shift;
        size_t at = i;
        for (; class && at > 0 && codes[at - 1] >> class_shift > class; at--)
            codes[at] = codes[at - 1];
        codes[at] = code;
    }
    for (size_t i = 0; i < n; i++)
        codes[i] &= (1u << class_shift) - 1;
}

/* The character that two become, or 0. */
static uint32_t join(uint32_t first, uint32_t second)
{
    if (first - LEAD_FIRST < LEADS && second - VOWEL_FIRST < VOWELS)
        return SYLLABLE_FIRST + ((first - LEAD_FIRST) * VOWELS + second - VOWEL_FIRST) * TAILS;
    bool open = first - SYLLABLE_FIRST < SYLLABLES && (first - SYLLABLE_FIRST) % TAILS == 0;
    if (open && second - TAIL_BEFORE - 1 < TAILS - 1)
        return first + second - TAIL_BEFORE;
    struct unicode_join key = {first, second, 0};
    const struct unicode_join *found =
        bsearch(&key, unicode_joins, unicode_joins_count, sizeof(key), compare_join);
    return found ? found->joined : 0;
}

static size_t join_all(uint32_t *codes, size_t n)
{
    size_t out = 0, starter = SIZE_MAX;
    uint8_t before = 0; /* class of the last character kept since the starter */
    for (size_t i = 0; i < n; i++) {
        uint8_t class = mark_class(codes[i]);
        bool reaches = starter != SIZE_MAX && (out == starter + 1 || before < class);
        uint32_t joined = reaches ? join(codes[starter], codes[i]) : 0;
        if (joined) {
            codes[starter] = joined;
            continue;
        }
        if (class == 0)
            starter = out;
        before = class;
        codes[out++] = codes[i];
    }
    return out;
}

size_t unicode_to_nfc(const uint32_t *in, size_t n, uint32_t *out)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += split(in[i], out + count);
    order_marks(out, count);
    return join_all(out, count);
}

uint32_t unicode_read(const char *text, size_t len, size_t *at)
{
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = (const unsigned char *)text + *at;
    unsigned char lead = bytes[0];
    size_t more = lead < 0x80 ? 0 : lead < 0xc2 ? 9 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    if (more > 3 || lead > 0xf4 || more >= len - *at)
        return UINT32_MAX;
    uint32_t code = more == 0 ? lead : lead & (0x3fu >> more);
    for (size_t i = 1; i <= more; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return UINT32_MAX;
        code = code << 6 | (bytes[i] & 0x3f);
    }
    if (code < smallest[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        return UINT32_MAX;
    *at += more + 1;
    return code;
}

size_t unicode_write(uint32_t code, char out[4])
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char leads[] = {0, 0xc0, 0xe0, 0xf0};
    for (size_t i = more; i > 0; i--, code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)(leads[more] | code);
    return more + 1;
}

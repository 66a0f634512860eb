#include "engine/adapter_keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AMBIGUOUS -1

/* A spelling, without what follows it in a key. */
struct base {
    size_t at; /* in `text` */
    enum component component;
    int number;
};

struct adapter_keys {
    char *text; /* all spellings, each with its end */
    size_t len, capacity;
    struct base *bases; /* by spelling, once sealed */
    int count, room;
};

int adapter_keys_create(struct adapter_keys **out, struct err *err)
{
    *out = calloc(1, sizeof(**out));
    return *out != NULL ? 0 : err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for adapter names");
}

void adapter_keys_free(struct adapter_keys *keys)
{
    if (keys == NULL)
        return;
    free(keys->text);
    free(keys->bases);
    free(keys);
}

/* ---- spellings ---- */

/* One name being entered. */
struct entry {
    struct adapter_keys *keys;
    enum component component;
    int number;
    bool failed;
};

static bool make_room(struct adapter_keys *keys, size_t len)
{
    if (keys->len + len > keys->capacity) {
        size_t capacity = 2 * keys->capacity + len + 4096;
        char *text = realloc(keys->text, capacity);
        if (text == NULL)
            return false;
        keys->text = text;
        keys->capacity = capacity;
    }
    if (keys->count == keys->room) {
        int room = 2 * keys->room + 256;
        struct base *bases = realloc(keys->bases, (size_t)room * sizeof(*bases));
        if (bases == NULL)
            return false;
        keys->bases = bases;
        keys->room = room;
    }
    return true;
}

static void enter(struct entry *e, const char *prefix, const char *name, bool flat)
{
    struct adapter_keys *keys = e->keys;
    size_t before = strlen(prefix), len = strlen(name);
    char *text;

    e->failed = e->failed || !make_room(keys, before + len + 1);
    if (e->failed)
        return;
    text = keys->text + keys->len;
    memcpy(text, prefix, before);
    memcpy(text + before, name, len + 1);
    for (char *c = text + before; flat && *c != '\0'; c++)
        *c = *c == '.' ? '_' : *c;
    keys->bases[keys->count++] =
        (struct base){.at = keys->len, .component = e->component, .number = e->number};
    keys->len += before + len + 1;
}

/* `name` with its end `from` replaced, if it has that end. */
static bool with_end(const char *name, const char *from, const char *to, char *out)
{
    size_t len = strlen(name), tail = strlen(from);

    if (len < tail || strcmp(name + len - tail, from) != 0)
        return false;
    return snprintf(out, CHECKPOINT_NAME_MAX_BYTES, "%.*s%s", (int)(len - tail), name, to) <
           CHECKPOINT_NAME_MAX_BYTES;
}

/* The names that diffusers' first attention processors gave: `_lora` follows them in keys. */
static const char *const UNET_PROCESSORS[][2] = {
    {".attn1.to_q", ".attn1.processor.to_q"}, {".attn1.to_k", ".attn1.processor.to_k"},
    {".attn1.to_v", ".attn1.processor.to_v"}, {".attn1.to_out.0", ".attn1.processor.to_out"},
    {".attn2.to_q", ".attn2.processor.to_q"}, {".attn2.to_k", ".attn2.processor.to_k"},
    {".attn2.to_v", ".attn2.processor.to_v"}, {".attn2.to_out.0", ".attn2.processor.to_out"},
};
static const char *const TEXT_PROCESSORS[][2] = {
    {".self_attn.q_proj", ".self_attn.to_q"},
    {".self_attn.k_proj", ".self_attn.to_k"},
    {".self_attn.v_proj", ".self_attn.to_v"},
    {".self_attn.out_proj", ".self_attn.to_out"},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void enter_unet(struct entry *e, const char *name, const struct ldm_layout *layout)
{
    static const char *const DOTTED[] = {"unet.", "", "base_model.model.",
                                         "unet.base_model.model."};
    char other[CHECKPOINT_NAME_MAX_BYTES];
    struct ldm_place place;

    for (size_t i = 0; i < COUNT(DOTTED); i++)
        enter(e, DOTTED[i], name, false);
    enter(e, "lora_unet_", name, true);
    enter(e, "lycoris_", name, true);
    enter(e, "lycoris_unet_", name, true);
    for (size_t i = 0; i < COUNT(UNET_PROCESSORS); i++)
        if (with_end(name, UNET_PROCESSORS[i][0], UNET_PROCESSORS[i][1], other)) {
            enter(e, "unet.", other, false);
            enter(e, "", other, false);
        }
    if (!ldm_find(layout, COMPONENT_UNET, name, &place))
        return;
    enter(e, "model.diffusion_model.", place.name, false);
    enter(e, "diffusion_model.", place.name, false);
    enter(e, "lora_unet_", place.name, true);
}

/* The prefixes of a text encoder's names in files. */
struct text_prefixes {
    const char *dotted[3], *flat[3]; /* each ends with NULL */
};

static void enter_text(struct entry *e, const char *name, const struct text_prefixes *prefixes)
{
    char other[CHECKPOINT_NAME_MAX_BYTES];
    const char *spelled[2] = {name, NULL};

    if (strncmp(name, "text_model.", 11) == 0)
        spelled[1] = name + 11;
    for (int s = 0; s < 2 && spelled[s] != NULL; s++) {
        for (int i = 0; prefixes->dotted[i] != NULL; i++) {
            enter(e, prefixes->dotted[i], spelled[s], false);
            for (size_t p = 0; p < COUNT(TEXT_PROCESSORS); p++)
                if (with_end(spelled[s], TEXT_PROCESSORS[p][0], TEXT_PROCESSORS[p][1], other))
                    enter(e, prefixes->dotted[i], other, false);
        }
        for (int i = 0; prefixes->flat[i] != NULL; i++)
            enter(e, prefixes->flat[i], spelled[s], true);
    }
}

int adapter_keys_add(struct adapter_keys *keys, enum component component, int number,
                     const char *name, const struct ldm_layout *layout, bool alone, struct err *err)
{
    static const struct text_prefixes
        FIRST = {{"text_encoder.", "text_encoders.clip_l.transformer."}, {"lora_te_", "lora_te1_"}},
        SECOND = {{"text_encoder_2.", "text_encoders.clip_g.transformer."}, {"lora_te2_"}},
        ONLY = {{"text_encoder."}, {"lora_te_", "lora_te1_"}};
    struct entry e = {.keys = keys, .component = component, .number = number};

    if (component == COMPONENT_UNET)
        enter_unet(&e, name, layout);
    if (component == COMPONENT_TEXT)
        enter_text(&e, name, &FIRST);
    if (component == COMPONENT_TEXT_2)
        enter_text(&e, name, &SECOND);
    if (component == COMPONENT_TEXT_2 && alone)
        enter_text(&e, name, &ONLY);
    return e.failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for adapter names") : 0;
}

/* While it sorts, places are pointers. */
struct spelled {
    const char *text;
    struct base base;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct spelled *)a)->text, ((const struct spelled *)b)->text);
}

int adapter_keys_seal(struct adapter_keys *keys, struct err *err)
{
    struct spelled *all = malloc(((size_t)keys->count + 1) * sizeof(*all));
    int kept = 0;

    if (all == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for adapter names");
    for (int i = 0; i < keys->count; i++)
        all[i] = (struct spelled){keys->text + keys->bases[i].at, keys->bases[i]};
    qsort(all, (size_t)keys->count, sizeof(*all), by_text);
    for (int i = 0; i < keys->count; i++) {
        struct base *last = kept > 0 ? &keys->bases[kept - 1] : NULL;
        if (last == NULL || strcmp(keys->text + last->at, all[i].text) != 0)
            keys->bases[kept++] = all[i].base;
        else if (last->number != all[i].base.number || last->component != all[i].base.component)
            last->number = AMBIGUOUS;
    }
    keys->count = kept;
    free(all);
    return 0;
}

/* ---- keys ---- */

/* What follows a spelling. '*' stands for a name without dots: the adapter's, in peft. */
static const struct {
    const char *text;
    enum adapter_role role;
} SUFFIXES[] = {
    {".lora_down.weight", ROLE_DOWN},
    {".lora_up.weight", ROLE_UP},
    {".lora_mid.weight", ROLE_MID},
    {".lora_A.weight", ROLE_DOWN},
    {".lora_B.weight", ROLE_UP},
    {".lora_A.*.weight", ROLE_DOWN},
    {".lora_B.*.weight", ROLE_UP},
    {".lora.down.weight", ROLE_DOWN},
    {".lora.up.weight", ROLE_UP},
    {"_lora.down.weight", ROLE_DOWN},
    {"_lora.up.weight", ROLE_UP},
    {".lora_linear_layer.down.weight", ROLE_DOWN},
    {".lora_linear_layer.up.weight", ROLE_UP},
    {".alpha", ROLE_ALPHA},
    {".lora.alpha", ROLE_ALPHA},
    {"_lora.alpha", ROLE_ALPHA},
    {".lora_linear_layer.alpha", ROLE_ALPHA},
    {".dora_scale", ROLE_MAGNITUDE},
    {".lora_magnitude_vector", ROLE_MAGNITUDE},
    {".lora_magnitude_vector.weight", ROLE_MAGNITUDE},
    {".lora_magnitude_vector.*.weight", ROLE_MAGNITUDE},
    {".diff", ROLE_DIFF},
    {".diff_b", ROLE_DIFF_BIAS},
    {".hada_w1_a", ROLE_HADA_W1_A},
    {".hada_w1_b", ROLE_HADA_W1_B},
    {".hada_w2_a", ROLE_HADA_W2_A},
    {".hada_w2_b", ROLE_HADA_W2_B},
    {".hada_t1", ROLE_HADA_T1},
    {".hada_t2", ROLE_HADA_T2},
    {".lokr_w1", ROLE_LOKR_W1},
    {".lokr_w1_a", ROLE_LOKR_W1_A},
    {".lokr_w1_b", ROLE_LOKR_W1_B},
    {".lokr_w2", ROLE_LOKR_W2},
    {".lokr_w2_a", ROLE_LOKR_W2_A},
    {".lokr_w2_b", ROLE_LOKR_W2_B},
    {".lokr_t2", ROLE_LOKR_T2},
};

/* Where `suffix` begins in a key that ends with it, or NULL. */
static const char *suffix_of(const char *key, size_t len, const char *suffix)
{
    const char *star = strchr(suffix, '*');
    size_t head = star != NULL ? (size_t)(star - suffix) : strlen(suffix);
    size_t tail = star != NULL ? strlen(star + 1) : 0;
    const char *end = key + len;

    if (star != NULL) {
        if (len < tail || strcmp(end - tail, star + 1) != 0)
            return NULL;
        for (end -= tail; end > key && end[-1] != '.'; end--)
            continue;
    }
    return (size_t)(end - key) > head && memcmp(end - head, suffix, head) == 0 ? end - head : NULL;
}

static const struct base *find_base(const struct adapter_keys *keys, const char *text)
{
    int low = 0, high = keys->count;

    while (low < high) {
        int middle = (low + high) / 2;
        int order = strcmp(keys->text + keys->bases[middle].at, text);
        if (order == 0)
            return &keys->bases[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

bool adapter_keys_find(const struct adapter_keys *keys, const char *key, struct adapter_key *found)
{
    size_t len = strlen(key);
    char text[ADAPTER_KEY_MAX_BYTES];

    if (len >= sizeof(text))
        return false;
    for (size_t i = 0; i < COUNT(SUFFIXES); i++) {
        const char *end = suffix_of(key, len, SUFFIXES[i].text);
        const struct base *base;
        if (end == NULL)
            continue;
        snprintf(text, sizeof(text), "%.*s", (int)(end - key), key);
        base = find_base(keys, text);
        if (base == NULL || base->number == AMBIGUOUS)
            continue;
        *found = (struct adapter_key){
            .component = base->component, .number = base->number, .role = SUFFIXES[i].role};
        return true;
    }
    return false;
}

#include "engine/text_cache.h"

#include <stdlib.h>
#include <string.h>

struct text_entry {
    struct text_entry *older;
    struct text_key key;
    size_t bytes; /* of values */
    float values[];
};

const float *text_cache_find(struct text_cache *cache, const struct text_key *key)
{
    for (struct text_entry **link = &cache->newest; *link != NULL; link = &(*link)->older) {
        struct text_entry *entry = *link;
        if (memcmp(&entry->key, key, sizeof(*key)) != 0)
            continue;
        *link = entry->older;
        entry->older = cache->newest;
        cache->newest = entry;
        return entry->values;
    }
    return NULL;
}

/* Lets go of all entries that are used less recently than those that fit. */
static void trim(struct text_cache *cache, size_t max)
{
    struct text_entry **link = &cache->newest;
    size_t kept = 0;

    while (*link != NULL && kept + (*link)->bytes <= max) {
        kept += (*link)->bytes;
        link = &(*link)->older;
    }
    cache->bytes = kept;
    while (*link != NULL) {
        struct text_entry *gone = *link;
        *link = gone->older;
        free(gone);
    }
}

void text_cache_add(struct text_cache *cache, const struct text_key *key, const float *embeds,
                    size_t embed_count, const float *pooled, size_t pooled_count)
{
    size_t bytes = (embed_count + pooled_count) * sizeof(float);
    struct text_entry *entry = malloc(sizeof(*entry) + bytes);

    if (entry == NULL)
        return;
    entry->key = *key;
    entry->bytes = bytes;
    memcpy(entry->values, embeds, embed_count * sizeof(float));
    memcpy(entry->values + embed_count, pooled, pooled_count * sizeof(float));
    entry->older = cache->newest;
    cache->newest = entry;
    cache->bytes += bytes;
    if (cache->bytes > TEXT_CACHE_MAX_BYTES)
        trim(cache, TEXT_CACHE_MAX_BYTES);
}

void text_cache_release(struct text_cache *cache)
{
    trim(cache, 0);
}

uint64_t text_key_mix(uint64_t hash, const void *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u; /* FNV-1a */
    return hash;
}

/*
 * A session as bytes: a header that is checked, then its plain values and tensors in a fixed order.
 * Little-endian machines only, like everything that this engine runs on.
 */
#include "engine/runtime.h"

#define STATE_MAGIC 0x53535441u /* "ATSS" */
#define STATE_VERSION 2

struct header {
    uint32_t magic, version;
    uint64_t checksum;    /* of all bytes with this field as 0 */
    uint64_t fingerprint; /* of the model */
    uint64_t total_bytes;
    int32_t width, height;
    int32_t rows, tokens;
    double guidance_scale;
};

static size_t state_bytes(const struct session *s)
{
    return sizeof(struct header) + sizeof(s->plan) + sizeof(s->state) + sizeof(s->rng) +
           sizeof(s->conditioning.ids) + sizeof(s->conditioning.guidance_scale) +
           (conditioning_count(&s->conditioning) + (1 + SAMPLER_HISTORY) * s->count) *
               sizeof(float);
}

/* FNV-1a over words: tells damage, not malice. */
static uint64_t checksum(struct header header, const char *rest, size_t len)
{
    uint64_t hash = 0xcbf29ce484222325u, word;

    header.checksum = 0;
    for (size_t i = 0; i < sizeof(header); i += sizeof(word)) {
        memcpy(&word, (const char *)&header + i, sizeof(word));
        hash = (hash ^ word) * 0x100000001b3u;
    }
    for (size_t i = 0; i < len; i += sizeof(word)) {
        word = 0;
        memcpy(&word, rest + i, len - i < sizeof(word) ? len - i : sizeof(word));
        hash = (hash ^ word) * 0x100000001b3u;
    }
    return hash;
}

int session_save(const struct session *s, struct buf *out, struct err *err)
{
    struct header header = {.magic = STATE_MAGIC,
                            .version = STATE_VERSION,
                            .fingerprint = s->model->fingerprint,
                            .total_bytes = state_bytes(s),
                            .width = s->width,
                            .height = s->height,
                            .rows = s->conditioning.rows,
                            .tokens = s->conditioning.tokens,
                            .guidance_scale = s->guidance_scale};
    size_t start = out->len;

    buf_append(out, &header, sizeof(header));
    buf_append(out, &s->plan, sizeof(s->plan));
    buf_append(out, &s->state, sizeof(s->state));
    buf_append(out, &s->rng, sizeof(s->rng));
    buf_append(out, s->conditioning.ids, sizeof(s->conditioning.ids));
    buf_append(out, &s->conditioning.guidance_scale, sizeof(s->conditioning.guidance_scale));
    buf_append(out, s->conditioning.text, conditioning_count(&s->conditioning) * sizeof(float));
    buf_append(out, s->latents, (1 + SAMPLER_HISTORY) * s->count * sizeof(float));
    if (out->failed)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no room for a saved session");
    header.checksum =
        checksum(header, out->data + start + sizeof(header), out->len - start - sizeof(header));
    memcpy(out->data + start, &header, sizeof(header));
    return 0;
}

/* `rest`: what follows the header; `len` bytes in all. */
static int check_header(const struct header *h, const struct model *model, const char *rest,
                        size_t len, struct err *err)
{
    if (h->magic != STATE_MAGIC || h->version != STATE_VERSION)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "a saved session is damaged or of another version of the engine");
    if (h->fingerprint != model->fingerprint)
        return err_set(err, ERR_CONFLICT, ERR_REJECT,
                       "a saved session belongs to another model than %s", model->info.path);
    if (h->total_bytes != len || h->checksum != checksum(*h, rest, len - sizeof(*h)) ||
        h->width < ENGINE_SIZE_MIN || h->width > ENGINE_SIZE_MAX || h->height < ENGINE_SIZE_MIN ||
        h->height > ENGINE_SIZE_MAX || h->width % model->info.vae_factor != 0 ||
        h->height % model->info.vae_factor != 0 || h->rows < 1 || h->rows > CONDITIONING_ROWS_MAX)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is truncated or damaged");
    return 0;
}

static const char *take(const char *from, void *to, size_t bytes)
{
    memcpy(to, from, bytes);
    return from + bytes;
}

int session_restore(struct session **out, struct model *model, const void *bytes, size_t len,
                    const struct stage_observer *observer, struct err *err)
{
    struct header header = {0};
    const char *at = bytes;
    struct session *s;

    if (len < sizeof(header))
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is truncated");
    at = take(at, &header, sizeof(header));
    if (check_header(&header, model, at, len, err) != 0 ||
        session_alloc(&s, model, header.width, header.height, header.rows, err) != 0)
        return -1;
    if (header.tokens != s->conditioning.tokens || state_bytes(s) != len) {
        session_free(s);
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is truncated or damaged");
    }
    s->guidance_scale = header.guidance_scale;
    at = take(at, &s->plan, sizeof(s->plan));
    at = take(at, &s->state, sizeof(s->state));
    at = take(at, &s->rng, sizeof(s->rng));
    at = take(at, s->conditioning.ids, sizeof(s->conditioning.ids));
    at = take(at, &s->conditioning.guidance_scale, sizeof(s->conditioning.guidance_scale));
    at = take(at, s->conditioning.text, conditioning_count(&s->conditioning) * sizeof(float));
    take(at, s->latents, (1 + SAMPLER_HISTORY) * s->count * sizeof(float));
    if (!sampler_state_is_valid(&s->plan, &s->state) || !rng_is_valid(&s->rng)) {
        session_free(s);
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is damaged");
    }
    if (observer != NULL)
        s->observer = *observer;
    *out = s;
    return 0;
}

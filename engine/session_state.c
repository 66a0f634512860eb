/*
 * A session as bytes: a header that is checked, then its plain values and tensors in a fixed order.
 * Little-endian machines only, like everything that this engine runs on.
 */
#include "engine/runtime.h"

#define STATE_MAGIC 0x53535441u /* "ATSS" */
#define STATE_VERSION 8

struct header {
    uint32_t magic, version;
    uint64_t checksum;    /* of all bytes with this field as 0 */
    uint64_t fingerprint; /* of the model that takes the next step */
    uint64_t sequel;      /* of the one after it; 0: none */
    uint64_t total_bytes;
    int32_t width, height;
    int32_t end, steps_before;
    int32_t blends, adapters;
    int32_t controls;
    int32_t redraws; /* the sequel is a second pass, and then: */
    int32_t enlargement, reserved;
    int32_t sequel_width, sequel_height;
    struct guidance guidance;
    struct freeu freeu;
};

static size_t picture_count(const struct session *s)
{
    return s->extra_count + (s->blends ? 2 * s->count + s->count / LATENT_CHANNELS : 0);
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

static struct header header_of(const struct session *s)
{
    const struct sequel none = {0}, *sequel = s->sequel ? s->sequel : &none;

    return (struct header){.magic = STATE_MAGIC,
                           .version = STATE_VERSION,
                           .fingerprint = s->model->fingerprint,
                           .sequel = s->sequel ? sequel->model->fingerprint : 0,
                           .redraws = sequel->redraws,
                           .enlargement = sequel->enlargement,
                           .sequel_width = sequel->width,
                           .sequel_height = sequel->height,
                           .width = s->width,
                           .height = s->height,
                           .end = s->end,
                           .steps_before = s->steps_before,
                           .blends = s->blends,
                           .controls = s->control_count,
                           .guidance = s->guidance,
                           .freeu = s->freeu};
}

int session_save(const struct session *s, struct buf *out, struct err *err)
{
    struct header header = header_of(s);
    struct saved_adapter adapters[ENGINE_ADAPTERS_MAX];
    size_t start = out->len;

    pthread_mutex_lock(&s->model->engine->lock);
    header.adapters = adaptation_save(s->adaptation, adapters);
    buf_append(out, &header, sizeof(header));
    buf_append(out, adapters, sizeof(adapters));
    session_controls_save(s, out);
    pthread_mutex_unlock(&s->model->engine->lock);
    buf_append(out, &s->plan, sizeof(s->plan));
    buf_append(out, &s->state, sizeof(s->state));
    buf_append(out, &s->rng, sizeof(s->rng));
    conditioning_save(&s->conditioning, out);
    buf_append(out, s->latents, (1 + SAMPLER_HISTORY) * s->count * sizeof(float));
    buf_append(out, s->extra, picture_count(s) * sizeof(float));
    if (s->sequel != NULL) {
        buf_append(out, &s->sequel->plan, sizeof(s->sequel->plan));
        conditioning_save(&s->sequel->conditioning, out);
    }
    if (out->failed)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no room for a saved session");
    header.total_bytes = out->len - start;
    header.checksum =
        checksum(header, out->data + start + sizeof(header), out->len - start - sizeof(header));
    memcpy(out->data + start, &header, sizeof(header));
    return 0;
}

static int damaged(struct err *err)
{
    return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is truncated or damaged");
}

/* The model that takes the next step; NULL, with an error, when the state is of neither. */
static struct model *model_of(const struct header *h, struct model *model, struct model *refiner,
                              struct err *err)
{
    struct model *next = h->fingerprint == model->fingerprint ? model : refiner;
    bool known = next != NULL && h->fingerprint == next->fingerprint;
    const struct model *sequel = h->redraws ? next : refiner;

    if (known && (h->sequel == 0 || (sequel != NULL && h->sequel == sequel->fingerprint)))
        return next;
    err_set(err, ERR_CONFLICT, ERR_REJECT, "a saved session belongs to another model than %s",
            model->info.path);
    return NULL;
}

static bool size_is_valid(int width, int height)
{
    return width >= ENGINE_SIZE_MIN && width <= ENGINE_SIZE_MAX && height >= ENGINE_SIZE_MIN &&
           height <= ENGINE_SIZE_MAX;
}

/* `rest`: what follows the header; `len` bytes in all. */
static int check_header(const struct header *h, const char *rest, size_t len, struct err *err)
{
    bool sized = size_is_valid(h->width, h->height) &&
                 (!h->redraws || size_is_valid(h->sequel_width, h->sequel_height));

    if (h->magic != STATE_MAGIC || h->version != STATE_VERSION)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "a saved session is damaged or of another version of the engine");
    if (h->total_bytes != len || h->checksum != checksum(*h, rest, len - sizeof(*h)) || !sized ||
        h->controls < 0 || h->controls > ENGINE_CONTROLS_MAX || h->enlargement < 0 ||
        h->enlargement >= ENLARGE_COUNT)
        return damaged(err);
    return 0;
}

/* The bytes that are left of a state. */
struct rest {
    const char *at, *end;
    bool failed; /* they were too few, or made no sense */
};

static void take(struct rest *rest, void *to, size_t bytes)
{
    rest->failed = rest->failed || (size_t)(rest->end - rest->at) < bytes;
    if (rest->failed)
        return;
    memcpy(to, rest->at, bytes);
    rest->at += bytes;
}

static void take_conditioning(struct rest *rest, struct conditioning *c,
                              const struct unet_config *unet)
{
    if (!rest->failed && conditioning_restore(c, unet, &rest->at, rest->end) != 0)
        rest->failed = true;
}

/* The lock is held. */
static int take_controls(struct session *s, int count, struct rest *rest, struct err *err)
{
    size_t bytes = session_controls_bytes(s, count);
    const char *at = rest->at;

    if ((size_t)(rest->end - at) < bytes)
        return damaged(err);
    rest->at += bytes;
    return session_controls_restore(s, at, count, err);
}

static int add_sequel(struct session *s, const struct header *h, struct model *refiner,
                      struct err *err)
{
    const struct draw_hires hires = {.width = h->sequel_width,
                                     .height = h->sequel_height,
                                     .enlargement = (enum enlargement)h->enlargement};

    if (h->sequel == 0)
        return 0;
    return h->redraws ? session_add_second_pass(s, &hires, err)
                      : session_add_refiner(s, refiner, err);
}

/* Whether the model's VAE divides the sizes. */
static bool fits_vae(const struct header *h, const struct model *model)
{
    int factor = model->info.vae_factor;

    return h->width % factor == 0 && h->height % factor == 0 && h->sequel_width % factor == 0 &&
           h->sequel_height % factor == 0;
}

/* Fills a session that has the state's size. */
static int take_state(struct session *s, const struct header *h, struct rest *rest, struct err *err)
{
    struct sequel *sequel = s->sequel;

    s->guidance = h->guidance;
    s->freeu = h->freeu;
    s->end = h->end;
    s->steps_before = h->steps_before;
    take(rest, &s->plan, sizeof(s->plan));
    take(rest, &s->state, sizeof(s->state));
    take(rest, &s->rng, sizeof(s->rng));
    take_conditioning(rest, &s->conditioning, &s->model->unet.config);
    take(rest, s->latents, (1 + SAMPLER_HISTORY) * s->count * sizeof(float));
    take(rest, s->extra, picture_count(s) * sizeof(float));
    if (sequel != NULL) {
        take(rest, &sequel->plan, sizeof(sequel->plan));
        take_conditioning(rest, &sequel->conditioning, &sequel->model->unet.config);
    }
    if (rest->failed || rest->at != rest->end || !sampler_state_is_valid(&s->plan, &s->state) ||
        !rng_is_valid(&s->rng) || s->end > s->plan.calls || s->state.index > s->end ||
        s->steps_before < 0)
        return damaged(err);
    return 0;
}

int session_restore(struct session **out, struct model *model, struct model *refiner,
                    const void *bytes, size_t len, const struct stage_observer *observer,
                    struct err *err)
{
    struct saved_adapter adapters[ENGINE_ADAPTERS_MAX];
    struct rest rest = {.at = bytes, .end = (const char *)bytes + len};
    struct header header;
    struct session *s;
    int rc;

    take(&rest, &header, sizeof(header));
    if (rest.failed)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is truncated");
    if (check_header(&header, rest.at, len, err) != 0 ||
        (model = model_of(&header, model, refiner, err)) == NULL)
        return -1;
    take(&rest, adapters, sizeof(adapters));
    if (rest.failed || !fits_vae(&header, model))
        return damaged(err);
    if (session_alloc(&s, model, header.width, header.height, header.blends != 0, err) != 0)
        return -1;
    if (add_sequel(s, &header, refiner, err) != 0)
        goto fail;
    pthread_mutex_lock(&model->engine->lock);
    rc = adaptation_restore(&s->adaptation, model, adapters, header.adapters, err);
    if (rc == 0)
        rc = take_controls(s, header.controls, &rest, err);
    pthread_mutex_unlock(&model->engine->lock);
    if (rc != 0 || take_state(s, &header, &rest, err) != 0)
        goto fail;
    if (observer != NULL)
        s->observer = *observer;
    *out = s;
    return 0;
fail:
    session_free(s);
    return -1;
}

/*
 * A session as bytes: a header that is checked, then its plain values and tensors in a fixed order.
 * Little-endian machines only, like everything that this engine runs on.
 */
#include "engine/runtime.h"

#define STATE_MAGIC 0x53535441u /* "ATSS" */
#define STATE_VERSION 9

/* A sequel, but for what has no fixed length. */
struct saved_sequel {
    uint64_t model; /* its fingerprint */
    int32_t redraws, enlargement;
    int32_t width, height;
    int32_t end, controls;
    int32_t start, whole; /* its start's kind */
};

struct header {
    uint32_t magic, version;
    uint64_t checksum;    /* of all bytes with this field as 0 */
    uint64_t fingerprint; /* of the model that takes the next step */
    uint64_t total_bytes;
    int32_t width, height;
    int32_t end, steps_before;
    int32_t pass_before, blends;
    int32_t adapters, controls;
    int32_t sequels, reserved;
    struct guidance guidance;
    struct freeu freeu;
    struct saved_sequel sequel[SEQUELS_MAX];
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

static struct saved_sequel saved_sequel_of(const struct sequel *q)
{
    return (struct saved_sequel){.model = q->model->fingerprint,
                                 .redraws = q->redraws,
                                 .enlargement = (int32_t)q->enlargement,
                                 .width = q->width,
                                 .height = q->height,
                                 .end = q->end,
                                 .controls = q->controls.count,
                                 .start = (int32_t)q->start.kind,
                                 .whole = q->start.whole};
}

static struct header header_of(const struct session *s)
{
    struct header header = {.magic = STATE_MAGIC,
                            .version = STATE_VERSION,
                            .fingerprint = s->model->fingerprint,
                            .width = s->width,
                            .height = s->height,
                            .end = s->end,
                            .steps_before = s->steps_before,
                            .pass_before = s->pass_before,
                            .blends = s->blends,
                            .controls = s->controls.count,
                            .guidance = s->guidance,
                            .freeu = s->freeu};

    for (const struct sequel *q = s->sequel; q != NULL; q = q->next)
        header.sequel[header.sequels++] = saved_sequel_of(q);
    return header;
}

static void save_sequel(const struct sequel *q, struct buf *out)
{
    buf_append(out, &q->plan, sizeof(q->plan));
    conditioning_save(&q->conditioning, out);
    buf_append(out, q->start.values, q->start.value_count * sizeof(float));
}

int session_save(const struct session *s, struct buf *out, struct err *err)
{
    struct header header = header_of(s);
    struct saved_adapter adapters[ENGINE_ADAPTERS_MAX];
    size_t start = out->len;

    fair_lock_take(&s->model->engine->lock);
    header.adapters = adaptation_save(s->adaptation, adapters);
    buf_append(out, &header, sizeof(header));
    buf_append(out, adapters, sizeof(adapters));
    session_controls_save(&s->controls, out);
    for (const struct sequel *q = s->sequel; q != NULL; q = q->next)
        session_controls_save(&q->controls, out);
    fair_lock_give(&s->model->engine->lock);
    buf_append(out, &s->plan, sizeof(s->plan));
    buf_append(out, &s->state, sizeof(s->state));
    buf_append(out, &s->rng, sizeof(s->rng));
    conditioning_save(&s->conditioning, out);
    buf_append(out, s->latents, (1 + SAMPLER_HISTORY) * s->count * sizeof(float));
    buf_append(out, s->extra, picture_count(s) * sizeof(float));
    for (const struct sequel *q = s->sequel; q != NULL; q = q->next)
        save_sequel(q, out);
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

/* The model of this fingerprint; NULL, with an error, when it is neither. */
static struct model *model_of(uint64_t fingerprint, struct model *model, struct model *refiner,
                              struct err *err)
{
    if (fingerprint == model->fingerprint)
        return model;
    if (refiner != NULL && fingerprint == refiner->fingerprint)
        return refiner;
    err_set(err, ERR_CONFLICT, ERR_REJECT, "a saved session belongs to another model than %s",
            model->info.path);
    return NULL;
}

static bool size_is_valid(int width, int height)
{
    return width >= ENGINE_SIZE_MIN && width <= ENGINE_SIZE_MAX && height >= ENGINE_SIZE_MIN &&
           height <= ENGINE_SIZE_MAX;
}

static bool count_is_valid(int count, int most)
{
    return count >= 0 && count <= most;
}

/* The second pass comes first. */
static bool sequel_is_valid(const struct saved_sequel *q, int place)
{
    return (place == 0 || !q->redraws) && size_is_valid(q->width, q->height) &&
           count_is_valid(q->controls, ENGINE_CONTROLS_MAX) &&
           count_is_valid(q->enlargement, ENLARGE_COUNT - 1) &&
           (q->start == START_NOISE || (q->start == START_MASKED && q->redraws));
}

/* `rest`: what follows the header; `len` bytes in all. */
static int check_header(const struct header *h, const char *rest, size_t len, struct err *err)
{
    bool valid = size_is_valid(h->width, h->height) &&
                 count_is_valid(h->controls, ENGINE_CONTROLS_MAX) &&
                 count_is_valid(h->sequels, SEQUELS_MAX);

    if (h->magic != STATE_MAGIC || h->version != STATE_VERSION)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "a saved session is damaged or of another version of the engine");
    for (int i = 0; valid && i < h->sequels; i++)
        valid = sequel_is_valid(&h->sequel[i], i);
    if (!valid || h->total_bytes != len || h->checksum != checksum(*h, rest, len - sizeof(*h)))
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

/* `count` controls of a pass of this size. The lock is held. */
static int take_controls(struct session_controls *controls, struct model *model, int width,
                         int height, int count, struct rest *rest, struct err *err)
{
    size_t bytes = session_controls_bytes(width, height, count);
    const char *at = rest->at;

    if ((size_t)(rest->end - at) < bytes)
        return damaged(err);
    rest->at += bytes;
    return session_controls_restore(controls, model, width, height, at, count, err);
}

static int take_all_controls(struct session *s, const struct header *h, struct rest *rest,
                             struct err *err)
{
    const struct saved_sequel *saved = h->sequel;

    if (take_controls(&s->controls, s->model, s->width, s->height, h->controls, rest, err) != 0)
        return -1;
    for (struct sequel *q = s->sequel; q != NULL; q = q->next, saved++)
        if (take_controls(&q->controls, q->model, q->width, q->height, saved->controls, rest,
                          err) != 0)
            return -1;
    return 0;
}

static bool fits_vae(int width, int height, const struct model *model)
{
    return width % model->info.vae_factor == 0 && height % model->info.vae_factor == 0;
}

static int add_sequel(struct session *s, const struct saved_sequel *saved, struct model *model,
                      struct err *err)
{
    const struct draw_hires hires = {.width = saved->width,
                                     .height = saved->height,
                                     .enlargement = (enum enlargement)saved->enlargement};

    if (!fits_vae(saved->width, saved->height, model) || (saved->redraws && model != s->model) ||
        (saved->start == START_MASKED && !s->blends && !model_inpaints(model)))
        return damaged(err);
    return saved->redraws ? session_add_second_pass(s, &hires, err)
                          : session_add_refiner(s, model, err);
}

static int add_sequels(struct session *s, const struct header *h, struct model *model,
                       struct model *refiner, struct err *err)
{
    for (int i = 0; i < h->sequels; i++) {
        struct model *next = model_of(h->sequel[i].model, model, refiner, err);
        if (next == NULL || add_sequel(s, &h->sequel[i], next, err) != 0)
            return -1;
    }
    return 0;
}

static int take_start(struct sequel *q, const struct saved_sequel *saved, struct rest *rest,
                      struct err *err)
{
    size_t factor = (size_t)q->model->info.vae_factor;
    size_t pixels = (size_t)q->width * (size_t)q->height / (factor * factor);

    q->start = (struct start){.kind = (enum start_kind)saved->start, .whole = saved->whole != 0};
    if (start_alloc(&q->start, q->model, LATENT_CHANNELS * pixels, err) != 0)
        return -1;
    take(rest, q->start.values, q->start.value_count * sizeof(float));
    return 0;
}

static int take_sequel(struct sequel *q, const struct saved_sequel *saved, struct rest *rest,
                       struct err *err)
{
    q->end = saved->end;
    take(rest, &q->plan, sizeof(q->plan));
    take_conditioning(rest, &q->conditioning, &q->model->unet.config);
    if (take_start(q, saved, rest, err) != 0)
        return -1;
    if (rest->failed || q->end > q->plan.calls || q->plan.begin < 0 || q->end < q->plan.begin)
        return damaged(err);
    return 0;
}

/* Fills a session that has the state's size. */
static int take_state(struct session *s, const struct header *h, struct rest *rest, struct err *err)
{
    const struct saved_sequel *saved = h->sequel;

    s->guidance = h->guidance;
    s->freeu = h->freeu;
    s->end = h->end;
    s->steps_before = h->steps_before;
    s->pass_before = h->pass_before;
    take(rest, &s->plan, sizeof(s->plan));
    take(rest, &s->state, sizeof(s->state));
    take(rest, &s->rng, sizeof(s->rng));
    take_conditioning(rest, &s->conditioning, &s->model->unet.config);
    take(rest, s->latents, (1 + SAMPLER_HISTORY) * s->count * sizeof(float));
    take(rest, s->extra, picture_count(s) * sizeof(float));
    for (struct sequel *q = s->sequel; q != NULL; q = q->next)
        if (take_sequel(q, saved++, rest, err) != 0)
            return -1;
    if (rest->failed || rest->at != rest->end || !sampler_state_is_valid(&s->plan, &s->state) ||
        !rng_is_valid(&s->rng) || s->end > s->plan.calls || s->state.index > s->end ||
        s->steps_before < 0 || s->pass_before < 0)
        return damaged(err);
    return 0;
}

int session_restore(struct session **out, struct model *model, struct model *refiner,
                    const void *bytes, size_t len, const struct stage_observer *observer,
                    struct err *err)
{
    struct saved_adapter adapters[ENGINE_ADAPTERS_MAX];
    struct rest rest = {.at = bytes, .end = (const char *)bytes + len};
    struct model *next;
    struct header header;
    struct session *s;
    int rc;

    take(&rest, &header, sizeof(header));
    if (rest.failed)
        return err_set(err, ERR_FORMAT, ERR_REJECT, "a saved session is truncated");
    if (check_header(&header, rest.at, len, err) != 0 ||
        (next = model_of(header.fingerprint, model, refiner, err)) == NULL)
        return -1;
    take(&rest, adapters, sizeof(adapters));
    if (rest.failed || !fits_vae(header.width, header.height, next))
        return damaged(err);
    if (session_alloc(&s, next, header.width, header.height, header.blends != 0, err) != 0)
        return -1;
    if (add_sequels(s, &header, model, refiner, err) != 0)
        goto fail;
    fair_lock_take(&model->engine->lock);
    rc = adaptation_restore(&s->adaptation, next, adapters, header.adapters, err);
    if (rc == 0)
        rc = take_all_controls(s, &header, &rest, err);
    fair_lock_give(&model->engine->lock);
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

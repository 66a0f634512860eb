/* What a session has of the networks that guide it: hints, their embeddings, both saved. */
#include "engine/resize.h"
#include "engine/runtime.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- making ---- */

static int refuse(struct err *err, int i, const char *field, const char *problem)
{
    return err_set(err, ERR_INVALID, ERR_REJECT, "controlnets[%d]%s: %s", i, field, problem);
}

/* An adapter for SDXL reads pixels in squares of 16. */
static int check_size(const struct control *c, const struct draw *d, int i, struct err *err)
{
    int factor = c->kind == CONTROL_NET ? 1 : c->adapter.factor;

    if (d->width % factor == 0 && d->height % factor == 0)
        return 0;
    return err_set(err, ERR_INVALID, ERR_REJECT,
                   "controlnets[%d].name: this T2I-Adapter draws in sizes that %d divides, not in "
                   "%d × %d",
                   i, factor, d->width, d->height);
}

int control_check(const struct model *model, const struct draw *d, struct err *err)
{
    if (d->control_count < 0 || d->control_count > ENGINE_CONTROLS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "controlnets: a picture takes up to %d, not %d",
                       ENGINE_CONTROLS_MAX, d->control_count);
    if (d->control_count > 0 && model_is_instructed(model))
        return session_refuse(err, "controlnets",
                              "do not go with a model that follows instructions; leave them out");
    for (int i = 0; i < d->control_count; i++) {
        const struct draw_control *c = &d->controls[i];
        if (c->control->model != model)
            return refuse(err, i, ".name", "was loaded for another model");
        if (c->image == NULL || c->image->rgb == NULL)
            return refuse(err, i, ".image", "is missing");
        if (c->control->kind == CONTROL_T2I_ADAPTER && c->guess_mode)
            return refuse(err, i, ".guess_mode", "is for ControlNets, and this is a T2I-Adapter");
        if (!(c->start >= 0 && c->start <= c->end && c->end <= 1))
            return refuse(err, i, ".start", "must not be after end, both from 0 to 1");
        if (check_size(c->control, d, i, err) != 0)
            return -1;
    }
    return 0;
}

/* Room for what is made of the hint, which counts among the weights. */
static int make_room(struct session *s, struct session_control *c, struct err *err)
{
    struct backend *backend = s->model->engine->backend;

    for (int i = 0; i < control_made_count(c->control); i++) {
        struct tensor *t = &c->made[i];
        *t = control_made(c->control, i, s->latent_h, s->latent_w);
        t->data = backend->ops->memory_alloc(backend, tensor_bytes(t));
        if (t->data == NULL)
            return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a hint of controlnets");
        backend->weights_bytes += tensor_bytes(t);
    }
    return 0;
}

/* The hint in the picture's size; for a network that reads gray ones, gray before that. */
static int make_hint(struct session *s, struct session_control *c, const struct image *from,
                     struct err *err)
{
    struct image gray = {0};
    int rc;

    if (c->control->kind == CONTROL_NET || c->control->adapter.channels == 3)
        return image_resize(from, s->width, s->height, &c->hint, err);
    if (image_to_gray(from, &gray, err) != 0)
        return -1;
    rc = image_resize(&gray, s->width, s->height, &c->hint, err);
    image_release(&gray);
    return rc;
}

int session_controls_init(struct session *s, const struct draw *d, struct err *err)
{
    for (int i = 0; i < d->control_count; i++) {
        const struct draw_control *from = &d->controls[i];
        struct session_control *c = &s->controls[s->control_count++];
        *c = (struct session_control){.control = from->control,
                                      .scale = from->scale,
                                      .start = from->start,
                                      .end = from->end,
                                      .guess = from->guess_mode};
        if (make_hint(s, c, from->image, err) != 0 || make_room(s, c, err) != 0)
            return -1;
    }
    return 0;
}

static void give_back(struct backend *backend, struct tensor *t)
{
    if (t->data == NULL)
        return;
    backend->ops->memory_free(backend, t->data, tensor_bytes(t));
    backend->weights_bytes -= tensor_bytes(t);
}

void session_controls_release(struct session *s)
{
    for (int i = 0; i < s->control_count; i++) {
        for (int j = 0; j < T2I_BLOCKS_MAX; j++)
            give_back(s->model->engine->backend, &s->controls[i].made[j]);
        image_release(&s->controls[i].hint);
    }
    s->control_count = 0;
}

/* ---- what is made of the hints ---- */

/* Pixels to planes of 0 … 1, in the order that the network reads them; of a gray one it reads the
 * first plane. */
static void to_planes(const struct image *image, bool bgr, float *planes)
{
    size_t pixels = (size_t)image->width * (size_t)image->height;

    for (size_t i = 0; i < pixels; i++)
        for (size_t c = 0; c < 3; c++)
            planes[(bgr ? 2 - c : c) * pixels + i] = (float)image->rgb[3 * i + c] / 255;
}

int session_controls_plan(const struct session *s, struct work_plan *plan, struct err *err)
{
    *plan = (struct work_plan){.rows = 0};
    for (int i = 0; i < s->control_count; i++) {
        struct work_plan own;
        if (work_plan_find_hint(s->model, s->latent_h, s->latent_w, s->controls[i].control, &own,
                                err) != 0)
            return -1;
        if (own.arena_bytes + own.prepare_bytes > plan->arena_bytes + plan->prepare_bytes)
            *plan = own;
    }
    return 0;
}

static int embed(struct session *s, struct session_control *c, const float *planes, struct err *err)
{
    struct work_plan plan;
    struct pass pass;

    if (work_plan_find_hint(s->model, s->latent_h, s->latent_w, c->control, &plan, err) != 0 ||
        work_begin(s->model, &plan, &pass, err) != 0)
        return -1;
    control_forward(&pass, c->control, planes, s->latent_h, s->latent_w, c->made);
    if (!pass.failed)
        pass.backend->ops->finish(&pass);
    return pass.failed ? -1 : 0;
}

int session_controls_embed(struct session *s, struct err *err)
{
    float *planes;
    int rc = 0;

    if (s->control_count == 0)
        return 0;
    planes = malloc(3 * (size_t)s->width * (size_t)s->height * sizeof(float));
    if (planes == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a hint of controlnets");
    for (int i = 0; i < s->control_count && rc == 0; i++) {
        to_planes(&s->controls[i].hint, s->controls[i].control->net.bgr, planes);
        rc = embed(s, &s->controls[i], planes, err);
    }
    free(planes);
    return rc;
}

/* ---- saving ---- */

static size_t hint_bytes(const struct session *s)
{
    return 3 * (size_t)s->width * (size_t)s->height;
}

size_t session_controls_bytes(const struct session *s, int count)
{
    return (size_t)count * (sizeof(struct saved_control) + hint_bytes(s));
}

void session_controls_save(const struct session *s, struct buf *out)
{
    for (int i = 0; i < s->control_count; i++) {
        const struct session_control *c = &s->controls[i];
        const char *path = c->control->info.path, *slash = strrchr(path, '/');
        struct saved_control saved = {.digest = control_digest(c->control),
                                      .scale = c->scale,
                                      .start = c->start,
                                      .end = c->end,
                                      .guess = c->guess};
        snprintf(saved.name, sizeof(saved.name), "%s", slash != NULL ? slash + 1 : path);
        buf_append(out, &saved, sizeof(saved));
    }
    for (int i = 0; i < s->control_count; i++)
        buf_append(out, s->controls[i].hint.rgb, hint_bytes(s));
}

static struct control *find(const struct model *model, const struct saved_control *saved,
                            struct err *err)
{
    struct control *found = model->controls;

    while (found != NULL && control_digest(found) != saved->digest)
        found = found->next;
    if (found == NULL)
        err_set(err, ERR_NOT_FOUND, ERR_RETRY,
                "a saved session is guided by %.63s, which is not loaded or is another file now",
                saved->name);
    return found;
}

int session_controls_restore(struct session *s, const char *at, int count, struct err *err)
{
    const char *pixels = at + (size_t)count * sizeof(struct saved_control);
    struct draw d = {.control_count = count};
    struct image hints[ENGINE_CONTROLS_MAX];

    for (int i = 0; i < count; i++) {
        struct saved_control saved;
        memcpy(&saved, at + (size_t)i * sizeof(saved), sizeof(saved));
        hints[i] = (struct image){.width = s->width,
                                  .height = s->height,
                                  .rgb = (uint8_t *)pixels + (size_t)i * hint_bytes(s)};
        d.controls[i] = (struct draw_control){.control = find(s->model, &saved, err),
                                              .image = &hints[i],
                                              .scale = saved.scale,
                                              .start = saved.start,
                                              .end = saved.end,
                                              .guess_mode = saved.guess != 0};
        if (d.controls[i].control == NULL)
            return -1;
    }
    if (session_controls_init(s, &d, err) != 0)
        return -1;
    return session_controls_embed(s, err);
}

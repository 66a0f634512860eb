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
static int check_size(const struct control *c, int width, int height, int i, struct err *err)
{
    int factor = c->kind == CONTROL_NET ? 1 : c->adapter.factor;

    if (width % factor == 0 && height % factor == 0)
        return 0;
    return err_set(err, ERR_INVALID, ERR_REJECT,
                   "controlnets[%d].name: this T2I-Adapter draws in sizes that %d divides, not in "
                   "%d × %d",
                   i, factor, width, height);
}

static int check_mode(const struct draw_control *c, int i, struct err *err)
{
    int modes = c->control->net.kinds.modes;

    if (modes == 0 && c->mode >= 0)
        return refuse(err, i, ".mode", "is for ControlNet-Unions; leave it out");
    if (modes == 0 || (c->mode >= 0 && c->mode < modes))
        return 0;
    return err_set(err, ERR_INVALID, ERR_REJECT,
                   "controlnets[%d].mode: must say which kind of hint it is to this "
                   "ControlNet-Union, 0 to %d",
                   i, modes - 1);
}

/* Hints of one union go through it together. */
static int check_alike(const struct draw *d, int i, struct err *err)
{
    const struct draw_control *c = &d->controls[i];

    for (int j = 0; j < i && c->control->net.kinds.modes > 0; j++)
        if (d->controls[j].control == c->control && d->controls[j].guess_mode != c->guess_mode)
            return refuse(err, i, ".guess_mode",
                          "must be the same for all hints of one ControlNet-Union");
    return 0;
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
        if (check_mode(c, i, err) != 0 || check_alike(d, i, err) != 0 ||
            check_size(c->control, d->width, d->height, i, err) != 0 ||
            check_size(c->control, d->hires.width, d->hires.height, i, err) != 0)
            return -1;
    }
    return 0;
}

/* Room for what is made of the hint, which counts among the weights. */
static int make_room(const struct session_controls *all, struct session_control *c, struct err *err)
{
    struct backend *backend = all->model->engine->backend;
    int factor = all->model->info.vae_factor;

    for (int i = 0; i < control_made_count(c->control); i++) {
        struct tensor *t = &c->made[i];
        *t = control_made(c->control, i, all->height / factor, all->width / factor);
        t->data = backend->ops->memory_alloc(backend, tensor_bytes(t));
        if (t->data == NULL && engine_lost(all->model->engine, err))
            return -1;
        if (t->data == NULL)
            return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a hint of controlnets");
        backend->weights_bytes += tensor_bytes(t);
    }
    return 0;
}

/* The hint in the picture's size; for a network that reads gray ones, gray before that. */
static int make_hint(const struct session_controls *all, struct session_control *c,
                     const struct image *from, struct err *err)
{
    struct image gray = {0};
    int rc;

    if (c->control->kind == CONTROL_NET || c->control->adapter.channels == 3)
        return image_resize(from, all->width, all->height, &c->hint, err);
    if (image_to_gray(from, &gray, err) != 0)
        return -1;
    rc = image_resize(&gray, all->width, all->height, &c->hint, err);
    image_release(&gray);
    return rc;
}

/* Of a union the first entry has its pass for all that name it. */
static void share(struct session_controls *all, int i)
{
    struct session_control *c = &all->items[i], *lead = c;

    if (c->control->net.kinds.modes > 0)
        for (lead = all->items; lead->control != c->control; lead++)
            continue;
    lead->members++;
}

int session_controls_init(struct session_controls *all, struct model *model, const struct draw *d,
                          struct err *err)
{
    *all = (struct session_controls){.model = model, .width = d->width, .height = d->height};
    for (int i = 0; i < d->control_count; i++) {
        const struct draw_control *from = &d->controls[i];
        struct session_control *c = &all->items[all->count++];
        *c = (struct session_control){.control = from->control,
                                      .scale = from->scale,
                                      .start = from->start,
                                      .end = from->end,
                                      .guess = from->guess_mode,
                                      .mode = from->mode};
        share(all, i);
        if (make_hint(all, c, from->image, err) != 0 || make_room(all, c, err) != 0)
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

void session_controls_release(struct session_controls *all)
{
    for (int i = 0; i < all->count; i++) {
        for (int j = 0; j < T2I_BLOCKS_MAX; j++)
            give_back(all->model->engine->backend, &all->items[i].made[j]);
        image_release(&all->items[i].hint);
    }
    all->count = 0;
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

static int plan_of(const struct session_controls *all, const struct control *control,
                   struct work_plan *plan, struct err *err)
{
    int factor = all->model->info.vae_factor;

    return work_plan_find_hint(all->model, all->height / factor, all->width / factor, control, plan,
                               err);
}

int session_controls_plan(const struct session_controls *all, struct work_plan *plan,
                          struct err *err)
{
    *plan = (struct work_plan){.rows = 0};
    for (int i = 0; i < all->count; i++) {
        struct work_plan own;
        if (plan_of(all, all->items[i].control, &own, err) != 0)
            return -1;
        if (own.arena_bytes + own.prepare_bytes > plan->arena_bytes + plan->prepare_bytes)
            *plan = own;
    }
    return 0;
}

static int embed(const struct session_controls *all, struct session_control *c, const float *planes,
                 struct err *err)
{
    struct work_plan plan;
    struct pass pass;

    if (plan_of(all, c->control, &plan, err) != 0 || work_begin(all->model, &plan, &pass, err) != 0)
        return -1;
    control_forward(&pass, c->control,
                    &(struct control_hint){.planes = planes,
                                           .height = plan.height,
                                           .width = plan.width,
                                           .mode = c->mode,
                                           .scale = c->members == 1 ? 1 : (float)c->scale},
                    c->made);
    if (!pass.failed)
        pass.backend->ops->finish(&pass);
    work_end(all->model, &pass);
    return pass.failed ? -1 : 0;
}

static size_t hint_bytes(int width, int height)
{
    return 3 * (size_t)width * (size_t)height;
}

int session_controls_embed(struct session_controls *all, struct err *err)
{
    float *planes;
    int rc = 0;

    if (all->count == 0)
        return 0;
    planes = malloc(hint_bytes(all->width, all->height) * sizeof(float));
    if (planes == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a hint of controlnets");
    for (int i = 0; i < all->count && rc == 0; i++) {
        struct session_control *c = &all->items[i];
        to_planes(&c->hint, c->control->net.bgr, planes);
        rc = embed(all, c, planes, err);
    }
    free(planes);
    return rc;
}

/* ---- saving ---- */

size_t session_controls_bytes(int width, int height, int count)
{
    return (size_t)count * (sizeof(struct saved_control) + hint_bytes(width, height));
}

void session_controls_save(const struct session_controls *all, struct buf *out)
{
    for (int i = 0; i < all->count; i++) {
        const struct session_control *c = &all->items[i];
        const char *path = c->control->info.path, *slash = strrchr(path, '/');
        struct saved_control saved = {.digest = control_digest(c->control),
                                      .scale = c->scale,
                                      .start = c->start,
                                      .end = c->end,
                                      .guess = c->guess,
                                      .mode = c->mode};
        snprintf(saved.name, sizeof(saved.name), "%s", slash != NULL ? slash + 1 : path);
        buf_append(out, &saved, sizeof(saved));
    }
    for (int i = 0; i < all->count; i++)
        buf_append(out, all->items[i].hint.rgb, hint_bytes(all->width, all->height));
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

int session_controls_restore(struct session_controls *all, struct model *model, int width,
                             int height, const char *at, int count, struct err *err)
{
    const char *pixels = at + (size_t)count * sizeof(struct saved_control);
    struct draw d = {.width = width, .height = height, .control_count = count};
    struct image hints[ENGINE_CONTROLS_MAX];

    for (int i = 0; i < count; i++) {
        struct saved_control saved;
        memcpy(&saved, at + (size_t)i * sizeof(saved), sizeof(saved));
        hints[i] = (struct image){.width = width,
                                  .height = height,
                                  .rgb = (uint8_t *)pixels + (size_t)i * hint_bytes(width, height)};
        d.controls[i] = (struct draw_control){.control = find(model, &saved, err),
                                              .image = &hints[i],
                                              .scale = saved.scale,
                                              .start = saved.start,
                                              .end = saved.end,
                                              .guess_mode = saved.guess != 0,
                                              .mode = saved.mode};
        if (d.controls[i].control == NULL || check_mode(&d.controls[i], i, err) != 0)
            return -1;
    }
    if (session_controls_init(all, model, &d, err) != 0)
        return -1;
    return session_controls_embed(all, err);
}

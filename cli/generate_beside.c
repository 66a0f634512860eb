#include "cli/generate_beside.h"

#include "common/json.h"
#include "worker/input.h"
#include "worker/support.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* ---- options to the contract ---- */

static bool is_number(const char *text, size_t len)
{
    struct json_doc *doc = NULL;
    bool number =
        json_parse(&doc, text, len, NULL, NULL) == 0 && json_root(doc)->type == JSON_NUMBER;
    json_doc_free(doc);
    return number;
}

/* The last colon parts the scale from the rest if what follows it is a number. */
static const char *find_scale(const char *item, size_t len)
{
    for (size_t i = len; i > 0; i--)
        if (item[i - 1] == ':')
            return is_number(item + i, len - i) ? item + i - 1 : item + len;
    return item + len;
}

/* The last @ parts a mode from the name if nothing but digits follows. */
static size_t name_len(const char *name, size_t len)
{
    size_t at = len;
    while (at > 0 && isdigit((unsigned char)name[at - 1]))
        at--;
    return at > 1 && at < len && name[at - 1] == '@' ? at - 1 : len;
}

/* NAME[@MODE][=IMAGE][:SCALE]; what is not there is NULL, `mode` always without an image. */
struct item {
    const char *name, *mode, *image, *scale;
    size_t name_len, mode_len, image_len, scale_len;
};

/* Takes the next item off a list; false when there is none. */
static bool next_item(const char **list, bool pictured, struct item *item)
{
    const char *at = *list;
    if (!at)
        return false;
    const char *comma = strchr(at, ',');
    size_t len = comma ? (size_t)(comma - at) : strlen(at);
    const char *end = find_scale(at, len);
    const char *equals = pictured ? memchr(at, '=', (size_t)(end - at)) : NULL;
    *list = comma ? comma + 1 : NULL;
    *item = (struct item){.name = at, .name_len = (size_t)((equals ? equals : end) - at)};
    if (equals) {
        size_t whole = item->name_len;
        item->name_len = name_len(at, whole);
        if (item->name_len < whole) {
            item->mode = at + item->name_len + 1;
            item->mode_len = whole - item->name_len - 1;
        }
        item->image = equals + 1;
        item->image_len = (size_t)(end - equals - 1);
    }
    if (end < at + len) {
        item->scale = end + 1;
        item->scale_len = (size_t)(at + len - end - 1);
    }
    return true;
}

static void write_item(const struct item *item, struct buf *out)
{
    buf_str(out, "{\"name\":");
    json_write_string(out, item->name, item->name_len);
    /* The file is read from where the user stands; an absolute path is his to name. */
    if (item->image && *item->image == '/')
        buf_str(out, ",\"image\":\"hint\"");
    else if (item->image) {
        buf_str(out, ",\"image\":");
        json_write_string(out, item->image, item->image_len);
    }
    if (item->mode)
        buf_printf(out, ",\"mode\":%.*s", (int)item->mode_len, item->mode);
    if (item->scale)
        buf_printf(out, ",\"scale\":%.*s", (int)item->scale_len, item->scale);
    buf_char(out, '}');
}

static void write_list(const char *key, const char *list, bool pictured, struct buf *out)
{
    struct item item;
    if (!list)
        return;
    buf_printf(out, ",\"%s\":[", key);
    for (int i = 0; next_item(&list, pictured, &item); i++) {
        buf_str(out, i > 0 ? "," : "");
        write_item(&item, out);
    }
    buf_char(out, ']');
}

void beside_write(const char *loras, const char *controlnets, struct buf *out)
{
    write_list("loras", loras, false, out);
    write_list("controlnets", controlnets, true, out);
}

/* ---- loading ---- */

static int acquire_loras(struct beside *b, const struct job *job, struct draw *draw,
                         struct err *err)
{
    for (size_t i = 0; i < job->lora_count; i++) {
        if (models_acquire_adapter(b->models, b->number, job->loras[i].name, &b->adapters[i],
                                   err) != 0)
            return -1;
        b->adapter_count++;
        draw->adapters[draw->adapter_count++] =
            (struct draw_adapter){.adapter = b->adapters[i], .scale = job->loras[i].scale};
    }
    return 0;
}

static int read_hint(struct image *hint, const struct item *item, struct err *err)
{
    char path[FILE_PATH_MAX_BYTES];
    snprintf(path, sizeof(path), "%.*s", (int)item->image_len, item->image);
    return input_image(hint, path, *path == '/' ? "" : ".", err);
}

/* `list` is the option that the job's controlnets came from. */
static int acquire_controls(struct beside *b, const struct job *job, const char *list,
                            struct draw *draw, struct err *err)
{
    struct item item;
    for (size_t i = 0; i < job->controlnet_count && next_item(&list, true, &item); i++) {
        const struct job_controlnet *c = &job->controlnets[i];
        if (models_acquire_control(b->models, b->number, c->name, &b->controls[i], err) != 0)
            return -1;
        b->control_count++;
        if (read_hint(&b->hints[i], &item, err) != 0)
            return err_prefix(err, "controlnets[%zu].image", i);
        draw->controls[draw->control_count++] = support_control(c, b->controls[i], &b->hints[i]);
    }
    return 0;
}

int beside_acquire(struct beside *b, struct models *models, int number, const struct job *job,
                   const char *controlnets, struct draw *draw, struct err *err)
{
    b->models = models;
    b->number = number;
    return acquire_loras(b, job, draw, err) != 0 ? -1
                                                 : acquire_controls(b, job, controlnets, draw, err);
}

void beside_release(struct beside *b)
{
    for (size_t i = 0; i < b->adapter_count; i++)
        models_release_adapter(b->models, b->number, b->adapters[i]);
    for (size_t i = 0; i < b->control_count; i++)
        models_release_control(b->models, b->number, b->controls[i]);
    for (size_t i = 0; i < JOB_CONTROLNETS_MAX; i++)
        image_release(&b->hints[i]);
}

/* A report on a model on disk, from headers and configuration alone. */
#include "engine/clip.h"
#include "engine/defaults.h"
#include "engine/engine.h"
#include "engine/inspect_beside.h"
#include "engine/unet.h"
#include "engine/vae.h"

struct findings {
    struct checkpoint *checkpoint;
    struct clip_config texts[COMPONENT_TEXT_2 + 1]; /* hidden is 0 where there is none */
    struct unet_config unet;
    struct vae_config vae;
    struct sampler_config scheduler;
    struct err problem; /* code is ERR_NONE when the model can be drawn */
    uint64_t elements[COMPONENT_COUNT], bytes[COMPONENT_COUNT];
};

static void look(struct findings *f)
{
    for (int i = 0; i < COMPONENT_COUNT; i++)
        checkpoint_size(f->checkpoint, (enum component)i, &f->elements[i], &f->bytes[i]);
    for (int i = COMPONENT_TEXT; i <= COMPONENT_TEXT_2; i++)
        if (checkpoint_has(f->checkpoint, (enum component)i) &&
            clip_config_read(&f->texts[i], f->checkpoint, (enum component)i, &f->problem) != 0)
            return;
    if (unet_config_read(&f->unet, f->checkpoint, &f->problem) != 0 ||
        vae_config_read(&f->vae, f->checkpoint, &f->problem) != 0 ||
        defaults_scheduler(&f->scheduler, f->checkpoint, NULL, &f->problem) != 0)
        return;
    f->problem.code = ERR_NONE;
}

static const char *family(const struct findings *f)
{
    return family_name(checkpoint_family(f->checkpoint));
}

static const char *prediction(const struct findings *f)
{
    return prediction_name(f->scheduler.prediction);
}

/* What the network reads of a picture. */
static const char *reads(const struct findings *f)
{
    return f->unet.in_channels == 9   ? "latents, mask and masked picture"
           : f->unet.in_channels == 8 ? "latents and picture"
                                      : "latents";
}

static const char *format_name(const struct findings *f)
{
    return checkpoint_format(f->checkpoint) == CHECKPOINT_LDM ? "single file" : "diffusers";
}

static void write_list(struct buf *out, const int *values, int count)
{
    for (int i = 0; i < count; i++)
        buf_printf(out, "%s%d", i ? ", " : "", values[i]);
}

static void write_text(const struct findings *f, struct buf *out)
{
    buf_printf(out, "%s\n", checkpoint_path(f->checkpoint));
    buf_printf(out, "  family         %s, %s\n", family(f), format_name(f));
    for (int i = 0; i < COMPONENT_COUNT; i++)
        if (checkpoint_has(f->checkpoint, (enum component)i))
            buf_printf(out, "  %-14s %.1f M parameters, %.1f MB\n",
                       component_name((enum component)i), (double)f->elements[i] / 1e6,
                       (double)f->bytes[i] / 1e6);
    for (int i = COMPONENT_TEXT; i <= COMPONENT_TEXT_2; i++)
        if (f->texts[i].hidden > 0)
            buf_printf(out, "  text           width %d, %d layers, %d heads, vocabulary %d\n",
                       f->texts[i].hidden, f->texts[i].layers, f->texts[i].heads,
                       f->texts[i].vocabulary);
    buf_printf(out, "  reads          %s\n", reads(f));
    buf_str(out, "  widths         ");
    write_list(out, f->unet.channels, f->unet.levels);
    buf_str(out, "\n  heads          ");
    write_list(out, f->unet.heads, f->unet.levels);
    buf_printf(out, "\n  vae            factor %d, scaling %g\n", vae_factor(&f->vae),
               f->vae.scaling_factor);
    buf_printf(out, "  scheduler      %s, %s\n",
               *f->scheduler.own_class ? f->scheduler.own_class : "unknown", prediction(f));
    if (f->problem.code != ERR_NONE)
        buf_printf(out, "  refused        %s\n", f->problem.message);
}

static void write_json(const struct findings *f, struct buf *out)
{
    const char *path = checkpoint_path(f->checkpoint);

    buf_str(out, "{\"path\":");
    json_write_string(out, path, strlen(path));
    buf_printf(out, ",\"family\":\"%s\",\"format\":\"%s\"", family(f), format_name(f));
    buf_str(out, ",\"components\":{");
    for (int i = 0, count = 0; i < COMPONENT_COUNT; i++)
        if (checkpoint_has(f->checkpoint, (enum component)i))
            buf_printf(out, "%s\"%s\":{\"parameters\":%llu,\"bytes\":%llu}", count++ ? "," : "",
                       component_name((enum component)i), (unsigned long long)f->elements[i],
                       (unsigned long long)f->bytes[i]);
    buf_str(out, "},\"widths\":[");
    write_list(out, f->unet.channels, f->unet.levels);
    buf_str(out, "],\"heads\":[");
    write_list(out, f->unet.heads, f->unet.levels);
    buf_printf(out, "],\"in_channels\":%d,\"context\":%d,\"vae_factor\":%d,\"scaling_factor\":",
               f->unet.in_channels, f->unet.context, vae_factor(&f->vae));
    json_write_double(out, f->vae.scaling_factor);
    buf_str(out, ",\"scheduler\":");
    json_write_string(out, f->scheduler.own_class, strlen(f->scheduler.own_class));
    buf_printf(out, ",\"prediction\":\"%s\",\"refused\":", prediction(f));
    if (f->problem.code == ERR_NONE)
        buf_str(out, "null}\n");
    else {
        json_write_string(out, f->problem.message, strlen(f->problem.message));
        buf_str(out, "}\n");
    }
}

int model_inspect(const char *path, bool json, struct buf *out, struct err *err)
{
    struct findings f = {0};

    if (inspect_beside(path, json, out))
        return 0;
    if (checkpoint_open(&f.checkpoint, path, err) != 0)
        return -1;
    look(&f);
    if (json)
        write_json(&f, out);
    else
        write_text(&f, out);
    checkpoint_close(f.checkpoint);
    return out->failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "%s: the report is too long", path)
                       : 0;
}

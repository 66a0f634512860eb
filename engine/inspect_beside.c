#include "engine/inspect_beside.h"

#include "engine/bind.h"
#include "engine/controlnet_union.h"
#include "engine/t2i_adapter.h"

#include <string.h>

struct beside {
    struct checkpoint *checkpoint;
    const char *kind;
    int text_width; /* of the model's text that it was made for; 0: the file does not say */
    uint64_t elements, bytes;
    bool original; /* names of the first releases */
};

/* ---- what it is ---- */

struct traces {
    int lora, inversion, tensors;
};

static bool has_any(const char *name, const char *const *parts)
{
    for (; *parts != NULL; parts++)
        if (strstr(name, *parts) != NULL)
            return true;
    return false;
}

static void see_name(void *user, const char *name)
{
    static const char *const LORA[] = {"lora_", ".lora", "_lora.", ".hada_", ".lokr_", NULL};
    static const char *const INVERSION[] = {"emb_params", "string_to_param", "clip_l", "clip_g",
                                            NULL};
    struct traces *t = user;

    t->tensors++;
    t->lora += has_any(name, LORA);
    t->inversion += has_any(name, INVERSION);
}

static const char *kind_of(struct checkpoint *c)
{
    struct traces t = {0};

    if (bind_dim(c, COMPONENT_UNET, 0, "controlnet_cond_embedding.conv_in.weight") > 0)
        return controlnet_union_is(c) ? "ControlNet-Union" : "ControlNet";
    if (t2i_adapter_is(c))
        return "T2I-Adapter";
    checkpoint_unused(c, see_name, &t);
    if (t.lora > 0)
        return "LoRA";
    /* One tensor alone may be called what the word is. */
    return t.tensors > 0 && (t.tensors == 1 || t.inversion == t.tensors) ? "textual inversion"
                                                                         : NULL;
}

/* The first layer that reads the text. */
static int text_width(struct checkpoint *c)
{
    for (int i = 0; i < UNET_LEVELS_MAX; i++) {
        int width =
            bind_dim(c, COMPONENT_UNET, 1,
                     "down_blocks.%d.attentions.0.transformer_blocks.0.attn2.to_k.weight", i);
        if (width > 0)
            return width;
    }
    return 0;
}

static const char *family_of(int text_width)
{
    return text_width == 768    ? "sd1"
           : text_width == 1024 ? "sd2"
           : text_width == 2048 ? "sdxl"
                                : "unknown";
}

/* ---- reports ---- */

static const char *format_name(const struct beside *b)
{
    return b->original ? "original names" : "diffusers' names";
}

static bool names_differ(const struct beside *b)
{
    return strcmp(b->kind, "ControlNet") == 0;
}

static void write_text(const struct beside *b, struct buf *out)
{
    buf_printf(out, "%s\n  kind           %s", checkpoint_path(b->checkpoint), b->kind);
    if (names_differ(b))
        buf_printf(out, ", %s", format_name(b));
    buf_printf(out, "\n  size           %.1f M parameters, %.1f MB\n", (double)b->elements / 1e6,
               (double)b->bytes / 1e6);
    if (b->text_width > 0)
        buf_printf(out, "  made for       family %s, text of width %d\n", family_of(b->text_width),
                   b->text_width);
}

static void write_json(const struct beside *b, struct buf *out)
{
    const char *path = checkpoint_path(b->checkpoint);

    buf_str(out, "{\"path\":");
    json_write_string(out, path, strlen(path));
    buf_printf(out, ",\"kind\":\"%s\",\"parameters\":%llu,\"bytes\":%llu", b->kind,
               (unsigned long long)b->elements, (unsigned long long)b->bytes);
    if (b->text_width > 0)
        buf_printf(out, ",\"family\":\"%s\",\"context\":%d", family_of(b->text_width),
                   b->text_width);
    buf_str(out, "}\n");
}

bool inspect_beside(const char *path, bool json, struct buf *out)
{
    struct beside b = {0};
    struct err err;

    if (checkpoint_open_control(&b.checkpoint, path, &err) != 0)
        return false;
    b.kind = kind_of(b.checkpoint);
    if (b.kind != NULL) {
        b.original = checkpoint_format(b.checkpoint) == CHECKPOINT_LDM;
        b.text_width = text_width(b.checkpoint);
        checkpoint_size(b.checkpoint, COMPONENT_UNET, &b.elements, &b.bytes);
        if (json)
            write_json(&b, out);
        else
            write_text(&b, out);
    }
    checkpoint_close(b.checkpoint);
    return b.kind != NULL;
}

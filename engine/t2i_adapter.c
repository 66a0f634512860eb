#include "engine/t2i_adapter.h"

#include <stdio.h>
#include <stdlib.h>

#define UNSHUFFLE 8     /* pixels to channels, each way */
#define UNSHUFFLE_XL 16 /* the same of an adapter for SDXL */

/* ---- names ---- */

/* How a file calls the parts of a block. The original adapters are one list of resnets, so many to
 * a block, of which the first carries the block's own convolution. */
struct naming {
    const char *root; /* "adapter." or nothing */
    int flat;         /* resnets of a block in one list; 0: they are nested */
    bool light;
    const char *nested; /* "resnets" or, in the original light ones, "body" */
};

struct name {
    char text[96];
};

static bool has(struct checkpoint *c, const char *name)
{
    return bind_dim(c, COMPONENT_UNET, 0, "%s", name) > 0;
}

static struct name block_name(const struct naming *n, int block, const char *part)
{
    struct name name;

    snprintf(name.text, sizeof(name.text), "%sbody.%d.%s", n->root,
             n->flat > 0 ? block * n->flat : block, part);
    return name;
}

static struct name resnet_name(const struct naming *n, int block, int resnet, const char *part)
{
    struct name name;

    if (n->flat > 0)
        snprintf(name.text, sizeof(name.text), "%sbody.%d.%s", n->root, block * n->flat + resnet,
                 part);
    else
        snprintf(name.text, sizeof(name.text), "%sbody.%d.%s.%d.%s", n->root, block, n->nested,
                 resnet, part);
    return name;
}

/* The original's levels are four, and have as many resnets each. */
static int flat_count(struct checkpoint *c, const char *root)
{
    int count = 0;

    while (bind_dim(c, COMPONENT_UNET, 0, "%sbody.%d.block1.weight", root, count) > 0)
        count++;
    return count / 4;
}

static bool find_naming(struct checkpoint *c, struct naming *n)
{
    static const char *const ROOTS[] = {"adapter.", ""};

    for (int i = 0; i < 2; i++) {
        *n = (struct naming){.root = ROOTS[i], .nested = "resnets"};
        if (has(c, resnet_name(n, 0, 0, "block1.weight").text))
            break;
        n->nested = "body";
        if (has(c, resnet_name(n, 0, 0, "block1.weight").text))
            break;
        n->flat = flat_count(c, n->root);
        if (n->flat > 0)
            break;
        if (i == 1)
            return false;
    }
    n->light = has(c, block_name(n, 0, "out_conv.weight").text);
    return true;
}

bool t2i_adapter_is(struct checkpoint *c)
{
    struct naming n;

    return find_naming(c, &n);
}

/* ---- binding ---- */

static void bind_resnet(struct binder *b, struct t2i_resnet *r, const struct naming *n, int width,
                        int block, int resnet)
{
    struct name first = resnet_name(n, block, resnet, "block1");
    struct name second = resnet_name(n, block, resnet, "block2");

    bind_conv(b, &r->first, width, width, 1, "%s", first.text);
    if (n->light)
        bind_conv(b, &r->third, width, width, 1, "%s", second.text);
    else
        bind_linear(b, &r->second, width, width, BIND_BIAS, "%s", second.text);
}

/* `in` channels become `width`; a light block computes in a quarter of them. */
static void bind_block(struct binder *b, struct t2i_block *block, const struct naming *n,
                       struct checkpoint *c, int in, int i)
{
    int inner = n->light ? block->width / 4 : block->width;

    if (n->light || has(c, block_name(n, i, "in_conv.weight").text))
        bind_linear(b, &block->in, in, inner, BIND_BIAS, "%s", block_name(n, i, "in_conv").text);
    while (block->resnet_count < T2I_RESNETS_MAX &&
           (n->flat == 0 || block->resnet_count < n->flat) &&
           has(c, resnet_name(n, i, block->resnet_count, "block1.weight").text)) {
        bind_resnet(b, &block->resnets[block->resnet_count], n, inner, i, block->resnet_count);
        block->resnet_count++;
    }
    if (n->light)
        bind_linear(b, &block->out, inner, block->width, BIND_BIAS, "%s",
                    block_name(n, i, "out_conv").text);
}

static int refuse(struct checkpoint *c, struct err *err, const char *problem)
{
    return err_set(err, ERR_FORMAT, ERR_REJECT, "%s: is a T2I-Adapter %s",
                   checkpoint_file(c, COMPONENT_UNET), problem);
}

/* Gray or coloured pixels, in squares of 8 or of 16: the four differ in what the first layer reads.
 */
static int find_input(struct t2i_adapter *a, const struct naming *n, struct checkpoint *c,
                      struct err *err)
{
    static const char *const LAYERS[] = {"conv_in", "body.0.in_conv"};
    int in = bind_dim(c, COMPONENT_UNET, 1, "%s%s.weight", n->root, LAYERS[n->light]);

    for (a->factor = UNSHUFFLE; a->factor <= UNSHUFFLE_XL; a->factor *= 2)
        for (a->channels = 1; a->channels <= 3; a->channels += 2)
            if (in == a->channels * a->factor * a->factor)
                return 0;
    return refuse(c, err, "whose first layer reads neither gray nor coloured pixels");
}

/* Where the model adds its map i: before or behind the level's shrinking, or in the middle. */
static int wanted_shift(const struct unet_config *u, int i)
{
    if (i >= u->levels)
        return u->levels - 1;
    return u->down_depth[i][u->layers[i] - 1] > 0 ? i : i + (i + 1 < u->levels);
}

static int check_blocks(const struct t2i_adapter *a, const struct unet_config *u,
                        struct checkpoint *c, struct err *err)
{
    if (a->block_count < u->levels || a->block_count > u->levels + 1)
        return refuse(c, err,
                      "of another number of levels than the model's; it belongs to another "
                      "family");
    for (int i = 0; i < a->block_count; i++)
        if (a->blocks[i].shift != wanted_shift(u, i))
            return refuse(c, err,
                          "whose maps have other sizes than the model's levels; it belongs "
                          "to another family");
    return 0;
}

/* Each block's width is its level's, so that binding tells another family by its shapes. */
static void lay_out(struct t2i_adapter *a, const struct unet_config *u, int vae_factor,
                    const struct naming *n, struct checkpoint *c)
{
    int shift = a->factor == vae_factor ? 0 : 1;

    for (int i = 0; i < T2I_BLOCKS_MAX; i++) {
        struct t2i_block *block = &a->blocks[i];
        if (!has(c, resnet_name(n, i, 0, "block1.weight").text))
            break;
        block->shrinks = a->factor == UNSHUFFLE_XL ? i == 2 : i > 0;
        block->width = u->channels[i < u->levels ? i : u->levels - 1];
        block->shift = shift += block->shrinks;
        a->block_count = i + 1;
    }
}

int t2i_adapter_bind(struct t2i_adapter *a, const struct unet_config *model, int vae_factor,
                     struct checkpoint *c, struct backend *backend, struct err *err)
{
    struct binder b = bind_begin(c, COMPONENT_UNET, &a->parameters, backend, err);
    struct naming n;
    int in;

    if (!find_naming(c, &n))
        return refuse(c, err, "without layers");
    if (find_input(a, &n, c, err) != 0)
        return -1;
    in = a->channels * a->factor * a->factor;
    lay_out(a, model, vae_factor, &n, c);
    if (!n.light) {
        bind_conv(&b, &a->conv_in, in, model->channels[0], 1, "%sconv_in", n.root);
        in = model->channels[0];
    }
    for (int i = 0; i < a->block_count; i++) {
        bind_block(&b, &a->blocks[i], &n, c, in, i);
        in = a->blocks[i].width;
    }
    return b.failed ? -1 : check_blocks(a, model, c, err);
}

void t2i_adapter_release(struct t2i_adapter *a)
{
    parameters_release(&a->parameters);
}

/* ---- forward ---- */

/* Squares of pixels to channels, as torch's pixel_unshuffle orders them. */
static void unshuffle(const struct t2i_adapter *a, const float *planes, int height, int width,
                      float *to)
{
    int f = a->factor, h = height / f, w = width / f;

    for (int c = 0; c < a->channels * f * f; c++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) {
                int row = y * f + c / f % f, column = x * f + c % f;
                *to++ =
                    planes[((size_t)(c / (f * f)) * (size_t)height + (size_t)row) * (size_t)width +
                           (size_t)column];
            }
}

/* x becomes max(x, 0), by way of the host. */
static void relu_apply(struct pass *pass, struct tensor *x, float *host)
{
    size_t count = (size_t)x->h * (size_t)x->w * (size_t)x->c;

    op_download(pass, host, x);
    for (size_t i = 0; i < count && !pass->planning && !pass->failed; i++)
        host[i] = host[i] > 0 ? host[i] : 0;
    op_upload(pass, x, host);
}

/* The average of the pixels that a square of 2 × 2 has in the picture. */
static float average(const float *plane, int h, int w, int y, int x)
{
    float sum = 0;
    int n = 0;

    for (int i = 2 * y; i < 2 * y + 2 && i < h; i++)
        for (int j = 2 * x; j < 2 * x + 2 && j < w; j++, n++)
            sum += plane[(size_t)i * (size_t)w + (size_t)j];
    return sum / (float)n;
}

/* x becomes half as large, by way of the host; the results are written before what they are read
 * from. */
static void shrink_apply(struct pass *pass, struct tensor *x, float *host)
{
    struct tensor y = pass_tensor(pass, 1, (x->h + 1) / 2, (x->w + 1) / 2, x->c);
    float *to = host;

    op_download(pass, host, x);
    for (int c = 0; c < x->c && !pass->planning && !pass->failed; c++) {
        const float *plane = host + (size_t)c * (size_t)x->h * (size_t)x->w;
        for (int i = 0; i < y.h; i++)
            for (int j = 0; j < y.w; j++)
                *to++ = average(plane, x->h, x->w, i, j);
    }
    op_upload(pass, &y, host);
    pass_drop(pass, x);
    *x = y;
}

/* x becomes linear(x). */
static void linear_apply(struct pass *pass, const struct linear *linear, struct tensor *x)
{
    struct tensor y = pass_tensor(pass, 1, x->h, x->w, linear->out);

    op_matmul(pass, &(struct matmul){.linear = linear, .x = x, .y = &y});
    pass_drop(pass, x);
    *x = y;
}

static void t2i_resnet_apply(struct pass *pass, const struct t2i_resnet *r, struct tensor *x,
                             float *host)
{
    struct tensor h = pass_tensor(pass, 1, x->h, x->w, x->c);
    struct tensor y = pass_tensor(pass, 1, x->h, x->w, x->c);

    op_conv2d(pass, &(struct conv2d){.conv = &r->first, .x = x, .y = &h});
    relu_apply(pass, &h, host);
    if (r->second.in > 0)
        op_matmul(pass, &(struct matmul){.linear = &r->second, .x = &h, .y = &y, .residual = x});
    else
        op_conv2d(pass, &(struct conv2d){.conv = &r->third, .x = &h, .y = &y, .residual = x});
    pass_drop(pass, &h);
    pass_drop(pass, x);
    *x = y;
}

static void block_apply(struct pass *pass, const struct t2i_block *block, struct tensor *x,
                        float *host)
{
    if (block->shrinks)
        shrink_apply(pass, x, host);
    if (block->in.in > 0)
        linear_apply(pass, &block->in, x);
    for (int i = 0; i < block->resnet_count; i++)
        t2i_resnet_apply(pass, &block->resnets[i], x, host);
    if (block->out.in > 0)
        linear_apply(pass, &block->out, x);
}

/* map = x */
static void keep(struct pass *pass, const struct tensor *x, struct tensor *map, float *host)
{
    op_download(pass, host, x);
    op_upload(pass, map, host);
}

/* Floats of the largest tensor that goes by way of the host. */
static size_t host_count(const struct t2i_adapter *a, int h, int w)
{
    int widest = a->channels * a->factor * a->factor;

    for (int i = 0; i < a->block_count; i++)
        widest = a->blocks[i].width > widest ? a->blocks[i].width : widest;
    return (size_t)widest * (size_t)h * (size_t)w;
}

void t2i_adapter_forward(struct pass *pass, const struct t2i_adapter *a, const float *planes,
                         int height, int width, struct tensor maps[T2I_BLOCKS_MAX])
{
    int h = height / a->factor, w = width / a->factor;
    struct tensor x = pass_tensor(pass, 1, h, w, a->channels * a->factor * a->factor);
    float *host = pass->planning ? NULL : malloc(host_count(a, h, w) * sizeof(float));

    if (host == NULL && !pass->planning)
        pass_fail(pass, ERR_MEMORY, ERR_RETRY, "no memory for a T2I-Adapter's hint");
    else if (host != NULL)
        unshuffle(a, planes, height, width, host);
    op_upload(pass, &x, host);
    if (a->conv_in.in > 0) {
        struct tensor y = pass_tensor(pass, 1, h, w, a->conv_in.out);
        op_conv2d(pass, &(struct conv2d){.conv = &a->conv_in, .x = &x, .y = &y});
        pass_drop(pass, &x);
        x = y;
    }
    for (int i = 0; i < a->block_count; i++) {
        block_apply(pass, &a->blocks[i], &x, host);
        keep(pass, &x, &maps[i], host);
    }
    pass_drop(pass, &x);
    free(host);
}

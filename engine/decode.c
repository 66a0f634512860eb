#include "engine/decode.h"

#include <stdlib.h>

/* Latent pixels of one tile's side, and from one tile's start to the next. */
static int tile_side(const struct model *m)
{
    return m->vae.config.sample_size / m->info.vae_factor;
}

static int tile_stride(const struct model *m)
{
    return tile_side(m) * 3 / 4;
}

static bool fits_whole(struct model *m, int height, int width, struct work_plan *plan,
                       struct err *err)
{
    return work_plan_find(m, WORK_DECODE, 1, height, width, plan, err) == 0;
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

int decode_plan(struct model *m, int height, int width, struct work_plan *plan, struct err *err)
{
    struct err tiled;
    int side = tile_side(m);
    bool fits = fits_whole(m, height, width, plan, err);

    /* What does not fit in tiles, either, is told in terms of the whole picture. */
    if (!fits && err->code == ERR_MEMORY)
        fits = work_plan_find(m, WORK_DECODE, 1, smaller(height, side), smaller(width, side), plan,
                              &tiled) == 0;
    return fits ? 0 : -1;
}

static int decode_whole(struct model *m, const struct work_plan *plan, const float *latents,
                        float *planes, struct err *err)
{
    int factor = m->info.vae_factor;
    struct tensor x, y;
    struct pass pass;

    if (work_begin(m, plan, &pass, err) != 0)
        return -1;
    x = pass_tensor_of(&pass, DTYPE_F32, 1, plan->height, plan->width, LATENT_CHANNELS);
    y = pass_tensor_of(&pass, DTYPE_F32, 1, plan->height * factor, plan->width * factor, 3);
    op_upload(&pass, &x, latents);
    vae_decode(&pass, &m->vae, &x, &y);
    op_download(&pass, planes, &y);
    work_end(m, &pass);
    return pass.failed ? -1 : 0;
}

/* ---- tiles ---- */

struct tile {
    int height, width; /* pixels */
    float *planes;     /* 3 × height × width */
};

static float *pixel(const struct tile *t, int c, int y, int x)
{
    return t->planes + ((size_t)c * (size_t)t->height + (size_t)y) * (size_t)t->width + x;
}

/* The first rows of `t` fade over from the last rows of the tile above. */
static void blend_down(const struct tile *above, struct tile *t, int extent)
{
    extent = smaller(extent, smaller(above->height, t->height));
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < extent; y++)
            for (int x = 0; x < smaller(above->width, t->width); x++) {
                float share = (float)y / (float)extent;
                float *to = pixel(t, c, y, x);
                *to = *pixel(above, c, above->height - extent + y, x) * (1 - share) + *to * share;
            }
}

static void blend_right(const struct tile *left, struct tile *t, int extent)
{
    extent = smaller(extent, smaller(left->width, t->width));
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < smaller(left->height, t->height); y++)
            for (int x = 0; x < extent; x++) {
                float share = (float)x / (float)extent;
                float *to = pixel(t, c, y, x);
                *to = *pixel(left, c, y, left->width - extent + x) * (1 - share) + *to * share;
            }
}

/* Copies the part of a tile that no later tile covers. */
static void place(const struct tile *t, float *planes, int height, int width, int top, int left,
                  int limit)
{
    int rows = smaller(smaller(t->height, limit), height - top);
    int columns = smaller(smaller(t->width, limit), width - left);

    for (int c = 0; c < 3; c++)
        for (int y = 0; y < rows; y++)
            memcpy(planes + ((size_t)c * (size_t)height + (size_t)(top + y)) * (size_t)width + left,
                   pixel(t, c, y, 0), (size_t)columns * sizeof(float));
}

static int decode_tile(struct model *m, const float *latents, int height, int width, int y, int x,
                       struct tile *t, struct err *err)
{
    int side = tile_side(m), factor = m->info.vae_factor;
    int h = smaller(side, height - y), w = smaller(side, width - x), rc = -1;
    struct work_plan plan;
    float *cut = malloc((size_t)LATENT_CHANNELS * (size_t)h * (size_t)w * sizeof(float));

    t->height = h * factor;
    t->width = w * factor;
    if (cut == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a tile");
    for (int c = 0; c < LATENT_CHANNELS; c++)
        for (int row = 0; row < h; row++)
            memcpy(cut + ((size_t)c * (size_t)h + (size_t)row) * (size_t)w,
                   latents + ((size_t)c * (size_t)height + (size_t)(y + row)) * (size_t)width + x,
                   (size_t)w * sizeof(float));
    if (work_plan_find(m, WORK_DECODE, 1, h, w, &plan, err) == 0)
        rc = decode_whole(m, &plan, cut, t->planes, err);
    free(cut);
    return rc;
}

/* Row by row of tiles; only the row above is kept. */
static int decode_tiled(struct model *m, const float *latents, int height, int width, float *planes,
                        struct err *err)
{
    int side = tile_side(m), stride = tile_stride(m), factor = m->info.vae_factor, rc = 0;
    int across = (width + stride - 1) / stride, extent = (side - stride) * factor;
    size_t tile_count = 3 * (size_t)(side * factor) * (size_t)(side * factor);
    float *memory = malloc(2 * (size_t)across * tile_count * sizeof(float));
    struct tile *rows = calloc(2 * (size_t)across, sizeof(*rows));

    if (memory == NULL || rows == NULL)
        rc = err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for tiles");
    for (int i = 0; rc == 0 && i < 2 * across; i++)
        rows[i].planes = memory + (size_t)i * tile_count;
    for (int y = 0, odd = 0; rc == 0 && y < height; y += stride, odd = !odd)
        for (int x = 0, j = 0; rc == 0 && x < width; x += stride, j++) {
            struct tile *t = &rows[odd * across + j];
            rc = decode_tile(m, latents, height, width, y, x, t, err);
            if (rc != 0)
                break;
            if (y > 0)
                blend_down(&rows[!odd * across + j], t, extent);
            if (x > 0)
                blend_right(t - 1, t, extent);
            place(t, planes, height * factor, width * factor, y * factor, x * factor,
                  stride * factor);
        }
    free(rows);
    free(memory);
    return rc;
}

int decode_latents(struct model *m, const float *latents, int height, int width, float *planes,
                   struct err *err)
{
    struct work_plan plan;

    if (fits_whole(m, height, width, &plan, err))
        return decode_whole(m, &plan, latents, planes, err);
    return err->code == ERR_MEMORY ? decode_tiled(m, latents, height, width, planes, err) : -1;
}

/* PNG by libspng. */
#include "worker/codec.h"

#include <spng.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_MAX_BYTES (8u << 20)
#define CHUNK_CACHE_MAX_BYTES (16u << 20)
#define COMPRESSION 4 /* of 9: a fifth of the time of 9 for a few per cent more bytes */

static int fail(struct err *err, int code)
{
    if (code == SPNG_EMEM)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "PNG: out of memory");
    if (code == SPNG_EUSER_WIDTH || code == SPNG_EUSER_HEIGHT || code == SPNG_ECHUNK_LIMITS)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "PNG: larger than this program reads");
    return err_set(err, ERR_FORMAT, ERR_REJECT, "PNG: damaged or cut off (%s)",
                   spng_strerror(code));
}

int png_decode(struct image *image, const void *bytes, size_t len, struct err *err)
{
    int rc = -1, code;
    struct spng_ihdr header;
    *image = (struct image){0};
    spng_ctx *ctx = spng_ctx_new(0);
    if (!ctx)
        return fail(err, SPNG_EMEM);
    if ((code = spng_set_image_limits(ctx, CODEC_SIDE_MAX, CODEC_SIDE_MAX)) != 0 ||
        (code = spng_set_chunk_limits(ctx, CHUNK_MAX_BYTES, CHUNK_CACHE_MAX_BYTES)) != 0 ||
        (code = spng_set_png_buffer(ctx, bytes, len)) != 0 ||
        (code = spng_get_ihdr(ctx, &header)) != 0) {
        fail(err, code);
        goto out;
    }
    if (codec_image_make(image, header.width, header.height, err) != 0)
        goto out;
    size_t size = (size_t)image->width * (size_t)image->height * 3;
    code = spng_decode_image(ctx, image->rgb, size, SPNG_FMT_RGB8, 0);
    if (code != 0) {
        image_release(image);
        fail(err, code);
        goto out;
    }
    rc = 0;
out:
    spng_ctx_free(ctx);
    return rc;
}

int png_encode(const struct image *image, const char *request, struct buf *out, struct err *err)
{
    int rc = -1, code;
    void *file = NULL;
    size_t file_len = 0;
    struct spng_ihdr header = {.width = (uint32_t)image->width,
                               .height = (uint32_t)image->height,
                               .bit_depth = 8,
                               .color_type = SPNG_COLOR_TYPE_TRUECOLOR};
    struct spng_text text = {.keyword = "atelier", .type = SPNG_ITXT};
    static char no_language[1];
    spng_ctx *ctx = spng_ctx_new(SPNG_CTX_ENCODER);
    char *copy = request ? strdup(request) : NULL; /* the library's field is not const */
    if (!ctx || (request && !copy)) {
        fail(err, SPNG_EMEM);
        goto out;
    }
    if ((code = spng_set_option(ctx, SPNG_ENCODE_TO_BUFFER, 1)) != 0 ||
        (code = spng_set_option(ctx, SPNG_IMG_COMPRESSION_LEVEL, COMPRESSION)) != 0 ||
        (code = spng_set_ihdr(ctx, &header)) != 0) {
        fail(err, code);
        goto out;
    }
    if (request) {
        text.text = copy;
        text.length = strlen(request);
        text.language_tag = text.translated_keyword = no_language;
        if ((code = spng_set_text(ctx, &text, 1)) != 0) {
            fail(err, code);
            goto out;
        }
    }
    size_t size = (size_t)image->width * (size_t)image->height * 3;
    code = spng_encode_image(ctx, image->rgb, size, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE);
    if (code == 0)
        file = spng_get_png_buffer(ctx, &file_len, &code);
    if (code != 0) {
        fail(err, code);
        goto out;
    }
    buf_append(out, file, file_len);
    rc = out->failed ? err_set(err, ERR_MEMORY, ERR_RETRY, "PNG: out of memory") : 0;
out:
    free(file);
    free(copy);
    spng_ctx_free(ctx);
    return rc;
}

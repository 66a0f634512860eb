#include "worker/codec.h"

#include <stdlib.h>
#include <string.h>

int codec_image_make(struct image *image, size_t width, size_t height, struct err *err)
{
    *image = (struct image){0};
    if (width < 1 || height < 1 || width > CODEC_SIDE_MAX || height > CODEC_SIDE_MAX ||
        width * height > CODEC_PIXELS_MAX)
        return err_set(err, ERR_LIMIT, ERR_REJECT,
                       "a picture of %zu×%zu pixels: at most %d pixels are read", width, height,
                       CODEC_PIXELS_MAX);
    image->rgb = malloc(width * height * 3);
    if (!image->rgb)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a picture of %zu×%zu", width,
                       height);
    image->width = (int)width;
    image->height = (int)height;
    return 0;
}

int codec_decode(struct image *image, const void *bytes, size_t len, struct err *err)
{
    static const char png[] = "\x89PNG\r\n\x1A\n", jpeg[] = "\xFF\xD8\xFF";
    *image = (struct image){0};
    if (len >= 8 && memcmp(bytes, png, 8) == 0)
        return png_decode(image, bytes, len, err);
    if (len >= 3 && memcmp(bytes, jpeg, 3) == 0)
        return jpeg_decode(image, bytes, len, err);
    if (len >= 12 && memcmp(bytes, "RIFF", 4) == 0 &&
        memcmp((const char *)bytes + 8, "WEBP", 4) == 0)
        return webp_decode(image, bytes, len, err);
    return err_set(err, ERR_FORMAT, ERR_REJECT,
                   len == 0 ? "an empty file" : "neither PNG, JPEG nor WebP");
}

int codec_encode(const struct image *image, const char *format, int quality, const char *request,
                 struct buf *out, struct err *err)
{
    if (strcmp(format, "png") == 0)
        return png_encode(image, request, out, err);
    if (strcmp(format, "jpeg") == 0)
        return jpeg_encode(image, quality, request, out, err);
    if (strcmp(format, "webp") == 0)
        return webp_encode(image, quality, request, out, err);
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT, "unknown picture format \"%s\"", format);
}

/*
 * codec.h: pictures to files and back: PNG (libspng), JPEG (libjpeg-turbo), WebP (libwebp).
 *
 * Input is from outside: a header that claims more than CODEC_PIXELS_MAX is refused before anything
 * is unpacked, and damaged data is an error, never half a picture. Alpha is dropped and 16-bit
 * samples are cut to 8, as PIL's convert("RGB") does; JPEGs are turned upright. Any thread.
 *
 *     if (codec_encode(&image, "png", 0, request, &bytes, &err) != 0) ...
 *     if (codec_decode(&image, bytes.data, bytes.len, &err) != 0) ...
 */
#ifndef ATELIER_WORKER_CODEC_H
#define ATELIER_WORKER_CODEC_H

#include "common/buf.h"
#include "common/err.h"
#include "engine/image.h"

#include <stddef.h>

#define CODEC_SIDE_MAX 16384
#define CODEC_PIXELS_MAX (4096 * 4096)
#define CODEC_FILE_MAX_BYTES (64u << 20)

/* Reads a picture of any of the formats, told by its first bytes. Errors: ERR_FORMAT, ERR_LIMIT or
 * ERR_UNSUPPORTED (ERR_REJECT), ERR_MEMORY (ERR_RETRY). */
int codec_decode(struct image *image, const void *bytes, size_t len, struct err *err) must_check;

/* Appends the file to `out`. `format` is "png", "jpeg" or "webp"; `quality` (1 … 100) is for the
 * last two; `request` (JSON, may be NULL) is embedded: as iTXt "atelier" in PNG, as comments in
 * JPEG, as XMP in WebP. */
int codec_encode(const struct image *image, const char *format, int quality, const char *request,
                 struct buf *out, struct err *err) must_check;

/* What the adapters share, and nobody else calls. */
int codec_image_make(struct image *image, size_t width, size_t height, struct err *err) must_check;
int png_decode(struct image *image, const void *bytes, size_t len, struct err *err) must_check;
int png_encode(const struct image *image, const char *request, struct buf *out,
               struct err *err) must_check;
int jpeg_decode(struct image *image, const void *bytes, size_t len, struct err *err) must_check;
int jpeg_encode(const struct image *image, int quality, const char *request, struct buf *out,
                struct err *err) must_check;
int webp_decode(struct image *image, const void *bytes, size_t len, struct err *err) must_check;
int webp_encode(const struct image *image, int quality, const char *request, struct buf *out,
                struct err *err) must_check;

#endif

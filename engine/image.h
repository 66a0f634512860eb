/*
 * image.h: 8-bit RGB pictures in memory and the formats they come in.
 *
 * An image owns its pixels: height × width × 3 bytes, row by row from the top left, no padding.
 * Only image_*.c files see a codec library.
 */
#ifndef ATELIER_ENGINE_IMAGE_H
#define ATELIER_ENGINE_IMAGE_H

#include "common/err.h"

#include <stdint.h>

struct image {
    int width, height; /* pixels */
    uint8_t *rgb;      /* height × width × 3, malloc'd; NULL when empty */
};

/* Frees the pixels and empties the image. */
void image_release(struct image *image);

/* `gray` gets as many pixels, each channel the luma of `from`'s, as Pillow rounds it (ITU-R 601-2
 * in 16 bits); the caller releases it. Fails with ERR_MEMORY (ERR_RETRY). */
int image_to_gray(const struct image *from, struct image *gray, struct err *err) must_check;

/* The luma of one pixel of three bytes. */
uint8_t image_luma(const uint8_t *rgb);

#endif

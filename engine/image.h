/*
 * image.h: 8-bit RGB pictures in memory and the formats they come in.
 *
 * An image owns its pixels: height × width × 3 bytes, row by row from the top left, no padding.
 * Only image_*.c files see a codec library.
 */
#ifndef ATELIER_ENGINE_IMAGE_H
#define ATELIER_ENGINE_IMAGE_H

#include <stdint.h>

struct image {
    int width, height; /* pixels */
    uint8_t *rgb;      /* height × width × 3, malloc'd; NULL when empty */
};

/* Frees the pixels and empties the image. */
void image_release(struct image *image);

#endif

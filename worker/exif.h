/*
 * exif.h: which way up a photograph is. Cameras store what the sensor saw and a note on how it was
 * held; diffusers' load_image turns pictures accordingly, and so do we.
 */
#ifndef ATELIER_WORKER_EXIF_H
#define ATELIER_WORKER_EXIF_H

#include "common/err.h"
#include "engine/image.h"

#include <stddef.h>

/* The orientation of EXIF data (what follows "Exif\0\0"), 1 … 8; 1, upright, where they have none
 * or are damaged. Source: EXIF 2.32, 4.6.4, tag 0x0112. */
int exif_orientation(const unsigned char *tiff, size_t len);

/* Turns and mirrors the picture from that orientation upright. ERR_MEMORY (ERR_RETRY). */
int image_upright(struct image *image, int orientation, struct err *err) must_check;

#endif

/* resize.h: a picture in another size, to the bit as Pillow resamples 8-bit pictures. */
#ifndef ATELIER_ENGINE_RESIZE_H
#define ATELIER_ENGINE_RESIZE_H

#include "common/err.h"
#include "engine/image.h"

/* `to` gets width × height pixels, which the caller releases, by Lanczos' filter with three lobes.
 * Fails with ERR_MEMORY (ERR_RETRY). */
int image_resize(const struct image *from, int width, int height, struct image *to,
                 struct err *err) must_check;

#endif

/* canny.h: the edges of a picture, white on black: what many ControlNets were trained on. */
#ifndef ATELIER_ENGINE_CANNY_H
#define ATELIER_ENGINE_CANNY_H

#include "common/err.h"
#include "engine/image.h"

#define CANNY_LOW 100
#define CANNY_HIGH 200

/* The picture becomes its edges. An edge begins where the gradient |dx| + |dy| of the gray picture
 * passes `high` and goes on where it passes `low`; the smaller of the two is the low one. Fails
 * with ERR_MEMORY (ERR_RETRY). */
int canny_apply(struct image *image, double low, double high, struct err *err) must_check;

#endif

#include "engine/image.h"

#include <stdlib.h>

void image_release(struct image *image)
{
    free(image->rgb);
    *image = (struct image){0};
}

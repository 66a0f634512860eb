#include "engine/image.h"

#include <stdlib.h>
#include <string.h>

void image_release(struct image *image)
{
    free(image->rgb);
    *image = (struct image){0};
}

uint8_t image_luma(const uint8_t *p)
{
    return (uint8_t)((p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u) >> 16);
}

int image_to_gray(const struct image *from, struct image *gray, struct err *err)
{
    size_t pixels = (size_t)from->width * (size_t)from->height;

    *gray = (struct image){.width = from->width, .height = from->height, .rgb = malloc(3 * pixels)};
    if (gray->rgb == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a gray picture");
    for (size_t i = 0; i < pixels; i++)
        memset(gray->rgb + 3 * i, image_luma(from->rgb + 3 * i), 3);
    return 0;
}

/* A picture file of any bytes: PNG, JPEG or WebP. What decodes is whole. */
#include "worker/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image image;
    struct err err;
    if (codec_decode(&image, data, size, &err) != 0) {
        ASSERT(image.rgb == NULL);
        return 0;
    }
    ASSERT((long)image.width * image.height <= CODEC_PIXELS_MAX);
    unsigned sum = 0;
    for (long i = 0; i < (long)image.width * image.height * 3; i++)
        sum += image.rgb[i];
    ASSERT(sum <= 255u * 3u * CODEC_PIXELS_MAX);
    image_release(&image);
    return 0;
}

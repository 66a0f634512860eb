#include "engine/guidance.h"

/* negative + the sum of weight · scale · (part - negative) */
static void guide_by_text(const struct conditioning *c, float scale, float *outputs, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float negative = outputs[i], sum = negative;
        for (int row = 1; row < c->row_count; row++)
            sum += c->rows[row].weight * scale * (outputs[(size_t)row * n + i] - negative);
        outputs[i] = sum;
    }
}

/* The rows are the prompt, the negative prompt, and it without the picture. */
static void guide_by_both(float *text, const float *image, const float *neither, float scale,
                          float image_scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        text[i] = neither[i] + scale * (text[i] - image[i]) + image_scale * (image[i] - neither[i]);
}

void guidance_combine(const struct guidance *g, const struct conditioning *c, float *outputs,
                      size_t n)
{
    if (c->rows_are == ROWS_TEXT)
        guide_by_text(c, (float)g->scale, outputs, n);
    if (c->rows_are == ROWS_BOTH)
        guide_by_both(outputs, outputs + n, outputs + 2 * n, (float)g->scale, (float)g->image_scale,
                      n);
}

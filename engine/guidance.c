#include "engine/guidance.h"

#include <math.h>

static bool applies(const struct guidance *g, double sigma)
{
    return sigma > g->low && sigma <= g->high;
}

bool guidance_asks(const struct guidance *g, const struct conditioning *c, int row, double sigma)
{
    return c->rows_are != ROWS_TEXT || row > 0 || applies(g, sigma);
}

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

/* The parts alone: the first stands for the negative prompt, at a scale of 1, as a1111 has it. */
static void join_parts(const struct conditioning *c, float *outputs, size_t n)
{
    for (size_t i = 0; i < n && c->row_count > 2; i++) {
        float first = outputs[i], sum = first;
        for (int row = 2; row < c->row_count; row++)
            sum += c->rows[row].weight * (outputs[(size_t)(row - 1) * n + i] - first);
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

static double deviation(const float *values, size_t n)
{
    double mean = 0, squares = 0;

    for (size_t i = 0; i < n; i++)
        mean += values[i];
    mean /= (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (values[i] - mean) * (values[i] - mean);
    return sqrt(squares / (double)(n - 1));
}

static void rescale(float *guided, const float *text, double by, size_t n)
{
    double factor = by * deviation(text, n) / deviation(guided, n) + (1 - by);

    for (size_t i = 0; i < n; i++)
        guided[i] = (float)(guided[i] * factor);
}

void guidance_combine(const struct guidance *g, const struct conditioning *c, double sigma,
                      float *outputs, size_t n)
{
    if (c->rows_are == ROWS_BOTH)
        guide_by_both(outputs, outputs + n, outputs + 2 * n, (float)g->scale, (float)g->image_scale,
                      n);
    if (c->rows_are != ROWS_TEXT)
        return;
    if (!applies(g, sigma)) {
        join_parts(c, outputs, n);
        return;
    }
    guide_by_text(c, (float)g->scale, outputs, n);
    if (g->rescale > 0)
        rescale(outputs, outputs + n, g->rescale, n);
}

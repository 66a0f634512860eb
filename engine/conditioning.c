#include "engine/conditioning.h"

#include <stdlib.h>
#include <string.h>

static size_t text_count(const struct conditioning *c)
{
    return (size_t)c->rows * (size_t)c->tokens * (size_t)c->width;
}

int conditioning_init(struct conditioning *c, const struct unet_config *unet, int rows, int tokens)
{
    ASSERT(rows >= 1 && rows <= CONDITIONING_ROWS_MAX);
    *c = (struct conditioning){.rows = rows,
                               .tokens = tokens,
                               .width = unet->context,
                               .pooled_width = unet->pooled,
                               .id_count = unet->ids};
    c->text = calloc(conditioning_count(c), sizeof(float));
    if (c->text == NULL)
        return -1;
    c->pooled = c->text + text_count(c);
    return 0;
}

void conditioning_release(struct conditioning *c)
{
    free(c->text);
    *c = (struct conditioning){0};
}

size_t conditioning_count(const struct conditioning *c)
{
    return text_count(c) + (size_t)c->rows * (size_t)c->pooled_width;
}

void conditioning_copy_row(const struct conditioning *c, int to, int from)
{
    memcpy(conditioning_text(c, to), conditioning_text(c, from),
           (size_t)c->tokens * (size_t)c->width * sizeof(float));
    memcpy(conditioning_pooled(c, to), conditioning_pooled(c, from),
           (size_t)c->pooled_width * sizeof(float));
}

float *conditioning_text(const struct conditioning *c, int row)
{
    return c->text + (size_t)row * (size_t)c->tokens * (size_t)c->width;
}

float *conditioning_pooled(const struct conditioning *c, int row)
{
    return c->pooled + (size_t)row * (size_t)c->pooled_width;
}

#include "engine/conditioning.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

void conditioning_init(struct conditioning *c, const struct unet_config *unet)
{
    *c = (struct conditioning){
        .width = unet->context, .pooled_width = unet->pooled, .id_count = unet->ids};
}

void conditioning_release(struct conditioning *c)
{
    free(c->stages);
    free(c->texts);
    free(c->values);
    *c = (struct conditioning){0};
}

/* ---- making one ---- */

static size_t text_values(const struct conditioning *c, int tokens)
{
    return (size_t)tokens * (size_t)c->width + (size_t)c->pooled_width;
}

int conditioning_add_text(struct conditioning *c, int tokens)
{
    size_t more = text_values(c, tokens);
    struct conditioning_text *texts;
    float *values;

    if ((c->value_count + more) * sizeof(float) > CONDITIONING_MAX_BYTES)
        return -1;
    texts = realloc(c->texts, (size_t)(c->text_count + 1) * sizeof(*texts));
    if (texts == NULL)
        return -1;
    c->texts = texts;
    values = realloc(c->values, (c->value_count + more) * sizeof(*values));
    if (values == NULL)
        return -1;
    c->values = values;
    memset(values + c->value_count, 0, more * sizeof(*values));
    texts[c->text_count] = (struct conditioning_text){.tokens = tokens, .at = c->value_count};
    c->value_count += more;
    return c->text_count++;
}

int conditioning_add_row(struct conditioning *c, float weight)
{
    if (c->row_count == CONDITIONING_ROWS_MAX)
        return -1;
    c->rows[c->row_count++] = (struct conditioning_row){.weight = weight, .first = c->stage_count};
    return 0;
}

int conditioning_add_stage(struct conditioning *c, int until, int text)
{
    struct conditioning_stage *stages = NULL;

    if (c->stage_count < CONDITIONING_STAGES_MAX)
        stages = realloc(c->stages, (size_t)(c->stage_count + 1) * sizeof(*stages));
    if (stages == NULL)
        return -1;
    c->stages = stages;
    stages[c->stage_count++] = (struct conditioning_stage){.until = until, .text = text};
    return 0;
}

/* ---- reading one ---- */

/* The stage after a row's last. */
static int row_end(const struct conditioning *c, int row)
{
    return row + 1 < c->row_count ? c->rows[row + 1].first : c->stage_count;
}

int conditioning_text_at(const struct conditioning *c, int row, int call)
{
    int i = c->rows[row].first, last = row_end(c, row) - 1;

    while (i < last && c->stages[i].until < call)
        i++;
    return c->stages[i].text;
}

int conditioning_tokens(const struct conditioning *c, int text)
{
    return c->texts[text].tokens;
}

float *conditioning_text(const struct conditioning *c, int text)
{
    return c->values + c->texts[text].at;
}

float *conditioning_pooled(const struct conditioning *c, int text)
{
    return conditioning_text(c, text) + (size_t)c->texts[text].tokens * (size_t)c->width;
}

int conditioning_rows_of(const struct conditioning *c, int tokens)
{
    int count = 0;

    for (int row = 0; row < c->row_count; row++)
        for (int i = c->rows[row].first; i < row_end(c, row); i++)
            if (c->texts[c->stages[i].text].tokens == tokens) {
                count++;
                break;
            }
    return count;
}

/* ---- as bytes ---- */

struct counts {
    double guidance_scale;
    int32_t rows_are, rows, stages, texts;
    uint64_t values;
};

void conditioning_save(const struct conditioning *c, struct buf *out)
{
    const struct counts counts = {.guidance_scale = c->guidance_scale,
                                  .rows_are = c->rows_are,
                                  .rows = c->row_count,
                                  .stages = c->stage_count,
                                  .texts = c->text_count,
                                  .values = c->value_count};

    buf_append(out, &counts, sizeof(counts));
    buf_append(out, c->rows, sizeof(c->rows));
    buf_append(out, c->stages, (size_t)c->stage_count * sizeof(*c->stages));
    buf_append(out, c->texts, (size_t)c->text_count * sizeof(*c->texts));
    buf_append(out, c->values, c->value_count * sizeof(*c->values));
}

static int take(const char **at, const char *end, void *to, size_t bytes)
{
    if ((size_t)(end - *at) < bytes)
        return -1;
    memcpy(to, *at, bytes);
    *at += bytes;
    return 0;
}

/* The same of a table that is made for it. */
static int take_table(const char **at, const char *end, void *to, size_t bytes)
{
    void *table = (size_t)(end - *at) < bytes ? NULL : malloc(bytes + 1);

    if (table == NULL)
        return -1;
    memcpy(to, &table, sizeof(table));
    return take(at, end, table, bytes);
}

/* Whether every number leads to where there is something. */
static bool is_sound(const struct conditioning *c)
{
    int stage = 0, rows = c->row_count;
    uint64_t at = 0;

    if (c->rows_are == ROWS_ALONE ? rows != 1 : c->rows_are == ROWS_BOTH ? rows != 3 : rows < 2)
        return false;
    for (int i = 0; i < c->row_count; i++) {
        if (c->rows[i].first < stage || c->rows[i].first >= c->stage_count)
            return false;
        stage = c->rows[i].first + 1; /* a row has one at least */
    }
    for (int i = 0; i < c->stage_count; i++)
        if (c->stages[i].text < 0 || c->stages[i].text >= c->text_count)
            return false;
    for (int i = 0; i < c->text_count; i++) {
        const struct conditioning_text *text = &c->texts[i];
        if (text->tokens < 1 || (size_t)text->tokens > CONDITIONING_MAX_BYTES || text->at != at)
            return false;
        at += text_values(c, text->tokens);
    }
    return at == c->value_count;
}

int conditioning_restore(struct conditioning *c, const struct unet_config *unet, const char **at,
                         const char *end)
{
    struct counts counts;

    conditioning_init(c, unet);
    if (take(at, end, &counts, sizeof(counts)) != 0 || counts.rows < 1 ||
        counts.rows_are < ROWS_ALONE || counts.rows_are > ROWS_BOTH ||
        counts.rows > CONDITIONING_ROWS_MAX || counts.stages < 1 ||
        counts.stages > CONDITIONING_STAGES_MAX || counts.texts < 1 ||
        counts.texts > CONDITIONING_STAGES_MAX ||
        counts.values > CONDITIONING_MAX_BYTES / sizeof(float))
        return -1;
    c->guidance_scale = counts.guidance_scale;
    c->rows_are = (enum conditioning_rows)counts.rows_are;
    c->row_count = counts.rows;
    c->stage_count = counts.stages;
    c->text_count = counts.texts;
    c->value_count = counts.values;
    if (take(at, end, c->rows, sizeof(c->rows)) != 0 ||
        take_table(at, end, &c->stages, (size_t)c->stage_count * sizeof(*c->stages)) != 0 ||
        take_table(at, end, &c->texts, (size_t)c->text_count * sizeof(*c->texts)) != 0 ||
        take_table(at, end, &c->values, c->value_count * sizeof(*c->values)) != 0)
        return -1;
    return is_sound(c) ? 0 : -1;
}

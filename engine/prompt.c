#include "engine/prompt_parts.h"

#include <stdlib.h>
#include <string.h>

#define PIECES_FIRST 16

static const char *const NAMES[DIALECT_COUNT] = {"diffusers", "a1111", "comfyui"};

int dialect_by_name(const char *name)
{
    for (int i = 0; i < DIALECT_COUNT; i++)
        if (strcmp(NAMES[i], name) == 0)
            return i;
    return -1;
}

const char *dialect_name(enum dialect dialect)
{
    return (unsigned)dialect < DIALECT_COUNT ? NAMES[dialect] : NULL;
}

static int no_memory(struct err *err)
{
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a prompt");
}

/* ---- parsing ---- */

/* Takes the text over. */
static int add_stage(struct prompt *p, int until, struct buf *text, struct err *err)
{
    struct prompt_stage *bigger = NULL;
    int rc = 0;

    if (!text->failed && p->stage_count < PROMPT_STAGES_MAX)
        bigger = realloc(p->stages, (size_t)(p->stage_count + 1) * sizeof(*bigger));
    if (bigger == NULL) {
        buf_release(text);
        return p->stage_count < PROMPT_STAGES_MAX
                   ? no_memory(err)
                   : err_set(err, ERR_LIMIT, ERR_REJECT,
                             "changes more than %d times over its steps", PROMPT_STAGES_MAX);
    }
    p->stages = bigger;
    struct prompt_stage *stage = &p->stages[p->stage_count++];
    *stage = (struct prompt_stage){.until = until, .text = *text, .pieces_at = p->piece_count};
    if (p->dialect == DIALECT_A1111)
        rc = pieces_of_a1111(p, stage);
    else if (p->dialect == DIALECT_COMFYUI)
        rc = pieces_of_comfyui(p, stage);
    else
        rc = piece_add(p, stage, (struct prompt_piece){.len = text->len, .weight = 1});
    return rc == 0 ? 0 : no_memory(err);
}

static int add_stages(struct prompt *p, const char *text, size_t len, int steps, struct err *err)
{
    struct schedule_tree *tree = schedule_parse(text, len, steps);
    int rc = tree != NULL ? 0 : no_memory(err);

    for (int step = 1; rc == 0 && step <= steps; step++) {
        struct buf out;
        if (step < steps && !schedule_changes_after(tree, step))
            continue;
        buf_init(&out, 2 * TOKENIZER_TEXT_MAX_BYTES);
        schedule_text(tree, step, &out);
        rc = add_stage(p, step, &out, err);
    }
    schedule_free(tree);
    return rc;
}

static bool is_word(char c)
{
    return c == '_' || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (unsigned char)c >= 0x80;
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Where the next AND that is a word of its own begins, or the end. */
static size_t find_and(const char *text, size_t from)
{
    size_t i;

    for (i = from; text[i] != '\0'; i++)
        if (strncmp(text + i, "AND", 3) == 0 && !is_word(text[i + 3]) &&
            (i == 0 || !is_word(text[i - 1])))
            break;
    return i;
}

/* `text : weight` at the end of a part: cuts it off and returns the weight; 1 without. */
static float part_weight(const char *text, size_t *len)
{
    size_t end = *len, begin;
    char number[32], *rest;

    while (end > 0 && is_blank(text[end - 1]))
        end--;
    begin = end;
    while (begin > 0 && strchr("+-.0123456789", text[begin - 1]) != NULL)
        begin--;
    size_t digits = end - begin, colon = begin;
    while (colon > 0 && is_blank(text[colon - 1]))
        colon--;
    if (digits == 0 || digits >= sizeof(number) || colon == 0 || text[colon - 1] != ':')
        return 1;
    memcpy(number, text + begin, digits);
    number[digits] = '\0';
    double weight = strtod(number, &rest);
    if (*rest != '\0')
        return 1;
    for (colon--; colon > 0 && is_blank(text[colon - 1]); colon--)
        ;
    *len = colon;
    return (float)weight;
}

static int add_parts(struct prompt *p, const char *text, int steps, struct err *err)
{
    size_t begin = 0;

    for (;;) {
        size_t end = find_and(text, begin), len = end - begin;
        if (p->part_count == PROMPT_PARTS_MAX)
            return err_set(err, ERR_LIMIT, ERR_REJECT, "has more than %d parts joined by AND",
                           PROMPT_PARTS_MAX);
        struct prompt_part *part = &p->parts[p->part_count++];
        part->weight = part_weight(text + begin, &len);
        part->stages_at = p->stage_count;
        if (add_stages(p, text + begin, len, steps, err) != 0)
            return -1;
        part->stage_count = p->stage_count - part->stages_at;
        if (text[end] == '\0')
            return 0;
        begin = end + 3;
    }
}

/* What AND does not join. */
static int add_only_part(struct prompt *p, const char *text, int steps, struct err *err)
{
    struct buf all;
    int rc;

    if (p->dialect == DIALECT_A1111) {
        rc = add_stages(p, text, strlen(text), steps, err);
    } else {
        buf_init(&all, TOKENIZER_TEXT_MAX_BYTES + 1);
        buf_str(&all, text);
        rc = add_stage(p, steps, &all, err);
    }
    p->part_count = 1;
    p->parts[0] = (struct prompt_part){.weight = 1, .stage_count = p->stage_count};
    return rc;
}

int prompt_parse(struct prompt *p, enum dialect dialect, const char *text, int steps, bool joins,
                 struct err *err)
{
    int rc;

    *p = (struct prompt){.dialect = dialect};
    if (strlen(text) > TOKENIZER_TEXT_MAX_BYTES)
        return err_set(err, ERR_LIMIT, ERR_REJECT, "is longer than %u bytes",
                       TOKENIZER_TEXT_MAX_BYTES);
    p->pieces = malloc(PIECES_FIRST * sizeof(*p->pieces));
    p->piece_cap = PIECES_FIRST;
    if (p->pieces == NULL)
        return no_memory(err);
    rc = joins && dialect == DIALECT_A1111 ? add_parts(p, text, steps, err)
                                           : add_only_part(p, text, steps, err);
    if (rc != 0)
        prompt_release(p);
    return rc;
}

void prompt_release(struct prompt *p)
{
    for (int i = 0; i < p->stage_count; i++)
        buf_release(&p->stages[i].text);
    free(p->stages);
    free(p->pieces);
    *p = (struct prompt){.dialect = p->dialect};
}

const struct prompt_stage *prompt_stage_at(const struct prompt *p, int part, int step)
{
    const struct prompt_part *of = &p->parts[part];
    int i = of->stages_at, last = of->stages_at + of->stage_count - 1;

    while (i < last && p->stages[i].until < step)
        i++;
    return &p->stages[i];
}

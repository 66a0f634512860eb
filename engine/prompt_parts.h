/* prompt_parts.h: what the files of prompt.h share; for prompt*.c only. */
#ifndef ATELIER_ENGINE_PROMPT_PARTS_H
#define ATELIER_ENGINE_PROMPT_PARTS_H

#include "engine/prompt.h"

/* ---- changes over the steps (prompt_schedule.c) ---- */

struct schedule_tree;

/* Reads [from:to:when], [a|b] and their like; brackets that make no such thing stay text. NULL:
 * memory is out. */
struct schedule_tree *schedule_parse(const char *text, size_t len, int steps);
void schedule_free(struct schedule_tree *tree);

/* Whether another text begins after `step`, the steps counted from 1. */
bool schedule_changes_after(const struct schedule_tree *tree, int step);

/* Appends the text as it is at a step. */
void schedule_text(const struct schedule_tree *tree, int step, struct buf *out);

/* ---- weights (prompt_weights.c) ---- */

/* Splits a stage's text; the pieces are appended to the prompt's. -1: memory is out. */
int pieces_of_a1111(struct prompt *prompt, struct prompt_stage *stage);
int pieces_of_comfyui(struct prompt *prompt, struct prompt_stage *stage);
int piece_add(struct prompt *prompt, struct prompt_stage *stage, struct prompt_piece piece);

#endif

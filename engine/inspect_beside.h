/* inspect_beside.h: reports on files that stand beside a model; engine.h's model_inspect has it. */
#ifndef ATELIER_ENGINE_INSPECT_BESIDE_H
#define ATELIER_ENGINE_INSPECT_BESIDE_H

#include "common/buf.h"

#include <stdbool.h>

/* Writes what a ControlNet's, a T2I-Adapter's, a LoRA's or a textual inversion's file is. False,
 * with nothing written, where the path holds none of these. */
bool inspect_beside(const char *path, bool json, struct buf *out);

#endif

/*
 * The tiles that were fastest, by kind of card: what `atelier bench tune` prints, sorted as it
 * prints them (unit.choose looks).
 *
 * Empty for sm_80, sm_86 and sm_90: nothing has run on a card yet.
 */
#include "engine/cuda/choose.h"

static const struct tuned ENTRIES[] = {
    /* sm, out, taps, in, rows, {tile's rows, columns, splits, group, library} */
    {.sm = 0}, /* C knows no empty array; no card is an sm_0 */
};

const struct tuned_table tuned_tiles = {ENTRIES, sizeof(ENTRIES) / sizeof(ENTRIES[0])};

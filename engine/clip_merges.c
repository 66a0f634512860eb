#include "engine/clip_merges.h"

/* CLIP_MERGES_PATH comes from the build: the assembler reads the file, so that no tool has to turn
 * half a megabyte into C. */
__asm__(".section .rodata\n"
        ".global clip_merges_begin\n"
        ".global clip_merges_end\n"
        "clip_merges_begin:\n"
        ".incbin \"" CLIP_MERGES_PATH "\"\n"
        "clip_merges_end:\n"
        ".byte 0\n"
        ".previous\n");

/*
 * clip_merges.h: the merges of OpenAI's CLIP, models/clip/merges.txt, carried inside the program.
 *
 * One merge per line, two words and a blank between them, in the order of their rank.
 */
#ifndef ATELIER_ENGINE_CLIP_MERGES_H
#define ATELIER_ENGINE_CLIP_MERGES_H

extern const char clip_merges_begin[];
extern const char clip_merges_end[];

#endif

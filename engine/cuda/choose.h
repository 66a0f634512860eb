/*
 * choose.h: which kernel computes a product, with which tiles.
 *
 * The choice is by the layer, the picture's size and the kind of card, never by how many pictures
 * there are: what a sample's bytes are must not depend on its batch.
 */
#ifndef ATELIER_ENGINE_CUDA_CHOOSE_H
#define ATELIER_ENGINE_CUDA_CHOOSE_H

#include "engine/cuda/kernels.h"

/* Tiles for `rows` output rows of one sample, `out` columns and a sum of `taps` × `in`. */
struct product_tile choose_tile(int sm, int64_t rows, int out, int taps, int in);

#endif

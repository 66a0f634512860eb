/*
 * group_check.h: whether a card's warpgroups compute what its warps do.
 *
 * The kernels for Hopper were written where there was no such card (docs/benchmarks/gpu.md). So a
 * back end that is opened on one compares them, once, on a product of small whole numbers,
 * whose sums are exact in any order, and does without them if a single sum differs: a slower right
 * answer before a fast wrong one.
 */
#ifndef ATELIER_ENGINE_CUDA_GROUP_CHECK_H
#define ATELIER_ENGINE_CUDA_GROUP_CHECK_H

#include "engine/cuda/device.h"

/* 1: they agree, 0: they do not, -1: the card failed, and device_error says how; where that is
 * empty, memory was missing. */
int groups_agree(struct device *device);

#endif

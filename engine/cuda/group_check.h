/*
 * group_check.h: whether a card's warpgroups compute what its warps do.
 *
 * The kernels for Hopper were written where there was no such card (docs/benchmarks/gpu.md). So a
 * back end that is opened on one compares them, once, on small whole numbers, and does without
 * those that differ: a slower right answer before a fast wrong one. A product's sums are exact in
 * any order, so that a single one that differs is enough; attention's are not, and have a limit.
 */
#ifndef ATELIER_ENGINE_CUDA_GROUP_CHECK_H
#define ATELIER_ENGINE_CUDA_GROUP_CHECK_H

#include "engine/cuda/device.h"

#include <stdbool.h>

struct group_verdict {
    bool products, attention; /* agree */
};

/* -1: the card failed, and device_error says how; where that is empty, memory was missing. */
int groups_check(struct device *device, struct group_verdict *verdict);

#endif

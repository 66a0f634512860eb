/*
 * direct.h: oneDNN, versions 2.6 and 3.x, for direct convolutions.
 *
 * A primitive is made once per layer and shape and kept with the layer's weights, which are
 * reordered once into the layout it wants. One call computes one sample, so that a result never
 * depends on the batch.
 */
#ifndef ATELIER_ENGINE_CPU_DIRECT_H
#define ATELIER_ENGINE_CPU_DIRECT_H

#include "engine/cpu/cpu.h"

struct direct_engine;

int direct_engine_create(struct direct_engine **engine, struct err *err) must_check;
void direct_engine_free(struct direct_engine *engine);

/* Releases the reordered weights and primitives of one layer; returns the bytes that were counted.
 */
size_t direct_free(struct direct *direct);

/* Whether oneDNN computes this type here; it refuses bf16 without AVX512. */
bool direct_supports(const struct direct_engine *engine, enum dtype dtype);

/* y = conv(x) + bias with x and y dense n × h × w × c of `dtype`; the rest of `args` (pre, time,
 * residual, upsampling) is the caller's. Takes its scratch from the pass. */
void direct_conv2d(struct pass *pass, const struct conv2d *args, const struct tensor *x,
                   struct tensor *y);

#endif

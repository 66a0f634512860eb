/*
 * tune.h: what measuring tiles needs of the cuda back end beside the operators. Off by default;
 * whoever computes holds the engine's lock, and so does whoever calls these.
 */
#ifndef ATELIER_ENGINE_CUDA_TUNE_H
#define ATELIER_ENGINE_CUDA_TUNE_H

#include "engine/cuda/choose.h"

struct backend;

/* A product as its layer needs it: n × h × w output rows. */
struct product_shape {
    int n, h, w;
    int out, taps, in;
};

/* From now on `watch` hears of every product that tensor cores can take, planned ones too, and
 * weights are made without memory: what is loaded meanwhile can be planned with and unloaded, no
 * more. NULL: the end of it. */
typedef void product_watch(void *user, const struct product_shape *shape);
void cuda_watch(struct backend *backend, product_watch *watch, void *user);

/* From now on every such product is computed with this tile. NULL: as usual. */
void cuda_force(struct backend *backend, const struct product_tile *tile);

/* Whether there is a library to compute with. */
bool cuda_has_library(const struct backend *backend);

/* Bytes per second that the card's bus takes; 0: the card failed. */
double cuda_bus_rate(struct backend *backend);

/* The kind of card, as choose_tile takes it. */
int cuda_sm(const struct backend *backend);

#endif

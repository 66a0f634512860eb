/*
 * synthetic.h: the published networks at full size with random weights that need no file, for
 * measurements.
 */
#ifndef ATELIER_ENGINE_SYNTHETIC_H
#define ATELIER_ENGINE_SYNTHETIC_H

#include "engine/checkpoint.h"
#include "engine/unet.h"

/* SD1.5, SDXL base, the SDXL refiner; NULL for another family. Source: their config.json. */
const struct synthetic *synthetic_of(enum family family);

/* Writes what was bound of a synthetic SD1.5 as a single LDM file of f16 values. ERR_IO names the
 * path. */
int synthetic_write(const struct checkpoint *checkpoint, const char *path,
                    struct err *err) must_check;

/* Writes a ControlNet for such a model, by diffusers' names. */
int synthetic_write_controlnet(const struct checkpoint *checkpoint, const struct unet_config *unet,
                               const char *path, struct err *err) must_check;

#endif

/*
 * generate_beside.h: what stands beside the model in atelier generate, as options spell it: lists
 * of LoRAs, NAME[:SCALE], and of ControlNets or T2I-Adapters, NAME=IMAGE[:SCALE], with commas
 * between them.
 */
#ifndef ATELIER_CLI_GENERATE_BESIDE_H
#define ATELIER_CLI_GENERATE_BESIDE_H

#include "schema/job.h"
#include "worker/models.h"

/* Appends the contract's members "loras" and "controlnets", each after a comma; a list may be NULL.
 */
void beside_write(const char *loras, const char *controlnets, struct buf *out);

/* What a job names, held, with the pictures that guide. Begins as zeros. */
struct beside {
    struct models *models;
    int number; /* of the model that holds them */
    struct adapter *adapters[JOB_LORAS_MAX];
    struct control *controls[JOB_CONTROLNETS_MAX];
    struct image hints[JOB_CONTROLNETS_MAX];
    size_t adapter_count, control_count;
};

/* Loads them for the model, which is held, and puts them into `draw`. Pictures are those of the
 * option `controlnets`, read from where the user stands. */
int beside_acquire(struct beside *beside, struct models *models, int number, const struct job *job,
                   const char *controlnets, struct draw *draw, struct err *err) must_check;
void beside_release(struct beside *beside);

#endif

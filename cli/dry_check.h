/*
 * dry_check.h: what a run would refuse of a job only when its turn comes: pictures that are not
 * there or cannot be decoded, fields that its model does not take, adapters that do not fit, a
 * deadline that has passed. No weights are read: each model's header is, once.
 *
 *     dry_check_open(&check, runner, &err);
 *     rc = dry_check_task(&check, &task, &err);
 */
#ifndef ATELIER_CLI_DRY_CHECK_H
#define ATELIER_CLI_DRY_CHECK_H

#include "cli/runner.h"

#define DRY_PICTURES_KNOWN 4096 /* pictures in use again are not decoded again, up to these */

struct dry_picture {
    uint64_t name;     /* hash of its URI */
    int width, height; /* 0: none */
};

struct dry_check {
    struct runner *runner;
    struct engine *engine; /* an outline */
    struct models *models; /* of that */
    struct pipeline_options options;
    struct dry_picture known[DRY_PICTURES_KNOWN];
    uint8_t nothing; /* the pixels of pictures of which only the size counts */
};

/* Borrows the opened runner. On error the check is the caller's to release all the same. */
int dry_check_open(struct dry_check *check, struct runner *runner, struct err *err) must_check;
void dry_check_release(struct dry_check *check); /* a zeroed one is empty */

/* 0: it can be drawn, and what it left to the model is filled in; 1: it cannot, and
 * runner->problems says why; -1: nothing more can be checked. */
int dry_check_task(struct dry_check *check, struct task *task, struct err *err) must_check;

#endif

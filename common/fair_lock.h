/*
 * fair_lock.h: a mutex that is given in the order in which it is asked for.
 *
 * A pthread mutex goes to whoever comes first after it is free, which is nearly always the thread
 * that has just given it back: one that computes step after step would keep everybody else out.
 * Made for locks that are held for milliseconds: taking it costs two system calls when somebody
 * waits.
 */
#ifndef ATELIER_COMMON_FAIR_LOCK_H
#define ATELIER_COMMON_FAIR_LOCK_H

#include <pthread.h>
#include <stdint.h>

struct fair_lock {
    pthread_mutex_t mutex; /* of what follows, held for an instant */
    pthread_cond_t changed;
    uint64_t next;    /* the number that the next one to ask is given */
    uint64_t serving; /* whose number this is holds it */
};

void fair_lock_init(struct fair_lock *lock);
void fair_lock_destroy(struct fair_lock *lock);

void fair_lock_take(struct fair_lock *lock);
void fair_lock_give(struct fair_lock *lock);

/* Gives it back, and takes it again once somebody else has held it: for a holder that waits for
 * something which another one changes. */
void fair_lock_wait(struct fair_lock *lock);

#endif

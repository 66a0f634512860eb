#include "common/fair_lock.h"

void fair_lock_init(struct fair_lock *lock)
{
    pthread_mutex_init(&lock->mutex, NULL);
    pthread_cond_init(&lock->changed, NULL);
    lock->next = lock->serving = 0;
}

void fair_lock_destroy(struct fair_lock *lock)
{
    pthread_cond_destroy(&lock->changed);
    pthread_mutex_destroy(&lock->mutex);
}

/* The mutex is held. */
static void take(struct fair_lock *lock)
{
    uint64_t number = lock->next++;

    while (lock->serving != number)
        pthread_cond_wait(&lock->changed, &lock->mutex);
}

/* The mutex is held. */
static void give(struct fair_lock *lock)
{
    lock->serving++;
    pthread_cond_broadcast(&lock->changed);
}

void fair_lock_take(struct fair_lock *lock)
{
    pthread_mutex_lock(&lock->mutex);
    take(lock);
    pthread_mutex_unlock(&lock->mutex);
}

void fair_lock_give(struct fair_lock *lock)
{
    pthread_mutex_lock(&lock->mutex);
    give(lock);
    pthread_mutex_unlock(&lock->mutex);
}

void fair_lock_wait(struct fair_lock *lock)
{
    uint64_t given;

    pthread_mutex_lock(&lock->mutex);
    give(lock);
    given = lock->serving;
    while (lock->serving == given)
        pthread_cond_wait(&lock->changed, &lock->mutex);
    take(lock);
    pthread_mutex_unlock(&lock->mutex);
}

/*
 * watch.h: what a test may see of the emulated card.
 */
#ifndef ATELIER_TESTS_CUDA_WATCH_H
#define ATELIER_TESTS_CUDA_WATCH_H

#ifdef __cplusplus
extern "C" {
#endif

/* From now on `between` is called by threads that wait for a card, after each piece of work that is
 * done while they wait; NULL: nobody is. Nothing is locked meanwhile: it may wait itself. */
void emulated_watch(void (*between)(void *user), void *user);

#ifdef __cplusplus
}
#endif
#endif

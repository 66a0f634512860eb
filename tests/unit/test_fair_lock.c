#include "common/fair_lock.h"

#include "tests/unit/unit.h"

#include <sched.h>

struct other {
    struct fair_lock *lock;
    pthread_t thread;
    int turns;
};

static void *take_once(void *user)
{
    struct other *other = user;

    fair_lock_take(other->lock);
    other->turns++;
    fair_lock_give(other->lock);
    return NULL;
}

/* Starts a thread that asks for the lock, which the caller holds, and waits until it has asked. */
static void start(struct other *other, struct fair_lock *lock)
{
    uint64_t before, now;

    *other = (struct other){.lock = lock};
    pthread_mutex_lock(&lock->mutex);
    before = lock->next;
    pthread_mutex_unlock(&lock->mutex);
    assert_int_equal(pthread_create(&other->thread, NULL, take_once, other), 0);
    do {
        sched_yield();
        pthread_mutex_lock(&lock->mutex);
        now = lock->next;
        pthread_mutex_unlock(&lock->mutex);
    } while (now == before);
}

static void test_who_asked_first_is_first(void **state)
{
    struct fair_lock lock;
    struct other first, second;

    (void)state;
    fair_lock_init(&lock);
    fair_lock_take(&lock);
    start(&first, &lock);
    start(&second, &lock);
    fair_lock_give(&lock);
    fair_lock_take(&lock); /* at once, and still behind both */
    assert_int_equal(first.turns, 1);
    assert_int_equal(second.turns, 1);
    fair_lock_give(&lock);
    pthread_join(first.thread, NULL);
    pthread_join(second.thread, NULL);
    fair_lock_destroy(&lock);
}

static void test_a_holder_waits_for_another_one(void **state)
{
    struct fair_lock lock;
    struct other other;

    (void)state;
    fair_lock_init(&lock);
    fair_lock_take(&lock);
    start(&other, &lock);
    while (other.turns == 0)
        fair_lock_wait(&lock);
    assert_int_equal(lock.next - lock.serving, 1); /* held by this thread alone */
    fair_lock_give(&lock);
    pthread_join(other.thread, NULL);
    fair_lock_destroy(&lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_asked_first_is_first),
        cmocka_unit_test(test_a_holder_waits_for_another_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

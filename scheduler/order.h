/*
 * order.h: a set of places in line that knows how many of its members stand before a place.
 *
 * A place is a bit; a Fenwick tree counts the bits of 64 places each. Source: Fenwick, "A new data
 * structure for cumulative frequency tables", Software: Practice and Experience 24, 1994. Twelve
 * bytes per 64 places, everything O(log n).
 */
#ifndef ATELIER_SCHEDULER_ORDER_H
#define ATELIER_SCHEDULER_ORDER_H

#include <stdint.h>

#define ORDER_PLACES 64 /* of a word */

struct order {
    uint64_t *bits; /* of `words` words */
    uint32_t *sums; /* the tree, words + 1 of them */
    uint32_t words;
};

void order_add(struct order *order, uint32_t place);
void order_remove(struct order *order, uint32_t place);

/* Members before `place`. */
uint32_t order_before(const struct order *order, uint32_t place);

void order_clear(struct order *order);

/* Sets a bit without the tree; order_count makes it good for all of them at once. */
void order_mark(struct order *order, uint32_t place);
void order_count(struct order *order);

#endif

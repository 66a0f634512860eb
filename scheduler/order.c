#include "scheduler/order.h"

#include <string.h>

static void count(struct order *order, uint32_t place, uint32_t by)
{
    for (uint32_t i = place / ORDER_PLACES + 1; i <= order->words; i += i & -i)
        order->sums[i] += by;
}

void order_mark(struct order *order, uint32_t place)
{
    order->bits[place / ORDER_PLACES] |= (uint64_t)1 << place % ORDER_PLACES;
}

void order_add(struct order *order, uint32_t place)
{
    order_mark(order, place);
    count(order, place, 1);
}

void order_remove(struct order *order, uint32_t place)
{
    order->bits[place / ORDER_PLACES] &= ~((uint64_t)1 << place % ORDER_PLACES);
    count(order, place, UINT32_MAX);
}

uint32_t order_before(const struct order *order, uint32_t place)
{
    uint32_t word = place / ORDER_PLACES;
    uint64_t below = ((uint64_t)1 << place % ORDER_PLACES) - 1;
    uint32_t sum = (uint32_t)__builtin_popcountll(order->bits[word] & below);
    for (uint32_t i = word; i > 0; i -= i & -i)
        sum += order->sums[i];
    return sum;
}

void order_clear(struct order *order)
{
    memset(order->bits, 0, order->words * sizeof(*order->bits));
    memset(order->sums, 0, (order->words + 1) * sizeof(*order->sums));
}

void order_count(struct order *order)
{
    memset(order->sums, 0, (order->words + 1) * sizeof(*order->sums));
    for (uint32_t i = 1; i <= order->words; i++) {
        uint32_t parent = i + (i & -i);
        order->sums[i] += (uint32_t)__builtin_popcountll(order->bits[i - 1]);
        if (parent <= order->words)
            order->sums[parent] += order->sums[i];
    }
}

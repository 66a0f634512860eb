/*
 * heap.h: a pairing heap over nodes that live inside their owners; no allocation, any node can
 * leave.
 *
 * Source: Fredman, Sedgewick, Sleator, Tarjan, "The pairing heap: a new form of self-adjusting
 * heap", Algorithmica 1, 1986. Insertion and joining are O(1), removal O(log n) amortised.
 */
#ifndef ATELIER_SCHEDULER_HEAP_H
#define ATELIER_SCHEDULER_HEAP_H

#include <stdbool.h>

struct heap_node {
    struct heap_node *child; /* first of the children */
    struct heap_node *next;  /* sibling */
    struct heap_node *back;  /* the sibling before, or the parent of a first child */
};

struct heap {
    struct heap_node *top; /* the least, or NULL */
    bool (*before)(const struct heap_node *a, const struct heap_node *b);
};

void heap_insert(struct heap *heap, struct heap_node *node);

/* `node` is in the heap. */
void heap_remove(struct heap *heap, struct heap_node *node);

#endif

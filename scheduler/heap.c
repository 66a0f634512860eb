#include "scheduler/heap.h"

#include <stddef.h>

/* Joins two trees whose roots have no siblings. */
static struct heap_node *join(const struct heap *heap, struct heap_node *a, struct heap_node *b)
{
    if (!a || !b)
        return a ? a : b;
    if (heap->before(b, a)) {
        struct heap_node *swap = a;
        a = b;
        b = swap;
    }
    b->back = a;
    b->next = a->child;
    if (b->next)
        b->next->back = b;
    a->child = b;
    return a;
}

/* Joins a list of siblings pair by pair, then the pairs from the last to the first. */
static struct heap_node *join_siblings(const struct heap *heap, struct heap_node *first)
{
    struct heap_node *pairs = NULL, *root = NULL;
    while (first) {
        struct heap_node *a = first, *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->back = NULL;
        if (b)
            b->next = b->back = NULL;
        a = join(heap, a, b);
        a->next = pairs;
        pairs = a;
    }
    while (pairs) {
        struct heap_node *pair = pairs;
        pairs = pair->next;
        pair->next = NULL;
        root = join(heap, root, pair);
    }
    return root;
}

void heap_insert(struct heap *heap, struct heap_node *node)
{
    node->child = node->next = node->back = NULL;
    heap->top = join(heap, heap->top, node);
}

void heap_remove(struct heap *heap, struct heap_node *node)
{
    struct heap_node *children = join_siblings(heap, node->child);
    if (node == heap->top) {
        heap->top = children;
        return;
    }
    if (node->back->child == node)
        node->back->child = node->next;
    else
        node->back->next = node->next;
    if (node->next)
        node->next->back = node->back;
    heap->top = join(heap, heap->top, children);
}

#include "common/nearest.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static int fold(char c)
{
    if (c == '-' || c == ' ' || c == '.')
        return '_';
    return tolower((unsigned char)c);
}

static int cost(char a, char b)
{
    return a == b ? 0 : fold(a) == fold(b) ? 1 : 2;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

int nearest_distance(const char *a, const char *b)
{
    size_t la = strnlen(a, NEAREST_NAME_MAX_BYTES), lb = strnlen(b, NEAREST_NAME_MAX_BYTES);
    int rows[3][NEAREST_NAME_MAX_BYTES + 1];
    int *older = rows[0], *old = rows[1], *row = rows[2];
    for (size_t j = 0; j <= lb; j++)
        old[j] = 2 * (int)j;
    for (size_t i = 1; i <= la; i++) {
        row[0] = 2 * (int)i;
        for (size_t j = 1; j <= lb; j++) {
            row[j] = least(least(old[j], row[j - 1]) + 2, old[j - 1] + cost(a[i - 1], b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], older[j - 2] + 2);
        }
        int *spare = older;
        older = old;
        old = row;
        row = spare;
    }
    return old[lb];
}

void nearest_hint(char out[NEAREST_HINT_BYTES], const char *name, const char *const names[],
                  size_t count)
{
    struct {
        const char *name;
        int distance;
    } best[NEAREST_OFFERED];
    size_t found = 0;
    size_t len = strnlen(name, NEAREST_NAME_MAX_BYTES);
    for (size_t i = 0; i < count; i++) {
        size_t longer = strlen(names[i]) > len ? strlen(names[i]) : len;
        int distance = nearest_distance(name, names[i]);
        /* Near: at most two fifths of the letters differ, or one is the other's beginning. */
        if (distance * 5 > (int)longer * 4 && (len < 3 || strncmp(names[i], name, len) != 0))
            continue;
        size_t at = found < NEAREST_OFFERED ? found++ : found;
        if (at == found && distance >= best[at - 1].distance)
            continue;
        if (at == found)
            at--;
        for (; at > 0 && best[at - 1].distance > distance; at--)
            best[at] = best[at - 1];
        best[at].name = names[i];
        best[at].distance = distance;
    }
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < found && used < NEAREST_HINT_BYTES; i++)
        used += (size_t)snprintf(out + used, NEAREST_HINT_BYTES - used, "%s\"%.60s\"%s",
                                 i == 0           ? "; did you mean "
                                 : i + 1 == found ? " or "
                                                  : ", ",
                                 best[i].name, i + 1 == found ? "?" : "");
}

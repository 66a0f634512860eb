/* plural.h: "1 job", "2 jobs": printf("%d job%s", count, plural(count)). */
#ifndef ATELIER_COMMON_PLURAL_H
#define ATELIER_COMMON_PLURAL_H

#include <stdint.h>

static inline const char *plural(uint64_t count)
{
    return count == 1 ? "" : "s";
}

#endif

/* unit.h: what every unit test includes: cmocka and the headers that it wants first. */
#ifndef ATELIER_TESTS_UNIT_UNIT_H
#define ATELIER_TESTS_UNIT_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Fails with the text that should have held the part. */
#define assert_contains(text, part)                                                                \
    do {                                                                                           \
        if (!strstr(text, part))                                                                   \
            fail_msg("\"%s\" does not contain \"%s\"", text, part);                                \
    } while (0)

#endif

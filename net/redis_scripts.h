/* redis_scripts.h: schema/redis/<name>.lua as text, in the order of enum redis_script; made by
 * CMake. */
#ifndef ATELIER_NET_REDIS_SCRIPTS_H
#define ATELIER_NET_REDIS_SCRIPTS_H

#include "net/redis.h"

extern const char *const redis_scripts[SCRIPT_COUNT];

#endif

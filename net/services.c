#include "net/services.h"

#include <stdio.h>
#include <string.h>

int service_topic(const struct service_options *services, const char *topic,
                  char out[TOPIC_NAME_BYTES], struct err *err)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    const char *cell = services->cell;
    if (cell[0] == '\0' || cell[strspn(cell, allowed)] != '\0' ||
        strlen(cell) + strlen(topic) + 2 > TOPIC_NAME_BYTES)
        return err_set(err, ERR_INVALID, ERR_FATAL,
                       "cell: '%.80s' is no name of 1 to 100 letters, digits, '.', '_' and '-'",
                       cell);
    snprintf(out, TOPIC_NAME_BYTES, "%s.%s", cell, topic);
    return 0;
}

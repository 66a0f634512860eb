#include "common/metrics.h"

#include <math.h>

void metrics_family(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_label_value(struct buf *out, const char *value)
{
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            buf_char(out, '\\');
        if (*value == '\n')
            buf_str(out, "\\n");
        else
            buf_char(out, *value);
    }
}

void metrics_sample(struct buf *out, const char *name, const char *label, const char *value,
                    double number)
{
    buf_str(out, name);
    if (label) {
        buf_printf(out, "{%s=\"", label);
        put_label_value(out, value);
        buf_str(out, "\"}");
    }
    if (number == floor(number) && fabs(number) < 1e15)
        buf_printf(out, " %.0f\n", number);
    else
        buf_printf(out, " %.9g\n", number);
}

void metrics_single(struct buf *out, const char *name, const char *type, const char *help,
                    double number)
{
    metrics_family(out, name, type, help);
    metrics_sample(out, name, NULL, NULL, number);
}

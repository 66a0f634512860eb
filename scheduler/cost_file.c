/*
 * cost_file.c: what the cost model has learned, as JSON:
 *
 *     {"version": 1, "ratios": [["KEY", log_mean, reports], …]}
 *
 * the least recently used first, so that reading in that order restores who makes room for whom.
 * Keys are 64-bit hashes in hexadecimal; names are not kept. A changed table of guesses wants
 * another version, since the ratios are relative to it.
 */
#include "common/json.h"
#include "scheduler/cost_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1
#define LOG_MEAN_MAX 20

static int by_use(const void *a, const void *b)
{
    const struct cost_ratio *const *x = a, *const *y = b;
    return ((*x)->used > (*y)->used) - ((*x)->used < (*y)->used);
}

void cost_write(const struct cost *cost, struct buf *out)
{
    size_t size = ((size_t)cost->set_mask + 1) * COST_WAYS, count = 0;
    const struct cost_ratio **order = calloc(size, sizeof(*order));
    if (!order) {
        out->failed = true;
        return;
    }
    for (size_t i = 0; i < size; i++)
        if (cost->ratios[i].key)
            order[count++] = &cost->ratios[i];
    if (count > 0)
        qsort(order, count, sizeof(*order), by_use);
    buf_printf(out, "{\"version\":%d,\"ratios\":[", VERSION);
    for (size_t i = 0; i < count; i++) {
        buf_printf(out, "%s[\"%016" PRIx64 "\",", i ? "," : "", order[i]->key);
        json_write_double(out, (double)order[i]->log_mean);
        buf_printf(out, ",%" PRIu32 "]", order[i]->reports);
    }
    buf_str(out, "]}");
    free(order);
}

static bool read_ratio(const struct json *value, struct cost_ratio *ratio)
{
    double mean;
    int64_t reports;
    char *end;
    if (value->type != JSON_ARRAY || value->count != 3 || value->child->type != JSON_STRING ||
        value->child->text_len != 16)
        return false;
    ratio->key = strtoull(value->child->text, &end, 16);
    if (*end || ratio->key == 0 || !json_double(value->child->next, &mean) ||
        !json_int64(value->child->next->next, &reports))
        return false;
    ratio->log_mean = (float)mean;
    ratio->reports = (uint32_t)reports;
    return fabs(mean) <= LOG_MEAN_MAX && reports > 0 && reports <= COST_REPORTS_MAX;
}

static void forget(struct cost *cost)
{
    memset(cost->ratios, 0, ((size_t)cost->set_mask + 1) * COST_WAYS * sizeof(*cost->ratios));
    cost->clock = 0;
}

int cost_read(struct cost *cost, const struct json *value, struct err *err)
{
    const struct json *ratios = json_get(value, "ratios");
    int64_t version = json_int_or(json_get(value, "version"), 0);
    size_t number = 0;
    forget(cost);
    if (version != VERSION || !ratios || ratios->type != JSON_ARRAY)
        return err_set(err, ERR_FORMAT, ERR_REJECT,
                       "no learned costs of version %d: expected {\"version\", \"ratios\"}",
                       VERSION);
    for (const struct json *item = ratios->child; item; item = item->next, number++) {
        struct cost_ratio ratio = {0};
        if (!read_ratio(item, &ratio)) {
            forget(cost);
            return err_set(err, ERR_FORMAT, ERR_REJECT,
                           "ratios[%zu]: expected [\"16 hexadecimal digits\", log_mean, reports]",
                           number);
        }
        struct cost_ratio *place = cost_claim(cost, ratio.key);
        place->log_mean = ratio.log_mean;
        place->reports = ratio.reports;
    }
    return 0;
}

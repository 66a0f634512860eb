#include "simulator/report.h"

#include "common/json.h"
#include "common/plural.h"

#include <stdio.h>
#include <string.h>

#define TENANTS_SHOWN 10
#define HOUR_S 3600.0

/* ---- words for numbers ---- */

struct text {
    char s[32];
};

static struct text seconds(double s)
{
    struct text t;
    if (s < 99.95)
        snprintf(t.s, sizeof(t.s), "%.1f s", s);
    else if (s < 99.95 * 60)
        snprintf(t.s, sizeof(t.s), "%.1f min", s / 60);
    else
        snprintf(t.s, sizeof(t.s), "%.1f h", s / HOUR_S);
    return t;
}

static struct text percent(double part, double whole)
{
    struct text t;
    snprintf(t.s, sizeof(t.s), "%.1f %%", whole > 0 ? 100 * part / whole : 0);
    return t;
}

static double per_thousand(const struct sim_result *result)
{
    uint64_t pictures = 0;
    for (uint32_t p = 0; p < result->pool_count; p++)
        pictures += result->pools[p].pictures;
    return pictures > 0 ? result->price * 1000 / (double)pictures : 0;
}

/* ---- tables of one simulation ---- */

static void put_pools(const struct sim_result *result, struct buf *out)
{
    buf_printf(out, "%-16s %8s %6s %8s %9s %8s %8s %9s %8s %15s\n", "pool", "workers", "most",
               "busy", "price", "jobs", "loads", "loading", "lost", "wanted p50/p95");
    for (uint32_t i = 0; i < result->pool_count; i++) {
        const struct sim_pool *pool = &result->pools[i];
        buf_printf(out, "%-16.16s %8.1f %6.0f %8s %9.2f %8llu %8llu %9s %8llu %9.0f /%4.0f\n",
                   pool->name, pool->workers_mean, pool->workers_max,
                   percent(pool->busy_s, pool->paid_s).s, pool->price,
                   (unsigned long long)pool->jobs, (unsigned long long)pool->loads,
                   seconds(pool->load_s).s, (unsigned long long)(pool->crashes + pool->reclaims),
                   pool->wanted.p50, pool->wanted.p95);
    }
}

static void put_group_header(const char *what, struct buf *out)
{
    buf_printf(out, "\n%-16s %9s %9s %7s %7s %9s %9s %9s %9s %9s %9s\n", what, "jobs", "done",
               "failed", "missed", "wait p50", "p95", "p99", "done p95", "slowdown", "price");
}

static void put_group(const struct sim_group *group, struct buf *out)
{
    uint64_t failed = group->expired + group->dead + group->refused + group->left;
    buf_printf(out, "%-16.16s %9llu %9llu %7llu %7llu %9s %9s %9s %9s %9.1f %9.2f\n", group->name,
               (unsigned long long)group->jobs, (unsigned long long)group->done,
               (unsigned long long)failed, (unsigned long long)group->missed,
               seconds(group->wait_s.p50).s, seconds(group->wait_s.p95).s,
               seconds(group->wait_s.p99).s, seconds(group->whole_s.p95).s, group->slowdown,
               group->price);
}

static void put_failed(const struct sim_group *all, struct buf *out)
{
    if (all->expired + all->dead + all->refused + all->left == 0)
        return;
    buf_printf(out,
               "Not done: %llu expired, %llu failed too often, %llu refused (quota, price or "
               "policy), %llu that no worker could take.\n",
               (unsigned long long)all->expired, (unsigned long long)all->dead,
               (unsigned long long)all->refused, (unsigned long long)all->left);
}

static void put_tables(const struct report_column *column, struct buf *out)
{
    const struct sim_result *result = column->result;
    const struct sim_group *all = &result->all;
    buf_printf(out, "%llu job%s, %llu picture%s, done after %s under %s\n\n",
               (unsigned long long)all->jobs, plural(all->jobs), (unsigned long long)all->pictures,
               plural(all->pictures), seconds(result->span_s).s, column->policy);
    put_pools(result, out);
    put_group_header("priority", out);
    for (int c = 0; c < CLASS_COUNT; c++)
        if (result->classes[c].jobs > 0)
            put_group(&result->classes[c], out);
    put_group(all, out);
    put_group_header("tenant", out);
    for (uint32_t i = 0; i < result->tenant_count && i < TENANTS_SHOWN; i++)
        put_group(&result->tenants[i], out);
    if (result->tenant_count > TENANTS_SHOWN)
        buf_printf(out, "… and %u more; --json has all\n", result->tenant_count - TENANTS_SHOWN);
    buf_printf(out,
               "\nPrice %.2f, %.3f per thousand pictures. Fairness between tenants %.3f (1: all "
               "slowed alike).\n",
               result->price, per_thousand(result), result->fairness);
    put_failed(all, out);
    buf_printf(out, "The referee saw %llu assignments and no promise broken.\n",
               (unsigned long long)result->checks);
}

/* ---- two, side by side ---- */

static void put_row(const char *what, const struct report_column *columns, int count,
                    struct text (*value)(const struct sim_result *result, int which), int which,
                    struct buf *out)
{
    buf_printf(out, "%-30.30s", what);
    for (int i = 0; i < count; i++)
        buf_printf(out, " %24s", value(columns[i].result, which).s);
    buf_char(out, '\n');
}

static struct text number(double value, const char *format)
{
    struct text t;
    snprintf(t.s, sizeof(t.s), "%.*f", format[0] - '0', value);
    return t;
}

enum figure { PRICE, PER_THOUSAND, SPAN, DONE, FAILED, MISSED, FAIRNESS, FIGURES };

static struct text figure_of(const struct sim_result *result, int which)
{
    const struct sim_group *all = &result->all;
    switch ((enum figure)which) {
    case PRICE:
        return number(result->price, "2");
    case PER_THOUSAND:
        return number(per_thousand(result), "3");
    case SPAN:
        return seconds(result->span_s);
    case DONE:
        return number((double)all->done, "0");
    case FAILED:
        return number((double)(all->expired + all->dead + all->refused + all->left), "0");
    case MISSED:
        return number((double)all->missed, "0");
    default:
        return number(result->fairness, "3");
    }
}

static struct text wait_p50(const struct sim_result *result, int class)
{
    return seconds(result->classes[class].wait_s.p50);
}

static struct text wait_p95(const struct sim_result *result, int class)
{
    return seconds(result->classes[class].wait_s.p95);
}

static struct text wait_p99(const struct sim_result *result, int class)
{
    return seconds(result->classes[class].wait_s.p99);
}

static struct text busy_of(const struct sim_result *result, int pool)
{
    return percent(result->pools[pool].busy_s, result->pools[pool].paid_s);
}

static struct text workers_of(const struct sim_result *result, int pool)
{
    return number(result->pools[pool].workers_mean, "1");
}

static struct text loads_of(const struct sim_result *result, int pool)
{
    return number((double)result->pools[pool].loads, "0");
}

static void put_comparison(const struct report_column *columns, int count, struct buf *out)
{
    static const char *const figures[FIGURES] = {
        "price",         "price of 1,000 pictures", "done after", "jobs done",
        "jobs not done", "deadlines missed",        "fairness"};
    const struct sim_result *first = columns[0].result;
    char what[64];
    buf_printf(out, "%-30s", "");
    for (int i = 0; i < count; i++) {
        size_t len = strlen(columns[i].policy);
        buf_printf(out, " %24s", columns[i].policy + (len > 24 ? len - 24 : 0));
    }
    buf_char(out, '\n');
    for (int f = 0; f < FIGURES; f++)
        put_row(figures[f], columns, count, figure_of, f, out);
    for (int c = 0; c < CLASS_COUNT; c++) {
        if (first->classes[c].jobs == 0)
            continue;
        snprintf(what, sizeof(what), "wait of %s, p50", first->classes[c].name);
        put_row(what, columns, count, wait_p50, c, out);
        put_row("  p95", columns, count, wait_p95, c, out);
        put_row("  p99", columns, count, wait_p99, c, out);
    }
    for (uint32_t p = 0; p < first->pool_count; p++) {
        snprintf(what, sizeof(what), "%.16s, busy", first->pools[p].name);
        put_row(what, columns, count, busy_of, (int)p, out);
        put_row("  workers", columns, count, workers_of, (int)p, out);
        put_row("  models loaded", columns, count, loads_of, (int)p, out);
    }
}

void report_text(const struct report_column *columns, int count, struct buf *out)
{
    if (count > 1)
        put_comparison(columns, count, out);
    else
        put_tables(columns, out);
}

/* ---- JSON ---- */

static void put_number(struct buf *out, const char *name, double value)
{
    buf_char(out, ',');
    json_write_key(out, name);
    json_write_double(out, value);
}

static void put_integer(struct buf *out, const char *name, uint64_t value)
{
    buf_char(out, ',');
    json_write_key(out, name);
    json_write_integer(out, (int64_t)value);
}

static void put_name(struct buf *out, const char *key, const char *name)
{
    buf_char(out, '{');
    json_write_key(out, key);
    json_write_string(out, name, strlen(name));
}

static void put_spread(struct buf *out, const char *name, const struct sim_spread *spread)
{
    buf_char(out, ',');
    json_write_key(out, name);
    buf_str(out, "{\"mean\":");
    json_write_double(out, spread->mean);
    put_number(out, "p50", spread->p50);
    put_number(out, "p95", spread->p95);
    put_number(out, "p99", spread->p99);
    put_number(out, "max", spread->max);
    buf_char(out, '}');
}

static void put_json_group(struct buf *out, const struct sim_group *group)
{
    put_name(out, "name", group->name);
    put_integer(out, "jobs", group->jobs);
    put_integer(out, "pictures", group->pictures);
    put_integer(out, "done", group->done);
    put_integer(out, "expired", group->expired);
    put_integer(out, "dead", group->dead);
    put_integer(out, "refused", group->refused);
    put_integer(out, "left", group->left);
    put_integer(out, "deadlines_missed", group->missed);
    if (group->weight > 0)
        put_number(out, "weight", group->weight);
    put_number(out, "work_s", group->work_s);
    put_number(out, "price", group->price);
    put_number(out, "slowdown", group->slowdown);
    put_spread(out, "wait_s", &group->wait_s);
    put_spread(out, "whole_s", &group->whole_s);
    buf_char(out, '}');
}

static void put_json_groups(struct buf *out, const char *name, const struct sim_group *groups,
                            uint32_t count)
{
    buf_printf(out, ",\"%s\":[", name);
    for (uint32_t i = 0; i < count; i++) {
        if (i > 0)
            buf_char(out, ',');
        put_json_group(out, &groups[i]);
    }
    buf_char(out, ']');
}

static void put_json_pool(struct buf *out, const struct sim_pool *pool)
{
    put_name(out, "name", pool->name);
    put_number(out, "workers_mean", pool->workers_mean);
    put_number(out, "workers_max", pool->workers_max);
    put_number(out, "utilisation", pool->paid_s > 0 ? pool->busy_s / pool->paid_s : 0);
    put_number(out, "busy_s", pool->busy_s);
    put_number(out, "paid_s", pool->paid_s);
    put_number(out, "price", pool->price);
    put_integer(out, "jobs", pool->jobs);
    put_integer(out, "pictures", pool->pictures);
    put_integer(out, "loads", pool->loads);
    put_number(out, "load_s", pool->load_s);
    put_integer(out, "crashes", pool->crashes);
    put_integer(out, "reclaims", pool->reclaims);
    put_spread(out, "wanted", &pool->wanted);
    buf_char(out, '}');
}

static void put_json_result(struct buf *out, const struct report_column *column)
{
    const struct sim_result *result = column->result;
    put_name(out, "policy", column->policy);
    put_number(out, "span_s", result->span_s);
    put_number(out, "price", result->price);
    put_number(out, "price_per_thousand_pictures", per_thousand(result));
    put_number(out, "fairness", result->fairness);
    put_integer(out, "scheduler_steps", result->steps);
    put_integer(out, "assignments_checked", result->checks);
    buf_str(out, ",\"all\":");
    put_json_group(out, &result->all);
    put_json_groups(out, "priorities", result->classes, CLASS_COUNT);
    put_json_groups(out, "tenants", result->tenants, result->tenant_count);
    buf_str(out, ",\"pools\":[");
    for (uint32_t i = 0; i < result->pool_count; i++) {
        if (i > 0)
            buf_char(out, ',');
        put_json_pool(out, &result->pools[i]);
    }
    buf_str(out, "]}");
}

void report_json(const struct report_column *columns, int count, struct buf *out)
{
    buf_str(out, "{\"simulations\":[");
    for (int i = 0; i < count; i++) {
        if (i > 0)
            buf_char(out, ',');
        put_json_result(out, &columns[i]);
    }
    buf_str(out, "]}\n");
}

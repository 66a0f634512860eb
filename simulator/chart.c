/*
 * chart.c: an SVG of a simulation: a panel for each pool, in it workers (light), busy ones (dark)
 * and, as a line, jobs that wait for the pool's class; each with a scale of its own, time below.
 */
#include "simulator/report.h"

#include <math.h>
#include <stdio.h>

#define WIDTH 960
#define LEFT 60
#define RIGHT 70
#define PANEL 130 /* of one pool, its title and space included */
#define HEADER 34 /* of a policy */
#define TITLE 26
#define FOOTER 30
#define TICKS 6
#define STYLE "font-family=\"sans-serif\" font-size=\"12\""

enum series { WORKERS, BUSY, QUEUED };

static float value_of(const struct sim_sample *sample, enum series series, uint32_t pool)
{
    return series == WORKERS ? sample->workers[pool]
           : series == BUSY  ? sample->busy[pool]
                             : sample->queued[pool];
}

static double most(const struct sim_result *result, enum series series, uint32_t pool)
{
    double max = 0;
    for (uint32_t i = 0; i < result->sample_count; i++)
        max = fmax(max, (double)value_of(&result->samples[i], series, pool));
    return max;
}

static double x_of(const struct sim_result *result, double sample)
{
    double count = result->sample_count > 0 ? result->sample_count : 1;
    return LEFT + (WIDTH - LEFT - RIGHT) * sample / count;
}

/* Text between tags: names come from files. */
static void put_text(const char *text, struct buf *out)
{
    for (; *text; text++) {
        if (*text == '<')
            buf_str(out, "&lt;");
        else if (*text == '&')
            buf_str(out, "&amp;");
        else
            buf_char(out, *text);
    }
}

static void put_label(double x, double y, const char *anchor, const char *text, struct buf *out)
{
    buf_printf(out, "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"%s\" " STYLE ">", x, y, anchor);
    put_text(text, out);
    buf_str(out, "</text>\n");
}

static void put_points(const struct sim_result *result, enum series series, uint32_t pool,
                       double base, double height, double scale, struct buf *out)
{
    for (uint32_t i = 0; i < result->sample_count; i++) {
        double y = base - height * (double)value_of(&result->samples[i], series, pool) / scale;
        buf_printf(out, "%.1f,%.1f ", x_of(result, i + 0.5), y);
    }
}

static void put_area(const struct sim_result *result, enum series series, uint32_t pool,
                     double base, double height, double scale, const char *colour, struct buf *out)
{
    buf_printf(out, "<polygon fill=\"%s\" points=\"%.1f,%.1f ", colour, x_of(result, 0.5), base);
    put_points(result, series, pool, base, height, scale, out);
    buf_printf(out, "%.1f,%.1f\"/>\n", x_of(result, result->sample_count - 0.5), base);
}

static void put_panel(const struct sim_result *result, uint32_t pool, double top, struct buf *out)
{
    double height = PANEL - TITLE, base = top + PANEL - 6;
    double workers = fmax(1, most(result, WORKERS, pool));
    double queued = fmax(1, most(result, QUEUED, pool));
    char text[64];
    height -= 6;
    put_label(LEFT, top + TITLE - 8, "start", result->pools[pool].name, out);
    snprintf(text, sizeof(text), "up to %.0f worker%s", workers, workers > 1 ? "s" : "");
    put_label(LEFT + 200, top + TITLE - 8, "start", text, out);
    snprintf(text, sizeof(text), "%.0f waiting at most", queued);
    put_label(WIDTH - RIGHT, top + TITLE - 8, "end", text, out);
    put_area(result, WORKERS, pool, base, height, workers, "#d6e4f0", out);
    put_area(result, BUSY, pool, base, height, workers, "#5b8db8", out);
    buf_str(out, "<polyline fill=\"none\" stroke=\"#c0392b\" stroke-width=\"1.2\" points=\"");
    put_points(result, QUEUED, pool, base, height, queued, out);
    buf_printf(out, "\"/>\n<path d=\"M%d,%.0fH%d\" stroke=\"#888\"/>\n", LEFT, base, WIDTH - RIGHT);
}

static void put_times(const struct sim_result *result, double y, struct buf *out)
{
    double span_s = result->step_s * result->sample_count;
    bool hours = span_s > 7200;
    char text[64];
    for (int i = 0; i <= TICKS; i++) {
        double at_s = span_s * i / TICKS;
        snprintf(text, sizeof(text), hours ? "%.1f h" : "%.1f min", at_s / (hours ? 3600 : 60));
        put_label(LEFT + (double)(WIDTH - LEFT - RIGHT) * i / TICKS, y + 18, "middle", text, out);
    }
}

void report_svg(const struct report_column *columns, int count, struct buf *out)
{
    double height = 0, top = 0;
    char text[512];
    for (int i = 0; i < count; i++)
        height += HEADER + PANEL * columns[i].result->pool_count + FOOTER;
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
               WIDTH, height);
    for (int i = 0; i < count; i++) {
        const struct sim_result *result = columns[i].result;
        snprintf(text, sizeof(text),
                 "%.200s: workers (light), busy ones (dark), jobs that wait (red)",
                 columns[i].policy);
        put_label(LEFT, top + 22, "start", text, out);
        top += HEADER;
        for (uint32_t p = 0; p < result->pool_count; p++, top += PANEL)
            put_panel(result, p, top, out);
        put_times(result, top, out);
        top += FOOTER;
    }
    buf_str(out, "</svg>\n");
}

#include "cli/progress.h"

#include "common/json.h"
#include "common/plural.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_INTERVAL_NS 100000000LL
#define LINE_INTERVAL_NS 5000000000LL
#define RATE_WINDOW_NS 5000000000LL
#define BAR_CELLS 24

void progress_begin(struct progress *progress, const struct clock *clock, bool json)
{
    *progress = (struct progress){.clock = clock, .json = json};
    progress->begun_ns = progress->window_ns = clock_monotonic_ns(clock);
    progress->shown_ns = progress->begun_ns;
    progress->terminal = !json && isatty(STDERR_FILENO);
}

void progress_format_time(double seconds, char out[32])
{
    unsigned long long s = seconds < 0 ? 0 : (unsigned long long)(seconds + 0.5);
    if (seconds < 0)
        snprintf(out, 32, "?");
    else if (seconds < 10)
        snprintf(out, 32, "%.1fs", seconds);
    else if (s < 60)
        snprintf(out, 32, "%llus", s);
    else if (s < 3600)
        snprintf(out, 32, "%llum%02llus", s / 60, s % 60);
    else if (s < 86400)
        snprintf(out, 32, "%lluh%02llum", s / 3600, s % 3600 / 60);
    else
        snprintf(out, 32, "%llud%02lluh", s / 86400, s % 86400 / 3600);
}

static uint64_t jobs_settled(const struct tally *tally)
{
    return tally->rejected + tally->repeated + tally->skipped + tally->done + tally->failed +
           tally->expired;
}

static void update_rate(struct progress *progress, const struct tally *tally, int64_t now)
{
    int64_t window = now - progress->window_ns;
    if (window < RATE_WINDOW_NS && progress->pictures_per_s > 0)
        return;
    if (window < BAR_INTERVAL_NS)
        return;
    uint64_t pictures = tally->pictures - progress->shown_pictures;
    if (pictures > 0 || window >= RATE_WINDOW_NS)
        progress->pictures_per_s = (double)pictures * 1e9 / (double)window;
    if (window >= RATE_WINDOW_NS) {
        progress->window_ns = now;
        progress->shown_pictures = tally->pictures;
    }
}

static int put_counts(char *out, size_t size, const struct progress *progress,
                      const struct tally *tally, const struct pipeline_progress *now,
                      const char *loading, double left_s)
{
    char left[32], total[32] = "", troubles[80] = "", step[80] = "";
    progress_format_time(left_s, left);
    if (tally->total > 0)
        snprintf(total, sizeof(total), "/%llu", (unsigned long long)tally->total);
    if (tally->rejected + tally->failed + tally->expired > 0)
        snprintf(troubles, sizeof(troubles), "  %llu rejected, %llu failed",
                 (unsigned long long)tally->rejected,
                 (unsigned long long)(tally->failed + tally->expired));
    if (loading)
        snprintf(step, sizeof(step), "  loading %.40s", loading);
    else if (now->active > 0)
        snprintf(step, sizeof(step), "  step %d/%d of %d at %d×%d", now->step, now->steps,
                 now->active, now->width, now->height);
    return snprintf(out, size, "%llu%s job%s  %.2f pictures/s%s%s  %s left",
                    (unsigned long long)jobs_settled(tally), total,
                    plural(tally->total ? tally->total : jobs_settled(tally)),
                    progress->pictures_per_s, step, troubles, left);
}

static void show_bar(struct progress *progress, const struct tally *tally, const char *text)
{
    char cells[BAR_CELLS * 3 + 1] = "";
    if (tally->total > 0) {
        uint64_t filled = jobs_settled(tally) * BAR_CELLS / tally->total;
        for (uint64_t i = 0; i < BAR_CELLS; i++)
            strcat(cells, i < filled ? "█" : "░");
    }
    fprintf(stderr, "\r\033[K%s %s", cells, text);
    fflush(stderr);
    progress->bar_is_up = true;
}

static void put_json_tally(const struct tally *tally)
{
    printf("\"total\":%llu,\"lines\":%llu,\"rejected\":%llu,\"repeated\":%llu,\"skipped\":%llu,"
           "\"done\":%llu,\"failed\":%llu,\"expired\":%llu,\"pictures\":%llu",
           (unsigned long long)tally->total, (unsigned long long)tally->lines,
           (unsigned long long)tally->rejected, (unsigned long long)tally->repeated,
           (unsigned long long)tally->skipped, (unsigned long long)tally->done,
           (unsigned long long)tally->failed, (unsigned long long)tally->expired,
           (unsigned long long)tally->pictures);
}

static void show_json(const struct progress *progress, const struct tally *tally,
                      const struct pipeline_progress *now, double left_s)
{
    printf("{\"event\":\"progress\",");
    put_json_tally(tally);
    printf(",\"pictures_per_s\":%.3f,\"step\":%d,\"steps\":%d,\"active\":%d",
           progress->pictures_per_s, now->step, now->steps, now->active);
    if (left_s >= 0)
        printf(",\"left_s\":%.1f", left_s);
    printf("}\n");
    fflush(stdout);
}

void progress_show(struct progress *progress, const struct tally *tally,
                   const struct pipeline_progress *now, const char *loading, double left_s)
{
    char text[320];
    int64_t time = clock_monotonic_ns(progress->clock);
    int64_t interval = progress->terminal ? BAR_INTERVAL_NS : LINE_INTERVAL_NS;
    update_rate(progress, tally, time);
    if (time - progress->shown_ns < interval)
        return;
    progress->shown_ns = time;
    if (progress->json) {
        show_json(progress, tally, now, left_s);
        return;
    }
    put_counts(text, sizeof(text), progress, tally, now, loading, left_s);
    if (progress->terminal)
        show_bar(progress, tally, text);
    else
        fprintf(stderr, "%s\n", text);
}

void progress_clear(struct progress *progress)
{
    if (!progress->bar_is_up)
        return;
    fprintf(stderr, "\r\033[K");
    fflush(stderr);
    progress->bar_is_up = false;
}

void progress_end(struct progress *progress, const struct tally *tally, const char *status,
                  const char *dir)
{
    char time[32];
    double seconds = (double)(clock_monotonic_ns(progress->clock) - progress->begun_ns) * 1e-9;
    progress_clear(progress);
    if (progress->json) {
        printf("{\"event\":\"end\",\"status\":\"%s\",\"seconds\":%.3f,", status, seconds);
        put_json_tally(tally);
        printf(",\"model_loads\":%d}\n", tally->model_loads);
        fflush(stdout);
        return;
    }
    progress_format_time(seconds, time);
    printf("%llu job%s done, %llu picture%s in %s", (unsigned long long)tally->done,
           plural(tally->done), (unsigned long long)tally->pictures, plural(tally->pictures), time);
    if (tally->skipped > 0)
        printf("; %llu %s done before", (unsigned long long)tally->skipped,
               tally->skipped == 1 ? "was" : "were");
    if (tally->repeated > 0)
        printf("; %llu repeated line%s ignored", (unsigned long long)tally->repeated,
               plural(tally->repeated));
    if (tally->rejected > 0)
        printf("; %llu line%s rejected (%s/rejected.jsonl)", (unsigned long long)tally->rejected,
               plural(tally->rejected), dir);
    if (tally->failed + tally->expired > 0)
        printf("; %llu job%s failed (%s/failed.jsonl)",
               (unsigned long long)(tally->failed + tally->expired),
               plural(tally->failed + tally->expired), dir);
    printf("\nlook at them: %s/index.html\n", dir);
    fflush(stdout);
}

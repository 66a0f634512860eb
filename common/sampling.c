#include "common/sampling.h"

#include "common/err.h"

#include <stdio.h>
#include <string.h>

const char *const sampler_names[] = {
    [SAMPLER_DDIM - 1] = "ddim",
    [SAMPLER_EULER - 1] = "euler",
    [SAMPLER_EULER_A - 1] = "euler_a",
    [SAMPLER_HEUN - 1] = "heun",
    [SAMPLER_LMS - 1] = "lms",
    [SAMPLER_DPM2 - 1] = "dpm2",
    [SAMPLER_DPM2_A - 1] = "dpm2_a",
    [SAMPLER_DPMPP_2S_A - 1] = "dpm++ 2s a",
    [SAMPLER_DPMPP_2S - 1] = "dpm++ 2s",
    [SAMPLER_DPMPP_2M - 1] = "dpm++ 2m",
    [SAMPLER_DPMPP_SDE - 1] = "dpm++ sde",
    [SAMPLER_DPMPP_2M_SDE - 1] = "dpm++ 2m sde",
    [SAMPLER_DPMPP_3M_SDE - 1] = "dpm++ 3m sde",
    [SAMPLER_PNDM - 1] = "pndm",
    [SAMPLER_UNIPC - 1] = "unipc",
    [SAMPLER_DDPM - 1] = "ddpm",
    [SAMPLER_LCM - 1] = "lcm",
    [SAMPLER_TCD - 1] = "tcd",
    [SAMPLER_COUNT - 1] = "plms",
    [SAMPLER_COUNT] = NULL,
};

const char *const schedule_names[] = {
    [SCHEDULE_NORMAL - 1] = "normal",
    [SCHEDULE_KARRAS - 1] = "karras",
    [SCHEDULE_EXPONENTIAL - 1] = "exponential",
    [SCHEDULE_SGM_UNIFORM - 1] = "sgm_uniform",
    [SCHEDULE_SIMPLE - 1] = "simple",
    [SCHEDULE_AYS - 1] = "ays",
    [SCHEDULE_BETA - 1] = "beta",
    [SCHEDULE_COUNT - 1] = NULL,
};

#define BIT(name) (1u << SCHEDULE_##name)
#define EVEN (BIT(NORMAL) | BIT(SGM_UNIFORM))
#define LISTS (BIT(SIMPLE) | BIT(AYS))
#define CURVES (BIT(KARRAS) | BIT(EXPONENTIAL) | BIT(BETA))

static const unsigned schedules[SAMPLER_COUNT] = {
    [SAMPLER_DDIM] = EVEN,
    [SAMPLER_EULER] = EVEN | LISTS | CURVES,
    [SAMPLER_EULER_A] = EVEN | LISTS,
    [SAMPLER_HEUN] = EVEN | LISTS | CURVES,
    [SAMPLER_LMS] = EVEN | LISTS | CURVES,
    [SAMPLER_DPM2] = EVEN | LISTS | CURVES,
    [SAMPLER_DPM2_A] = EVEN | LISTS | CURVES,
    [SAMPLER_DPMPP_2S_A] = EVEN | LISTS | CURVES,
    [SAMPLER_DPMPP_2S] = BIT(NORMAL) | LISTS | CURVES,
    [SAMPLER_DPMPP_2M] = EVEN | LISTS | CURVES,
    [SAMPLER_DPMPP_SDE] = BIT(NORMAL) | LISTS | CURVES,
    [SAMPLER_DPMPP_2M_SDE] = EVEN | LISTS | CURVES,
    [SAMPLER_DPMPP_3M_SDE] = EVEN | LISTS | CURVES,
    [SAMPLER_PNDM] = EVEN,
    [SAMPLER_UNIPC] = EVEN | LISTS | CURVES,
    [SAMPLER_DDPM] = EVEN | BIT(SIMPLE),
    [SAMPLER_LCM] = BIT(NORMAL),
    [SAMPLER_TCD] = BIT(NORMAL),
};

static int find(const char *const names[], const char *name)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], name) == 0)
            return i + 1;
    return -1;
}

int sampler_by_name(const char *name)
{
    int found = find(sampler_names, name);
    return found == SAMPLER_COUNT ? SAMPLER_PNDM : found;
}

const char *sampler_name(enum sampler sampler)
{
    return sampler > SAMPLER_MODEL && sampler < SAMPLER_COUNT ? sampler_names[sampler - 1] : NULL;
}

int schedule_by_name(const char *name)
{
    return find(schedule_names, name);
}

const char *schedule_name(enum schedule schedule)
{
    return schedule > SCHEDULE_MODEL && schedule < SCHEDULE_COUNT ? schedule_names[schedule - 1]
                                                                  : NULL;
}

bool sampler_has_eta(enum sampler sampler)
{
    return sampler == SAMPLER_DDIM || sampler == SAMPLER_TCD;
}

bool sampler_has_schedule(enum sampler sampler, enum schedule schedule)
{
    ASSERT(sampler > SAMPLER_MODEL && sampler < SAMPLER_COUNT);
    return schedule == SCHEDULE_MODEL || schedules[sampler] >> schedule & 1;
}

char *sampler_schedules(enum sampler sampler, char out[SAMPLER_SCHEDULES_MAX_BYTES])
{
    size_t len = 0;
    for (int i = SCHEDULE_MODEL + 1; i < SCHEDULE_COUNT; i++)
        if (sampler_has_schedule(sampler, (enum schedule)i))
            len += (size_t)snprintf(out + len, SAMPLER_SCHEDULES_MAX_BYTES - len, "%s%s",
                                    len > 0 ? ", " : "", schedule_names[i - 1]);
    ASSERT(len > 0 && len < SAMPLER_SCHEDULES_MAX_BYTES);
    return out;
}

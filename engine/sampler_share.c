/*
 * sampler_share.c: a schedule that two models share, parted by timestep and not by step count, as
 * diffusers' SDXL pipelines do with denoising_end and denoising_start.
 */
#include "engine/sampler_parts.h"

#include <math.h>

static float cut_of(const struct sampler_plan *plan, double at)
{
    int train = plan->config.train_steps;
    return (float)rint(train - at * train);
}

int sampler_share_end(const struct sampler_plan *plan, double at)
{
    int end = plan->begin;
    for (int i = plan->begin; i < plan->calls; i++)
        end += plan->timesteps[i] >= cut_of(plan, at);
    return end;
}

int sampler_share_begin(const struct sampler_plan *plan, double at)
{
    int count = 0;
    for (int i = 0; i < plan->calls; i++)
        count += plan->timesteps[i] < cut_of(plan, at);
    /* A solver of two calls a step is not cut between them: an odd number of calls is left. */
    if (sampler_kind(plan->sampler)->order == 2 && count % 2 == 0 && count < plan->calls)
        count++;
    return plan->calls - count;
}

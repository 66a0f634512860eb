/*
 * sampler_parts.h: what the samplers share. Only sampler*.c includes it.
 *
 * Every solver step is a weighted sum of a few tensors, so a solver only computes weights. Three
 * spaces are in use: ddim, ddpm, lcm, tcd and pndm count in alpha products by training step; euler,
 * heun, lms and dpm2 in sigma, the noise of a signal left unscaled; dpm++ and unipc in
 * lambda = -log(sigma).
 */
#ifndef ATELIER_ENGINE_SAMPLER_PARTS_H
#define ATELIER_ENGINE_SAMPLER_PARTS_H

#include "engine/sampler.h"

#include <math.h>

/* ---- tensors ---- */

#define SAMPLER_OUTPUTS 4 /* slots of the ring of model outputs, the first ones of the history */

enum sampler_slot { SLOT_SAMPLE = SAMPLER_OUTPUTS, SLOT_SCRATCH };

struct term {
    double weight;
    const float *tensor;
};

/* out = the sum of the terms; `out` may be one of their tensors. */
void sum_terms(float *out, const struct term *terms, int count, size_t n);

/* One call of sampler_step. */
struct step {
    const struct sampler_plan *plan;
    int index; /* of the call in the plan */
    int call;  /* the same, counted from the first of this picture */
    int kept;  /* outputs kept so far, all counted; the last SAMPLER_OUTPUTS are there */
    const float *output, *noise;
    float *latents, *history;
    size_t n;
};

float *step_slot(const struct step *step, int slot);

/* The i-th kept output, counted back from the latest, 0. */
float *step_output(const struct step *step, int i);

/* Where to write the next output to keep, which is then number 0. */
float *step_keep(struct step *step);

/* ---- noise schedules (sampler_schedule.c) ---- */

enum zero_snr { ZERO_SNR_IGNORED, ZERO_SNR_EXACT, ZERO_SNR_TINY };

void schedule_alphas(float *alphas, const struct sampler_config *config, enum zero_snr zero_snr);

/* (1 - alpha) / alpha, rooted, of one alpha product. */
float schedule_sigma(float alpha);

/* The alpha product at a training step; -1 is the last, as an index is in Python. */
double plan_alpha(const struct sampler_plan *plan, int timestep);

/* Fill plan->timesteps, sigmas and calls. */
int schedule_make_alpha(struct sampler_plan *plan, enum spacing spacing, struct err *err);
int schedule_make_pndm(struct sampler_plan *plan, enum spacing spacing, struct err *err);
int schedule_make_distilled(struct sampler_plan *plan, enum spacing spacing, struct err *err);
int schedule_make_sigma(struct sampler_plan *plan, enum spacing spacing, struct err *err);
int schedule_make_heun(struct sampler_plan *plan, enum spacing spacing, struct err *err);
int schedule_make_dpm2(struct sampler_plan *plan, enum spacing spacing, struct err *err);
int schedule_make_lambda(struct sampler_plan *plan, enum spacing spacing, struct err *err);

/* How an ancestral step from one sigma to the next goes: down to a lower one, then up by noise. */
struct ancestral {
    float down, up;
};

struct ancestral ancestral_split(const struct sampler_plan *plan, float from, float to);

/* ---- spreads of noise levels (sampler_spread.c) ---- */

/* start + (stop - start) × i / (count - 1), as numpy.linspace has it. */
double linspace(double start, double stop, int count, int i);

/* The i-th of `count` sigmas that fall from `largest` to `smallest`, for a schedule that is such a
 * curve: karras, exponential or beta. */
double spread_sigma(enum schedule schedule, double largest, double smallest, int count, int i);

/* The i-th of `count` sigmas of Align Your Steps: its table for 10, in between for other counts. */
double spread_ays(bool sdxl, const float *train, int count, int i);

/* ---- solvers ---- */

void step_ddim(struct step *step);
void step_pndm(struct step *step);
void step_euler(struct step *step);
void step_euler_a(struct step *step);
void step_heun(struct step *step);
void step_lms(struct step *step);
void step_dpm2(struct step *step);
void step_dpm2_a(struct step *step);
void step_dpm_2s_a(struct step *step);
void step_dpm(struct step *step);
void step_dpm_single(struct step *step);
void step_unipc(struct step *step);
void step_ddpm(struct step *step);
void step_lcm(struct step *step);
void step_tcd(struct step *step);

int kept_by_pndm(const struct sampler_plan *plan, int call);

/* ---- one table of them (sampler.c) ---- */

struct sampler_kind {
    const char *class_name;   /* in diffusers; NULL: none */
    bool has_algorithm;       /* the class is several samplers, and its algorithm says which */
    enum algorithm algorithm; /* of this one */
    int solver_order;         /* 0: as the file says */
    int order;                /* model calls per step, which img2img skips by */
    enum spacing spacing;     /* defaults of the class */
    bool keeps_spacing;       /* whatever the file says */
    enum zero_snr zero_snr;
    bool scales_noise;    /* the start noise and the model's input carry sigma */
    bool clips_lambda;    /* lambda_min_clipped is read */
    bool predicts_sample; /* can do prediction_type "sample" */
    bool set_alpha_to_one;
    enum choice clip_sample; /* CHOICE_UNSET: this class never does */
    enum betas betas;        /* BETAS_UNSET: linear */
    double beta_start, beta_end;
    int (*make)(struct sampler_plan *plan, enum spacing spacing, struct err *err);
    void (*step)(struct step *step);
    int (*kept)(const struct sampler_plan *plan, int call);    /* outputs before it; NULL: none */
    bool (*draws)(const struct sampler_plan *plan, int index); /* NULL: never */
};

const struct sampler_kind *sampler_kind(enum sampler sampler);

static inline bool choose(enum choice choice, bool otherwise)
{
    return choice == CHOICE_UNSET ? otherwise : choice == CHOICE_YES;
}

#endif

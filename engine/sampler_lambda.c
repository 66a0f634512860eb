/*
 * sampler_lambda.c: dpm++ and unipc, exponential integrators over lambda = log(signal / noise).
 *
 * x = signal × picture + spread × noise with signal² + spread² = 1 and sigma = spread / signal.
 * All solvers keep the predicted pictures of the last steps. Sources: Lu et al., "DPM-Solver++",
 * 2022, algorithms 1 and 2, and appendix B for the stochastic ones; Zhao et al., "UniPC", 2023,
 * algorithms 5 to 8.
 */
#include "engine/sampler_parts.h"

struct level {
    double sigma, signal, spread, lambda;
};

static struct level level_at(const struct sampler_plan *plan, int index)
{
    double sigma = plan->sigmas[index], signal = 1 / sqrt(sigma * sigma + 1);
    return (struct level){sigma, signal, sigma * signal, -log(sigma)};
}

static void write_picture(const struct step *step, float *out)
{
    struct level at = level_at(step->plan, step->index);
    struct term terms[] = {{1 / at.signal, step->latents}, {-at.sigma, step->output}};
    if (step->plan->config.prediction == PREDICTION_V) {
        terms[0].weight = at.signal;
        terms[1].weight = -at.spread;
    } else if (step->plan->config.prediction == PREDICTION_SAMPLE) {
        terms[0].weight = 0;
        terms[1].weight = 1;
    }
    sum_terms(out, terms, 2, step->n);
}

/* ---- dpm++ ---- */

/* One update between two levels: of the sample, of a picture, of its first and second differences
 * over the step, and of fresh noise. The stochastic solvers go twice as far down and make up for it
 * with noise. */
struct dpm {
    double keep, w0, w1, w2, noise;
    double h;
};

static struct dpm dpm_make(const struct sampler_plan *plan, struct level from, struct level to)
{
    bool is_sde = sampler_kind(plan->sampler)->algorithm == ALGORITHM_SDE;
    struct dpm u = {.h = to.lambda - from.lambda};
    double far = is_sde ? 2 * u.h : u.h, shrink = expm1(-far); /* -1 at the end: h is infinite */
    u.keep = to.spread / from.spread * (is_sde ? exp(-u.h) : 1);
    u.w0 = -to.signal * shrink;
    u.w1 = to.signal * (shrink / far + 1);
    /* The reference has the wrong sign before the stochastic one's half, and so has this: the term
     * is small, and the pictures are the same. */
    u.w2 = -to.signal * ((shrink + far) / (far * far) + (is_sde ? 0.5 : -0.5));
    u.noise = is_sde ? to.spread * sqrt(-shrink) : 0;
    return u;
}

/* sample' = keep × sample + the sum of `weights` × the latest kept pictures + noise */
static void dpm_apply(const struct step *step, const struct dpm *u, const float *sample,
                      const double *weights, int order)
{
    struct term terms[5] = {{u->keep, sample}};
    int count = 1;
    for (int i = 0; i < order; i++)
        terms[count++] = (struct term){weights[i], step_output(step, i)};
    if (u->noise > 0)
        terms[count++] = (struct term){u->noise, step->noise};
    sum_terms(step->latents, terms, count, step->n);
}

static int dpm_order(const struct sampler_plan *plan, int index, int kept)
{
    int left = plan->calls - index; /* this step included */
    bool lower = choose(plan->config.lower_order_final, true) && plan->calls < 15;
    bool ends_at_zero = !plan->config.final_sigma_min;
    if (left == 1 && (plan->config.euler_at_final || lower || ends_at_zero))
        return 1;
    int order = plan->solver_order;
    if (left == 2 && lower && order > 2)
        order = 2;
    return order < kept ? order : kept;
}

/* Each step starts where the last ended; differences are to the pictures before. */
void step_dpm(struct step *step)
{
    const struct sampler_plan *plan = step->plan;
    int index = step->index;
    write_picture(step, step_keep(step));
    int order = dpm_order(plan, index, step->kept);
    struct level at = level_at(plan, index);
    struct dpm u = dpm_make(plan, at, level_at(plan, index + 1));
    double weights[3] = {u.w0};
    if (order == 2) {
        double r0 = (at.lambda - level_at(plan, index - 1).lambda) / u.h;
        double w1 = plan->config.solver == SOLVER_HEUN ? u.w1 : 0.5 * u.w0;
        weights[0] += w1 / r0;
        weights[1] = -w1 / r0;
    } else if (order > 2) {
        /* D1 = a + r0 / (r0 + r1) (a - b) and D2 = (a - b) / (r0 + r1), where a is the latest
         * difference over r0 and b the one before over r1. */
        struct level before = level_at(plan, index - 1);
        double r0 = (at.lambda - before.lambda) / u.h;
        double r1 = (before.lambda - level_at(plan, index - 2).lambda) / u.h;
        double wb = -(u.w1 * r0 + u.w2) / (r0 + r1), wa = u.w1 - wb;
        weights[0] += wa / r0;
        weights[1] = -wa / r0 + wb / r1;
        weights[2] = -wb / r1;
    }
    dpm_apply(step, &u, step->latents, weights, order);
}

/* Of the step that ends after call `index`: blocks of rising orders, the last cut short. */
static int dpm_single_order(const struct sampler_plan *plan, int index, int kept)
{
    int most = plan->solver_order, order = index % most + 1;
    bool ends_at_zero = !plan->config.final_sigma_min;
    bool lower =
        choose(plan->config.lower_order_final, false) || ends_at_zero || plan->calls % most != 0;
    if (index == plan->calls - 1 && (ends_at_zero || (lower && order == most)))
        order = 1;
    return order < kept ? order : kept;
}

/* A step of order k starts where the block's first call, k - 1 before, did. */
void step_dpm_single(struct step *step)
{
    const struct sampler_plan *plan = step->plan;
    int index = step->index;
    float *sample = step_slot(step, SLOT_SAMPLE);
    write_picture(step, step_keep(step));
    int order = dpm_single_order(plan, index, step->kept);
    if (order == 1)
        sum_terms(sample, &(struct term){1, step->latents}, 1, step->n);
    struct level from = level_at(plan, index + 1 - order);
    struct dpm u = dpm_make(plan, from, level_at(plan, index + 1));
    bool heun = plan->config.solver == SOLVER_HEUN;
    double weights[3] = {0};
    weights[order - 1] = u.w0;
    if (order == 2) {
        double r0 = (level_at(plan, index).lambda - from.lambda) / u.h;
        double w1 = heun ? u.w1 : 0.5 * u.w0;
        weights[0] = w1 / r0;
        weights[1] -= w1 / r0;
    } else if (order > 2) {
        /* a and b: the differences of the second and the third call to the first. */
        double r0 = (level_at(plan, index).lambda - from.lambda) / u.h;
        double r1 = (level_at(plan, index - 1).lambda - from.lambda) / u.h;
        double wa = heun ? (u.w1 * r0 - 2 * u.w2) / (r0 - r1) : 0, wb = u.w1 - wa;
        weights[0] = wb / r0;
        weights[1] = wa / r1;
        weights[2] -= wb / r0 + wa / r1;
    }
    dpm_apply(step, &u, sample, weights, order);
}

/* ---- unipc ---- */

#define UNIPC_ORDER_MAX 3

/* Solves the n × n system in place by elimination with pivots; the solution is then in b. */
static void solve(double a[UNIPC_ORDER_MAX][UNIPC_ORDER_MAX], double *b, int n)
{
    for (int k = 0; k < n; k++) {
        int best = k;
        for (int i = k + 1; i < n; i++)
            if (fabs(a[i][k]) > fabs(a[best][k]))
                best = i;
        for (int j = 0; j < n; j++) {
            double swapped = a[k][j];
            a[k][j] = a[best][j];
            a[best][j] = swapped;
        }
        double swapped = b[k];
        b[k] = b[best];
        b[best] = swapped;
        for (int i = 0; i < n; i++) {
            double factor = i == k ? 0 : a[i][k] / a[k][k];
            for (int j = k; j < n; j++)
                a[i][j] -= factor * a[k][j];
            b[i] -= factor * b[k];
        }
    }
    for (int k = 0; k < n; k++)
        b[k] /= a[k][k];
}

/* One update from the level at `from` to the next. */
struct unipc {
    double keep;                    /* of the sample */
    double picture;                 /* of the picture at `from` */
    double scale;                   /* of the differences, before rho */
    double ratios[UNIPC_ORDER_MAX]; /* where the older pictures lie, in units of the step; then 1 */
    double rho[UNIPC_ORDER_MAX];
};

/* `order` pictures count; rho solves the first `unknowns` of the order conditions. */
static struct unipc unipc_make(const struct sampler_plan *plan, int from, int order, int unknowns)
{
    struct level at = level_at(plan, from), next = level_at(plan, from + 1);
    double h = next.lambda - at.lambda, grow = expm1(-h);
    struct unipc u = {next.spread / at.spread, -next.signal * grow, 0, {0}, {0.5}};
    double base = plan->config.solver == SOLVER_BH1 ? -h : grow;
    u.scale = -next.signal * base;
    for (int i = 1; i < order; i++)
        u.ratios[i - 1] = (level_at(plan, from - i).lambda - at.lambda) / h;
    u.ratios[order - 1] = 1;
    if (unknowns == 1)
        return u; /* the simplified solution that the paper allows */
    double matrix[UNIPC_ORDER_MAX][UNIPC_ORDER_MAX];
    double phi = grow / -h - 1, factorial = 1;
    for (int i = 0; i < unknowns; i++) {
        for (int j = 0; j < unknowns; j++)
            matrix[i][j] = pow(u.ratios[j], i);
        u.rho[i] = phi * factorial / base;
        factorial *= i + 2;
        phi = phi / -h - 1 / factorial;
    }
    solve(matrix, u.rho, unknowns);
    return u;
}

/* sample' = keep × sample + picture × P0 + scale × sum of rho × differences to P0, of which the
 * kept pictures from number `first` on are P0 and older, and `newer` (or NULL) is one more. */
static void unipc_apply(const struct step *step, const struct unipc *u, const float *sample,
                        int order, int first, const float *newer, float *out)
{
    struct term terms[UNIPC_ORDER_MAX + 2] = {{u->keep, sample},
                                              {u->picture, step_output(step, first)}};
    int count = 2;
    for (int i = 0; i < order - 1; i++) {
        double weight = u->scale * u->rho[i] / u->ratios[i];
        terms[1].weight -= weight;
        terms[count++] = (struct term){weight, step_output(step, first + i + 1)};
    }
    if (newer) {
        double weight = u->scale * u->rho[order - 1];
        terms[1].weight -= weight;
        terms[count++] = (struct term){weight, newer};
    }
    sum_terms(out, terms, count, step->n);
}

/* Of the step that starts at `index`: it rises with the pictures known and falls to the end. */
static int unipc_order(const struct sampler_plan *plan, int index)
{
    int order = plan->solver_order, left = plan->calls - index, kept = index - plan->begin + 1;
    if (choose(plan->config.lower_order_final, true) && left < order)
        order = left;
    return order < kept ? order : kept;
}

void step_unipc(struct step *step)
{
    const struct sampler_plan *plan = step->plan;
    float *sample = step_slot(step, SLOT_SAMPLE);
    write_picture(step, step_keep(step));
    if (step->call > 0) {
        /* Corrects the step that led here, now that the picture at its end is known. */
        int order = unipc_order(plan, step->index - 1);
        struct unipc u = unipc_make(plan, step->index - 1, order, order);
        unipc_apply(step, &u, sample, order, 1, step_output(step, 0), sample);
    } else {
        sum_terms(sample, &(struct term){1, step->latents}, 1, step->n);
    }
    int order = unipc_order(plan, step->index);
    struct unipc u = unipc_make(plan, step->index, order, order - 1);
    unipc_apply(step, &u, sample, order, 0, NULL, step->latents);
}

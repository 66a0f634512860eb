/*
 * sampler_schedule.c: which timesteps a picture visits and how much noise each has.
 *
 * Tables of the training schedule are computed in f32 where torch computes them in f32: near the
 * end 1 - alpha is so small that its rounding shows. What numpy does in double is done in double.
 * Kept as they are are numpy's habits of rounding halves to even, and of arange, whose last element
 * may be one too many: for some step counts (61, 103, …) trailing spacing ends with timestep -1.
 */
#include "engine/sampler_parts.h"

#include <math.h>
#include <string.h>

#define KARRAS_RHO 7.0

/* Stands for no signal at all where a division by zero would follow. Its sigma is the root of
 * 2^24 - 1, which lies between two floats; torch takes the upper one. */
#define TINY_ALPHA 0x1p-24f
#define TINY_ALPHA_SIGMA 4096.0f

/* ---- the training schedule ---- */

static void betas_linear(float *betas, int n, float start, float end)
{
    float step = (end - start) / (float)(n - 1);
    for (int i = 0; i < n; i++)
        betas[i] = i < n / 2 ? fmaf(step, (float)i, start) : fmaf(-step, (float)(n - 1 - i), end);
}

static double cosine_alpha(double t)
{
    double c = cos((t + 0.008) / 1.008 * M_PI / 2);
    return c * c;
}

static void betas_make(float *betas, const struct sampler_config *config)
{
    int n = config->train_steps;
    double start = config->beta_start, end = config->beta_end;
    if (config->betas == BETAS_SQUARED_COS) {
        for (int i = 0; i < n; i++) {
            double ratio = cosine_alpha((double)(i + 1) / n) / cosine_alpha((double)i / n);
            betas[i] = (float)fmin(1 - ratio, 0.999);
        }
    } else if (config->betas == BETAS_SCALED_LINEAR) {
        betas_linear(betas, n, (float)sqrt(start), (float)sqrt(end));
        for (int i = 0; i < n; i++)
            betas[i] *= betas[i];
    } else {
        betas_linear(betas, n, (float)start, (float)end);
    }
}

static void alphas_accumulate(float *alphas, const float *betas, int n)
{
    double product = 1;
    for (int i = 0; i < n; i++) {
        product *= 1.0f - betas[i];
        alphas[i] = (float)product;
    }
}

/* Shifts and scales the roots of the alpha products so that the last is 0 and the first stays (Lin
 * et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, algorithm 1). */
static void betas_rescale(float *betas, int n)
{
    float roots[SAMPLER_TRAIN_STEPS_MAX];
    alphas_accumulate(roots, betas, n);
    for (int i = 0; i < n; i++)
        roots[i] = sqrtf(roots[i]);
    float first = roots[0], last = roots[n - 1], scale = first / (first - last), before = 1;
    for (int i = 0; i < n; i++) {
        float root = (roots[i] - last) * scale;
        float product = root * root;
        betas[i] = 1.0f - product / before;
        before = product;
    }
}

void schedule_alphas(float *alphas, const struct sampler_config *config, enum zero_snr zero_snr)
{
    float betas[SAMPLER_TRAIN_STEPS_MAX];
    int n = config->train_steps;
    bool rescale = config->rescale_betas_zero_snr && zero_snr != ZERO_SNR_IGNORED;
    betas_make(betas, config);
    if (rescale)
        betas_rescale(betas, n);
    alphas_accumulate(alphas, betas, n);
    if (rescale && zero_snr == ZERO_SNR_TINY)
        alphas[n - 1] = TINY_ALPHA;
}

float schedule_sigma(float alpha)
{
    return alpha == TINY_ALPHA ? TINY_ALPHA_SIGMA : sqrtf((1.0f - alpha) / alpha);
}

/* ---- timesteps ---- */

/* start + (stop - start) × i / (count - 1), as numpy.linspace has it. */
static double linspace(double start, double stop, int count, int i)
{
    if (count > 1 && i == count - 1)
        return stop;
    return count > 1 ? start + i * ((stop - start) / (count - 1)) : start;
}

/* Falling timesteps from `last`, `ratio` apart, rounded, then one less. */
static int space_trailing(float *out, int last, double ratio)
{
    double second = last - ratio;
    int count = (int)ceil((0.0 - last) / -ratio);
    for (int i = 0; i < count; i++)
        out[i] = (float)(rint(last + i * (second - last)) - 1);
    return count;
}

/* Fills `out` with falling timesteps and returns how many there are. With `integer`, linspace is
 * rounded. With `open`, the spacing is of one step more, of which the last is left out. */
static int space(float *out, const struct sampler_plan *plan, enum spacing spacing, int last,
                 bool integer, bool open)
{
    int steps = plan->steps, points = steps + open;
    if (spacing == SPACING_TRAILING)
        return space_trailing(out, last, (double)plan->config.train_steps / steps);
    for (int i = 0; i < steps; i++) {
        int from_end = points - 1 - i;
        if (spacing == SPACING_LEADING) {
            out[i] = (float)(from_end * (last / points) + plan->config.steps_offset);
        } else {
            double t = linspace(0, last - 1, points, from_end);
            out[i] = (float)(integer ? rint(t) : t);
        }
    }
    return steps;
}

static int too_far(const struct sampler_plan *plan, struct err *err)
{
    return err_set(err, ERR_INVALID, ERR_REJECT,
                   "steps: %d steps of the model's %d reach beyond its last timestep", plan->steps,
                   plan->config.train_steps);
}

int schedule_make_ddim(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    int last = plan->config.train_steps;
    plan->calls = space(plan->timesteps, plan, spacing, last, true, false);
    return plan->timesteps[0] >= (float)last ? too_far(plan, err) : 0;
}

/* Four Runge-Kutta steps of three model calls, and then one call per step. */
static int pndm_warm_up(struct sampler_plan *plan, const float *falling, int count, struct err *err)
{
    if (count < 4)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "steps: pndm takes at least 4 with this model");
    int half = plan->config.train_steps / plan->steps / 2;
    float points[8];
    for (int i = 0; i < 4; i++) {
        points[2 * i] = falling[i] + (float)half;
        points[2 * i + 1] = falling[i];
    }
    int calls = 0;
    for (int i = 1; i < 8; i++)
        for (int twice = i == 1 || i == 7; twice < 2; twice++)
            plan->timesteps[calls++] = points[i];
    for (int i = 3; i < count; i++)
        plan->timesteps[calls++] = falling[i];
    plan->calls = calls;
    return 0;
}

int schedule_make_pndm(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    float falling[SAMPLER_STEPS_MAX + 1];
    int last = plan->config.train_steps;
    int count = space(falling, plan, spacing, last, true, false);
    if (!choose(plan->config.skip_prk_steps, false)) {
        if (pndm_warm_up(plan, falling, count, err) != 0)
            return -1;
    } else {
        int calls = 0;
        for (int i = 0; i < count; i++)
            for (int twice = i != 1; twice < 2; twice++)
                plan->timesteps[calls++] = falling[i];
        plan->calls = calls;
    }
    for (int i = 0; i < plan->calls; i++)
        if (plan->timesteps[i] >= (float)last)
            return too_far(plan, err);
    return 0;
}

/* ---- sigmas ---- */

static void train_sigmas(float *sigmas, const struct sampler_plan *plan)
{
    for (int i = 0; i < plan->config.train_steps; i++)
        sigmas[i] = schedule_sigma(plan->alphas[i]);
}

/* The training sigma at a fractional timestep. */
static double sigma_at(const float *sigmas, int n, double t)
{
    if (t <= 0)
        return sigmas[0];
    if (t >= n - 1)
        return sigmas[n - 1];
    int low = (int)t;
    return ((double)sigmas[low + 1] - sigmas[low]) * (t - low) + sigmas[low];
}

/* The fractional timestep of a sigma, between logarithms. */
static double timestep_of(const float *logs, int n, double sigma)
{
    double log_sigma = log(fmax(sigma, 1e-10));
    int low = 0;
    while (low + 1 < n - 1 && log_sigma >= logs[low + 1])
        low++;
    double weight = ((double)logs[low] - log_sigma) / ((double)logs[low] - logs[low + 1]);
    weight = fmin(fmax(weight, 0), 1);
    return (1 - weight) * low + weight * (low + 1);
}

/* Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, (5). */
static double karras_sigma(double largest, double smallest, int count, int i)
{
    double from = pow(largest, 1 / KARRAS_RHO), to = pow(smallest, 1 / KARRAS_RHO);
    return pow(from + linspace(0, 1, count, i) * (to - from), KARRAS_RHO);
}

/* Replaces the plan's sigmas by `steps` of Karras's, and the timesteps by theirs, rounded by
 * `round` unless that is NULL. */
static void use_karras(struct sampler_plan *plan, const float *train, double largest,
                       double smallest, double (*round)(double))
{
    float logs[SAMPLER_TRAIN_STEPS_MAX];
    int n = plan->config.train_steps;
    for (int i = 0; i < n; i++)
        logs[i] = logf(train[i]);
    plan->calls = plan->steps;
    for (int i = 0; i < plan->steps; i++) {
        double sigma = karras_sigma(largest, smallest, plan->steps, i);
        double t = timestep_of(logs, n, sigma);
        plan->sigmas[i] = (float)sigma;
        plan->timesteps[i] = (float)(round ? round(t) : t);
    }
}

static double interpolate(struct sampler_plan *plan, const float *train)
{
    double sigma = 0;
    for (int i = 0; i < plan->calls; i++) {
        sigma = sigma_at(train, plan->config.train_steps, plan->timesteps[i]);
        plan->sigmas[i] = (float)sigma;
    }
    return sigma;
}

/* The largest sigma, with the signal's own unit variance added for leading spacing, which starts
 * short of the end. */
static float noise_scale(const struct sampler_plan *plan, enum spacing spacing)
{
    float largest = 0;
    for (int i = 0; i < plan->calls; i++)
        largest = fmaxf(largest, plan->sigmas[i]);
    return spacing == SPACING_LEADING ? sqrtf(largest * largest + 1) : largest;
}

int schedule_make_sigma(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    (void)err;
    float train[SAMPLER_TRAIN_STEPS_MAX];
    int n = plan->config.train_steps;
    train_sigmas(train, plan);
    plan->calls = space(plan->timesteps, plan, spacing, n, false, false);
    double largest = sigma_at(train, n, plan->timesteps[0]);
    double smallest = interpolate(plan, train);
    if (plan->config.karras)
        use_karras(plan, train, largest, smallest, NULL);
    bool ends_short = plan->sampler == SAMPLER_EULER && plan->config.final_sigma_min;
    plan->sigmas[plan->calls] = ends_short ? train[0] : 0;
    plan->init_scale = noise_scale(plan, spacing);
    return 0;
}

/* Every sigma but the first is visited twice: once arriving, once leaving. */
int schedule_make_heun(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    if (schedule_make_sigma(plan, spacing, err) != 0)
        return -1;
    int points = plan->calls;
    plan->calls = 2 * points - 1;
    plan->sigmas[plan->calls] = 0;
    for (int i = points - 1; i > 0; i--) {
        plan->timesteps[2 * i] = plan->timesteps[2 * i - 1] = plan->timesteps[i];
        plan->sigmas[2 * i] = plan->sigmas[2 * i - 1] = plan->sigmas[i];
    }
    return 0;
}

/* The training steps that are noisier than the configuration's lambda_min_clipped do not count. */
static int last_timestep(const struct sampler_plan *plan)
{
    int last = plan->config.train_steps;
    if (plan->sampler != SAMPLER_DPMPP_2M)
        return last;
    for (; last > 1; last--) {
        double alpha = plan->alphas[last - 1];
        if (0.5 * (log(alpha) - log(1 - alpha)) >= plan->config.lambda_min_clipped)
            break;
    }
    return last;
}

int schedule_make_lambda(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    float train[SAMPLER_TRAIN_STEPS_MAX];
    int n = plan->config.train_steps, last = last_timestep(plan);
    train_sigmas(train, plan);
    plan->calls = space(plan->timesteps, plan, spacing, last, true, true);
    if (plan->timesteps[0] >= (float)n)
        return too_far(plan, err);
    interpolate(plan, train);
    if (plan->config.karras) {
        bool cuts = plan->sampler == SAMPLER_DPMPP_2M && plan->config.betas == BETAS_SQUARED_COS;
        use_karras(plan, train, train[n - 1], train[0], cuts ? trunc : rint);
    }
    bool stays = plan->config.karras && plan->sampler == SAMPLER_UNIPC;
    float smallest = stays ? plan->sigmas[plan->calls - 1] : train[0];
    plan->sigmas[plan->calls] = plan->config.final_sigma_min ? smallest : 0;
    return 0;
}

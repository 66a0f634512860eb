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

/* Falling timesteps from `last`, `ratio` apart, rounded, then one less. */
static int space_trailing(float *out, int last, double ratio)
{
    double second = last - ratio;
    int count = (int)ceil((0.0 - last) / -ratio);
    for (int i = 0; i < count; i++)
        out[i] = (float)(rint(last + i * (second - last)) - 1);
    return count;
}

/* Every so many training steps, as k-diffusion's users count: A1111's and ComfyUI's "simple". */
static int space_simple(float *out, int train_steps, int steps)
{
    double ratio = (double)train_steps / steps;
    for (int i = 0; i < steps; i++)
        out[i] = (float)(train_steps - 1 - (int)(i * ratio));
    return steps;
}

/* Fills `out` with falling timesteps and returns how many there are. With `integer`, linspace is
 * rounded. With `open`, the spacing is of one step more, of which the last is left out. */
static int space(float *out, const struct sampler_plan *plan, enum spacing spacing, int last,
                 bool integer, bool open)
{
    int steps = plan->steps, points = steps + open;
    if (plan->config.schedule == SCHEDULE_SIMPLE)
        return space_simple(out, plan->config.train_steps, steps);
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

int schedule_make_alpha(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    int last = plan->config.train_steps;
    plan->calls = space(plan->timesteps, plan, spacing, last, true, false);
    return plan->timesteps[0] >= (float)last ? too_far(plan, err) : 0;
}

/* Evenly among the timesteps that the model was distilled for; the spacing does not matter. Source:
 * Luo et al., "Latent Consistency Models", 2023, 4.3. */
int schedule_make_distilled(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    (void)spacing;
    int original = plan->config.original_inference_steps, steps = plan->steps;
    if (steps > original)
        return err_set(err, ERR_INVALID, ERR_REJECT,
                       "steps: %s takes at most %d with this model (its original_inference_steps)",
                       sampler_name(plan->sampler), original);
    int stride = plan->config.train_steps / original;
    double ratio = (double)original / steps;
    plan->calls = steps;
    for (int i = 0; i < steps; i++)
        plan->timesteps[i] = (float)((original - (int)(i * ratio)) * stride - 1);
    return 0;
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

static void train_logs(float *logs, const float *train, int n)
{
    for (int i = 0; i < n; i++)
        logs[i] = logf(train[i]);
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

/* Whether the plan's noise levels follow a curve of their own. */
static bool is_spread(const struct sampler_plan *plan)
{
    enum schedule schedule = plan->config.schedule;
    return schedule == SCHEDULE_KARRAS || schedule == SCHEDULE_EXPONENTIAL ||
           schedule == SCHEDULE_BETA || schedule == SCHEDULE_AYS;
}

/* Replaces the plan's sigmas by `steps` of its schedule's, and the timesteps by theirs, rounded by
 * `round` unless that is NULL. */
static void spread(struct sampler_plan *plan, const float *train, double largest, double smallest,
                   double (*round)(double))
{
    float logs[SAMPLER_TRAIN_STEPS_MAX];
    int n = plan->config.train_steps;
    enum schedule schedule = plan->config.schedule;
    train_logs(logs, train, n);
    plan->calls = plan->steps;
    for (int i = 0; i < plan->steps; i++) {
        double sigma = schedule == SCHEDULE_AYS
                           ? spread_ays(plan->sdxl, train, plan->steps, i)
                           : spread_sigma(schedule, largest, smallest, plan->steps, i);
        double t = timestep_of(logs, n, sigma);
        plan->sigmas[i] = (float)sigma;
        plan->timesteps[i] = (float)(round ? round(t) : t);
    }
}

/* ays is made for models of that many training steps. */
static int check_ays(const struct sampler_plan *plan, struct err *err)
{
    if (plan->config.schedule != SCHEDULE_AYS || plan->config.train_steps == 1000)
        return 0;
    return err_set(err, ERR_UNSUPPORTED, ERR_REJECT,
                   "schedule: ays is for models of 1000 training steps; this one has %d",
                   plan->config.train_steps);
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

/* Sigmas that end with 0, or with the smallest; the timesteps of a curve are rounded as `round`
 * does, unless that is NULL. */
static int make_sigmas(struct sampler_plan *plan, enum spacing spacing, double (*round)(double),
                       struct err *err)
{
    float train[SAMPLER_TRAIN_STEPS_MAX];
    int n = plan->config.train_steps;
    if (check_ays(plan, err) != 0)
        return -1;
    train_sigmas(train, plan);
    plan->calls = space(plan->timesteps, plan, spacing, n, false, false);
    double largest = sigma_at(train, n, plan->timesteps[0]);
    double smallest = interpolate(plan, train);
    if (is_spread(plan))
        spread(plan, train, largest, smallest, round);
    bool ends_short = plan->sampler == SAMPLER_EULER && plan->config.final_sigma_min;
    plan->sigmas[plan->calls] = ends_short ? train[0] : 0;
    plan->init_scale = noise_scale(plan, spacing);
    return 0;
}

int schedule_make_sigma(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    return make_sigmas(plan, spacing, NULL, err);
}

/* Every sigma but the first is visited twice: once arriving, once leaving. */
int schedule_make_heun(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    if (make_sigmas(plan, spacing, NULL, err) != 0)
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

/* down² + up² = to², and down is as far below `to` as that is below `from`. Where the reference is
 * diffusers, with the rounding of its f32, which a deep fall magnifies until nothing is left of a
 * difference of squares. */
struct ancestral ancestral_split(const struct sampler_plan *plan, float from, float to)
{
    double ratio = (double)to / from;
    struct ancestral exact = {(float)(to * ratio), (float)(to * sqrt(fmax(1 - ratio * ratio, 0)))};
    from *= from;
    to *= to;
    float up = sqrtf(fmaxf(to * (from - to) / from, 0)), left = to - up * up;
    if (plan->sampler == SAMPLER_DPMPP_2S_A || left <= 0)
        return exact;
    return (struct ancestral){sqrtf(left), up};
}

/* Between two sigmas the model is asked once more, at the geometric mean of where a step starts and
 * where it goes, which for the ancestral ones is below the next sigma. The last step, to 0, has no
 * middle. */
int schedule_make_dpm2(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    float train[SAMPLER_TRAIN_STEPS_MAX], logs[SAMPLER_TRAIN_STEPS_MAX];
    int n = plan->config.train_steps;
    if (make_sigmas(plan, spacing, plan->config.schedule == SCHEDULE_KARRAS ? rint : NULL, err) !=
        0)
        return -1;
    train_sigmas(train, plan);
    train_logs(logs, train, n);
    int points = plan->calls;
    plan->calls = 2 * points - 1;
    plan->sigmas[plan->calls] = 0;
    for (int i = points - 1; i > 0; i--) {
        float from = plan->sigmas[i - 1], to = plan->sigmas[i];
        if (plan->sampler != SAMPLER_DPM2)
            to = ancestral_split(plan, from, to).down;
        float middle = (float)sqrt((double)from * to);
        plan->sigmas[2 * i] = plan->sigmas[i];
        plan->timesteps[2 * i] = plan->timesteps[i];
        plan->sigmas[2 * i - 1] = middle;
        plan->timesteps[2 * i - 1] = (float)timestep_of(logs, n, middle);
    }
    return 0;
}

/* The training steps that are noisier than the configuration's lambda_min_clipped do not count. */
static int last_timestep(const struct sampler_plan *plan)
{
    int last = plan->config.train_steps;
    if (!sampler_kind(plan->sampler)->clips_lambda)
        return last;
    for (; last > 1; last--) {
        double alpha = plan->alphas[last - 1];
        if (0.5 * (log(alpha) - log(1 - alpha)) >= plan->config.lambda_min_clipped)
            break;
    }
    return last;
}

/* These classes keep timesteps as integers: those of karras rounded, unless the multistep solver
 * has cosine betas, those of the other curves cut off. */
static double (*rounding(const struct sampler_plan *plan))(double)
{
    bool cuts =
        sampler_kind(plan->sampler)->step == step_dpm && plan->config.betas == BETAS_SQUARED_COS;
    if (plan->config.schedule == SCHEDULE_AYS)
        return rint;
    return plan->config.schedule == SCHEDULE_KARRAS && !cuts ? rint : trunc;
}

int schedule_make_lambda(struct sampler_plan *plan, enum spacing spacing, struct err *err)
{
    float train[SAMPLER_TRAIN_STEPS_MAX];
    int n = plan->config.train_steps, last = last_timestep(plan);
    if (check_ays(plan, err) != 0)
        return -1;
    train_sigmas(train, plan);
    plan->calls = space(plan->timesteps, plan, spacing, last, true, true);
    if (plan->timesteps[0] >= (float)n)
        return too_far(plan, err);
    interpolate(plan, train);
    if (is_spread(plan))
        spread(plan, train, train[n - 1], train[0], rounding(plan));
    bool stays =
        is_spread(plan) && plan->config.schedule != SCHEDULE_AYS && plan->sampler == SAMPLER_UNIPC;
    float smallest = stays ? plan->sigmas[plan->calls - 1] : train[0];
    plan->sigmas[plan->calls] = plan->config.final_sigma_min ? smallest : 0;
    return 0;
}

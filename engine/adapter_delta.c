/*
 * What an adapter's tensors mean: shapes, and the differences as plain numbers.
 *
 * Sources: Hu et al. 2021, "LoRA"; Yeh et al. 2023, "Navigating Text-To-Image Customization: From
 * LyCORIS Fine-Tuning to Model Evaluation" (LoCon, LoHa, LoKr and their Tucker forms); Liu et al.
 * 2024, "DoRA", with the magnitudes applied as peft applies them.
 */
#include "engine/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool scalar_read(const struct stored_tensor *t, double *value)
{
    int64_t whole;
    int32_t word;

    if (t->count != 1)
        return false;
    if (t->usable)
        *value = element_to_f32(t->data, t->dtype, 0);
    else if (strcmp(t->type, "F64") == 0)
        memcpy(value, t->data, sizeof(*value));
    else if (strcmp(t->type, "I64") == 0) {
        memcpy(&whole, t->data, sizeof(whole));
        *value = (double)whole;
    } else if (strcmp(t->type, "I32") == 0) {
        memcpy(&word, t->data, sizeof(word));
        *value = word;
    } else
        return false;
    return isfinite(*value);
}

/* ---- shapes ---- */

struct check {
    struct delta *d;
    const char *path;
    struct err *err;
};

static int64_t dim(const struct stored_tensor *t, int axis)
{
    return t != NULL && axis < t->rank ? t->dims[axis] : 1;
}

static int bad(const struct check *c, const struct stored_tensor *t, const char *problem)
{
    return err_set(c->err, ERR_FORMAT, ERR_REJECT, "%s: key '%s' %s", c->path, t->name, problem);
}

/* The key of any tensor of the delta, for what the file lacks. */
static int lacks(const struct check *c, const char *what)
{
    const struct stored_tensor *any = NULL;

    for (int i = 0; i < ADAPTER_ROLE_COUNT && any == NULL; i++)
        any = c->d->tensors[i];
    return err_set(c->err, ERR_FORMAT, ERR_REJECT,
                   "%s: key '%s' stands without its %s; the file is incomplete", c->path, any->name,
                   what);
}

/* Whether the tensor has these dimensions; trailing ones of 1 are free. */
static int want(const struct check *c, enum adapter_role role, const int64_t *dims, int rank)
{
    const struct stored_tensor *t = c->d->tensors[role];
    char text[256];
    int at = 0;
    bool fits = true;

    while (rank > 2 && dims[rank - 1] == 1)
        rank--;

    for (int i = 0; i < (t->rank > rank ? t->rank : rank); i++)
        fits = fits && dim(t, i) == (i < rank ? dims[i] : 1);
    if (fits)
        return 0;
    at += snprintf(text + at, sizeof(text) - (size_t)at, "has the shape [");
    for (int i = 0; i < t->rank; i++)
        at += snprintf(text + at, sizeof(text) - (size_t)at, "%s%lld", i ? ", " : "",
                       (long long)t->dims[i]);
    at += snprintf(text + at, sizeof(text) - (size_t)at, "], the model needs [");
    for (int i = 0; i < rank; i++)
        at += snprintf(text + at, sizeof(text) - (size_t)at, "%s%lld", i ? ", " : "",
                       (long long)dims[i]);
    snprintf(text + at, sizeof(text) - (size_t)at, "]; it was made for a model of another kind");
    return bad(c, t, text);
}

static int set_rank(const struct check *c, const struct stored_tensor *t, int64_t rank)
{
    if (rank < 1 || rank > ADAPTER_RANK_MAX)
        return bad(c, t, "has a rank that is not 1 to 8192");
    c->d->rank = (int)rank;
    return 0;
}

static int check_low_rank(const struct check *c)
{
    const struct target *t = c->d->target;
    const struct stored_tensor *down = c->d->tensors[ROLE_DOWN], *up = c->d->tensors[ROLE_UP];
    bool mid = c->d->tensors[ROLE_MID] != NULL;
    int64_t r = dim(down, 0), k = t->kernel;

    if (down == NULL || up == NULL)
        return lacks(c, down == NULL ? "lora_down or lora_A" : "lora_up or lora_B");
    if (set_rank(c, down, r) != 0 ||
        want(c, ROLE_DOWN, (int64_t[]){r, t->in, mid ? 1 : k, mid ? 1 : k}, 4) != 0 ||
        want(c, ROLE_UP, (int64_t[]){t->out, r}, 2) != 0)
        return -1;
    return mid ? want(c, ROLE_MID, (int64_t[]){r, r, k, k}, 4) : 0;
}

static int check_loha(const struct check *c)
{
    const struct target *t = c->d->target;
    const struct stored_tensor *const *own = c->d->tensors;
    int64_t r = dim(own[ROLE_HADA_W1_B], 0), taps = (int64_t)t->kernel * t->kernel;
    bool tucker = own[ROLE_HADA_T1] != NULL || own[ROLE_HADA_T2] != NULL;

    for (int role = ROLE_HADA_W1_A; role <= (tucker ? ROLE_HADA_T2 : ROLE_HADA_W2_B); role++)
        if (own[role] == NULL)
            return lacks(c,
                         "hada_w1_a, hada_w1_b, hada_w2_a and hada_w2_b, or hada_t1 and hada_t2");
    if (set_rank(c, own[ROLE_HADA_W1_B], r) != 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        int a = i ? ROLE_HADA_W2_A : ROLE_HADA_W1_A, b = i ? ROLE_HADA_W2_B : ROLE_HADA_W1_B;
        int64_t shape_a[] = {tucker ? r : t->out, tucker ? t->out : r};
        int64_t shape_b[] = {r, t->in * (tucker ? 1 : taps)};
        int64_t shape_t[] = {r, r, t->kernel, t->kernel};
        if (want(c, (enum adapter_role)a, shape_a, 2) != 0 ||
            want(c, (enum adapter_role)b, shape_b, 2) != 0)
            return -1;
        if (tucker && want(c, i ? ROLE_HADA_T2 : ROLE_HADA_T1, shape_t, 4) != 0)
            return -1;
    }
    return 0;
}

/* The two factors' sizes: w1 is l × m, w2 is p × n × kernel × kernel. */
struct kron {
    int64_t l, m, p, n;
    int taps; /* of w2 as it is stored: 1 where the kernel is in its second dimension */
};

static struct kron kron_of(const struct delta *d)
{
    const struct stored_tensor *const *own = d->tensors;
    struct kron k;

    k.l = own[ROLE_LOKR_W1] ? dim(own[ROLE_LOKR_W1], 0) : dim(own[ROLE_LOKR_W1_A], 0);
    k.m = own[ROLE_LOKR_W1] ? dim(own[ROLE_LOKR_W1], 1) : dim(own[ROLE_LOKR_W1_B], 1);
    k.p = k.l > 0 ? d->target->out / k.l : 0;
    k.n = k.m > 0 ? d->target->in / k.m : 0;
    k.taps = d->target->kernel * d->target->kernel;
    return k;
}

static int check_lokr(const struct check *c)
{
    const struct target *t = c->d->target;
    const struct stored_tensor *const *own = c->d->tensors;
    const struct stored_tensor *w1 = own[ROLE_LOKR_W1], *w2 = own[ROLE_LOKR_W2];
    const struct stored_tensor *any = w1 ? w1 : own[ROLE_LOKR_W1_A];
    const struct stored_tensor *low = w1 ? own[ROLE_LOKR_W2_B] : own[ROLE_LOKR_W1_B];
    bool tucker = own[ROLE_LOKR_T2] != NULL;
    int64_t kernel = t->kernel, r;
    struct kron k;

    if (w1 == NULL && (own[ROLE_LOKR_W1_A] == NULL || own[ROLE_LOKR_W1_B] == NULL))
        return lacks(c, "lokr_w1, or lokr_w1_a and lokr_w1_b");
    if (w2 == NULL && (own[ROLE_LOKR_W2_A] == NULL || own[ROLE_LOKR_W2_B] == NULL))
        return lacks(c, "lokr_w2, or lokr_w2_a and lokr_w2_b");
    k = kron_of(c->d);
    if (k.l < 1 || k.m < 1 || t->out % k.l != 0 || t->in % k.m != 0)
        return bad(c, any, "does not divide the layer; it was made for a model of another kind");
    r = w1 && w2 ? 1 : dim(low, 0);
    if (w1 == NULL && (set_rank(c, low, dim(low, 0)) != 0 ||
                       want(c, ROLE_LOKR_W1_A, (int64_t[]){k.l, r}, 2) != 0 ||
                       want(c, ROLE_LOKR_W1_B, (int64_t[]){r, k.m}, 2) != 0))
        return -1;
    if (w1 != NULL && want(c, ROLE_LOKR_W1, (int64_t[]){k.l, k.m}, 2) != 0)
        return -1;
    c->d->rank = 0; /* nothing is factored */
    if (w2 != NULL) {
        c->d->rank = w1 ? 0 : (int)r;
        return want(c, ROLE_LOKR_W2, (int64_t[]){k.p, k.n, kernel, kernel}, 4);
    }
    r = dim(own[ROLE_LOKR_W2_B], 0);
    if (set_rank(c, own[ROLE_LOKR_W2_B], r) != 0)
        return -1;
    if (tucker)
        return want(c, ROLE_LOKR_T2, (int64_t[]){r, r, kernel, kernel}, 4) ||
                       want(c, ROLE_LOKR_W2_A, (int64_t[]){r, k.p}, 2) ||
                       want(c, ROLE_LOKR_W2_B, (int64_t[]){r, k.n}, 2)
                   ? -1
                   : 0;
    return want(c, ROLE_LOKR_W2_A, (int64_t[]){k.p, r}, 2) ||
                   want(c, ROLE_LOKR_W2_B, (int64_t[]){r, k.n * k.taps}, 2)
               ? -1
               : 0;
}

static int check_diff(const struct check *c)
{
    const struct target *t = c->d->target;

    c->d->rank = 0;
    return c->d->tensors[ROLE_DIFF] == NULL
               ? 0
               : want(c, ROLE_DIFF, (int64_t[]){t->out, t->in, t->kernel, t->kernel}, 4);
}

/* One magnitude per output, or, as LyCORIS once had it, per input. */
static int check_magnitude(const struct check *c)
{
    const struct stored_tensor *t = c->d->tensors[ROLE_MAGNITUDE];

    if (t == NULL || t->count == c->d->target->out ||
        (t->count == c->d->target->in && dim(t, 0) == 1))
        return 0;
    return bad(c, t, "does not have one value per output; it was made for a model of another kind");
}

static int find_kind(const struct check *c)
{
    static const struct {
        enum adapter_role first, last;
        enum delta_kind kind;
    } KINDS[] = {{ROLE_DOWN, ROLE_MID, DELTA_LOW_RANK},
                 {ROLE_HADA_W1_A, ROLE_HADA_T2, DELTA_LOHA},
                 {ROLE_LOKR_W1, ROLE_LOKR_T2, DELTA_LOKR},
                 {ROLE_DIFF, ROLE_DIFF_BIAS, DELTA_DIFF}};
    int found = -1;

    for (int i = 0; i < 4; i++)
        for (int role = KINDS[i].first; role <= (int)KINDS[i].last; role++) {
            const struct stored_tensor *t = c->d->tensors[role];
            if (t == NULL || found == i || (found >= 0 && role == ROLE_DIFF_BIAS))
                continue;
            if (found >= 0)
                return bad(c, t, "is of another kind than the layer's other keys");
            found = i;
        }
    if (found < 0)
        return lacks(c, "weights");
    c->d->kind = KINDS[found].kind;
    return 0;
}

int delta_check(struct delta *d, const char *path, double alpha, struct err *err)
{
    struct check c = {d, path, err};
    const struct stored_tensor *own = d->tensors[ROLE_ALPHA];
    int64_t out = d->target->out;
    int rc;

    for (int i = 0; i < ADAPTER_ROLE_COUNT; i++)
        if (d->tensors[i] != NULL && i != ROLE_ALPHA && !d->tensors[i]->usable)
            return bad(&c, d->tensors[i], "has a dtype that is not read; F32, F16 and BF16 are");
    if (own != NULL && !scalar_read(own, &alpha))
        return bad(&c, own, "is not one number");
    if (find_kind(&c) != 0 || check_magnitude(&c) != 0 ||
        (d->tensors[ROLE_DIFF_BIAS] != NULL && want(&c, ROLE_DIFF_BIAS, &out, 1) != 0))
        return -1;
    switch (d->kind) {
    case DELTA_LOW_RANK:
        rc = check_low_rank(&c);
        break;
    case DELTA_LOHA:
        rc = check_loha(&c);
        break;
    case DELTA_LOKR:
        rc = check_lokr(&c);
        break;
    default:
        rc = check_diff(&c);
    }
    d->scale = d->rank > 0 && alpha >= 0 ? alpha / d->rank : 1;
    return rc;
}

/* ---- numbers ---- */

static float *read_all(const struct stored_tensor *t)
{
    float *values = malloc((size_t)(t->count > 0 ? t->count : 1) * sizeof(float));

    for (int64_t i = 0; values != NULL && i < t->count; i++)
        values[i] = element_to_f32(t->data, t->dtype, (size_t)i);
    return values;
}

/* y[rows × columns] += factor · a[rows × inner] · b[inner × columns], in f32. */
static void product(const float *a, const float *b, float factor, int64_t rows, int64_t inner,
                    int64_t columns, float *y)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < inner; k++) {
            float v = factor * a[i * inner + k];
            const float *from = b + k * columns;
            float *to = y + i * columns;
            for (int64_t j = 0; j < columns; j++)
                to[j] += v * from[j];
        }
}

void delta_compose(const struct delta *d, float *filter)
{
    const struct stored_tensor *mid = d->tensors[ROLE_MID], *down = d->tensors[ROLE_DOWN];
    int taps = d->target->kernel * d->target->kernel, in = d->target->in, r = d->rank;

    memset(filter, 0, (size_t)r * (size_t)in * (size_t)taps * sizeof(float));
    for (int o = 0; o < r; o++)
        for (int j = 0; j < r; j++)
            for (int t = 0; t < taps; t++) {
                float m = element_to_f32(mid->data, mid->dtype, (size_t)((o * r + j) * taps + t));
                for (int i = 0; i < in; i++)
                    filter[((size_t)o * (size_t)in + (size_t)i) * (size_t)taps + (size_t)t] +=
                        m * element_to_f32(down->data, down->dtype, (size_t)(j * in + i));
            }
}

static int add_low_rank(const struct delta *d, double scale, float *w)
{
    const struct target *t = d->target;
    int64_t columns = (int64_t)t->in * t->kernel * t->kernel;
    float *up = read_all(d->tensors[ROLE_UP]), *down;
    bool mid = d->tensors[ROLE_MID] != NULL;

    down =
        mid ? malloc((size_t)(d->rank * columns) * sizeof(float)) : read_all(d->tensors[ROLE_DOWN]);
    if (up != NULL && down != NULL) {
        if (mid)
            delta_compose(d, down);
        product(up, down, (float)(scale * d->scale), t->out, d->rank, columns, w);
    }
    free(up);
    free(down);
    return up != NULL && down != NULL ? 0 : -1;
}

/* Tucker's product of a core r × r × taps with b (r × in) and a (r × out):
 * y[p, q, t] = Σ core[i, j, t] · b[j, q] · a[i, p]. */
static int tucker(const struct stored_tensor *core, const struct stored_tensor *a_stored,
                  const struct stored_tensor *b_stored, int64_t out, int64_t in, int taps, float *y)
{
    int64_t r = core->dims[0];
    float *c = read_all(core), *a = read_all(a_stored), *b = read_all(b_stored);
    float *half = calloc((size_t)(r * in * taps), sizeof(float)); /* r × in × taps */

    for (int64_t i = 0; c && a && b && half && i < r; i++)
        for (int64_t j = 0; j < r; j++)
            for (int64_t q = 0; q < in; q++)
                for (int64_t t = 0; t < taps; t++)
                    half[(i * in + q) * taps + t] += c[(i * r + j) * taps + t] * b[j * in + q];
    memset(y, 0, (size_t)(out * in * taps) * sizeof(float));
    for (int64_t p = 0; c && a && b && half && p < out; p++)
        for (int64_t i = 0; i < r; i++)
            for (int64_t q = 0; q < in * taps; q++)
                y[p * in * taps + q] += a[i * out + p] * half[i * in * taps + q];
    free(half);
    free(c);
    free(a);
    free(b);
    return half && c && a && b ? 0 : -1;
}

/* A product of two factors as the file has them, plain or with a core. */
static int factored(const struct delta *d, enum adapter_role a_role, enum adapter_role b_role,
                    enum adapter_role core_role, int64_t out, int64_t in, int taps, float *y)
{
    const struct stored_tensor *core = d->tensors[core_role];
    float *a, *b;

    if (core != NULL)
        return tucker(core, d->tensors[a_role], d->tensors[b_role], out, in, taps, y);
    a = read_all(d->tensors[a_role]);
    b = read_all(d->tensors[b_role]);
    memset(y, 0, (size_t)(out * in * taps) * sizeof(float));
    if (a != NULL && b != NULL)
        product(a, b, 1, out, d->tensors[b_role]->dims[0], in * taps, y);
    free(a);
    free(b);
    return a != NULL && b != NULL ? 0 : -1;
}

static int add_loha(const struct delta *d, double scale, float *w)
{
    const struct target *t = d->target;
    int taps = t->kernel * t->kernel;
    size_t count = (size_t)t->out * (size_t)t->in * (size_t)taps;
    float *first = malloc(2 * count * sizeof(float)), *second = first + count;
    float factor = (float)(scale * d->scale);
    int rc = -1;

    if (first == NULL)
        return -1;
    if (factored(d, ROLE_HADA_W1_A, ROLE_HADA_W1_B, ROLE_HADA_T1, t->out, t->in, taps, first) ==
            0 &&
        factored(d, ROLE_HADA_W2_A, ROLE_HADA_W2_B, ROLE_HADA_T2, t->out, t->in, taps, second) ==
            0) {
        for (size_t i = 0; i < count; i++)
            w[i] += factor * first[i] * second[i];
        rc = 0;
    }
    free(first);
    return rc;
}

static int add_lokr(const struct delta *d, double scale, float *w)
{
    const struct stored_tensor *const *own = d->tensors;
    struct kron k = kron_of(d);
    size_t first_count = (size_t)(k.l * k.m), second_count = (size_t)(k.p * k.n * k.taps);
    float *w1 =
        own[ROLE_LOKR_W1] ? read_all(own[ROLE_LOKR_W1]) : malloc(first_count * sizeof(float));
    float *w2 =
        own[ROLE_LOKR_W2] ? read_all(own[ROLE_LOKR_W2]) : malloc(second_count * sizeof(float));
    float factor = (float)(scale * d->scale);
    int rc = -1;

    if (w1 == NULL || w2 == NULL)
        goto out;
    if (own[ROLE_LOKR_W1] == NULL &&
        factored(d, ROLE_LOKR_W1_A, ROLE_LOKR_W1_B, ROLE_MID, k.l, k.m, 1, w1) != 0)
        goto out;
    if (own[ROLE_LOKR_W2] == NULL &&
        factored(d, ROLE_LOKR_W2_A, ROLE_LOKR_W2_B, ROLE_LOKR_T2, k.p, k.n, k.taps, w2) != 0)
        goto out;
    for (int64_t row = 0; row < d->target->out; row++)
        for (int64_t column = 0; column < d->target->in; column++) {
            float v = factor * w1[row / k.p * k.m + column / k.n];
            const float *from = w2 + (row % k.p * k.n + column % k.n) * k.taps;
            float *to = w + (row * d->target->in + column) * k.taps;
            for (int t = 0; t < k.taps; t++)
                to[t] += v * from[t];
        }
    rc = 0;
out:
    free(w1);
    free(w2);
    return rc;
}

int delta_add(const struct delta *d, double scale, float *w)
{
    const struct stored_tensor *diff = d->tensors[ROLE_DIFF];

    switch (d->kind) {
    case DELTA_LOW_RANK:
        return add_low_rank(d, scale, w);
    case DELTA_LOHA:
        return add_loha(d, scale, w);
    case DELTA_LOKR:
        return add_lokr(d, scale, w);
    default:
        for (int64_t i = 0; diff != NULL && i < diff->count; i++)
            w[i] += (float)scale * element_to_f32(diff->data, diff->dtype, (size_t)i);
        return 0;
    }
}

/* w's rows (or, by input, its columns) get the given lengths. */
static int set_magnitudes(const struct delta *d, float *w)
{
    const struct stored_tensor *magnitude = d->tensors[ROLE_MAGNITUDE];
    const struct target *t = d->target;
    int64_t taps = (int64_t)t->kernel * t->kernel;
    bool by_output = magnitude->count == t->out && (dim(magnitude, 0) != 1 || t->in != t->out ||
                                                    strstr(magnitude->name, "dora_scale") == NULL);
    int64_t count = magnitude->count;
    double *squares = calloc((size_t)count, sizeof(*squares));

    if (squares == NULL)
        return -1;
    for (int64_t o = 0; o < t->out; o++)
        for (int64_t i = 0; i < t->in * taps; i++) {
            double v = w[o * t->in * taps + i];
            squares[by_output ? o : i / taps] += v * v;
        }
    for (int64_t i = 0; i < count; i++)
        squares[i] = squares[i] > 0 ? element_to_f32(magnitude->data, magnitude->dtype, (size_t)i) /
                                          sqrt(squares[i])
                                    : 0;
    for (int64_t o = 0; o < t->out; o++)
        for (int64_t i = 0; i < t->in * taps; i++)
            w[o * t->in * taps + i] *= (float)squares[by_output ? o : i / taps];
    free(squares);
    return 0;
}

int delta_apply(const struct delta *d, double scale, float *w)
{
    if (delta_add(d, scale, w) != 0)
        return -1;
    return d->tensors[ROLE_MAGNITUDE] != NULL ? set_magnitudes(d, w) : 0;
}

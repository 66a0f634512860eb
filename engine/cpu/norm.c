#include "engine/cpu/cpu.h"

#include <math.h>
#include <omp.h>

#define CHUNK_ROWS 512 /* of one partial sum: fixed, so that no sum depends on the threads */

/* Merges the chunks' sums of one sample into scale and shift, group by group, in double. */
static void merge(const struct norm *norm, const float *pivot, const float *sums,
                  const float *squares, int64_t chunks, int64_t rows, float *scale, float *shift)
{
    int c = norm->channels, width = c / norm->groups;

    for (int g = 0; g < norm->groups; g++) {
        double total = 0, spread = 0, mean, rstd;
        for (int j = g * width; j < (g + 1) * width; j++) {
            double sum = 0;
            for (int64_t i = 0; i < chunks; i++)
                sum += sums[i * c + j];
            total += sum + (double)rows * pivot[j];
        }
        mean = total / ((double)rows * width);
        for (int j = g * width; j < (g + 1) * width; j++) {
            double sum = 0, square = 0, off = mean - pivot[j];
            for (int64_t i = 0; i < chunks; i++) {
                sum += sums[i * c + j];
                square += squares[i * c + j];
            }
            spread += square - 2 * off * sum + (double)rows * off * off;
        }
        rstd = 1 / sqrt(fmax(spread, 0) / ((double)rows * width) + norm->eps);
        for (int j = g * width; j < (g + 1) * width; j++) {
            scale[j] = (float)(norm->gamma[j] * rstd);
            shift[j] = (float)(norm->beta[j] - mean * norm->gamma[j] * rstd);
        }
    }
}

void cpu_group_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                    struct affine *out)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    int64_t rows = (int64_t)x->h * x->w, chunks = div_up(rows, CHUNK_ROWS);
    size_t c = (size_t)x->c, count = (size_t)x->n * (size_t)chunks * c;
    float *sums = pass_scratch(pass, 2 * count * sizeof(float));
    float *pivots = pass_scratch(pass, (size_t)x->n * c * sizeof(float));
    struct pre none = {0};

    if (!pass->planning && !pass->failed) {
        memset(sums, 0, 2 * count * sizeof(float));
        for (int n = 0; n < x->n; n++)
            cpu->kernels->load_f32(pivots + (size_t)n * c, row_at(x, n * rows), x->dtype, x->c,
                                   &none);
#pragma omp parallel for schedule(static) num_threads(cpu->base.threads)
        for (int64_t task = 0; task < x->n * chunks; task++) {
            int64_t n = task / chunks, first = task % chunks * CHUNK_ROWS;
            int64_t some = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
            cpu->kernels->moments(row_at(x, n * rows + first), x->dtype, (size_t)x->ld, some, x->c,
                                  pivots + (size_t)n * c, sums + (size_t)task * c,
                                  sums + count + (size_t)task * c);
        }
        for (int n = 0; n < x->n; n++) {
            size_t at = (size_t)n * (size_t)chunks * c;
            merge(norm, pivots + (size_t)n * c, sums + at, sums + count + at, chunks, rows,
                  out->scale + (size_t)n * c, out->shift + (size_t)n * c);
        }
    }
    pass_scratch_drop(pass, pivots);
    pass_scratch_drop(pass, sums);
}

void cpu_layer_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                    struct tensor *y)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    int64_t rows = tensor_rows(x);

#pragma omp parallel for schedule(static) num_threads(cpu->base.threads)
    for (int64_t row = 0; row < rows; row++)
        cpu->kernels->layer_norm(row_at(x, row), x->dtype, row_at(y, row), y->dtype, x->c,
                                 norm->gamma, norm->beta, norm->eps);
}

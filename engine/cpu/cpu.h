/*
 * cpu.h: what the files of the CPU back end share.
 *
 * The back end's matrix products, attention, norms and most convolutions are its own (kernels.h
 * does the inner loops); oneDNN serves direct convolutions (direct.h). Threads are OpenMP's, inside
 * an operator only.
 */
#ifndef ATELIER_ENGINE_CPU_CPU_H
#define ATELIER_ENGINE_CPU_CPU_H

#include "engine/cpu/kernels.h"
#include "engine/cpu/pool.h"

#define CPU_THREADS_MAX 512
#define CPU_STACK_MAX 3      /* parts of one weight */
#define CPU_SEGMENT_MAX 2560 /* k of one product before the next begins */
#define CPU_PAD 16           /* elements between rows of scratch, against cache aliasing */

enum panel_type {
    PANEL_F32,
    PANEL_PAIRS, /* bf16, two k together, for the bf16 dot product */
    PANEL_BF16,  /* 16-bit in memory, widened to f32 before the product */
    PANEL_F16,
};

/* A matrix packed segment by segment: segment s holds rows [s · segment_k, …) of all columns, in
 * panels as kernels.h describes. A segment is a tap of a filter or CPU_SEGMENT_MAX rows. */
struct panels {
    enum panel_type type;
    void *data;
    int n;        /* columns, gates and padding of GEGLU included */
    int n_padded; /* columns in memory */
    int segments;
    int segment_k; /* rows of a segment */
    int last_k;    /* rows of the last one; all are even where the type needs it */
    size_t bytes;
};

struct direct; /* oneDNN's form of a weight */

struct weight {
    struct weight_part parts[CPU_STACK_MAX];
    int part_count;
    int in, out, kernel;
    bool geglu, lookup, exact;
    struct panels panels; /* data NULL until packed */
    float *winograd;      /* 36 packed matrices in × out, NULL until transformed */
    size_t winograd_bytes;
    struct direct *direct;
};

struct cpu_backend {
    struct backend base;
    const struct cpu_kernels *kernels;
    struct pool pool;   /* all weights and activations */
    bool emulated_bf16; /* computes in bf16 without a dot product for it */
    bool weights_16bit;
    struct direct_engine *direct; /* oneDNN; NULL where it is not wanted */
};

static inline struct cpu_backend *cpu_of(struct pass *pass)
{
    return (struct cpu_backend *)pass->backend;
}

static inline int64_t div_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline void *row_at(const struct tensor *t, int64_t row)
{
    return (char *)t->data + (size_t)(row * t->ld) * dtype_bytes(t->dtype);
}

/* dst[n] = pre(src[n]) in the type that products are computed in, f32 or bf16. */
static inline void load_row(const struct cpu_kernels *kernels, void *dst, enum dtype dtype,
                            const void *src, enum dtype src_dtype, int n, const struct pre *pre)
{
    if (dtype == DTYPE_BF16)
        kernels->load_bf16(dst, src, src_dtype, n, pre);
    else
        kernels->load_f32(dst, src, src_dtype, n, pre);
}

/* ---- gemm.c ---- */

/* Element (k, column) of the matrix that is to be packed. */
typedef float (*panel_element)(const void *from, int k, int column);

/* Whether the weight's products are in f32. */
bool weight_is_exact(const struct cpu_backend *cpu, const struct weight *weight);
size_t panel_type_bytes(enum panel_type type);

/* Packs the weight's matrix (its im2col form for 3×3) once, with so many threads. Fails with
 * ERR_MEMORY. */
int weight_pack(struct cpu_backend *cpu, struct weight *weight, int threads,
                struct err *err) must_check;

/* Bytes that weight_pack will take, 0 when it is done. */
size_t weight_pack_bytes(const struct cpu_backend *cpu, const struct weight *weight);

/* The panels as they are or, before packing, as they will be (data NULL), for planning. */
struct panels weight_panels(const struct cpu_backend *cpu, const struct weight *weight);

/* Fills rows [row, row + rows) of segment `segment` of A at stride ld: f32, or bf16 for
 * PANEL_PAIRS. Pads an odd k with zero. */
typedef void (*gemm_fill)(const void *context, int segment, int64_t row, int rows, void *a,
                          size_t ld);
/* Takes finished columns [column, column + columns) of those rows. */
typedef void (*gemm_emit)(const void *context, int64_t row, int rows, int column, int columns,
                          const float *c, size_t ldc);

/* Rows of A from `row` on as they lie somewhere already, at stride *ld, in the same type as `fill`
 * would write. */
typedef const void *(*gemm_view)(const void *context, int segment, int64_t row, size_t *ld);

/* One product A · B. */
struct gemm_term {
    struct panels b;
    gemm_fill fill;
    gemm_view view; /* not NULL: in place of `fill` */
    const void *context;
};

/* Their sum, row by row to `emit`. All have the same columns. */
struct gemm {
    const struct gemm_term *terms;
    int term_count;
    int64_t rows;
    gemm_emit emit;
    const void *context; /* of emit */
};

#define CPU_TERMS_MAX (1 + ADDITIONS_MAX)

/* The threaded product; scratch comes from the pass. */
void cpu_gemm(struct pass *pass, const struct gemm *gemm);

/* What an addition's fill reads. */
struct added {
    const struct cpu_backend *cpu;
    const struct addition *addition;
};

/* Writes `count` additions' terms; each entry of `added` lives as long as its term. */
void cpu_added_terms(const struct cpu_backend *cpu, const struct addition *additions, int count,
                     struct added *added, struct gemm_term *terms);

void cpu_matmul(struct pass *pass, const struct matmul *args);

/* ---- the others ---- */

void cpu_conv2d(struct pass *pass, const struct conv2d *args);
void cpu_attention(struct pass *pass, const struct attention *args);
void cpu_group_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                    struct affine *out);
void cpu_layer_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                    struct tensor *y);

/* ---- conv.c ---- */

/* x after its affine, dense, of the type that products are computed in; the caller's to drop. */
struct tensor conv_input(struct pass *pass, const struct tensor *x, enum dtype dtype,
                         const struct affine *pre);
/* Bias, time and residual for y's columns from `column` on in row (pixel) `row`. */
struct finish conv_finish(const struct conv2d *args, int64_t row, int column);

/* im2col.c; `dtype` is what products are computed in. */
void im2col_conv2d(struct pass *pass, const struct conv2d *args, enum dtype dtype);

/* winograd.c: 3×3, stride 1, padding 1. */
bool winograd_suits(const struct conv2d *args);
size_t winograd_bytes(const struct cpu_backend *cpu, const struct weight *weight); /* of its form */
void winograd_conv2d(struct pass *pass, const struct conv2d *args);

/* The pre of one sample for the kernels. */
static inline struct pre pre_of(const struct affine *affine, int64_t sample, int channels)
{
    size_t at = (size_t)sample * (size_t)channels;
    return affine == NULL ? (struct pre){0}
                          : (struct pre){.scale = affine->scale + at,
                                         .shift = affine->shift + at,
                                         .silu = affine->silu};
}

#endif

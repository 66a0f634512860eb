/*
 * Matrix products: packing weights into panels, and one blocked, threaded driver that everything
 * else (linear layers, convolutions as im2col) hands its rows to.
 *
 * A is copied block by block into per-thread scratch, which is where conversions and the fused
 * affine + SiLU happen, once per element; k runs in segments (a tap of a filter, or at most
 * CPU_SEGMENT_MAX) in a fixed order, so that no element's sum depends on how rows were blocked.
 * Low-rank additions are further products into the same sums.
 */
#include "engine/cpu/cpu.h"

#include <omp.h>
#include <stdlib.h>

#define ROW_BLOCK 96 /* a multiple of every microkernel's rows */
#define COLUMN_BLOCK 512
#define PANEL_COLUMNS_MAX 32        /* of any instruction set */
#define PACK_ALONE_BYTES (1u << 20) /* fewer are packed before a second thread has woken */

size_t panel_type_bytes(enum panel_type type)
{
    return type == PANEL_F32 ? sizeof(float) : sizeof(uint16_t);
}

bool weight_is_exact(const struct cpu_backend *cpu, const struct weight *w)
{
    bool narrow = w->kernel > 1 && (w->in < CONV_NARROW || w->out < CONV_NARROW);

    return cpu->base.compute == DTYPE_F32 || w->exact || narrow;
}

/* Exact weights of a 16-bit file stay 16-bit, which loses nothing, when memory asks for it or when
 * the engine's other weights are 16-bit anyway. */
static enum panel_type panel_type_for(const struct cpu_backend *cpu, const struct weight *w)
{
    enum dtype source = w->parts[0].dtype;

    if (!weight_is_exact(cpu, w))
        return cpu->emulated_bf16 ? PANEL_BF16 : PANEL_PAIRS;
    for (int i = 1; i < w->part_count; i++)
        if (w->parts[i].dtype != source)
            return PANEL_F32;
    if (source != DTYPE_F32 && (cpu->weights_16bit || cpu->base.compute == DTYPE_BF16))
        return source == DTYPE_BF16 ? PANEL_BF16 : PANEL_F16;
    return PANEL_F32;
}

/* ---- packing ---- */

static struct panels panels_layout(const struct cpu_backend *cpu, const struct weight *w)
{
    int nr = cpu->kernels->nr, vl = cpu->kernels->vl, taps = w->kernel * w->kernel;
    struct panels p = {.type = panel_type_for(cpu, w)};
    int even = p.type == PANEL_PAIRS ? 1 : 0, tail;

    p.n = w->geglu ? 2 * (int)div_up(w->out / 2, nr) * nr : w->out;
    tail = p.n % nr;
    p.n_padded = p.n - tail + (tail == 0 ? 0 : tail > vl ? nr : vl);
    p.segments = taps > 1 ? taps : (int)div_up(w->in, CPU_SEGMENT_MAX);
    p.last_k = w->in - (taps > 1 ? 0 : (p.segments - 1) * CPU_SEGMENT_MAX);
    p.last_k = (p.last_k + even) & ~even;
    p.segment_k = taps == 1 && p.segments > 1 ? CPU_SEGMENT_MAX : p.last_k;
    p.bytes = (size_t)p.n_padded * panel_type_bytes(p.type) *
              ((size_t)(p.segments - 1) * (size_t)p.segment_k + (size_t)p.last_k);
    return p;
}

static int segment_depth(const struct panels *p, int segment)
{
    return segment + 1 < p->segments ? p->segment_k : p->last_k;
}

/* Where the panel that starts at `column` begins in `segment`, in elements. */
static size_t panel_at(const struct panels *p, int segment, int column)
{
    return (size_t)segment * (size_t)p->segment_k * (size_t)p->n_padded +
           (size_t)column * (size_t)segment_depth(p, segment);
}

/* Row `o` of the stacked source. */
static const void *source_row(const struct weight *w, int o, enum dtype *dtype)
{
    int part = 0;
    size_t row_elements = (size_t)w->in * (size_t)(w->kernel * w->kernel);

    while (o >= w->parts[part].out)
        o -= w->parts[part++].out;
    *dtype = w->parts[part].dtype;
    return (const char *)w->parts[part].data + (size_t)o * row_elements * dtype_bytes(*dtype);
}

/* The source's output for a packed column, or -1 for padding: GEGLU alternates values and gates. */
static int output_of(const struct weight *w, int column, int nr)
{
    int half = w->out / 2, pair = column / (2 * nr), within = column % (2 * nr);
    int j = pair * nr + within % nr;

    if (!w->geglu)
        return column < w->out ? column : -1;
    return j >= half ? -1 : within < nr ? j : half + j;
}

/* ---- of a filter, element by element ---- */

static void put_element(const struct panels *p, size_t base, int width, int k, int column,
                        const void *row, enum dtype dtype, size_t from)
{
    size_t i = base + (size_t)k * (size_t)width + (size_t)column;

    if (p->type == PANEL_F32)
        ((float *)p->data)[i] = element_to_f32(row, dtype, from);
    else if (p->type == PANEL_F16)
        memcpy((uint16_t *)p->data + i, (const char *)row + from * 2, 2);
    else if (p->type == PANEL_BF16)
        ((uint16_t *)p->data)[i] = bf16_from_f32(element_to_f32(row, dtype, from));
    else
        ((uint16_t *)p->data)[base + (size_t)(k / 2) * (size_t)width * 2 + (size_t)column * 2 +
                              (size_t)(k & 1)] = bf16_from_f32(element_to_f32(row, dtype, from));
}

/* ---- of a matrix, a block of rows at a time, turned ---- */

/* Words of every row at once: a block of all rows stays in the first cache. */
#define TURN_DEPTH 64
#define CACHE_LINE_BYTES 64

/* One panel of one segment: where it lies, and the source rows that become its columns. */
struct panel {
    size_t base;
    int width, depth, first, live;       /* of `depth`, `live` from `first` on are in the source */
    const void *rows[PANEL_COLUMNS_MAX]; /* NULL: padding */
    enum dtype dtypes[PANEL_COLUMNS_MAX];
};

/* n elements of a row in the panel's type. */
static void convert(const struct cpu_kernels *kernels, enum panel_type type, void *to,
                    const void *row, enum dtype dtype, int first, int n)
{
    const struct pre as_it_is = {.scale = NULL};
    const char *from = (const char *)row + (size_t)first * dtype_bytes(dtype);

    if (type == PANEL_F32)
        kernels->load_f32(to, from, dtype, n, &as_it_is);
    else if (type == PANEL_F16)
        memcpy(to, from, (size_t)n * sizeof(uint16_t));
    else
        kernels->load_bf16(to, from, dtype, n, &as_it_is);
}

/* Rows of pairs become two rows each; of an odd n's last pair only the first. */
static void part_pairs(uint16_t *to, const uint32_t *pairs, int width, int n)
{
    for (int i = 0; i < n; i++)
        for (int c = 0; c < width; c++)
            to[i * width + c] = (uint16_t)(pairs[i / 2 * width + c] >> (i & 1 ? 16 : 0));
}

/* The rows' elements from `first` on, `length` of each, will be read soon: rows are too short for
 * the processor to see that. */
static void ask_ahead(const struct panel *panel, int first, int length)
{
    for (int c = 0; c < panel->width && first < panel->first + panel->live; c++) {
        size_t each = panel->rows[c] != NULL ? dtype_bytes(panel->dtypes[c]) : 0;
        const char *row = (const char *)panel->rows[c] + (size_t)first * each;
        for (size_t line = 0; line < (size_t)length * each; line += CACHE_LINE_BYTES)
            __builtin_prefetch(row + line);
    }
}

/* Rows are turned as words of 32 bits, which 16-bit elements fill in pairs. */
static void pack_rows(const struct cpu_backend *cpu, const struct panels *p,
                      const struct panel *panel)
{
    const int each = p->type == PANEL_F32 ? 1 : 2, step = each * TURN_DEPTH;
    uint32_t block[PANEL_COLUMNS_MAX * TURN_DEPTH] = {0}, pairs[PANEL_COLUMNS_MAX * TURN_DEPTH];
    char *to = (char *)p->data + panel->base * panel_type_bytes(p->type);
    bool apart = p->type == PANEL_BF16 || p->type == PANEL_F16;

    for (int k = 0; k < panel->live; k += step) {
        int n = panel->live - k < step ? panel->live - k : step, words = (n + each - 1) / each;
        if (n < step)
            memset(block, 0, sizeof(block)); /* an odd one's neighbour */
        ask_ahead(panel, panel->first + k + step, step);
        for (int c = 0; c < panel->width; c++)
            if (panel->rows[c] != NULL)
                convert(cpu->kernels, p->type, block + c * TURN_DEPTH, panel->rows[c],
                        panel->dtypes[c], panel->first + k, n);
        cpu->kernels->turn(apart ? pairs : (uint32_t *)to, panel->width, block, TURN_DEPTH, words);
        if (apart)
            part_pairs((uint16_t *)to, pairs, panel->width, n);
        to += (size_t)(apart ? n : words * each) * (size_t)panel->width * panel_type_bytes(p->type);
    }
}

/* One panel of one segment. */
static void pack_panel(const struct cpu_backend *cpu, const struct weight *w,
                       const struct panels *p, int segment, int first)
{
    int nr = cpu->kernels->nr, taps = w->kernel * w->kernel, tap = taps > 1 ? segment : 0;
    struct panel panel = {.base = panel_at(p, segment, first),
                          .width = p->n_padded - first < nr ? p->n_padded - first : nr,
                          .depth = segment_depth(p, segment),
                          .first = taps > 1 ? 0 : segment * CPU_SEGMENT_MAX};

    panel.live = w->in - panel.first < panel.depth ? w->in - panel.first : panel.depth;
    for (int c = 0; c < panel.width; c++) {
        int output = first + c < p->n ? output_of(w, first + c, nr) : -1;
        panel.rows[c] = output < 0 ? NULL : source_row(w, output, &panel.dtypes[c]);
    }
    if (taps == 1) {
        pack_rows(cpu, p, &panel);
        return;
    }
    memset((char *)p->data + panel.base * panel_type_bytes(p->type), 0,
           (size_t)panel.width * (size_t)panel.depth * panel_type_bytes(p->type));
    for (int c = 0; c < panel.width; c++)
        for (int k = 0; panel.rows[c] != NULL && k < panel.live; k++)
            put_element(p, panel.base, panel.width, k, c, panel.rows[c], panel.dtypes[c],
                        (size_t)k * (size_t)taps + (size_t)tap);
}

int weight_pack(struct cpu_backend *cpu, struct weight *w, int threads, struct err *err)
{
    struct panels p = panels_layout(cpu, w);
    int nr = cpu->kernels->nr;

    if (w->panels.data != NULL)
        return 0;
    p.data = pool_alloc(&cpu->pool, p.bytes);
    if (p.data == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for packed weights of %zu bytes",
                       p.bytes);
#pragma omp parallel for collapse(2) schedule(dynamic, 1)                                          \
    num_threads(threads) if (threads > 1 && p.bytes >= PACK_ALONE_BYTES)
    for (int s = 0; s < p.segments; s++)
        for (int j = 0; j < p.n_padded; j += nr)
            pack_panel(cpu, w, &p, s, j);
    w->panels = p;
    cpu->base.weights_bytes += p.bytes;
    return 0;
}

struct panels weight_panels(const struct cpu_backend *cpu, const struct weight *w)
{
    return w->panels.data != NULL ? w->panels : panels_layout(cpu, w);
}

size_t weight_pack_bytes(const struct cpu_backend *cpu, const struct weight *w)
{
    return w->panels.data != NULL ? 0 : panels_layout(cpu, w).bytes;
}

/* ---- the driver ---- */

struct blocking {
    int rows, columns;
    int64_t row_blocks, column_blocks;
    size_t ldc;
    size_t a_bytes, c_bytes, wide_bytes, thread_bytes;
};

/* Elements from one row of A's copy to the next. */
static size_t term_stride(const struct panels *p)
{
    return (size_t)p->segment_k + CPU_PAD;
}

static struct blocking choose_blocking(const struct cpu_backend *cpu, const struct gemm *g)
{
    struct blocking b = {.rows = ROW_BLOCK, .columns = COLUMN_BLOCK};
    int nr = cpu->kernels->nr, unit = cpu->kernels->rows, columns = g->terms[0].b.n;
    size_t row_bytes = 0;

    /* Enough tasks for every thread: first narrower, then shorter blocks. */
    while (b.columns > 4 * nr &&
           div_up(g->rows, b.rows) * div_up(columns, b.columns) < 4 * cpu->base.threads)
        b.columns /= 2;
    while (b.rows > unit &&
           div_up(g->rows, b.rows) * div_up(columns, b.columns) < 2 * cpu->base.threads)
        b.rows = b.rows / 2 / unit * unit > 0 ? b.rows / 2 / unit * unit : unit;
    if (b.rows > g->rows)
        b.rows = (int)g->rows;
    b.row_blocks = div_up(g->rows, b.rows);
    b.column_blocks = div_up(columns, b.columns);
    b.ldc = (size_t)b.columns + CPU_PAD;
    b.c_bytes = (size_t)b.rows * b.ldc * sizeof(float);
    for (int i = 0; i < g->term_count; i++) {
        const struct panels *p = &g->terms[i].b;
        size_t bytes =
            g->terms[i].view != NULL ? 0 : term_stride(p) * (p->type == PANEL_PAIRS ? 2 : 4);
        size_t wide = (size_t)p->segment_k * (size_t)nr * sizeof(float);
        ASSERT(p->n == columns);
        row_bytes = bytes > row_bytes ? bytes : row_bytes;
        if ((p->type == PANEL_BF16 || p->type == PANEL_F16) && wide > b.wide_bytes)
            b.wide_bytes = wide;
    }
    b.a_bytes = ((size_t)b.rows * row_bytes + 63) & ~(size_t)63;
    b.thread_bytes = (b.a_bytes + b.c_bytes + b.wide_bytes + 63) & ~(size_t)63;
    return b;
}

/* One panel after another through a widened copy, for weights that stay 16-bit in memory. */
static void product_widened(const struct cpu_kernels *k, const struct panels *p, int m, int n,
                            int depth, const float *a, size_t lda, const uint16_t *b, float *wide,
                            float *c, size_t ldc, bool add)
{
    enum dtype dtype = p->type == PANEL_BF16 ? DTYPE_BF16 : DTYPE_F16;
    struct pre none = {0};

    for (int j = 0; j < n; j += k->nr, b += (size_t)depth * (size_t)k->nr) {
        int width = n - j > k->vl ? k->nr : k->vl;
        k->load_f32(wide, b, dtype, depth * width, &none);
        k->gemm_f32(m, n - j < k->nr ? n - j : k->nr, depth, a, lda, wide, 0, c + j, ldc, add);
    }
}

/* c = or += all segments of one term's block. */
static void block_product(const struct cpu_backend *cpu, const struct gemm_term *g,
                          const struct blocking *b, int64_t row, int rows, int column, int columns,
                          char *scratch, bool add)
{
    const struct cpu_kernels *k = cpu->kernels;
    const struct panels *p = &g->b;
    size_t lda = term_stride(p);
    const void *a = scratch;
    float *c = (float *)(scratch + b->a_bytes),
          *wide = (float *)(scratch + b->a_bytes + b->c_bytes);

    for (int s = 0; s < p->segments; s++) {
        int depth = segment_depth(p, s);
        size_t at = panel_at(p, s, column), stride = (size_t)depth * (size_t)k->nr;

        if (g->view != NULL)
            a = g->view(g->context, s, row, &lda);
        else
            g->fill(g->context, s, row, rows, scratch, lda);
        if (p->type == PANEL_F32)
            k->gemm_f32(rows, columns, depth, a, lda, (float *)p->data + at, stride, c, b->ldc,
                        add || s > 0);
        else if (p->type == PANEL_PAIRS)
            k->gemm_bf16(rows, columns, depth, a, lda, (uint16_t *)p->data + at, stride, c, b->ldc,
                         add || s > 0);
        else
            product_widened(k, p, rows, columns, depth, a, lda, (uint16_t *)p->data + at, wide, c,
                            b->ldc, add || s > 0);
    }
}

void cpu_gemm(struct pass *pass, const struct gemm *g)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    struct blocking b = choose_blocking(cpu, g);
    char *scratch = pass_scratch(pass, b.thread_bytes * (size_t)cpu->base.threads);
    int all = g->terms[0].b.n;

    if (!pass->planning && !pass->failed) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(cpu->base.threads)
        for (int64_t task = 0; task < b.row_blocks * b.column_blocks; task++) {
            int64_t row = task % b.row_blocks * b.rows;
            int column = (int)(task / b.row_blocks) * b.columns;
            int rows = g->rows - row < b.rows ? (int)(g->rows - row) : b.rows;
            int columns = all - column < b.columns ? all - column : b.columns;
            char *mine = scratch + b.thread_bytes * (size_t)omp_get_thread_num();
            for (int i = 0; i < g->term_count; i++)
                block_product(cpu, &g->terms[i], &b, row, rows, column, columns, mine, i > 0);
            g->emit(g->context, row, rows, column, columns, (float *)(mine + b.a_bytes), b.ldc);
        }
    }
    pass_scratch_drop(pass, scratch);
}

/* ---- linear layers ---- */

struct matmul_context {
    const struct cpu_backend *cpu;
    const struct matmul *args;
    int64_t rows_per_sample;
};

/* Columns [first, first + n) of x, after pre, rounded to bf16 where products are emulated. */
static void fill_row(const struct cpu_backend *cpu, const struct panels *p, bool exact,
                     const void *src, enum dtype dtype, int n, const struct pre *pre, void *dst)
{
    const struct cpu_kernels *k = cpu->kernels;
    struct pre none = {0};

    if (p->type == PANEL_PAIRS) {
        k->load_bf16(dst, src, dtype, n, pre);
        if (n & 1)
            ((uint16_t *)dst)[n] = 0;
        return;
    }
    k->load_f32(dst, src, dtype, n, pre);
    if (!exact && cpu->emulated_bf16 && (dtype != DTYPE_BF16 || pre->scale != NULL)) {
        k->load_bf16(dst, dst, DTYPE_F32, n, &none); /* narrows in place, front to back */
        for (int i = n - 1; i >= 0; i--)
            ((float *)dst)[i] = bf16_to_f32(((uint16_t *)dst)[i]);
    }
}

static void matmul_fill(const void *context, int segment, int64_t row, int rows, void *a, size_t ld)
{
    const struct matmul_context *m = context;
    const struct tensor *x = m->args->x;
    const struct panels *p = &m->args->linear->weight->panels;
    int first = segment * CPU_SEGMENT_MAX;
    int n = x->c - first < CPU_SEGMENT_MAX ? x->c - first : CPU_SEGMENT_MAX;
    size_t element = p->type == PANEL_PAIRS ? 2 : 4;
    bool exact = weight_is_exact(m->cpu, m->args->linear->weight);

    for (int i = 0; i < rows; i++) {
        struct pre pre = pre_of(m->args->pre, (row + i) / m->rows_per_sample, x->c);
        if (pre.scale != NULL) {
            pre.scale += first;
            pre.shift += first;
        }
        fill_row(m->cpu, p, exact,
                 (char *)row_at(x, row + i) + (size_t)first * dtype_bytes(x->dtype), x->dtype, n,
                 &pre, (char *)a + (size_t)i * ld * element);
    }
}

static void matmul_emit(const void *context, int64_t row, int rows, int column, int columns,
                        const float *c, size_t ldc)
{
    const struct matmul_context *m = context;
    const struct matmul *a = m->args;
    int nr = m->cpu->kernels->nr;
    int first = a->act == ACT_GEGLU ? column / (2 * nr) * nr : column;
    int count = a->act == ACT_GEGLU ? columns / 2 : columns;

    if (a->y->c - first < count)
        count = a->y->c - first;
    for (int i = 0; i < rows; i++, c += ldc) {
        struct finish f = {.bias = a->linear->bias,
                           .act = a->act,
                           .y = (char *)row_at(a->y, row + i) +
                                (size_t)first * dtype_bytes(a->y->dtype),
                           .y_dtype = a->y->dtype};
        if (a->residual != NULL) {
            f.residual = (char *)row_at(a->residual, row + i) +
                         (size_t)first * dtype_bytes(a->residual->dtype);
            f.residual_dtype = a->residual->dtype;
        }
        if (a->act == ACT_GEGLU) {
            m->cpu->kernels->finish_geglu(c, count, first, a->linear->out / 2, &f);
            continue;
        }
        if (f.bias != NULL)
            f.bias += first;
        m->cpu->kernels->finish(c, count, &f);
    }
}

/* scale ⊙ t, as wide as a segment. */
static void added_fill(const void *context, int segment, int64_t row, int rows, void *a, size_t ld)
{
    const struct added *m = context;
    const struct tensor *t = m->addition->t;
    const struct weight *up = m->addition->up->weight;
    int first = segment * CPU_SEGMENT_MAX;
    int n = t->c - first < CPU_SEGMENT_MAX ? t->c - first : CPU_SEGMENT_MAX;
    size_t element = up->panels.type == PANEL_PAIRS ? 2 : 4;
    struct pre pre = {.scale = m->addition->scale + first};
    bool exact = weight_is_exact(m->cpu, up);

    for (int i = 0; i < rows; i++)
        fill_row(m->cpu, &up->panels, exact, (const float *)row_at(t, row + i) + first, t->dtype, n,
                 &pre, (char *)a + (size_t)i * ld * element);
}

void cpu_added_terms(const struct cpu_backend *cpu, const struct addition *additions, int count,
                     struct added *added, struct gemm_term *terms)
{
    ASSERT(count <= ADDITIONS_MAX);
    for (int i = 0; i < count; i++) {
        added[i] = (struct added){.cpu = cpu, .addition = &additions[i]};
        terms[i] = (struct gemm_term){.b = weight_panels(cpu, additions[i].up->weight),
                                      .fill = added_fill,
                                      .context = &added[i]};
    }
}

void cpu_matmul(struct pass *pass, const struct matmul *args)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    struct matmul_context context = {
        .cpu = cpu, .args = args, .rows_per_sample = (int64_t)args->x->h * args->x->w};
    struct added added[ADDITIONS_MAX];
    struct gemm_term terms[CPU_TERMS_MAX];

    terms[0] = (struct gemm_term){
        .b = weight_panels(cpu, args->linear->weight), .fill = matmul_fill, .context = &context};
    cpu_added_terms(cpu, args->additions, args->addition_count, added, terms + 1);
    cpu_gemm(pass, &(struct gemm){.terms = terms,
                                  .term_count = 1 + args->addition_count,
                                  .rows = tensor_rows(args->x),
                                  .emit = matmul_emit,
                                  .context = &context});
}

#include "engine/cuda/blas.h"

#if __has_include(<cublasLt.h>) /* a toolkit may come without it */

#include "engine/cuda/device.h"
#include "engine/tensor.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <glob.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 4096                   /* of products by layer and size */
#define SAMPLES_MAX 128                /* of one pass */
#define PAIR 2                         /* samples that usually come together: a guidance pair */
#define OFFERS_MAX 8                   /* algorithms that are looked at */
#define SOME_BIAS ((const void *)4096) /* as aligned as every bias; nobody reads there */
#define PATH_BYTES 4096

/* Entry points, by the names and types of the header. */
struct entries {
    decltype(&cublasLtGetVersion) GetVersion;
    decltype(&cublasLtCreate) Create;
    decltype(&cublasLtDestroy) Destroy;
    decltype(&cublasLtMatmul) Matmul;
    decltype(&cublasLtMatmulDescCreate) DescCreate;
    decltype(&cublasLtMatmulDescDestroy) DescDestroy;
    decltype(&cublasLtMatmulDescSetAttribute) DescSet;
    decltype(&cublasLtMatrixLayoutCreate) LayoutCreate;
    decltype(&cublasLtMatrixLayoutDestroy) LayoutDestroy;
    decltype(&cublasLtMatmulPreferenceCreate) PreferenceCreate;
    decltype(&cublasLtMatmulPreferenceDestroy) PreferenceDestroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) PreferenceSet;
    decltype(&cublasLtMatmulAlgoGetHeuristic) Heuristic;
    decltype(&cublasLtMatmulAlgoCheck) Check;
};

struct blas_product {
    struct blas_product *next; /* of its bucket */
    struct blas *blas;
    struct blas_shape shape;
    cublasLtMatmulDesc_t desc; /* its bias is set before each call */
    bool found;
    cublasLtMatmulAlgo_t algo;
};

struct blas {
    const struct device *device;
    void *library;
    struct entries lt;
    cublasLtHandle_t handle;
    struct blas_product **buckets;
};

static bool find_entries(struct blas *b)
{
    struct {
        const char *name;
        void **entry;
    } wanted[] = {
        {"cublasLtGetVersion", (void **)&b->lt.GetVersion},
        {"cublasLtCreate", (void **)&b->lt.Create},
        {"cublasLtDestroy", (void **)&b->lt.Destroy},
        {"cublasLtMatmul", (void **)&b->lt.Matmul},
        {"cublasLtMatmulDescCreate", (void **)&b->lt.DescCreate},
        {"cublasLtMatmulDescDestroy", (void **)&b->lt.DescDestroy},
        {"cublasLtMatmulDescSetAttribute", (void **)&b->lt.DescSet},
        {"cublasLtMatrixLayoutCreate", (void **)&b->lt.LayoutCreate},
        {"cublasLtMatrixLayoutDestroy", (void **)&b->lt.LayoutDestroy},
        {"cublasLtMatmulPreferenceCreate", (void **)&b->lt.PreferenceCreate},
        {"cublasLtMatmulPreferenceDestroy", (void **)&b->lt.PreferenceDestroy},
        {"cublasLtMatmulPreferenceSetAttribute", (void **)&b->lt.PreferenceSet},
        {"cublasLtMatmulAlgoGetHeuristic", (void **)&b->lt.Heuristic},
        {"cublasLtMatmulAlgoCheck", (void **)&b->lt.Check},
    };

    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if ((*wanted[i].entry = dlsym(b->library, wanted[i].name)) == NULL)
            return false;
    return true;
}

/* ---- where the library is ---- */

/* Beside the system's own search path: where toolkits and Python's packages have it, the last ones
 * as torch brings them. A variable that is not set leaves its line out. */
static const struct {
    const char *variable, *pattern;
} PLACES[] = {
    {"CUDA_HOME", "/lib64"},
    {"CUDA_PATH", "/lib64"},
    {NULL, "/usr/local/cuda/lib64"},
    {NULL, "/opt/cuda/lib64"},
    {"CONDA_PREFIX", "/lib"},
    {"VIRTUAL_ENV", "/lib/python3*/site-packages/nvidia/c*/lib"},
    {"HOME", "/.local/lib/python3*/site-packages/nvidia/c*/lib"},
    {NULL, "/usr/local/lib/python3*/*-packages/nvidia/c*/lib"},
};

static void *open_file(const char *path)
{
    return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

static void library_name(char name[64])
{
    snprintf(name, 64, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
}

/* The first that opens of PREFIX/PATTERN/libcublasLt.so.N. */
static void *open_in(const char *prefix, const char *pattern)
{
    char name[64], path[PATH_BYTES];
    void *library = NULL;
    glob_t found;

    library_name(name);
    if (snprintf(path, sizeof(path), "%s%s/%s", prefix, pattern, name) >= (int)sizeof(path) ||
        glob(path, 0, NULL, &found) != 0)
        return NULL;
    for (size_t i = 0; i < found.gl_pathc && library == NULL; i++)
        library = open_file(found.gl_pathv[i]);
    globfree(&found);
    return library;
}

/* ATELIER_CUBLAS: 0, or the folder where it is. */
static void *open_library()
{
    const char *wish = getenv("ATELIER_CUBLAS");
    char name[64];
    void *library;

    if (wish != NULL && *wish != 0)
        return strcmp(wish, "0") == 0 ? NULL : open_in(wish, "");
    library_name(name);
    library = open_file(name);
    for (size_t i = 0; i < sizeof(PLACES) / sizeof(PLACES[0]) && library == NULL; i++) {
        const char *prefix = PLACES[i].variable != NULL ? getenv(PLACES[i].variable) : "";
        if (prefix != NULL)
            library = open_in(prefix, PLACES[i].pattern);
    }
    return library;
}

void blas_describe(const struct blas *b, char text[BLAS_TEXT_BYTES])
{
    const char *wish = getenv("ATELIER_CUBLAS");
    bool off = wish != NULL && strcmp(wish, "0") == 0;
    char name[64];
    Dl_info from = {};

    library_name(name);
    if (b != NULL && dladdr((void *)b->lt.Create, &from) != 0)
        snprintf(text, BLAS_TEXT_BYTES, "cublasLt %zu of %s", b->lt.GetVersion(), from.dli_fname);
    else if (off)
        snprintf(text, BLAS_TEXT_BYTES, "no cublasLt: ATELIER_CUBLAS is 0");
    else
        snprintf(text, BLAS_TEXT_BYTES,
                 "no cublasLt: no %s that works was found; ATELIER_CUBLAS names its folder", name);
}

/* ---- the library ---- */

struct blas *blas_open(struct device *device)
{
    struct blas *b = (struct blas *)calloc(1, sizeof(*b));

    if (b == NULL)
        return NULL;
    b->device = device;
    b->buckets = (struct blas_product **)calloc(BUCKETS, sizeof(b->buckets[0]));
    b->library = open_library();
    if (b->buckets != NULL && b->library != NULL && find_entries(b) &&
        b->lt.Create(&b->handle) == CUBLAS_STATUS_SUCCESS)
        return b;
    blas_close(b);
    return NULL;
}

void blas_close(struct blas *b)
{
    if (b == NULL)
        return;
    for (int i = 0; b->buckets != NULL && i < BUCKETS; i++)
        while (b->buckets[i] != NULL) {
            struct blas_product *p = b->buckets[i];
            b->buckets[i] = p->next;
            if (p->desc != NULL)
                b->lt.DescDestroy(p->desc);
            free(p);
        }
    device_use(b->device);
    if (b->handle != NULL)
        b->lt.Destroy(b->handle);
    if (b->library != NULL)
        dlclose(b->library);
    free(b->buckets);
    free(b);
}

/* Sums in f32; the bias goes with yᵀ's rows, which are its channels. */
static bool desc_make(struct blas_product *p)
{
    const struct entries *lt = &p->blas->lt;
    cublasOperation_t turned = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue =
        p->shape.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;

    return lt->DescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
           lt->DescSet(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof(turned)) ==
               CUBLAS_STATUS_SUCCESS &&
           lt->DescSet(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)) ==
               CUBLAS_STATUS_SUCCESS;
}

/* The bias of the next call, in the product's type. */
static bool desc_set_bias(const struct blas_product *p, const void *bias)
{
    return !p->shape.bias || p->blas->lt.DescSet(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                                 sizeof(bias)) == CUBLAS_STATUS_SUCCESS;
}

/* Columns are the library's: yᵀ [out × rows] = w [in × out]ᵀ · xᵀ [in × rows]. What is added to it
 * is laid out as its own matrix. */
struct layouts {
    cublasLtMatrixLayout_t w, x, residual, y;
};

static bool layouts_make(const struct blas_product *p, const struct blas_args *a, struct layouts *l)
{
    const struct entries *lt = &p->blas->lt;
    const struct blas_shape *s = &p->shape;
    cudaDataType_t type = s->dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_16F;
    int residual_ld = s->residual ? a->residual_ld : a->y_ld;

    memset(l, 0, sizeof(*l));
    return lt->LayoutCreate(&l->w, type, s->in, s->out, s->in) == CUBLAS_STATUS_SUCCESS &&
           lt->LayoutCreate(&l->x, type, s->in, a->rows, a->x_ld) == CUBLAS_STATUS_SUCCESS &&
           lt->LayoutCreate(&l->residual, type, s->out, a->rows, residual_ld) ==
               CUBLAS_STATUS_SUCCESS &&
           lt->LayoutCreate(&l->y, type, s->out, a->rows, a->y_ld) == CUBLAS_STATUS_SUCCESS;
}

static void layouts_free(const struct entries *lt, struct layouts *l)
{
    if (l->w != NULL)
        lt->LayoutDestroy(l->w);
    if (l->x != NULL)
        lt->LayoutDestroy(l->x);
    if (l->residual != NULL)
        lt->LayoutDestroy(l->residual);
    if (l->y != NULL)
        lt->LayoutDestroy(l->y);
}

/* What an algorithm must do without: workspace, split sums, more alignment than tensors have. */
static cublasLtMatmulPreference_t make_wishes(const struct entries *lt)
{
    static const cublasLtMatmulPreferenceAttributes_t ALIGNMENTS[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreference_t wishes = NULL;
    uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE, alignment = 16;
    size_t workspace = 0;

    if (lt->PreferenceCreate(&wishes) != CUBLAS_STATUS_SUCCESS)
        return NULL;
    bool set = lt->PreferenceSet(wishes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                 sizeof(workspace)) == CUBLAS_STATUS_SUCCESS &&
               lt->PreferenceSet(wishes, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_reduction,
                                 sizeof(no_reduction)) == CUBLAS_STATUS_SUCCESS;
    for (int i = 0; i < 4; i++)
        set = set && lt->PreferenceSet(wishes, ALIGNMENTS[i], &alignment, sizeof(alignment)) ==
                         CUBLAS_STATUS_SUCCESS;
    if (set)
        return wishes;
    lt->PreferenceDestroy(wishes);
    return NULL;
}

/* So many rows, one after the other. */
static struct blas_args dense(const struct blas_product *p, int64_t rows)
{
    struct blas_args a = {};

    a.rows = rows;
    a.x_ld = p->shape.in;
    a.residual_ld = a.y_ld = p->shape.out;
    return a;
}

/* Whether the algorithm serves this many rows as it is. */
static bool serves(struct blas_product *p, int64_t rows)
{
    const struct entries *lt = &p->blas->lt;
    cublasLtMatmulHeuristicResult_t result;
    struct blas_args a = dense(p, rows);
    struct layouts l;
    bool good = layouts_make(p, &a, &l) &&
                lt->Check(p->blas->handle, p->desc, l.w, l.x, l.residual, l.y, &p->algo, &result) ==
                    CUBLAS_STATUS_SUCCESS &&
                result.workspaceSize == 0;

    layouts_free(lt, &l);
    return good;
}

/* Whether it serves as many samples as a pass may have. */
static bool serves_all(struct blas_product *p)
{
    for (int samples = 1; samples <= SAMPLES_MAX; samples *= 2)
        if (!serves(p, samples * p->shape.each))
            return false;
    return true;
}

/* Asks for a pair of samples. An algorithm that does not also serve one and many is not taken:
 * which one computes must not depend on how many there are. */
static bool ask(struct blas_product *p)
{
    const struct entries *lt = &p->blas->lt;
    cublasLtMatmulPreference_t wishes = make_wishes(lt);
    cublasLtMatmulHeuristicResult_t offers[OFFERS_MAX];
    struct blas_args a = dense(p, PAIR * p->shape.each);
    struct layouts l = {};
    int count = 0;
    bool taken = false;

    if (wishes == NULL || !desc_make(p) || !desc_set_bias(p, SOME_BIAS) ||
        !layouts_make(p, &a, &l) ||
        lt->Heuristic(p->blas->handle, p->desc, l.w, l.x, l.residual, l.y, wishes, OFFERS_MAX,
                      offers, &count) != CUBLAS_STATUS_SUCCESS)
        count = 0;
    for (int i = 0; i < count && !taken; i++) {
        p->algo = offers[i].algo;
        taken = offers[i].state == CUBLAS_STATUS_SUCCESS && serves_all(p);
    }
    if (wishes != NULL)
        lt->PreferenceDestroy(wishes);
    layouts_free(lt, &l);
    return taken;
}

static bool same_shape(const struct blas_shape *a, const struct blas_shape *b)
{
    return a->dtype == b->dtype && a->out == b->out && a->in == b->in && a->each == b->each &&
           a->bias == b->bias && a->residual == b->residual;
}

struct blas_product *blas_find(struct blas *b, const struct blas_shape *shape)
{
    uint64_t hash = ((uint64_t)shape->each * 31 + (uint64_t)shape->out) * 31 + (uint64_t)shape->in;
    struct blas_product **bucket = &b->buckets[(hash ^ hash >> 12) % BUCKETS], *p;

    for (p = *bucket; p != NULL; p = p->next)
        if (same_shape(&p->shape, shape))
            return p->found ? p : NULL;
    p = (struct blas_product *)calloc(1, sizeof(*p));
    if (p == NULL)
        return NULL;
    p->blas = b;
    p->shape = *shape;
    device_use(b->device);
    p->found = ask(p);
    p->next = *bucket;
    *bucket = p;
    return p->found ? p : NULL;
}

struct call {
    const struct blas_product *product;
    struct blas_args args;
};

static int run_call(const struct command *command, void *stream)
{
    const struct call *c = (const struct call *)command_args(command);
    const struct blas_product *p = c->product;
    const struct entries *lt = &p->blas->lt;
    const struct blas_args *a = &c->args;
    const void *residual = p->shape.residual ? a->residual : a->y;
    float one = 1, of_residual = p->shape.residual ? 1 : 0;
    struct layouts l;
    cublasStatus_t rc = CUBLAS_STATUS_ALLOC_FAILED;

    if (layouts_make(p, a, &l) && desc_set_bias(p, a->bias))
        rc = lt->Matmul(p->blas->handle, p->desc, &one, a->w, l.w, a->x, l.x, &of_residual,
                        residual, l.residual, a->y, l.y, &p->algo, NULL, 0, (cudaStream_t)stream);
    layouts_free(lt, &l);
    return rc == CUBLAS_STATUS_ALLOC_FAILED ? (int)cudaErrorMemoryAllocation : -(int)rc;
}

void blas_enqueue(struct queue *queue, const struct blas_product *product,
                  const struct blas_args *args)
{
    struct call call;
    struct command command;

    memset(&call, 0, sizeof(call));
    memset(&command, 0, sizeof(command));
    call.product = product;
    call.args = *args;
    command.run = run_call;
    queue_push(queue, &command, &call, sizeof(call));
}

#else

#include <stdio.h>

struct blas *blas_open(struct device *device)
{
    (void)device;
    return NULL;
}

void blas_close(struct blas *b)
{
    (void)b;
}

void blas_describe(const struct blas *b, char text[BLAS_TEXT_BYTES])
{
    (void)b;
    snprintf(text, BLAS_TEXT_BYTES, "no cublasLt: this was built without cublasLt.h");
}

struct blas_product *blas_find(struct blas *b, const struct blas_shape *shape)
{
    (void)b, (void)shape;
    return nullptr;
}

void blas_enqueue(struct queue *queue, const struct blas_product *product,
                  const struct blas_args *args)
{
    (void)queue, (void)product, (void)args;
}

#endif

#include "engine/cuda/blas.h"

#include "engine/cuda/device.h"
#include "engine/tensor.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 4096    /* of products by layer and size */
#define SAMPLES_MAX 128 /* of one pass */

/* Entry points, by the names and types of the header. */
struct entries {
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
    int dtype, out, in;
    int64_t each;
    bool found;
    cublasLtMatmulAlgo_t algo;
};

struct blas {
    void *library;
    struct entries lt;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    struct blas_product **buckets;
};

static bool find_entries(struct blas *b)
{
    struct {
        const char *name;
        void **entry;
    } wanted[] = {
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

static void *open_library()
{
    char name[64];
    void *library;

    snprintf(name, sizeof(name), "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    return library != NULL ? library : dlopen("libcublasLt.so", RTLD_NOW | RTLD_LOCAL);
}

struct blas *blas_open(struct device *device)
{
    const char *wish = getenv("ATELIER_CUBLAS");
    struct blas *b;
    cublasOperation_t turned = CUBLAS_OP_T;

    (void)device;
    if (wish != NULL && strcmp(wish, "0") == 0)
        return NULL;
    b = (struct blas *)calloc(1, sizeof(*b));
    if (b == NULL)
        return NULL;
    b->buckets = (struct blas_product **)calloc(BUCKETS, sizeof(b->buckets[0]));
    b->library = open_library();
    if (b->buckets != NULL && b->library != NULL && find_entries(b) &&
        b->lt.Create(&b->handle) == CUBLAS_STATUS_SUCCESS &&
        b->lt.DescCreate(&b->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
        b->lt.DescSet(b->desc, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof(turned)) ==
            CUBLAS_STATUS_SUCCESS)
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
            free(p);
        }
    if (b->desc != NULL)
        b->lt.DescDestroy(b->desc);
    if (b->handle != NULL)
        b->lt.Destroy(b->handle);
    if (b->library != NULL)
        dlclose(b->library);
    free(b->buckets);
    free(b);
}

/* Columns are the library's: yᵀ [out × rows] = w [in × out]ᵀ · xᵀ [in × rows]. */
struct layouts {
    cublasLtMatrixLayout_t w, x, y;
};

static bool layouts_make(const struct blas_product *p, int64_t rows, int x_ld, int y_ld,
                         struct layouts *l)
{
    const struct entries *lt = &p->blas->lt;
    cudaDataType_t type = p->dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_16F;

    memset(l, 0, sizeof(*l));
    return lt->LayoutCreate(&l->w, type, p->in, p->out, p->in) == CUBLAS_STATUS_SUCCESS &&
           lt->LayoutCreate(&l->x, type, p->in, rows, x_ld) == CUBLAS_STATUS_SUCCESS &&
           lt->LayoutCreate(&l->y, type, p->out, rows, y_ld) == CUBLAS_STATUS_SUCCESS;
}

static void layouts_free(const struct entries *lt, struct layouts *l)
{
    if (l->w != NULL)
        lt->LayoutDestroy(l->w);
    if (l->x != NULL)
        lt->LayoutDestroy(l->x);
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

/* Whether the algorithm serves this many rows as it is. */
static bool serves(struct blas_product *p, int64_t rows)
{
    const struct entries *lt = &p->blas->lt;
    cublasLtMatmulHeuristicResult_t result;
    struct layouts l;
    bool good = layouts_make(p, rows, p->in, p->out, &l) &&
                lt->Check(p->blas->handle, p->blas->desc, l.w, l.x, l.y, l.y, &p->algo, &result) ==
                    CUBLAS_STATUS_SUCCESS &&
                result.workspaceSize == 0;

    layouts_free(lt, &l);
    return good;
}

/* Asks for one sample. An algorithm that does not also serve many is not taken: which one computes
 * must not depend on how many there are. */
static bool ask(struct blas_product *p)
{
    const struct entries *lt = &p->blas->lt;
    cublasLtMatmulPreference_t wishes = make_wishes(lt);
    cublasLtMatmulHeuristicResult_t result;
    struct layouts l = {};
    int count = 0;
    bool made = wishes != NULL && layouts_make(p, p->each, p->in, p->out, &l) &&
                lt->Heuristic(p->blas->handle, p->blas->desc, l.w, l.x, l.y, l.y, wishes, 1,
                              &result, &count) == CUBLAS_STATUS_SUCCESS &&
                count == 1 && result.state == CUBLAS_STATUS_SUCCESS;

    if (made)
        p->algo = result.algo;
    if (wishes != NULL)
        lt->PreferenceDestroy(wishes);
    layouts_free(lt, &l);
    for (int samples = 1; made && samples <= SAMPLES_MAX; samples *= 2)
        made = serves(p, samples * p->each);
    return made;
}

struct blas_product *blas_find(struct blas *b, int dtype, int64_t each, int out, int in)
{
    uint64_t hash = ((uint64_t)each * 31 + (uint64_t)out) * 31 + (uint64_t)in;
    struct blas_product **bucket = &b->buckets[(hash ^ hash >> 12) % BUCKETS], *p;

    for (p = *bucket; p != NULL; p = p->next)
        if (p->dtype == dtype && p->each == each && p->out == out && p->in == in)
            return p->found ? p : NULL;
    p = (struct blas_product *)calloc(1, sizeof(*p));
    if (p == NULL)
        return NULL;
    p->blas = b;
    p->dtype = dtype;
    p->each = each;
    p->out = out;
    p->in = in;
    p->found = ask(p);
    p->next = *bucket;
    *bucket = p;
    return p->found ? p : NULL;
}

struct call {
    const struct blas_product *product;
    const void *x, *w;
    void *y;
    int64_t rows;
    int x_ld, y_ld;
};

static int run_call(const struct command *command, void *stream)
{
    const struct call *c = (const struct call *)command_args(command);
    const struct blas_product *p = c->product;
    const struct entries *lt = &p->blas->lt;
    float one = 1, zero = 0;
    struct layouts l;
    cublasStatus_t rc = CUBLAS_STATUS_ALLOC_FAILED;

    if (layouts_make(p, c->rows, c->x_ld, c->y_ld, &l))
        rc = lt->Matmul(p->blas->handle, p->blas->desc, &one, c->w, l.w, c->x, l.x, &zero, c->y,
                        l.y, c->y, l.y, &p->algo, NULL, 0, (cudaStream_t)stream);
    layouts_free(lt, &l);
    return rc == CUBLAS_STATUS_SUCCESS ? 0 : (int)cudaErrorUnknown;
}

void blas_enqueue(struct queue *queue, struct blas_product *product, const void *x, int x_ld,
                  const void *w, void *y, int y_ld, int64_t rows)
{
    struct call call;
    struct command command;

    memset(&call, 0, sizeof(call));
    memset(&command, 0, sizeof(command));
    call.product = product;
    call.x = x;
    call.w = w;
    call.y = y;
    call.rows = rows;
    call.x_ld = x_ld;
    call.y_ld = y_ld;
    command.run = run_call;
    queue_push(queue, &command, &call, sizeof(call));
}

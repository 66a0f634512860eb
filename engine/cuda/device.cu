/*
 * The card through the CUDA runtime, which is linked in as an archive and looks for the driver only
 * when it is first called: the same program runs on machines that have neither.
 */
#include "engine/cuda/device.h"

#include "engine/cuda/host_copy.h"

#include <cuda_runtime.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GRAPH_COMMANDS_MIN 16 /* shorter lists gain nothing */
#define SEND_BUFFERS 2
#define BUS_COPIES 16 /* that are timed */

/* A list that was run before. */
struct graph {
    char *bytes; /* a copy of it; NULL: an empty slot */
    size_t length;
    cudaGraphExec_t exec; /* NULL: seen once */
    bool refused;         /* it could not be captured */
    long used;            /* the run that used it last */
};

struct lane {
    cudaStream_t stream;
    bool behind; /* something was sent since its last run */
    struct graph graphs[DEVICE_GRAPHS_MAX];
};

struct device {
    int number;
    pthread_mutex_t lock; /* of what follows; nobody waits for the card while holding it */
    struct lane lanes[DEVICE_LANES];
    cudaStream_t copy;
    struct host_copier *copier; /* of whoever sends */
    cudaEvent_t sent;           /* the last of the copy stream */
    bool pools;                 /* stream-ordered allocation, from `pool` */
    cudaMemPool_t pool;
    char *landing[SEND_BUFFERS], *pinned[SEND_BUFFERS];
    cudaEvent_t free[SEND_BUFFERS]; /* the pinned buffer has been read */
    int next;
    long runs, launched, captured;
    char error[DEVICE_MESSAGE_MAX_BYTES];
};

/* Keeps the first failure. The lock is held. */
static bool good(struct device *d, cudaError_t rc, const char *what)
{
    if (rc == cudaSuccess)
        return true;
    if (d->error[0] == 0)
        snprintf(d->error, sizeof(d->error), "the CUDA device failed in %s: %s", what,
                 cudaGetErrorString(rc));
    return false;
}

/* The same of what waits for the card. */
static bool waited(struct device *d, cudaError_t rc, const char *what)
{
    bool fine;

    pthread_mutex_lock(&d->lock);
    fine = good(d, rc, what);
    pthread_mutex_unlock(&d->lock);
    return fine;
}

void device_use(const struct device *d)
{
    cudaSetDevice(d->number); /* what fails now fails again at the next call, which is looked at */
}

static bool describe(int number, struct device_info *info)
{
    struct cudaDeviceProp p;

    if (cudaGetDeviceProperties(&p, number) != cudaSuccess ||
        cudaMemGetInfo(&info->free_bytes, &info->memory_bytes) != cudaSuccess)
        return false;
    snprintf(info->name, sizeof(info->name), "%s", p.name);
    info->sm = p.major * 10 + p.minor;
    snprintf(info->isa, sizeof(info->isa), "sm_%d", info->sm);
    info->multiprocessors = p.multiProcessorCount;
    info->shared_max_bytes = p.sharedMemPerBlockOptin;
    return true;
}

__global__ void probe()
{
}

/* Whether the build has machine code for this card: all kernels are built for the same ones. */
static bool has_kernels()
{
    cudaFuncAttributes attributes;
    bool has = cudaFuncGetAttributes(&attributes, probe) == cudaSuccess;

    cudaGetLastError();
    return has;
}

/* Memory that was freed stays with the process, so that the next model finds it, until some is
 * missing. */
static void keep_pool(struct device *d)
{
    uint64_t all = UINT64_MAX;
    int supported = 0;

    d->pools =
        cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, d->number) ==
            cudaSuccess &&
        supported && cudaDeviceGetDefaultMemPool(&d->pool, d->number) == cudaSuccess &&
        cudaMemPoolSetAttribute(d->pool, cudaMemPoolAttrReleaseThreshold, &all) == cudaSuccess;
    cudaGetLastError(); /* or the next launch would be blamed */
}

/* Memory that was freed goes back to the card. Waits for the copy stream, which frees it. */
static void trim_pool(struct device *d)
{
    if (d->pools && cudaStreamSynchronize(d->copy) == cudaSuccess)
        cudaMemPoolTrimTo(d->pool, 0);
    cudaGetLastError();
}

static bool make_buffers(struct device *d)
{
    bool made = good(d, cudaStreamCreateWithFlags(&d->copy, cudaStreamNonBlocking), "a stream") &&
                good(d, cudaEventCreateWithFlags(&d->sent, cudaEventDisableTiming), "an event");

    for (int i = 0; i < DEVICE_LANES && made; i++)
        made = good(d, cudaStreamCreateWithFlags(&d->lanes[i].stream, cudaStreamNonBlocking),
                    "a stream");
    for (int i = 0; i < SEND_BUFFERS && made; i++)
        made = good(d, cudaMalloc((void **)&d->landing[i], DEVICE_SEND_MAX_BYTES), "cudaMalloc") &&
               good(d, cudaMallocHost((void **)&d->pinned[i], DEVICE_SEND_MAX_BYTES),
                    "cudaMallocHost") &&
               good(d, cudaEventCreateWithFlags(&d->free[i], cudaEventDisableTiming), "an event");
    return made;
}

/* Why there is none. */
static void explain(cudaError_t rc, char why[DEVICE_MESSAGE_MAX_BYTES])
{
    int driver = 0;

    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        snprintf(why, DEVICE_MESSAGE_MAX_BYTES,
                 "no CUDA device: this machine has no NVIDIA driver");
    else if (rc == cudaErrorInsufficientDriver)
        snprintf(why, DEVICE_MESSAGE_MAX_BYTES,
                 "no CUDA device: the NVIDIA driver serves CUDA %d.%d, this program needs %d.%d",
                 driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                 CUDART_VERSION % 1000 / 10);
    else
        snprintf(why, DEVICE_MESSAGE_MAX_BYTES, "no CUDA device: %s",
                 rc != cudaSuccess ? cudaGetErrorString(rc) : "the driver lists none");
}

int device_count(void)
{
    int count = 0;

    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

struct device *device_open(int number, struct device_info *info, char why[DEVICE_MESSAGE_MAX_BYTES])
{
    struct device *d;
    int count = 0;
    cudaError_t rc = cudaGetDeviceCount(&count);

    if (rc != cudaSuccess || count == 0) {
        explain(rc, why);
        return NULL;
    }
    if (number >= count) {
        snprintf(why, DEVICE_MESSAGE_MAX_BYTES,
                 "no CUDA device: number %d is asked for, and there are %d, counted from 0", number,
                 count);
        return NULL;
    }
    memset(info, 0, sizeof(*info));
    if ((rc = cudaSetDevice(number)) != cudaSuccess || !describe(number, info)) {
        snprintf(why, DEVICE_MESSAGE_MAX_BYTES, "CUDA device %d cannot be used: %s", number,
                 cudaGetErrorString(rc != cudaSuccess ? rc : cudaGetLastError()));
        return NULL;
    }
    if (!has_kernels()) {
        snprintf(why, DEVICE_MESSAGE_MAX_BYTES,
                 "%s is %s, for which this build has no kernels; it may be built "
                 "for sm_80, sm_86 and sm_90 (CMAKE_CUDA_ARCHITECTURES)",
                 info->name, info->isa);
        return NULL;
    }
    d = (struct device *)calloc(1, sizeof(*d));
    if (d != NULL) {
        d->number = number;
        d->copier = host_copier_create();
        pthread_mutex_init(&d->lock, NULL);
    }
    if (d == NULL || d->copier == NULL || !make_buffers(d)) {
        snprintf(why, DEVICE_MESSAGE_MAX_BYTES, "%s",
                 d != NULL && d->copier != NULL ? d->error : "no memory for a device");
        device_close(d);
        return NULL;
    }
    keep_pool(d);
    return d;
}

static void graph_drop(struct graph *g)
{
    if (g->exec != NULL)
        cudaGraphExecDestroy(g->exec);
    free(g->bytes);
    memset(g, 0, sizeof(*g));
}

void device_close(struct device *d)
{
    if (d == NULL)
        return;
    device_use(d);
    if (d->copy != NULL)
        cudaStreamSynchronize(d->copy); /* it reads the pinned buffers */
    for (int i = 0; i < DEVICE_LANES; i++) {
        for (int j = 0; j < DEVICE_GRAPHS_MAX; j++)
            graph_drop(&d->lanes[i].graphs[j]);
        if (d->lanes[i].stream != NULL)
            cudaStreamDestroy(d->lanes[i].stream);
    }
    trim_pool(d);
    for (int i = 0; i < SEND_BUFFERS; i++) {
        cudaFree(d->landing[i]);
        cudaFreeHost(d->pinned[i]);
        if (d->free[i] != NULL)
            cudaEventDestroy(d->free[i]);
    }
    if (d->sent != NULL)
        cudaEventDestroy(d->sent);
    if (d->copy != NULL)
        cudaStreamDestroy(d->copy);
    host_copier_free(d->copier);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

/* ---- memory ---- */

/* Every lane's next run waits for the copy stream's last event. The lock is held. */
static void note_sent(struct device *d)
{
    for (int i = 0; i < DEVICE_LANES; i++)
        d->lanes[i].behind = true;
}

static void *alloc(struct device *d, size_t bytes)
{
    void *memory = NULL;
    cudaError_t rc;

    pthread_mutex_lock(&d->lock);
    rc = d->pools ? cudaMallocAsync(&memory, bytes, d->copy) : cudaMalloc(&memory, bytes);
    /* The memory is there in the copy stream's order; the next run waits for that point. */
    if (rc == cudaSuccess && d->pools)
        rc = cudaEventRecord(d->sent, d->copy);
    note_sent(d);
    if (rc != cudaSuccess && rc != cudaErrorMemoryAllocation)
        good(d, rc, "an allocation");
    if (rc != cudaSuccess)
        cudaGetLastError(); /* a full card is no failure of it */
    pthread_mutex_unlock(&d->lock);
    return rc == cudaSuccess ? memory : NULL;
}

void *device_alloc(struct device *d, size_t bytes)
{
    void *memory;

    device_use(d);
    memory = alloc(d, bytes);
    if (memory != NULL || !d->pools)
        return memory;
    trim_pool(d); /* the pool may have enough in pieces, another process's library may need it */
    return alloc(d, bytes);
}

void device_free(struct device *d, void *memory)
{
    if (memory == NULL)
        return;
    device_use(d);
    waited(d, d->pools ? cudaFreeAsync(memory, d->copy) : cudaFree(memory), "freeing memory");
}

void *device_host_alloc(struct device *d, size_t bytes)
{
    void *memory = NULL;

    device_use(d);
    if (cudaMallocHost(&memory, bytes) == cudaSuccess)
        return memory;
    cudaGetLastError();
    return NULL;
}

void device_host_free(struct device *d, void *memory)
{
    if (memory == NULL)
        return;
    device_use(d);
    cudaFreeHost(memory);
}

/* ---- running ---- */

/* 0, -1 or DEVICE_FULL. The lock is held. */
static int launched(struct device *d, cudaError_t rc, const char *what)
{
    if (rc == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return DEVICE_FULL;
    }
    return good(d, rc, what) ? 0 : -1;
}

/* As launched(). */
static int give_all(struct device *d, const struct queue *queue, cudaStream_t stream)
{
    for (const struct command *c = queue_next(queue, NULL); c != NULL; c = queue_next(queue, c)) {
        int rc = c->run(c, stream);
        if (rc < 0 && d->error[0] == 0)
            snprintf(d->error, sizeof(d->error),
                     "cublasLt refused a product with status %d; ATELIER_CUBLAS=0 does without it",
                     -rc);
        if (rc < 0)
            return -1;
        if ((rc = launched(d, (cudaError_t)rc, "a launch")) != 0)
            return rc;
    }
    return 0;
}

void *device_landing(struct device *d)
{
    return d->landing[d->next];
}

/* As launched(). */
static int send(struct device *d, void *to, int i, size_t count, const struct queue *commands)
{
    int rc;

    if (!good(d, cudaMemcpyAsync(to, d->pinned[i], count, cudaMemcpyHostToDevice, d->copy),
              "a copy") ||
        !good(d, cudaEventRecord(d->free[i], d->copy), "an event"))
        return -1;
    rc = commands != NULL ? give_all(d, commands, d->copy) : 0;
    return good(d, cudaEventRecord(d->sent, d->copy), "an event") ? rc : -1;
}

int device_send(struct device *d, void *to, const void *bytes, size_t count,
                const struct queue *commands)
{
    int i = d->next, rc;

    device_use(d);
    if (!waited(d, cudaEventSynchronize(d->free[i]), "waiting for a copy"))
        return -1;
    host_copy(d->copier, d->pinned[i], bytes, count);
    d->next = (i + 1) % SEND_BUFFERS;
    pthread_mutex_lock(&d->lock);
    rc = d->error[0] == 0 ? send(d, to, i, count, commands) : -1;
    note_sent(d);
    pthread_mutex_unlock(&d->lock);
    if (rc == DEVICE_FULL)
        trim_pool(d);
    return rc;
}

static double now()
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double device_bus_rate(struct device *d)
{
    double begin = 0;

    device_use(d);
    for (int i = 0; i <= BUS_COPIES; i++) { /* the first one warms up */
        if (i == 1) {
            if (!waited(d, cudaStreamSynchronize(d->copy), "a copy"))
                return 0;
            begin = now();
        }
        if (cudaMemcpyAsync(d->landing[0], d->pinned[0], DEVICE_SEND_MAX_BYTES,
                            cudaMemcpyHostToDevice, d->copy) != cudaSuccess)
            return 0;
    }
    if (!waited(d, cudaStreamSynchronize(d->copy), "a copy"))
        return 0;
    return (double)BUS_COPIES * DEVICE_SEND_MAX_BYTES / (now() - begin);
}

/* The slot of an equal list, or an empty or the oldest one that becomes its slot. */
static struct graph *graph_find(struct lane *lane, const struct queue *queue)
{
    struct graph *oldest = &lane->graphs[0];

    for (int i = 0; i < DEVICE_GRAPHS_MAX; i++) {
        struct graph *g = &lane->graphs[i];
        if (g->bytes != NULL && g->length == queue->length &&
            memcmp(g->bytes, queue->bytes, g->length) == 0)
            return g;
        if (g->bytes == NULL || (oldest->bytes != NULL && g->used < oldest->used))
            oldest = g;
    }
    graph_drop(oldest);
    return oldest;
}

/* Keeps a copy of the list, so that its next run is known to be a repeat. */
static void graph_remember(struct graph *g, const struct queue *queue)
{
    g->bytes = (char *)malloc(queue->length);
    if (g->bytes == NULL)
        return;
    memcpy(g->bytes, queue->bytes, queue->length);
    g->length = queue->length;
}

static bool graph_capture(struct device *d, cudaStream_t stream, struct graph *g,
                          const struct queue *queue)
{
    cudaGraph_t graph = NULL;
    bool captured;

    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    captured = give_all(d, queue, stream) == 0;
    captured = cudaStreamEndCapture(stream, &graph) == cudaSuccess && captured &&
               cudaGraphInstantiate(&g->exec, graph, 0) == cudaSuccess;
    if (graph != NULL)
        cudaGraphDestroy(graph);
    if (captured) {
        d->captured++;
        return true;
    }
    /* The list itself may still run one by one; if the card is gone, that will say so. */
    g->exec = NULL;
    d->error[0] = 0;
    cudaGetLastError();
    return false;
}

/* As launched(). */
static int give(struct device *d, struct lane *lane, const struct queue *queue)
{
    struct graph *g;

    if (queue->count < GRAPH_COMMANDS_MIN)
        return give_all(d, queue, lane->stream);
    g = graph_find(lane, queue);
    g->used = ++d->runs;
    if (g->bytes == NULL) {
        graph_remember(g, queue);
        return give_all(d, queue, lane->stream);
    }
    if (g->exec == NULL && !g->refused)
        g->refused = !graph_capture(d, lane->stream, g, queue);
    if (g->exec == NULL)
        return give_all(d, queue, lane->stream);
    d->launched++;
    return launched(d, cudaGraphLaunch(g->exec, lane->stream), "a graph");
}

/* As launched(). */
static int start(struct device *d, struct lane *lane, const struct queue *queue)
{
    if (d->error[0] != 0)
        return -1;
    if (queue->failed) {
        snprintf(d->error, sizeof(d->error), "no memory for a list of commands");
        return -1;
    }
    if (lane->behind && !good(d, cudaStreamWaitEvent(lane->stream, d->sent, 0), "an event"))
        return -1;
    lane->behind = false;
    return give(d, lane, queue);
}

/* Ends what the lane has begun and gives back what it can. */
static int clear_lane(struct device *d, int lane)
{
    if (device_wait(d, lane) != 0)
        return -1;
    pthread_mutex_lock(&d->lock);
    for (int i = 0; i < DEVICE_GRAPHS_MAX; i++)
        graph_drop(&d->lanes[lane].graphs[i]);
    pthread_mutex_unlock(&d->lock);
    trim_pool(d);
    return DEVICE_FULL;
}

int device_start(struct device *d, int lane, const struct queue *queue)
{
    int rc;

    device_use(d);
    pthread_mutex_lock(&d->lock);
    rc = start(d, &d->lanes[lane], queue);
    pthread_mutex_unlock(&d->lock);
    return rc == DEVICE_FULL ? clear_lane(d, lane) : rc;
}

int device_wait(struct device *d, int lane)
{
    return waited(d, cudaStreamSynchronize(d->lanes[lane].stream), "a kernel") ? 0 : -1;
}

const char *device_error(const struct device *d)
{
    return d->error;
}

void device_graphs(const struct device *d, long *launched, long *captured)
{
    *launched = d->launched;
    *captured = d->captured;
}

/*
 * The CUDA runtime over the emulated card, as late as it may be: what is given to a stream is done
 * when somebody waits for it and not before, so that a missing event, or a pinned buffer that is
 * filled again too early, gives wrong numbers. Fresh memory is NaN; memory is malloc's, so that
 * AddressSanitizer watches it. A graph is a list of commands.
 *
 * ATELIER_EMULATED_SM is the kind of card (80), ATELIER_EMULATED_ORDER=reverse runs threads from
 * the last to the first, ATELIER_EMULATED_BLAS=1 has a cublasLt (blas_emulated.cpp),
 * ATELIER_EMULATED_MEMORY is the card's memory in MiB.
 */
#include "tests/cuda/cuda_runtime.h"

#include "tests/cuda/emulator.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

typedef std::function<void()> work;

struct emulated_graph {
    std::vector<work> nodes;
};

struct emulated_stream {
    std::deque<work> waiting;
    long given, done;
    emulated_graph *capture;
};

struct emulated_event {
    emulated_stream *stream;
    long at;
};

static size_t memory_max = (size_t)4 << 30, memory_used;
static std::map<void *, size_t> allocations;

/* One call at a time: a card has one emulator, whichever thread waits for it. */
static std::recursive_mutex card;
typedef std::lock_guard<std::recursive_mutex> hold;

/* ---- streams ---- */

static void run_until(emulated_stream *s, long at)
{
    while (s->done < at) {
        work w = s->waiting.front();
        s->waiting.pop_front();
        w();
        s->done++;
    }
}

static void give(emulated_stream *s, const work &w)
{
    if (s->capture != nullptr) {
        s->capture->nodes.push_back(w);
        return;
    }
    s->waiting.push_back(w);
    s->given++;
}

void emulated_launch(const struct command *command, void *stream,
                     void (*run)(const struct command *command))
{
    hold held(card);
    const char *bytes = (const char *)command;
    /* A launch keeps its arguments; whoever gave them may change them. */
    auto kept = std::make_shared<std::vector<uint64_t>>((command->bytes + 7) / 8);

    memcpy(kept->data(), bytes, command->bytes);
    give((emulated_stream *)stream, [kept, run] { run((const struct command *)kept->data()); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, int)
{
    *stream = new emulated_stream();
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    hold held(card);
    run_until(stream, stream->given);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    hold held(card);
    if (stream->capture != nullptr)
        return cudaErrorUnknown;
    run_until(stream, stream->given);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, int)
{
    *event = new emulated_event();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    hold held(card);
    event->stream = stream;
    event->at = stream->given;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    hold held(card);
    if (event->stream != nullptr)
        run_until(event->stream, event->at);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, int)
{
    hold held(card);
    emulated_stream *other = event->stream;
    long at = event->at;

    if (other != nullptr)
        give(stream, [other, at] { run_until(other, at); });
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int)
{
    hold held(card);
    stream->capture = new emulated_graph();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    hold held(card);
    *graph = stream->capture;
    stream->capture = nullptr;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, int)
{
    *exec = new emulated_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    hold held(card);
    for (const work &w : exec->nodes)
        give(stream, w);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    hold held(card);
    size_t size = (bytes + 255) & ~(size_t)255;

    if (memory_used + size > memory_max)
        return cudaErrorMemoryAllocation;
    *memory = aligned_alloc(256, size);
    if (*memory == nullptr)
        return cudaErrorMemoryAllocation;
    memset(*memory, 0xff, size);
    allocations[*memory] = size;
    memory_used += size;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    hold held(card);
    if (memory == nullptr)
        return cudaSuccess;
    memory_used -= allocations.at(memory);
    allocations.erase(memory);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    *memory = aligned_alloc(256, (bytes + 255) & ~(size_t)255);
    return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream)
{
    hold held(card);
    if (cudaMalloc(memory, bytes) == cudaSuccess)
        return cudaSuccess;
    cudaStreamSynchronize(stream); /* what it frees may be what is needed */
    return cudaMalloc(memory, bytes);
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
    hold held(card);
    give(stream, [memory] { cudaFree(memory); });
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t stream)
{
    hold held(card);
    give(stream, [to, from, bytes] { memcpy(to, from, bytes); });
    return cudaSuccess;
}

/* ---- the card ---- */

const char *cudaGetErrorString(cudaError_t rc)
{
    return rc == cudaErrorMemoryAllocation ? "out of memory" : "unknown error";
}

cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* ATELIER_EMULATED_SM=0: there is no card. */
static int kind_of_card()
{
    const char *sm = getenv("ATELIER_EMULATED_SM");

    return sm != nullptr ? atoi(sm) : 80;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = kind_of_card() > 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int)
{
    const char *order = getenv("ATELIER_EMULATED_ORDER");

    emulator_set_reverse(order != nullptr && strcmp(order, "reverse") == 0);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    *p = {};
    snprintf(p->name, sizeof(p->name), "an emulated card");
    p->major = kind_of_card() / 10;
    p->minor = kind_of_card() % 10;
    p->multiProcessorCount = 4;
    p->sharedMemPerBlockOptin = 99u << 10;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    const char *wish = getenv("ATELIER_EMULATED_MEMORY");

    if (wish != nullptr)
        memory_max = (size_t)atol(wish) << 20;
    *total = memory_max;
    *free = memory_max - memory_used;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, int, int)
{
    *value = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *, int)
{
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, int, void *)
{
    return cudaSuccess;
}

/*
 * The CUDA runtime over the emulated card, as late as it may be: what is given to a stream is done
 * when somebody waits for it and not before, so that a missing event, or a pinned buffer that is
 * filled again too early, gives wrong numbers. Fresh memory is NaN; memory is malloc's, so that
 * AddressSanitizer watches it. A graph is a list of commands.
 *
 * Each stream is of one card, and what is given to it while the thread is on another card fails.
 *
 * ATELIER_EMULATED_CARDS is how many there are (1), ATELIER_EMULATED_SM is their kind (80),
 * ATELIER_EMULATED_ORDER=reverse runs threads from the last to the first,
 * ATELIER_EMULATED_COPIES=early copies to shared memory when asked and not when waited for,
 * ATELIER_EMULATED_BLAS=1 has a cublasLt (blas_emulated.cpp), ATELIER_EMULATED_MEMORY is a card's
 * memory in MiB, ATELIER_EMULATED_LOST=N loses all cards at the N-th launch, and while
 * ATELIER_EMULATED_FULL is set a launch finds no memory.
 */
#include "tests/cuda/cuda_runtime.h"

#include "tests/cuda/emulator.h"
#include "tests/cuda/watch.h"

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
    int card;
    std::deque<work> waiting;
    long given, done;
    emulated_graph *capture;
};

struct emulated_event {
    emulated_stream *stream;
    long at;
};

#define CARDS_MAX 8

struct allocation {
    int card;
    size_t bytes;
};

static size_t memory_max = (size_t)4 << 30, memory_used[CARDS_MAX];
static std::map<void *, allocation> allocations;
static thread_local int current_card;
static thread_local int
    capturing; /* streams of this thread: nothing may wait or allocate meanwhile */
static bool lost;
static void (*watch)(void *user);
static void *watch_user;

/* One piece of work at a time: there is one emulator, whichever thread waits for a card. */
static std::recursive_mutex emulator;
typedef std::lock_guard<std::recursive_mutex> hold;

static bool is_lost()
{
    const char *wish = getenv("ATELIER_EMULATED_LOST");

    lost = lost || (wish != nullptr && emulator_launches() >= atol(wish));
    return lost;
}

static bool is_full()
{
    return getenv("ATELIER_EMULATED_FULL") != nullptr;
}

/* ---- streams ---- */

/* Does the next piece of work, if it is not done by then. */
static bool run_one(emulated_stream *s, long at)
{
    hold held(emulator);

    if (s->done >= at)
        return false;
    work w = s->waiting.front();
    s->waiting.pop_front();
    w();
    s->done++;
    return true;
}

static void run_until(emulated_stream *s, long at)
{
    while (run_one(s, at))
        continue;
}

void emulated_watch(void (*between)(void *user), void *user)
{
    hold held(emulator);
    watch = between;
    watch_user = user;
}

/* The same for a thread that waits: others get in between, and the watch is told. */
static cudaError_t wait_until(emulated_stream *s, long at)
{
    if (capturing > 0)
        return cudaErrorUnknown;
    while (run_one(s, at)) {
        void (*told)(void *user);
        {
            hold held(emulator);
            told = watch;
        }
        if (told != nullptr)
            told(watch_user);
    }
    return is_lost() ? cudaErrorUnknown : cudaSuccess;
}

static cudaError_t give(emulated_stream *s, const work &w)
{
    if (s->card != current_card || is_lost())
        return cudaErrorUnknown;
    if (s->capture != nullptr) {
        s->capture->nodes.push_back(w);
        return cudaSuccess;
    }
    s->waiting.push_back(w);
    s->given++;
    return cudaSuccess;
}

int emulated_launch(const struct command *command, void *stream,
                    void (*run)(const struct command *command))
{
    hold held(emulator);
    const char *bytes = (const char *)command;
    if (is_full())
        return cudaErrorMemoryAllocation;
    /* A launch keeps its arguments; whoever gave them may change them. */
    auto kept = std::make_shared<std::vector<uint64_t>>((command->bytes + 7) / 8);

    memcpy(kept->data(), bytes, command->bytes);
    return give((emulated_stream *)stream,
                [kept, run] { run((const struct command *)kept->data()); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, int)
{
    *stream = new emulated_stream();
    (*stream)->card = current_card;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    hold held(emulator);
    run_until(stream, stream->given);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    long given;
    {
        hold held(emulator);
        if (stream->capture != nullptr)
            return cudaErrorUnknown;
        given = stream->given;
    }
    return wait_until(stream, given);
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
    hold held(emulator);
    if (stream->card != current_card)
        return cudaErrorUnknown;
    event->stream = stream;
    event->at = stream->given;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    emulated_stream *stream;
    long at;
    {
        hold held(emulator);
        stream = event->stream;
        at = event->at;
    }
    return stream == nullptr ? cudaSuccess : wait_until(stream, at);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, int)
{
    hold held(emulator);
    emulated_stream *other = event->stream;
    long at = event->at;

    return other == nullptr ? cudaSuccess : give(stream, [other, at] { run_until(other, at); });
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int)
{
    hold held(emulator);
    stream->capture = new emulated_graph();
    capturing++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    hold held(emulator);
    *graph = stream->capture;
    stream->capture = nullptr;
    capturing--;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, int)
{
    *exec = new emulated_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    hold held(emulator);
    if (is_full())
        return cudaErrorMemoryAllocation;
    for (const work &w : exec->nodes)
        if (give(stream, w) != cudaSuccess)
            return cudaErrorUnknown;
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
    hold held(emulator);
    size_t size = (bytes + 255) & ~(size_t)255;

    if (is_lost() || capturing > 0)
        return cudaErrorUnknown;
    if (memory_used[current_card] + size > memory_max)
        return cudaErrorMemoryAllocation;
    *memory = aligned_alloc(256, size);
    if (*memory == nullptr)
        return cudaErrorMemoryAllocation;
    memset(*memory, 0xff, size);
    allocations[*memory] = {current_card, size};
    memory_used[current_card] += size;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    hold held(emulator);
    if (memory == nullptr)
        return cudaSuccess;
    memory_used[allocations.at(memory).card] -= allocations.at(memory).bytes;
    allocations.erase(memory);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    if (capturing > 0)
        return cudaErrorUnknown;
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
    hold held(emulator);
    if (stream->card != current_card)
        return cudaErrorUnknown;
    if (cudaMalloc(memory, bytes) == cudaSuccess)
        return cudaSuccess;
    run_until(stream, stream->given); /* what it frees may be what is needed */
    return cudaMalloc(memory, bytes);
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
    hold held(emulator);
    if (is_lost()) { /* its memory is gone with it, and this one's is to be seen to */
        cudaFree(memory);
        return cudaErrorUnknown;
    }
    return give(stream, [memory] { cudaFree(memory); });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t stream)
{
    hold held(emulator);
    return give(stream, [to, from, bytes] { memcpy(to, from, bytes); });
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

bool emulated_has_kernels()
{
    return kind_of_card() / 10 == 8 || kind_of_card() == 90;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    const char *cards = getenv("ATELIER_EMULATED_CARDS");

    *count = kind_of_card() == 0 ? 0 : cards != nullptr ? atoi(cards) : 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int number)
{
    const char *order = getenv("ATELIER_EMULATED_ORDER");
    const char *copies = getenv("ATELIER_EMULATED_COPIES");

    hold held(emulator);
    current_card = number;
    emulator_set_reverse(order != nullptr && strcmp(order, "reverse") == 0);
    emulator_set_early(copies != nullptr && strcmp(copies, "early") == 0);
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
    *free = memory_max - memory_used[current_card];
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

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t)
{
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, int, void *)
{
    return cudaSuccess;
}

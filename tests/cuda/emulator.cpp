#include "tests/cuda/emulator.h"

#include "engine/cuda/target.h"
#include "engine/tensor.h"

#include <cstdio>
#include <cstdlib>
#include <set>
#include <vector>

#define THREADS_MAX 1024
#define STACK_BYTES (64u << 10)
#define GRID_MAX 65535 /* of y and z; x has 31 bits */
#define GROUP_WARPS 4
#define GROUP_THREADS (32 * GROUP_WARPS)

emulated_index threadIdx, blockIdx, blockDim, gridDim;

enum class instruction {
    none,
    shuffle_xor,
    shuffle,
    load,
    load_transposed,
    multiply,
    group_multiply,
    group_begin,
    group_commit,
    group_wait
};

/* Of wgmma: the first thread's product, and what each of 128 has of sums and, perhaps, of a. */
struct group_product {
    emulated_product common;
    float (*sums[GROUP_THREADS])[4];
    const uint32_t *held[GROUP_THREADS];
};

struct copy {
    void *to;
    const void *from;
    bool valid;
};

struct emulated_fiber {
    void *stack_pointer;
    char *stack;
    emulated_index index;
    bool done;
    std::vector<std::vector<copy>> groups; /* the last one is open */
    bool hidden;                           /* wrote to shared memory what wgmma may not see yet */
    /* of the warp instruction under way */
    instruction what;
    float number;
    int lane;
    const void *row;
    uint32_t a[4], b[2], out[4];
    float c[4];
    bool bf16;
    /* of the warpgroup's */
    emulated_product product;
    int pending;
};

struct warp {
    int arrived;
    long generation;
};

struct warpgroup {
    warp meeting;
    bool begun;
    std::vector<std::vector<group_product>> groups; /* the last one is open */
};

static emulated_fiber fibers[THREADS_MAX];
static warp warps[THREADS_MAX / 32];
static warpgroup warpgroups[THREADS_MAX / 32 / GROUP_WARPS];
static bool has_grouped;                             /* the launch had products by warpgroups */
static std::set<void (*)(const void *)> are_grouped; /* kernels that had, and run unkindly since */
static int fiber_count, current, live, step_direction = 1;
static int at_barrier;
static long barrier_generation, progress, launches;
static int idle; /* switches without progress */
static void *scheduler_stack_pointer;
static char *shared;
static size_t shared_bytes;
static const void *kernel_args;
static void (*kernel_body)(const void *);
static bool reversed, early, runs_ahead;

/* Locals that outlive their functions are not looked for: that keeps frames apart from the stack,
 * one more for each switch of fibers, until a test takes minutes in place of seconds. Newer
 * runtimes do it unless told otherwise. */
extern "C" const char *__asan_default_options()
{
    return "detect_stack_use_after_return=0";
}

[[noreturn]] static void broken(const char *what)
{
    fprintf(stderr, "emulator: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y,
            blockIdx.z, threadIdx.x);
    abort();
}

/* Saves what a callee must keep, changes the stack, restores. x86-64, System V. */
extern "C" void emulator_switch(void **save, void *to);
asm(".text\n"
    ".globl emulator_switch\n"
    ".type emulator_switch,@function\n"
    "emulator_switch:\n"
    "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
    "    mov %rsp, (%rdi)\n"
    "    mov %rsi, %rsp\n"
    "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop %rbp\n"
    "    ret\n"
    ".size emulator_switch,.-emulator_switch\n"
    ".section .note.GNU-stack,\"\",@progbits\n"
    ".text\n");

/* The next of `count` fibers from `first` on, in a circle, or `from`. */
static int next_live(int from, int first, int count)
{
    int at = from;

    do
        at = first + (at - first + step_direction + count) % count;
    while (fibers[at].done && at != from);
    return at;
}

static void resume(int from, int to)
{
    current = to;
    threadIdx = fibers[to].index;
    if (from != to)
        emulator_switch(&fibers[from].stack_pointer, fibers[to].stack_pointer);
}

static void yield()
{
    int from = current;

    if (++idle > 4 * fiber_count)
        broken("not all threads reach a barrier or a warp's instruction");
    /* A warpgroup goes as far as it can before others do: who relies on these is found. */
    if (runs_ahead && idle <= GROUP_THREADS)
        resume(from, next_live(from, from / GROUP_THREADS * GROUP_THREADS, GROUP_THREADS));
    else
        resume(from, next_live(from, 0, fiber_count));
}

static void went_on()
{
    progress++;
    idle = 0;
}

static void fiber_main()
{
    void *unused;
    int from;

    kernel_body(kernel_args);
    went_on();
    from = current;
    fibers[from].done = true;
    live--;
    if (live == 0)
        emulator_switch(&unused, scheduler_stack_pointer);
    current = next_live(from, 0, fiber_count);
    threadIdx = fibers[current].index;
    emulator_switch(&fibers[from].stack_pointer, fibers[current].stack_pointer);
    broken("a finished thread ran on");
}

static void fiber_make(int i)
{
    emulated_fiber *f = &fibers[i];
    void **top;

    if (f->stack == NULL)
        f->stack = (char *)aligned_alloc(64, STACK_BYTES);
    top = (void **)(f->stack + STACK_BYTES - 64);
    *--top = NULL; /* where fiber_main would return to */
    *--top = (void *)fiber_main;
    for (int r = 0; r < 6; r++)
        *--top = NULL;
    f->stack_pointer = top;
    f->index = {(unsigned)i, 0, 0};
    f->done = false;
    f->groups.assign(1, {});
    f->hidden = false;
}

static void run_block()
{
    memset(shared, 0xff, shared_bytes);
    memset(warps, 0, sizeof(warps));
    for (warpgroup &g : warpgroups)
        g = {{0, 0}, false, {{}}};
    live = fiber_count;
    at_barrier = 0;
    idle = 0;
    for (int i = 0; i < fiber_count; i++)
        fiber_make(i);
    current = reversed ? fiber_count - 1 : 0;
    threadIdx = fibers[current].index;
    emulator_switch(&scheduler_stack_pointer, fibers[current].stack_pointer);
}

void emulator_run(const struct command *c, void (*body)(const void *args))
{
    if (c->threads == 0 || c->threads > THREADS_MAX || c->threads % 32 != 0)
        broken("a block is not whole warps");
    if (c->shared_bytes > SHARED_MAX_SM90)
        broken("more shared memory than any card has");
    if (c->grid[0] > INT32_MAX || c->grid[1] > GRID_MAX || c->grid[2] > GRID_MAX)
        broken("a grid that no card takes");
    has_grouped = false;
    runs_ahead = are_grouped.count(body) > 0;
    free(shared); /* of exactly this size, so that AddressSanitizer sees its end */
    shared_bytes = c->shared_bytes;
    shared = (char *)aligned_alloc(1024, (shared_bytes + 1023) & ~(size_t)1023);
    kernel_args = command_args(c);
    kernel_body = body;
    fiber_count = (int)c->threads;
    step_direction = reversed ? -1 : 1;
    blockDim = {c->threads, 1, 1};
    gridDim = {c->grid[0], c->grid[1], c->grid[2]};
    launches++;
    for (unsigned z = 0; z < c->grid[2]; z++)
        for (unsigned y = 0; y < c->grid[1]; y++)
            for (unsigned x = 0; x < c->grid[0]; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
    if (has_grouped)
        are_grouped.insert(body);
    if (shared_bytes > SHARED_MAX && !has_grouped)
        broken("more shared memory than every card has");
}

void emulator_set_reverse(bool reverse)
{
    reversed = reverse;
}

void emulator_set_early(bool copies)
{
    early = copies;
}

long emulator_launches()
{
    return launches;
}

char *shared_memory()
{
    return shared;
}

void barrier()
{
    long generation = barrier_generation;

    went_on();
    if (++at_barrier == fiber_count) {
        at_barrier = 0;
        barrier_generation++;
        return;
    }
    while (barrier_generation == generation)
        yield();
}

/* ---- instructions of a warp ---- */

static float narrow_to_float(uint16_t v, bool bf16)
{
    return bf16 ? bf16_to_f32(v) : f16_to_f32(v);
}

static float half_of(uint32_t pair, int i, bool bf16)
{
    return narrow_to_float((uint16_t)(pair >> (16 * i)), bf16);
}

/* PTX ISA, "Matrix Fragments for mma.m16n8k16": where a lane's elements of a belong, which wgmma's
 * are, too, 16 rows to a warp. */
static void place_fragment(float a[16][16], const uint32_t fragment[4], int lane, bool bf16)
{
    for (int i = 0; i < 8; i++) {
        int row = lane / 4 + i / 2 % 2 * 8, column = lane % 4 * 2 + i / 4 * 8 + i % 2;
        a[row][column] = half_of(fragment[i / 2], i % 2, bf16);
    }
}

static void multiply_all(emulated_fiber *lanes)
{
    float a[16][16], b[16][8];

    for (int lane = 0; lane < 32; lane++)
        place_fragment(a, lanes[lane].a, lane, lanes[lane].bf16);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 2; i++) {
            const emulated_fiber *f = &lanes[lane];
            int row = lane / 4, column = lane % 4 * 2 + i;
            b[column][row] = half_of(f->b[0], i, f->bf16);
            b[column + 8][row] = half_of(f->b[1], i, f->bf16);
        }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = lanes[lane].c[i];
            for (int k = 0; k < 16; k++)
                sum += a[row][k] * b[k][column];
            lanes[lane].c[i] = sum;
        }
}

static void load_all(emulated_fiber *lanes, bool transposed)
{
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++)
            for (int i = 0; i < 2; i++) {
                int row = transposed ? lane % 4 * 2 + i : lane / 4;
                int column = transposed ? lane / 4 : lane % 4 * 2 + i;
                const char *from = (const char *)lanes[m * 8 + row].row;
                uint16_t v;
                if ((uintptr_t)from % 16 != 0)
                    broken("a matrix row is not 16-byte aligned");
                memcpy(&v, from + 2 * column, 2);
                if (i == 0)
                    lanes[lane].out[m] = v;
                else
                    lanes[lane].out[m] |= (uint32_t)v << 16;
            }
}

static void shuffle_all(emulated_fiber *lanes, bool by_xor)
{
    float v[32];

    for (int i = 0; i < 32; i++)
        v[i] = lanes[i].number;
    for (int i = 0; i < 32; i++)
        lanes[i].number = v[(by_xor ? i ^ lanes[i].lane : lanes[i].lane) & 31];
}

/* ---- instructions of a warpgroup ---- */

uint32_t shared_address(const void *p)
{
    return (uint32_t)((const char *)p - shared);
}

void group_show()
{
    fibers[current].hidden = false;
}

/* An element of a matrix as its descriptor has it: PTX ISA, "Matrix Descriptor Format" and
 * "Canonical Layouts", swizzled by 128 bytes: rows of as many, which are k of one row of the matrix
 * or, across, 64 rows of it at one k. */
static float element_of(uint64_t matrix, int row, int k, bool across, bool bf16)
{
    uint64_t begin = (matrix & 0x3fff) << 4, eight = (matrix >> 32 & 0x3fff) << 4, at;
    int line = across ? k : row, within = across ? row : k;
    uint16_t v;

    if (matrix >> 62 != 1 || (matrix >> 49 & 7) != 0 || within >= 64)
        broken("a matrix that the emulator does not know");
    at = begin + (uint64_t)(line / 8) * eight + (uint64_t)(line % 8) * 128 + (uint64_t)within * 2;
    at ^= (at >> 7 & 7) << 4;
    if (at + 2 > shared_bytes)
        broken("a matrix ends behind the shared memory");
    memcpy(&v, shared + at, 2);
    return narrow_to_float(v, bf16);
}

static void multiply_group(const group_product &p)
{
    const emulated_product &c = p.common;
    float a[64][16], b[256][16];

    for (int t = 0; t < GROUP_THREADS && c.held != NULL; t++)
        place_fragment(a + t / 32 * 16, p.held[t], t % 32, c.bf16);
    for (int k = 0; k < 16; k++) {
        for (int row = 0; row < 64 && c.held == NULL; row++)
            a[row][k] = element_of(c.a, row, k, false, c.bf16);
        for (int row = 0; row < c.columns; row++)
            b[row][k] = element_of(c.b, row, k, c.across, c.bf16);
    }
    for (int t = 0; t < GROUP_THREADS; t++)
        for (int j = 0; j < c.columns / 8; j++)
            for (int i = 0; i < 4; i++) {
                int row = t / 32 * 16 + t % 32 / 4 + i / 2 * 8, column = j * 8 + t % 4 * 2 + i % 2;
                float sum = c.fresh ? 0 : p.sums[t][j][i];
                for (int k = 0; k < 16; k++)
                    sum += a[row][k] * b[column][k];
                p.sums[t][j][i] = sum;
            }
}

/* The card may run a product at once or when it is waited for; the two orders of threads do one
 * each. */
static void begin_product(warpgroup *group, const emulated_fiber *lanes)
{
    group_product p = {};

    if (!group->begun)
        broken("a warpgroup's product without group_begin");
    for (int i = 0; i < fiber_count; i++)
        if (!fibers[i].done && fibers[i].hidden)
            broken("a product of what group_show has not shown");
    p.common = lanes[0].product;
    for (int t = 0; t < GROUP_THREADS; t++) {
        p.sums[t] = lanes[t].product.sum;
        p.held[t] = lanes[t].product.held;
    }
    if (reversed)
        multiply_group(p);
    else
        group->groups.back().push_back(p);
    has_grouped = true;
}

static void execute_group(emulated_fiber *lanes)
{
    warpgroup *group = &warpgroups[current / 32 / GROUP_WARPS];

    for (int i = 1; i < GROUP_THREADS; i++)
        if (lanes[i].what != lanes[0].what || lanes[i].product.a != lanes[0].product.a ||
            lanes[i].product.b != lanes[0].product.b)
            broken("threads of a warpgroup are at different instructions");
    if (lanes[0].what == instruction::group_begin)
        group->begun = true;
    else if (lanes[0].what == instruction::group_multiply)
        begin_product(group, lanes);
    else if (lanes[0].what == instruction::group_commit) {
        group->groups.push_back({});
        group->begun = false;
    } else
        while ((int)group->groups.size() - 1 > lanes[0].pending) {
            for (const group_product &p : group->groups.front())
                multiply_group(p);
            group->groups.erase(group->groups.begin());
        }
}

/* ---- meeting ---- */

static void execute(emulated_fiber *lanes)
{
    for (int i = 1; i < 32; i++)
        if (lanes[i].what != lanes[0].what)
            broken("threads of a warp are at different instructions");
    switch (lanes[0].what) {
    case instruction::shuffle_xor:
    case instruction::shuffle:
        shuffle_all(lanes, lanes[0].what == instruction::shuffle_xor);
        break;
    case instruction::load:
    case instruction::load_transposed:
        load_all(lanes, lanes[0].what == instruction::load_transposed);
        break;
    case instruction::multiply:
        multiply_all(lanes);
        break;
    case instruction::group_multiply:
    case instruction::group_begin:
    case instruction::group_commit:
    case instruction::group_wait:
        execute_group(lanes);
        break;
    case instruction::none:
        break;
    }
}

/* The last of a warp, or of a warpgroup, to arrive does the work for all. */
static emulated_fiber *arrive(instruction what)
{
    emulated_fiber *f = &fibers[current];
    bool grouped = what >= instruction::group_multiply;
    int threads = grouped ? GROUP_THREADS : 32, first = current / threads * threads;
    warp *w = grouped ? &warpgroups[current / threads].meeting : &warps[current / threads];
    long generation = w->generation;

    if (first + threads > fiber_count)
        broken("a block is not whole warpgroups");
    f->what = what;
    went_on();
    if (++w->arrived == threads) {
        w->arrived = 0;
        w->generation++;
        execute(&fibers[first]);
        return f;
    }
    while (w->generation == generation)
        yield();
    return f;
}

float shuffle_xor(float v, int mask)
{
    fibers[current].number = v;
    fibers[current].lane = mask;
    return arrive(instruction::shuffle_xor)->number;
}

float shuffle(float v, int lane)
{
    fibers[current].number = v;
    fibers[current].lane = lane;
    return arrive(instruction::shuffle)->number;
}

void load_matrices(uint32_t r[4], const void *row)
{
    fibers[current].row = row;
    memcpy(r, arrive(instruction::load)->out, 16);
}

void load_matrices_transposed(uint32_t r[4], const void *row)
{
    fibers[current].row = row;
    memcpy(r, arrive(instruction::load_transposed)->out, 16);
}

static void multiply(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, bool bf16)
{
    emulated_fiber *f = &fibers[current];

    memcpy(f->c, c, 16);
    memcpy(f->a, a, 16);
    f->b[0] = b0;
    f->b[1] = b1;
    f->bf16 = bf16;
    memcpy(c, arrive(instruction::multiply)->c, 16);
}

void multiply_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    multiply(c, a, b0, b1, false);
}

void multiply_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    multiply(c, a, b0, b1, true);
}

void emulated_group_multiply(const emulated_product &product)
{
    fibers[current].product = product;
    arrive(instruction::group_multiply);
}

void group_begin()
{
    arrive(instruction::group_begin);
}

void group_commit()
{
    arrive(instruction::group_commit);
}

void emulated_group_wait(int pending)
{
    fibers[current].pending = pending;
    arrive(instruction::group_wait);
}

/* ---- copies that happen when they must ---- */

static void do_copy(const copy &c)
{
    if (c.valid)
        memcpy(c.to, c.from, 16);
    else
        memset(c.to, 0, 16);
}

void copy_async(void *to, const void *from, bool valid)
{
    if (((uintptr_t)to | (uintptr_t)from) % 16 != 0)
        broken("a copy to shared memory is not 16-byte aligned");
    fibers[current].groups.back().push_back({to, from, valid});
    if (early)
        do_copy({to, from, valid});
}

void copy_commit()
{
    fibers[current].groups.push_back({});
}

void emulated_copy_wait(int pending)
{
    auto &groups = fibers[current].groups;

    while ((int)groups.size() - 1 > pending) {
        fibers[current].hidden = fibers[current].hidden || !groups.front().empty();
        for (const copy &c : groups.front())
            if (!early)
                do_copy(c);
        groups.erase(groups.begin());
    }
}

/* ---- conversions ---- */

uint32_t pack_f16(float low, float high)
{
    return f16_from_f32(low) | (uint32_t)f16_from_f32(high) << 16;
}

uint32_t pack_bf16(float low, float high)
{
    return bf16_from_f32(low) | (uint32_t)bf16_from_f32(high) << 16;
}

float widen_f16(uint16_t v)
{
    return f16_to_f32(v);
}

float widen_bf16(uint16_t v)
{
    return bf16_to_f32(v);
}

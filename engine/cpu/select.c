/* Which of the compiled kernels this processor can run. */
#include "engine/cpu/kernels.h"

#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const struct cpu_kernels CPU_KERNELS_generic, CPU_KERNELS_amx_bf16;
#if defined(__x86_64__)
extern const struct cpu_kernels CPU_KERNELS_avx2, CPU_KERNELS_avx512, CPU_KERNELS_avx512_bf16;

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512_bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

static bool always(void)
{
    return true;
}

#if defined(SELECT_AMX) && !defined(SELECT_AMX_EMULATED)
/* The processor has tiles and the kernel lets this process use them: it keeps room for their 8 KiB
 * in a thread's state only where that was asked for (Linux 5.16; Documentation/arch/x86/xstate). */
static bool has_amx_bf16(void)
{
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;

    return has_avx512_bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) != 0 &&
           (d & AMX_TILE) != 0 && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

static const struct {
    const struct cpu_kernels *kernels;
    bool (*supported)(void);
} BEST_FIRST[] = {
#if defined(SELECT_AMX) && !defined(SELECT_AMX_EMULATED)
    {&CPU_KERNELS_amx_bf16, has_amx_bf16},
#endif
#if defined(__x86_64__)
    {&CPU_KERNELS_avx512_bf16, has_avx512_bf16},
    {&CPU_KERNELS_avx512, has_avx512},
    {&CPU_KERNELS_avx2, has_avx2},
#endif
    {&CPU_KERNELS_generic, always},
#if defined(SELECT_AMX_EMULATED)
    {&CPU_KERNELS_amx_bf16, always}, /* never "auto": in C */
#endif
};

const struct cpu_kernels *cpu_kernels_find(const char *isa)
{
    for (size_t i = 0; i < sizeof(BEST_FIRST) / sizeof(BEST_FIRST[0]); i++)
        if ((strcmp(isa, "auto") == 0 || strcmp(isa, BEST_FIRST[i].kernels->isa) == 0) &&
            BEST_FIRST[i].supported())
            return BEST_FIRST[i].kernels;
    return NULL;
}

const char *cpu_brand(void)
{
    static char brand[64];
    char line[256];
    FILE *file = brand[0] ? NULL : fopen("/proc/cpuinfo", "r");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':') != NULL) {
            snprintf(brand, sizeof(brand), "%.*s", (int)strcspn(strchr(line, ':') + 2, "\n"),
                     strchr(line, ':') + 2);
            break;
        }
    if (file != NULL)
        fclose(file);
    return brand[0] ? brand : "unknown processor";
}

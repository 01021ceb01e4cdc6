/* SPDX-License-Identifier: Apache-2.0
 * Which instruction sets there are, which this machine runs, which one to use. */
#include <stdio.h>
#include <stdlib.h>

#include "isa/target.h"
#include "kernels/kernels.h"

#if defined(RWKVC_X86_64)
#include <cpuid.h>

static bool has_f16c(void) { /* a name that clang's __builtin_cpu_supports lacks */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
/* The builtin asks the system too whether it keeps the wide registers (XGETBV). */
static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
static bool has_avx512vnni(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#if defined(RWKVC_AVXVNNI)
static bool has_avxvnni(void) {
#if defined(RWKVC_AVXVNNI_AS_EVEX) /* isa_avxvnni.c */
    return has_avx512vnni();
#else
    unsigned a, b, c, d;
    if (!has_avx2() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
#endif
}
#endif
#endif

#if defined(RWKVC_AARCH64)
#if defined(__linux__)
#include <sys/auxv.h>
/* <asm/hwcap.h> of an older system lacks them. */
static bool has_dotprod(void) { return getauxval(AT_HWCAP) & 1ul << 20; /* HWCAP_ASIMDDP */ }
static bool has_i8mm(void) { return getauxval(AT_HWCAP2) & 1ul << 13; /* HWCAP2_I8MM */ }
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static bool has_feature(const char *name) {
    int32_t value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}
static bool has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
static bool has_i8mm(void) { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
#include <windows.h>
static bool has_dotprod(void) { return IsProcessorFeaturePresent(43); /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */ }
#if defined(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE) /* newer SDKs */
static bool has_i8mm(void) { return IsProcessorFeaturePresent(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE); }
#else
static bool has_i8mm(void) { return false; }
#endif
#else
static bool has_dotprod(void) { return false; }
static bool has_i8mm(void) { return false; }
#endif
#endif

static bool always(void) { return true; }

static const struct {
    const rwkvc_kernels *kernels;
    bool (*usable)(void);
    const char *needs;
} isas[] = {
#if defined(RWKVC_X86_64)
    {&rwkvc_kernels_avx512vnni, has_avx512vnni, "AVX-512 F, BW, DQ, VL and VNNI"},
#if defined(RWKVC_AVXVNNI)
    {&rwkvc_kernels_avxvnni, has_avxvnni, "AVX-VNNI, AVX2, FMA and F16C"},
#endif
    {&rwkvc_kernels_avx2, has_avx2, "AVX2, FMA and F16C"},
#endif
#if defined(RWKVC_AARCH64)
    {&rwkvc_kernels_neon_i8mm, has_i8mm, "the int8 matrix extension (I8MM)"},
    {&rwkvc_kernels_neon_dotprod, has_dotprod, "dot products (DotProd)"},
    {&rwkvc_kernels_neon, always, "nothing"},
#endif
    {&rwkvc_kernels_scalar, always, "nothing"},
};
enum { N_ISAS = sizeof isas / sizeof *isas };

static int find(const char *name) {
    for (int i = 0; i < N_ISAS; i++)
        if (name && strcmp(isas[i].kernels->name, name) == 0) return i;
    return -1;
}

const char *rwkvc_isa_name(uint32_t i) { return i < N_ISAS ? isas[i].kernels->name : NULL; }

int32_t rwkvc_isa_usable(const char *name) {
    int i = find(name);
    return i >= 0 && isas[i].usable();
}

const char *rwkvc_isa_needs(const char *name) {
    int i = find(name);
    return i >= 0 ? isas[i].needs : "";
}

const rwkvc_kernels *rwkvc_kernels_get(const char *isa) {
    int i = find(isa);
    if (i >= 0 && isas[i].usable()) return isas[i].kernels;
    if (i >= 0)
        rwkvc_fail(RWKVC_E_UNSUPPORTED, "this CPU cannot run the instruction set '%s': it needs %s", isa,
                   isas[i].needs);
    else
        rwkvc_fail(RWKVC_E_UNSUPPORTED, "'%s' is no instruction set of this engine", isa);
    return NULL;
}

rwkvc_status rwkvc_isa_default(const char **name) {
    const char *asked = getenv("RWKV_CPU_ISA");
    *name = NULL;
    if (asked && *asked) {
        const rwkvc_kernels *kernels = rwkvc_kernels_get(asked);
        if (!kernels) {
            char reason[256];
            snprintf(reason, sizeof reason, "%s", rwkvc_last_error());
            return rwkvc_fail(RWKVC_E_UNSUPPORTED, "RWKV_CPU_ISA: %s", reason);
        }
        *name = kernels->name;
        return RWKVC_OK;
    }
    for (int i = 0; i < N_ISAS && !*name; i++)
        if (isas[i].usable()) *name = isas[i].kernels->name;
    return RWKVC_OK;
}

/* SPDX-License-Identifier: Apache-2.0
 * Which instruction sets there are, which this machine runs, which one to use. */
#include <stdio.h>
#include <stdlib.h>

#include "isa/processor.h"
#include "isa/target.h"
#include "kernels/kernels.h"
#include "platform/platform.h"

#if defined(RWKVC_X86_64)
#include <cpuid.h>

enum { F1C_FMA = 1 << 12, F1C_OSXSAVE = 1 << 27, F1C_AVX = 1 << 28, F1C_F16C = 1 << 29 };
enum { F7B_AVX2 = 1 << 5, F7B_AVX512_F_DQ_BW_VL = (int32_t)(1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) };
enum { F7C_AVX512VNNI = 1 << 11, F71A_AVXVNNI = 1 << 4 };
enum { XCR0_YMM = 0x6, XCR0_ZMM = 0xe6 };

static bool all(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

/* Does the system keep these registers when it switches threads? macOS begins with those of AVX-512 at their first use,
 * and always did. */
static bool system_keeps(unsigned wanted) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !all(c, F1C_OSXSAVE)) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
#if defined(__APPLE__)
    return all(low, wanted & XCR0_YMM);
#else
    return all(low, wanted);
#endif
}

static bool has_avx2(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && all(c, F1C_FMA | F1C_AVX | F1C_F16C) &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && all(b, F7B_AVX2) && system_keeps(XCR0_YMM);
}
static bool has_avx512vnni(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && all(b, (unsigned)F7B_AVX512_F_DQ_BW_VL) &&
           all(c, F7C_AVX512VNNI) && system_keeps(XCR0_ZMM);
}
#if defined(RWKVC_AVXVNNI)
static bool has_avxvnni(void) {
#if defined(RWKVC_AVXVNNI_AS_EVEX) /* isa_avxvnni.c */
    return has_avx512vnni();
#else
    unsigned a, b, c, d;
    if (!has_avx2() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && all(a, F71A_AVXVNNI);
#endif
}
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
    {&rwkvc_kernels_neon_i8mm, rwkvc_arm_i8mm, "the int8 matrix extension (I8MM)"},
    {&rwkvc_kernels_neon_dotprod, rwkvc_arm_dotprod, "dot products (DotProd)"},
    {&rwkvc_kernels_neon, always, "nothing"},
#endif
    {&rwkvc_kernels_scalar, always, "nothing"},
};
enum { N_ISAS = sizeof isas / sizeof *isas };

static bool usable(int i) {
    static atomic_int known[N_ISAS];
    return rwkvc_asked_once(&known[i], isas[i].usable);
}

static int find(const char *name) {
    for (int i = 0; i < N_ISAS; i++)
        if (name && strcmp(isas[i].kernels->name, name) == 0) return i;
    return -1;
}

const char *rwkvc_isa_name(uint32_t i) { return i < N_ISAS ? isas[i].kernels->name : NULL; }

int32_t rwkvc_isa_usable(const char *name) {
    int i = find(name);
    return i >= 0 && usable(i);
}

const char *rwkvc_isa_needs(const char *name) {
    int i = find(name);
    return i >= 0 ? isas[i].needs : "";
}

const rwkvc_kernels *rwkvc_kernels_get(const char *isa) {
    int i = find(isa);
    if (i >= 0 && usable(i)) return isas[i].kernels;
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
        if (usable(i)) *name = isas[i].kernels->name;
    return RWKVC_OK;
}

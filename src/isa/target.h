/* SPDX-License-Identifier: Apache-2.0
 * How one kernel source becomes one set of functions per instruction set: a unit isa_X.c opens a target region,
 * includes its vec_X.h and kernels/all.inc.h, and exports one table. Never branch on __AVX2__ and the like: gcc
 * defines them inside such a region, clang does not. */
#ifndef RWKVC_TARGET_H
#define RWKVC_TARGET_H

#define RWKVC_PASTE_(name, isa) name##_##isa
#define RWKVC_PASTE(name, isa) RWKVC_PASTE_(name, isa)
#define KERNEL(name) RWKVC_PASTE(name, ISA)
#define RWKVC_TEXT_(x) #x
#define RWKVC_TEXT(x) RWKVC_TEXT_(x)

/* Which units have something in them, by processor and by what the compiler knows. */
#if defined(__x86_64__) || defined(_M_X64)
#define RWKVC_X86_64 1
#endif
#if defined(__aarch64__) || defined(_M_ARM64)
#define RWKVC_AARCH64 1
#endif
#if defined(RWKVC_X86_64) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define RWKVC_AVXVNNI 1
#endif

#define RWKVC_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define TARGET_BEGIN(features)                                                                                         \
    RWKVC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END RWKVC_PRAGMA(clang attribute pop)
#define TARGET_DOTPROD "dotprod"
#define TARGET_I8MM "i8mm"
#elif defined(__GNUC__)
#define TARGET_BEGIN(features) RWKVC_PRAGMA(GCC push_options) RWKVC_PRAGMA(GCC target(features))
#define TARGET_END RWKVC_PRAGMA(GCC pop_options)
/* Its intrinsics are inlined only into functions of at least the architecture that they name. */
#define TARGET_DOTPROD "arch=armv8.2-a+dotprod"
#define TARGET_I8MM "arch=armv8.2-a+i8mm"
#else
#define TARGET_BEGIN(features)
#define TARGET_END
#endif

#if defined(__GNUC__)
/* What is called often enough to be fast and from enough places to be there once. */
#define NOINLINE __attribute__((noinline))
#define VEC static inline __attribute__((always_inline, unused))
/* A unit without vector registers to fill defines RWKVC_NO_UNROLL: unrolled, it would only be large. There LONG_VEC are
 * functions that are called, and what stands between RARE_BEGIN and RARE_END runs once a file and is compiled for size. */
#if defined(RWKVC_NO_UNROLL)
#define UNROLL
#define LONG_VEC static NOINLINE __attribute__((unused))
#else
#define UNROLL RWKVC_PRAGMA(GCC unroll 16)
#define LONG_VEC VEC
#endif
#if defined(RWKVC_NO_UNROLL) && defined(__clang__)
#define RARE_BEGIN RWKVC_PRAGMA(clang attribute push(__attribute__((minsize)), apply_to = function))
#define RARE_END RWKVC_PRAGMA(clang attribute pop)
#elif defined(RWKVC_NO_UNROLL)
#define RARE_BEGIN RWKVC_PRAGMA(GCC push_options) RWKVC_PRAGMA(GCC optimize("Os"))
#define RARE_END RWKVC_PRAGMA(GCC pop_options)
#else
#define RARE_BEGIN
#define RARE_END
#endif
/* Into the second level: the first can wait for few lines at a time. */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)
/* To be written soon. */
#define PREFETCH_OUTPUT(address) __builtin_prefetch(address, 1, 3)
/* The first lines of a page that a sequential read comes to soon: the processors' own prefetchers stop at the end of a
 * page, and further lines only take their place. Some pages ahead, because finding a page may take longer than reading one. */
#define PREFETCH_PAGE(address)                                                                                         \
    do {                                                                                                               \
        const char *page_ = (const char *)(((uintptr_t)(address) + 3 * 4096 + 2048) & ~(uintptr_t)4095);               \
        PREFETCH(page_);                                                                                               \
        PREFETCH(page_ + 64);                                                                                          \
        PREFETCH(page_ + 128);                                                                                         \
    } while (0)
#else
#define VEC static inline
#define NOINLINE
#define LONG_VEC VEC
#define UNROLL
#define RARE_BEGIN
#define RARE_END
#define PREFETCH_PAGE(address) ((void)(address))
#define PREFETCH(address) ((void)(address))
#define PREFETCH_OUTPUT(address) ((void)(address))
#endif

#endif

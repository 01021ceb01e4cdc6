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

#define RWKVC_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define TARGET_BEGIN(features)                                                                                         \
    RWKVC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END RWKVC_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define TARGET_BEGIN(features) RWKVC_PRAGMA(GCC push_options) RWKVC_PRAGMA(GCC target(features))
#define TARGET_END RWKVC_PRAGMA(GCC pop_options)
#else
#define TARGET_BEGIN(features)
#define TARGET_END
#endif

#if defined(__GNUC__)
#define VEC static inline __attribute__((always_inline, unused))
/* A unit without vector registers to fill defines RWKVC_NO_UNROLL: unrolled, it would only be large. */
#if defined(RWKVC_NO_UNROLL)
#define UNROLL
#else
#define UNROLL RWKVC_PRAGMA(GCC unroll 16)
#endif
#define PREFETCH(address) __builtin_prefetch(address, 0, 3)
#else
#define VEC static inline
#define UNROLL
#define PREFETCH(address) ((void)(address))
#endif

#endif

/* SPDX-License-Identifier: Apache-2.0
 * Functions, not inlined: no compiler moves a computation past a call that may change how it rounds. */
#include "isa/processor.h"

#include "isa/target.h"

#if defined(RWKVC_X86_64)
#include <immintrin.h>
#endif

void rwkvc_pause(void) {
#if defined(RWKVC_X86_64)
    _mm_pause();
#elif defined(RWKVC_AARCH64)
    __asm__ volatile("yield");
#endif
}

bool rwkvc_asked_once(atomic_int *known, bool (*ask)(void)) {
    int answer = atomic_load_explicit(known, memory_order_relaxed);
    if (!answer) {
        answer = ask() ? 1 : -1;
        atomic_store_explicit(known, answer, memory_order_relaxed);
    }
    return answer > 0;
}

uint64_t rwkvc_float_environment(void) {
#if defined(RWKVC_X86_64)
    uint32_t before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
#elif defined(RWKVC_AARCH64)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return before;
#else
    return 0;
#endif
}

void rwkvc_float_restore(uint64_t environment) {
#if defined(RWKVC_X86_64)
    _mm_setcsr((uint32_t)environment);
#elif defined(RWKVC_AARCH64)
    __asm__ volatile("msr fpcr, %0" : : "r"(environment));
#else
    (void)environment;
#endif
}

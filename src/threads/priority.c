/* SPDX-License-Identifier: Apache-2.0
 * Threads that let others go first. That is for good: raising a thread's priority again takes a privilege. */
#include "threads/priority.h"

#include "platform/platform.h"

static _Thread_local bool lowered;

int32_t rwkvc_lower_priority(void) {
    if (!lowered) lowered = rwkvc_thread_lower();
    return lowered;
}

bool rwkvc_priority_is_lowered(void) { return lowered; }

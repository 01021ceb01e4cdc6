/* SPDX-License-Identifier: Apache-2.0
 * What macOS has of its own. */
#if defined(__APPLE__)
#include "platform/platform.h"

#include <pthread/qos.h>
#include <sys/sysctl.h>

static int32_t number(const char *name) {
    int32_t value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 ? value : 0;
}

uint32_t rwkvc_system_cores(void) {
    int32_t cores = number("hw.physicalcpu");
    return cores > 0 ? (uint32_t)cores : 0;
}

uint32_t rwkvc_system_cpus(void) {
    int32_t cpus = number("hw.logicalcpu");
    return cpus > 0 ? (uint32_t)cpus : 0;
}

bool rwkvc_arm_dotprod(void) { return number("hw.optional.arm.FEAT_DotProd") != 0; }
bool rwkvc_arm_i8mm(void) { return number("hw.optional.arm.FEAT_I8MM") != 0; }

bool rwkvc_thread_lower(void) { return pthread_set_qos_class_self_np(QOS_CLASS_UTILITY, 0) == 0; }

/* Large pages of files and heaps are the kernel's own affair here. */
void rwkvc_wish_huge_pages(void *memory, size_t size_bytes) { (void)memory, (void)size_bytes; }

int rwkvc_populate(const void *bytes, uint64_t size_bytes, char *reason, size_t reason_bytes) {
    (void)bytes, (void)size_bytes, (void)reason, (void)reason_bytes;
    return 0;
}
#else
typedef int rwkvc_no_macos; /* a unit of C must not be empty */
#endif

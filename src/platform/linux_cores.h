/* SPDX-License-Identifier: Apache-2.0
 * Counting cores as Linux lists them. */
#ifndef RWKVC_LINUX_CORES_H
#define RWKVC_LINUX_CORES_H

#include "internal.h"

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility push(hidden)
#endif

/* Physical cores among the CPUs allowed[0..n_cpus-1], no more than the cgroup quota, at least 1, as Linux tells under
 * `root` ("", or where a test keeps a tree of its own) in sys/devices/system/cpu, proc/self/cgroup and sys/fs/cgroup. */
uint32_t rwkvc_count_cores(const char *root, const uint8_t *allowed, uint32_t n_cpus);
/* The same of all their hardware threads. */
uint32_t rwkvc_count_cpus(const char *root, const uint8_t *allowed, uint32_t n_cpus);

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility pop
#endif

#endif

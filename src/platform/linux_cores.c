/* SPDX-License-Identifier: Apache-2.0
 * The physical cores that a process may use, from what Linux writes in its files. Plain C: it is tested everywhere.
 *
 * The hardware threads of one core share its arithmetic units and its path to memory, so a second one gains nothing
 * here. Fast and slow cores of a hybrid CPU all count: work is taken item by item, so a slow core takes fewer. */
#include "platform/linux_cores.h"

#include <stdio.h>

enum { PATH_BYTES = 1024 };

/* ----------------------------------------------------------------------- cores (Linux's sysfs) */

/* The first CPU of a list as sysfs writes it, "0-1,8-9", that is in `allowed`; n_cpus if none is or there is no list. */
static uint32_t first_allowed(const char *path, const uint8_t *allowed, uint32_t n_cpus) {
    FILE *file = fopen(path, "r");
    uint32_t found = n_cpus;
    unsigned first, last;
    while (file && found == n_cpus && fscanf(file, "%u", &first) == 1) {
        last = first;
        int c = fgetc(file);
        if (c == '-') {
            if (fscanf(file, "%u", &last) != 1) break;
            c = fgetc(file);
        }
        for (uint32_t cpu = first; cpu <= last && cpu < n_cpus && found == n_cpus; cpu++)
            if (allowed[cpu]) found = cpu;
        if (c != ',') break;
    }
    if (file) fclose(file);
    return found;
}

/* CPUs of `allowed` that are the first such one of their core. */
static uint32_t physical_cores(const char *root, const uint8_t *allowed, uint32_t n_cpus) {
    /* The second is the first's name before Linux 5.3. Core ids are no substitute: they repeat from cluster to cluster. */
    static const char *const lists[] = {"core_cpus_list", "thread_siblings_list"};
    uint32_t cores = 0;
    for (uint32_t cpu = 0; cpu < n_cpus; cpu++) {
        if (!allowed[cpu]) continue;
        uint32_t first = n_cpus;
        for (int i = 0; i < 2 && first == n_cpus; i++) {
            char path[PATH_BYTES];
            snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%u/topology/%s", root, cpu, lists[i]);
            first = first_allowed(path, allowed, n_cpus);
        }
        cores += first == cpu || first == n_cpus; /* nothing known about it: a core of its own */
    }
    return cores;
}

/* ---------------------------------------------------------------------------- quotas (cgroups) */

/* Whole CPUs that "quota period" allows, at least one; 0: no limit. More threads than that would be stopped together
 * for the rest of each period. */
static uint32_t whole_cpus(long quota, long period) {
    if (quota <= 0 || period <= 0) return 0;
    return quota < period ? 1 : (uint32_t)rwkvc_min((uint64_t)(quota / period), UINT32_MAX);
}

static uint32_t quota_v2(const char *group) { /* cpu.max: "150000 100000" or "max 100000" */
    char path[PATH_BYTES + 32];
    long quota = 0, period = 0;
    snprintf(path, sizeof path, "%s/cpu.max", group);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%ld %ld", &quota, &period) != 2) quota = 0;
    fclose(file);
    return whole_cpus(quota, period);
}

static long read_number(const char *group, const char *name) {
    char path[PATH_BYTES + 32];
    long value = 0;
    snprintf(path, sizeof path, "%s/%s", group, name);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%ld", &value) != 1) value = 0;
    fclose(file);
    return value;
}

static uint32_t quota_v1(const char *group) {
    return whole_cpus(read_number(group, "cpu.cfs_quota_us"), read_number(group, "cpu.cfs_period_us"));
}

static uint32_t tighter(uint32_t a, uint32_t b) { return a && (b == 0 || a < b) ? a : b; }

/* The tightest quota of the group `mount`/`group` and of those above it, `mount` included. In a container the group's
 * path may be the host's and not exist here: then the mount's own files are what is left, and right. */
static uint32_t tightest(const char *mount, const char *group, uint32_t (*quota)(const char *)) {
    char path[PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s%s", mount, group);
    if (length < 0 || length >= (int)sizeof path) return quota(mount);
    uint32_t limit = quota(path);
    while ((size_t)length > strlen(mount)) {
        if (path[--length] != '/') continue;
        path[length] = '\0';
        limit = tighter(quota(path), limit);
    }
    return limit;
}

/* Whether "cpu" is one of the comma-separated controllers. */
static bool has_cpu(const char *controllers) {
    for (const char *at = controllers; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, "cpu", 3) == 0 && (at[3] == ',' || at[3] == '\0')) return true;
    }
    return false;
}

static uint32_t quota_cpus(const char *root) {
    char path[PATH_BYTES], line[PATH_BYTES];
    uint32_t limit = 0;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) { /* "0::/a/b" (v2) or "4:cpu,cpuacct:/a/b" (v1) */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        controllers++;
        char mount[PATH_BYTES];
        if (*controllers == '\0') {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
            limit = tighter(tightest(mount, group, quota_v2), limit);
        } else if (has_cpu(controllers)) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/cpu", root);
            limit = tighter(tightest(mount, group, quota_v1), limit);
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%.200s", root, controllers);
            limit = tighter(tightest(mount, group, quota_v1), limit);
        }
    }
    if (file) fclose(file);
    return limit;
}

static uint32_t within_quota(const char *root, uint32_t n) {
    uint32_t limit = quota_cpus(root);
    if (limit && limit < n) n = limit;
    return n < 1 ? 1 : n;
}

uint32_t rwkvc_count_cores(const char *root, const uint8_t *allowed, uint32_t n_cpus) {
    return within_quota(root, physical_cores(root, allowed, n_cpus));
}

uint32_t rwkvc_count_cpus(const char *root, const uint8_t *allowed, uint32_t n_cpus) {
    uint32_t cpus = 0;
    for (uint32_t cpu = 0; cpu < n_cpus; cpu++) cpus += allowed[cpu] != 0;
    return within_quota(root, cpus);
}

/* SPDX-License-Identifier: Apache-2.0
 * What src/platform promises, on the system that runs this. Reads the paths of files from its input, one a line, in
 * UTF-8 (arguments have another encoding on Windows). Prints for each its size, the last byte and the checksum of its
 * first megabyte, or why it cannot be mapped; then what the hardware is said to be. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "app/digest.h"
#include "platform/platform.h"

enum { ROUNDS = 1000, MEGABYTE = 1 << 20 };

static void show_file(const char *path) {
    rwkvc_mapping mapping;
    char reason[256] = "";
    if (rwkvc_map_file(path, &mapping, reason, sizeof reason)) {
        printf("refused %s\n", reason);
        return;
    }
    rwkvc_read_ahead(mapping.bytes, mapping.size_bytes);
    uint64_t first = rwkvc_min(mapping.size_bytes, MEGABYTE);
    if (rwkvc_prefault(mapping.bytes, first, NULL))
        printf("refused %s\n", rwkvc_last_error());
    else
        printf("mapped %llu %u %08x\n", (unsigned long long)mapping.size_bytes, mapping.bytes[mapping.size_bytes - 1],
               (unsigned)rwkvc_crc32(0, mapping.bytes, first));
    rwkvc_unmap_file(&mapping);
}

/* Two threads take turns, each asleep until the other has counted on. */
typedef struct {
    rwkvc_mutex mutex;
    rwkvc_condition turned;
    int count;
} turns;

static void count_odd(void *arg) {
    turns *t = arg;
    rwkvc_mutex_lock(&t->mutex);
    while (t->count < ROUNDS) {
        while (t->count % 2 == 0) rwkvc_condition_wait(&t->turned, &t->mutex);
        t->count++;
        rwkvc_condition_broadcast(&t->turned);
    }
    rwkvc_mutex_unlock(&t->mutex);
}

static bool take_turns(void) {
    turns t = {.count = 0};
    rwkvc_thread other;
    rwkvc_mutex_init(&t.mutex);
    rwkvc_condition_init(&t.turned);
    if (!rwkvc_thread_start(&other, count_odd, &t)) return false;
    rwkvc_mutex_lock(&t.mutex);
    while (t.count < ROUNDS) {
        t.count++;
        rwkvc_condition_broadcast(&t.turned);
        while (t.count % 2 == 1) rwkvc_condition_wait(&t.turned, &t.mutex);
    }
    rwkvc_mutex_unlock(&t.mutex);
    rwkvc_thread_join(&other);
    rwkvc_condition_destroy(&t.turned);
    rwkvc_mutex_destroy(&t.mutex);
    return t.count == ROUNDS;
}

static bool clock_goes_on(void) {
    double begin = rwkvc_seconds(), now = begin;
    for (int i = 0; i < 100 * MEGABYTE && now == begin; i++) {
        now = rwkvc_seconds();
        if (now < begin) return false;
    }
    return now > begin;
}

static bool memory_is_aligned(void) {
    bool ok = true;
    for (uint64_t size = 1; size <= 64 * MEGABYTE; size = size * 3 + 1) {
        uint8_t *memory = rwkvc_alloc(size);
        ok &= memory && (uintptr_t)memory % RWKVC_ALIGN == 0 && memory[0] == 0 && memory[size - 1] == 0;
        rwkvc_free(memory);
    }
    return ok;
}

int main(void) {
    char line[4096];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = '\0';
        show_file(line);
    }
    printf("cores %u\n", (unsigned)rwkvc_default_threads());
    printf("pid %d\n", rwkvc_process_id() == rwkvc_process_id());
    printf("turns %d\n", take_turns());
    printf("clock %d\n", clock_goes_on());
    printf("memory %d\n", memory_is_aligned());
    return 0;
}

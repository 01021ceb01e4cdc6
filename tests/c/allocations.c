/* SPDX-License-Identifier: Apache-2.0
 * Counts what a forward allocates: after a first round of calls of every kind, a second and third round must take
 * nothing from the heap or from the system. The heap's functions are this file's own (glibc lets a program replace
 * them), so calls from inside the C library count too; the size of the address space shows everything else.
 *
 *   allocations MODEL.rwkv...      prints for each model and number of threads: "warm N after M" */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rwkv_cpu.h"

enum { PROMPT = 40, CHUNK = 16, SEQUENCES = 3, ROUNDS = 2 };

/* ------------------------------------------------------------------------------------ counting */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static _Atomic int counting;
static _Atomic long calls;

static void count(void) {
    if (atomic_load(&counting)) atomic_fetch_add(&calls, 1);
}

void *malloc(size_t size) {
    count();
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size) {
    count();
    return __libc_calloc(n, size);
}

void *realloc(void *memory, size_t size) {
    count();
    return __libc_realloc(memory, size);
}

void *memalign(size_t align, size_t size) {
    count();
    return __libc_memalign(align, size);
}

void *aligned_alloc(size_t align, size_t size) {
    count();
    return __libc_memalign(align, size);
}

int posix_memalign(void **memory, size_t align, size_t size) {
    count();
    *memory = __libc_memalign(align, size);
    return *memory ? 0 : ENOMEM;
}

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    count();
    return (void *)syscall(SYS_mmap, address, length, protection, flags, file, offset);
}

/* Pages of address space, from /proc without the C library's buffers. */
static long address_space(void) {
    char text[64] = {0};
    int file = open("/proc/self/statm", O_RDONLY);
    if (file < 0 || read(file, text, sizeof text - 1) <= 0) return -1;
    close(file);
    return strtol(text, NULL, 10);
}

/* --------------------------------------------------------------------------------------- calls */

static void fail(const char *what) {
    fprintf(stderr, "allocations: %s: %s\n", what, rwkvc_last_error());
    exit(1);
}

typedef struct {
    const rwkvc_model *model;
    uint32_t n_vocab, tokens[PROMPT];
    uint64_t state_floats;
    float *states, *logits; /* [PROMPT, state_floats], [PROMPT * SEQUENCES, n_vocab] */
} bench;

static void forward(rwkvc_context *ctx, const bench *b, rwkvc_sequence *sequences, uint32_t n) {
    int32_t cancel = 0;
    rwkvc_forward_options options = {.struct_size = sizeof options, .cancel = &cancel};
    atomic_store(&counting, 1);
    rwkvc_status status = rwkvc_forward(ctx, b->model, sequences, n, b->logits, &options);
    atomic_store(&counting, 0);
    if (status) fail("forward");
}

/* Every kind of call once. */
static void one_of_each(rwkvc_context *ctx, const bench *b) {
    float *first = b->states, *second = b->states + b->state_floats;
    rwkvc_sequence prefill = {.tokens = b->tokens, .n_tokens = PROMPT, .state_out = first};
    for (uint32_t logits = RWKVC_LOGITS_NONE; logits <= RWKVC_LOGITS_ALL; logits++) {
        prefill.logits = logits;
        forward(ctx, b, &prefill, 1);
    }
    rwkvc_sequence decode = {.tokens = b->tokens, .n_tokens = 1, .logits = RWKVC_LOGITS_LAST};
    for (int step = 0; step < 4; step++) { /* into another block, and in place */
        decode.state_in = step == 1 ? second : first;
        decode.state_out = step == 0 ? second : first;
        forward(ctx, b, &decode, 1);
    }
    rwkvc_sequence batch[SEQUENCES];
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        float *state = b->states + i * b->state_floats;
        batch[i] = (rwkvc_sequence){.tokens = b->tokens,
                                    .n_tokens = 1 + i * CHUNK,
                                    .state_in = i ? state : NULL,
                                    .state_out = state,
                                    .logits = RWKVC_LOGITS_ALL};
    }
    forward(ctx, b, batch, SEQUENCES);
    rwkvc_sequence draft = {
        .tokens = b->tokens, .n_tokens = PROMPT, .state_out = b->states, .logits = RWKVC_LOGITS_ALL, .every_state = 1};
    forward(ctx, b, &draft, 1);
}

static int measure(const bench *b, const char *path, const char *isa, uint32_t threads) {
    rwkvc_context_options options;
    rwkvc_context *ctx;
    rwkvc_context_defaults(&options);
    options.threads = threads;
    options.isa = isa;
    options.chunk = CHUNK;
    if (rwkvc_context_create(&options, &ctx)) fail(isa);
    atomic_store(&calls, 0);
    one_of_each(ctx, b);
    long warm = atomic_exchange(&calls, 0), before = address_space();
    for (int round = 0; round < ROUNDS; round++) one_of_each(ctx, b);
    long after = atomic_load(&calls), grown = address_space() - before;
    rwkvc_context_destroy(ctx);
    printf("%s %s threads %u: warm %ld after %ld grown %ld\n", path, isa, threads, warm, after, grown);
    return after != 0 || grown != 0;
}

static int measure_file(const char *path) {
    int file = open(path, O_RDONLY), wrong = 0;
    struct stat about;
    if (file < 0 || fstat(file, &about)) fail(path);
    uint64_t size_bytes = (uint64_t)about.st_size;
    void *bytes = mmap(NULL, size_bytes, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    rwkvc_model *model = NULL;
    if (bytes == MAP_FAILED || rwkvc_model_open(bytes, size_bytes, &model)) fail(path);
    rwkvc_config config;
    rwkvc_model_config(model, &config);
    bench b = {.model = model, .n_vocab = config.size[RWKVC_SIZE_VOCAB], .state_floats = rwkvc_state_floats(model)};
    for (uint32_t i = 0; i < PROMPT; i++) b.tokens[i] = (i * 31 + 7) % b.n_vocab;
    b.states = calloc(PROMPT * b.state_floats, sizeof *b.states);
    b.logits = calloc((uint64_t)PROMPT * SEQUENCES * b.n_vocab, sizeof *b.logits);
    if (!b.states || !b.logits) fail("no memory");
    const char *isa; /* one will do: what kernels need of memory does not depend on it */
    if (rwkvc_isa_default(&isa)) fail("no instruction set");
    for (uint32_t threads = 1; threads <= 3; threads += 2) wrong |= measure(&b, path, isa, threads);
    free(b.states);
    free(b.logits);
    rwkvc_model_close(model);
    munmap(bytes, size_bytes);
    return wrong;
}

int main(int argc, char **argv) {
    int wrong = 0;
    if (argc < 2) {
        fprintf(stderr, "usage: allocations MODEL.rwkv...\n");
        return 2;
    }
    for (int i = 1; i < argc; i++) wrong |= measure_file(argv[i]);
    return wrong;
}

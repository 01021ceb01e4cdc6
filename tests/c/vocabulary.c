/* SPDX-License-Identifier: Apache-2.0
 * Every operation of the vector vocabulary on every instruction set that this CPU runs, against plain C: random bits,
 * subnormals, infinities, NaN, all 65536 halves, weights and activations at the ends of their ranges.
 *
 *   cc -std=c11 -ffp-contract=off -pthread -Itests/c/vocabulary -Isrc tests/c/vocabulary.c $(find src -name "*.c") -lm
 *
 * Prints a line for each instruction set and the checksum of plain C's results; fails if any differs. */
#include <stdio.h>
#include <stdlib.h>

#include "app/digest.h"
#include "kernels/kernels.h"
#include "threads/pool.h"

/* For the names only: the vocabulary of plain C. */
#define RWKVC_NO_UNROLL
#include "isa/target.h"
#define ISA names
#include "isa/vec_scalar.h"

#include "kernels/all.inc.h"

enum { FLOATS = 1 << 15, BLOCK = 16 };

#define NAME(name, statement) #name,
static const char *const names[] = {OPERATIONS_OF_FLOATS(NAME) OPERATIONS_OF_BYTES(NAME)};
#define ONE(name, statement) +1
enum { N_FLOAT = OPERATIONS_OF_FLOATS(ONE), N_ALL = sizeof names / sizeof *names };

static float x[FLOATS], expected[FLOATS], got[FLOATS];

static uint32_t next_random(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static void fill(bool halves) {
    static const uint32_t special[BLOCK] = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x7f7fffff,
                                            0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x3f800000, 0x3f000000,
                                            0xbfc00000, 0x40200000, 0x4b000001, 0x33800000};
    static const uint8_t byte[4] = {0x00, 0xff, 0x7f, 0x81};
    for (uint32_t i = 0; i < FLOATS; i += BLOCK) {
        uint32_t words[BLOCK], kind = next_random() % 8;
        for (uint32_t k = 0; k < BLOCK; k++) {
            uint32_t random = next_random();
            if (halves)
                words[k] = (2 * (i + k)) | (2 * (i + k) + 1) << 16;
            else if (kind < 4)
                words[k] = 0x01010101u * byte[kind];
            else if (kind == 4)
                words[k] = special[random % BLOCK];
            else if (kind == 5)
                words[k] = (random & 0x80ffffff) | 0x3f000000; /* around 1 */
            else
                words[k] = random;
        }
        memcpy(x + i, words, sizeof words);
    }
}

static void run(const rwkvc_kernels *kernels, uint32_t which, float *results) {
    memset(results, 0, sizeof expected);
    kernels->elementary(which, x, FLOATS, results);
    for (uint32_t i = 0; which < N_FLOAT && i < FLOATS; i++)
        if (results[i] != results[i]) memset(results + i, 0xff, sizeof *results);
}

/* Wrong results of one operation. */
static uint32_t compare(const rwkvc_kernels *kernels, uint32_t which) {
    run(kernels, which, got);
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < FLOATS; i++) {
        uint32_t a, b;
        memcpy(&a, expected + i, 4);
        memcpy(&b, got + i, 4);
        if (a != b && wrong++ == 0)
            printf("%s %s: lane %u is %08x, plain C has %08x\n", kernels->name, names[which], (unsigned)i % BLOCK,
                   (unsigned)b, (unsigned)a);
    }
    return wrong;
}

int main(void) {
    const rwkvc_kernels *scalar = rwkvc_kernels_get("scalar");
    uint32_t wrong[16] = {0}, total = 0, checksum = 0;
    rwkvc_float_environment();
    for (int halves = 0; halves < 2; halves++) {
        fill(halves);
        for (uint32_t which = 0; which < N_ALL; which++) {
            run(scalar, which, expected);
            checksum = checksum * 31 + rwkvc_crc32(0, (const uint8_t *)expected, sizeof expected);
            for (uint32_t i = 0; rwkvc_isa_name(i); i++)
                if (rwkvc_isa_usable(rwkvc_isa_name(i)))
                    wrong[i] += compare(rwkvc_kernels_get(rwkvc_isa_name(i)), which);
        }
    }
    for (uint32_t i = 0; rwkvc_isa_name(i); i++) {
        if (!rwkvc_isa_usable(rwkvc_isa_name(i))) continue;
        printf("%s: %d operations, %u wrong\n", rwkvc_isa_name(i), N_ALL, (unsigned)wrong[i]);
        total += wrong[i];
    }
    printf("checksum %08x\n", (unsigned)checksum);
    return total ? 1 : 0;
}

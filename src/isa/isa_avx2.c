/* SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#include <math.h>

#include "isa/target.h"
#include "kernels/kernels.h"
#define ISA avx2
#define RWKVC_WIDE_TILES 0
TARGET_BEGIN("avx2,fma,f16c")
#include "isa/vec_avx2.h"
#include "kernels/all.inc.h"
TARGET_END
#endif

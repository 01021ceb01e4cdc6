/* SPDX-License-Identifier: Apache-2.0 */
#include "isa/target.h"
#if defined(RWKVC_X86_64)
#include <immintrin.h>
#include <math.h>

#include "kernels/kernels.h"
#define ISA avx512vnni
#define RWKVC_WIDE_TILES 1
TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#include "isa/vec_avx512.h"
#include "kernels/all.inc.h"
TARGET_END
#endif

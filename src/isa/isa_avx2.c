/* SPDX-License-Identifier: Apache-2.0 */
#include "isa/target.h"
#if defined(RWKVC_X86_64)
#include <immintrin.h>
#include <math.h>

#include "kernels/kernels.h"
#define ISA avx2
#define RWKVC_WIDE_TILES 0
TARGET_BEGIN("avx2,fma,f16c")
#include "isa/vec_avx2.h"

#include "isa/dot_avx2.h"
#include "isa/tile_avx2.h"

#include "kernels/all.inc.h"
TARGET_END
#endif

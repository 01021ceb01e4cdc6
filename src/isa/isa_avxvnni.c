/* SPDX-License-Identifier: Apache-2.0 */
#include "isa/target.h"
#if defined(RWKVC_AVXVNNI)
#include <immintrin.h>
#include <math.h>

#include "kernels/kernels.h"
#define ISA avxvnni
#define RWKVC_WIDE_TILES 0
/* A test build may take AVX-512's encoding of the same instruction, to run on CPUs that lack this one. */
#if defined(RWKVC_AVXVNNI_AS_EVEX)
#define RWKVC_DPBUSD _mm256_dpbusd_epi32
TARGET_BEGIN("avx2,fma,f16c,avx512vl,avx512vnni")
#else
#define RWKVC_DPBUSD _mm256_dpbusd_avx_epi32
TARGET_BEGIN("avx2,fma,f16c,avxvnni")
#endif
#include "isa/vec_avx2.h"

#include "isa/dot_avxvnni.h"
#include "isa/tile_avx2.h"

#include "kernels/all.inc.h"
TARGET_END
#endif

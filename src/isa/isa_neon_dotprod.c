/* SPDX-License-Identifier: Apache-2.0 */
#include "isa/target.h"
#if defined(RWKVC_AARCH64)
#include <arm_neon.h>
#include <math.h>

#include "kernels/kernels.h"
#define ISA neon_dotprod
#define RWKVC_WIDE_TILES 0
#define RWKVC_NEON_DOT RWKVC_SDOT
TARGET_BEGIN(TARGET_DOTPROD)
#include "isa/vec_neon.h"

#include "isa/dot_neon.h"

#include "kernels/all.inc.h"
TARGET_END
#endif

/* SPDX-License-Identifier: Apache-2.0 */
#define RWKVC_NO_UNROLL
#include "isa/target.h"
#define ISA scalar
#define RWKVC_WIDE_TILES 0
#include "kernels/kernels.h"

#include "isa/vec_scalar.h"

#include "kernels/all.inc.h"

/* SPDX-License-Identifier: Apache-2.0
 * What rwkvc_lower_priority() of the public header did to the calling thread. */
#ifndef RWKVC_PRIORITY_H
#define RWKVC_PRIORITY_H

#include "internal.h"

#if defined(__GNUC__)
#pragma GCC visibility push(hidden)
#endif

bool rwkvc_priority_is_lowered(void);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif

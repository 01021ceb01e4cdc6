/* SPDX-License-Identifier: Apache-2.0
 * The text of the last error of each thread, and version functions. */
#include <stdio.h>

#include "internal.h"

#ifndef RWKVC_VERSION
#error "RWKVC_VERSION is the package's version, given by the build"
#endif

static _Thread_local char last_error[512];

rwkvc_status rwkvc_fail(rwkvc_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return status;
}

const char *rwkvc_last_error(void) { return last_error; }

uint32_t rwkvc_abi_version(void) { return RWKVC_ABI_VERSION; }

const char *rwkvc_version(void) { return RWKVC_VERSION; }

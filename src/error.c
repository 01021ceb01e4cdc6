/* SPDX-License-Identifier: Apache-2.0
 * The text and the hint of the last error of each thread, and version functions. */
#include <stdio.h>

#include "internal.h"

#ifndef RWKVC_VERSION
#error "RWKVC_VERSION is the package's version, given by the build"
#endif

static _Thread_local char last_error[2048]; /* a path and what is wrong there */
static _Thread_local const char *last_hint = "";

static const struct {
    const char *name, *hint;
} statuses[] = {
    [RWKVC_OK] = {"RWKVC_OK", ""},
    [RWKVC_E_ARGUMENT] = {"RWKVC_E_ARGUMENT", ""},
    [RWKVC_E_FORMAT] = {"RWKVC_E_FORMAT", "Make or download the file again."},
    [RWKVC_E_UNSUPPORTED] = {"RWKVC_E_UNSUPPORTED", ""},
    [RWKVC_E_SHAPE] = {"RWKVC_E_SHAPE", "The checkpoint is incomplete or damaged, or not an RWKV model."},
    [RWKVC_E_TOKEN] = {"RWKVC_E_TOKEN", "Encode text with the model's own tokenizer."},
    [RWKVC_E_STATE] = {"RWKVC_E_STATE", ""},
    [RWKVC_E_NONFINITE] = {"RWKVC_E_NONFINITE", "The checkpoint is damaged or was saved after training diverged."},
    [RWKVC_E_NOMEM] = {"RWKVC_E_NOMEM", "Close other programs, or use a smaller model or format."},
    [RWKVC_E_CANCELLED] = {"RWKVC_E_CANCELLED", ""},
    [RWKVC_E_FORKED] = {"RWKVC_E_FORKED", "Load the model in the child process."},
    [RWKVC_E_NOT_FOUND] = {"RWKVC_E_NOT_FOUND", "Check the path; a relative one begins at the working directory."},
    [RWKVC_E_IO] = {"RWKVC_E_IO", ""},
};
enum { N_STATUSES = sizeof statuses / sizeof statuses[0] };

static void record(rwkvc_status status, const char *hint, const char *format, va_list args) {
    vsnprintf(last_error, sizeof last_error, format, args);
    last_hint = hint ? hint : statuses[status].hint;
}

rwkvc_status rwkvc_fail(rwkvc_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(status, NULL, format, args);
    va_end(args);
    return status;
}

rwkvc_status rwkvc_fail_hint(rwkvc_status status, const char *hint, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(status, hint, format, args);
    va_end(args);
    return status;
}

rwkvc_status rwkvc_fail_at(const char *where, rwkvc_status status) {
    char text[sizeof last_error];
    memcpy(text, last_error, sizeof text);
    snprintf(last_error, sizeof last_error, "%.1400s: %.600s", where, text);
    return status;
}

const char *rwkvc_last_error(void) { return last_error; }

const char *rwkvc_last_hint(void) { return last_hint; }

const char *rwkvc_status_name(rwkvc_status status) {
    return status >= 0 && status < N_STATUSES ? statuses[status].name : NULL;
}

uint32_t rwkvc_abi_version(void) { return RWKVC_ABI_VERSION; }

const char *rwkvc_version(void) { return RWKVC_VERSION; }

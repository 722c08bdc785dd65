/* SPDX-License-Identifier: MIT */
/* Host errors: every fallible function of the core returns 0 or -errno and, on
 * failure, leaves one sentence (and, where there is one, a hint) in *err.
 * Guest faults and bugs of ours never travel this way. `err` may be NULL. */
#ifndef IMGVM_BASE_ERROR_H
#define IMGVM_BASE_ERROR_H

#include "../include/imgvm_api.h"

/* Fill *err and return -errno_value, so that a caller can `return error_set(...)`. */
int error_set(imgvm_error *err, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Add the "what to do" sentence to an error already set. Returns err->code. */
int error_hint(imgvm_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif

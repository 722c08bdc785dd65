/* SPDX-License-Identifier: MIT */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

int error_set(imgvm_error *err, int errno_value, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        err->hint[0] = 0;
        err->code = -errno_value;
    }
    return -errno_value;
}

int error_hint(imgvm_error *err, const char *format, ...)
{
    if (!err)
        return -EIO; /* the number is lost with the error; it must not read as success */
    va_list args;
    va_start(args, format);
    vsnprintf(err->hint, sizeof err->hint, format, args);
    va_end(args);
    return err->code;
}

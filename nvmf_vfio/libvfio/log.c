/* SPDX-License-Identifier: BSD-3-Clause */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

void
lv_log(const char *format, ...)
{
    int saved = errno;
    char line[512];
    va_list args;

    va_start(args, format);
    /* %m must see the caller's errno. */
    errno = saved;
    (void)vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    (void)fprintf(stderr, "libvfio: %s\n", line);
    errno = saved;
}

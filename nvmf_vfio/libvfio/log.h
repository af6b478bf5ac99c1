/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One line on standard error, "libvfio: …". Used for what a person must act on
 * (refused memory, a lost server); errno tells QEMU the rest. Keeps errno.
 */
#ifndef LV_LOG_H
#define LV_LOG_H

void lv_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif /* LV_LOG_H */

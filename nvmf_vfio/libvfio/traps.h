/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The libc functions that the library stands in front of: all that it exports.
 *
 * TRAP(symbol) for each. interpose.c makes the table of the real functions from
 * it; tests/unit/test_libvfio.py compares it with what the library exports, and
 * tests/guest/test_libvfio.py with what each QEMU imports (nm -D): a function of
 * one of these families (open, close, dup, ioctl, mmap, pread, pwrite, readlink,
 * stat, write) that QEMU imports must be here or in that test's list of those that need
 * no trap.
 */
#define LV_TRAPS(TRAP)      \
    TRAP(open)              \
    TRAP(open64)            \
    TRAP(__open_2)          \
    TRAP(__open64_2)        \
    TRAP(close)             \
    TRAP(dup)               \
    TRAP(dup2)              \
    TRAP(dup3)              \
    TRAP(ioctl)             \
    TRAP(mmap)              \
    TRAP(mmap64)            \
    TRAP(pread)             \
    TRAP(pread64)           \
    TRAP(__pread_chk)       \
    TRAP(__pread64_chk)     \
    TRAP(pwrite)            \
    TRAP(pwrite64)          \
    TRAP(readlink)          \
    TRAP(__readlink_chk)    \
    TRAP(stat)              \
    TRAP(stat64)            \
    TRAP(write)

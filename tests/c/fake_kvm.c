/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * KVM's answers to the calls about its VFIO device, for machines without a KVM: a
 * library to preload behind libvfio.so. An eventfd stands for each device that is
 * made. KVM_SET_DEVICE_ATTR is ELIBBAD, which neither the kernel nor libvfio.so
 * says: who sees that has asked KVM.
 */
#include <dlfcn.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

int
ioctl(int fd, unsigned long request, ...)
{
    int (*next)(int, unsigned long, ...) =
        (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    struct kvm_create_device *create;
    va_list args;
    void *arg;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    switch (request) {
    case KVM_CREATE_DEVICE:
        create = arg;
        if ((create->flags & KVM_CREATE_DEVICE_TEST) == 0) {
            create->fd = (__u32)eventfd(0, EFD_CLOEXEC);
        }
        return 0;
    case KVM_SET_DEVICE_ATTR:
        errno = ELIBBAD;
        return -1;
    default:
        return next(fd, request, arg);
    }
}

"""The vfio-user side of nvmuser, between a guest's QEMU and an NVMe controller of SPDK.

A QEMU connects to the *endpoint*, the endpoint connects to the *target*. Guest memory is mapped by the target itself
and interrupts are eventfds that the target signals itself, so that the endpoint sees set-up messages and trapped
registers only. When the target dies, the endpoint answers in its place, and introduces the guest to the next one.

This package knows nothing of the control plane (`nvmuser`).
"""

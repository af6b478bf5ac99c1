"""The command line of Cloud Hypervisor for a guest with our controllers.

Owns its form alone. What Cloud Hypervisor's client can do is in docs/cloud-hypervisor.md.
"""

from __future__ import annotations

from nvmuser.errors import UsageError
from nvmuser.guest.spec import MIB, GuestSpec

PROGRAM = "cloud-hypervisor"
_SEPARATORS = frozenset(',"[]')
"""What its parser of options gives a meaning (its option_parser crate)."""


def attachment(spec: GuestSpec, *, hugepages: bool) -> list[str]:
    """Arguments for CPUs, memory that the target can share, and the controllers: what else it needs is added to them.

    :raises UsageError: it cannot do what the specification wants.
    """
    if spec.libvfio:
        raise UsageError("Cloud Hypervisor has a vfio-user client of its own: not together with --via libvfio")
    if spec.boot_from is not None or spec.firmware == "uefi":
        raise UsageError("Cloud Hypervisor gets its kernel or firmware from you: not together with --boot-from, --uefi")
    for path in spec.sockets:
        if _SEPARATORS & set(str(path)):
            raise UsageError(f"{path}: Cloud Hypervisor takes no path with a comma, a quotation mark or a bracket")
    memory = f"size={spec.memory // MIB}M,shared=on{',hugepages=on' if hugepages else ''}"
    # One option with all values: older versions refuse to be given it twice.
    devices = ["--user-device", *(f"socket={path}" for path in spec.sockets)] if spec.sockets else []
    return ["--cpus", f"boot={spec.cpus}", "--memory", memory, *devices]

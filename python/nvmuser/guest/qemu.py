"""From a specification to QEMU's arguments. Pure: nothing is started, opened or looked up here.

Every object and device is given in JSON, so that a comma in a path is only a comma.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.guest import migration
from nvmuser.guest.spec import GuestSpec

DRIVER = "vfio-user-pci"
PLAIN_DRIVER = "vfio-pci"
"""What every QEMU has; with libvfio preloaded it serves our controllers as well."""

_PORTS_AT, _PORT_SLOTS = 0x10, 8
"""The first PCI slot of our root ports, and how many there are for them, with up to eight ports each. A slot's devices
share one of four INTx lines with those of each fourth slot: the fewer share one, the better for a guest without MSI."""


@dataclass(frozen=True)
class Runtime:
    """The files of one running guest, all in a directory of its own."""

    directory: Path

    @property
    def sockets(self) -> dict[str, Path]:
        """By the name of the character device behind each."""
        return {"agent": self.agent, "console": self.console, "qmp": self.qmp}

    @property
    def agent(self) -> Path:
        """The socket of the second serial port."""
        return self.directory / "agent.sock"

    @property
    def agent_lock(self) -> Path:
        """Held by the process that talks to the agent."""
        return self.directory / "agent.lock"

    @property
    def console(self) -> Path:
        """The socket of the first serial port."""
        return self.directory / "console.sock"

    @property
    def qmp(self) -> Path:
        """The socket of QMP."""
        return self.directory / "qmp.sock"

    @property
    def console_log(self) -> Path:
        """All that the guest wrote to its first serial port."""
        return self.directory / "console.log"

    @property
    def qemu_log(self) -> Path:
        """QEMU's own output."""
        return self.directory / "qemu.log"

    @property
    def no_migration(self) -> Path:
        """The image of the node that blocks migration."""
        return self.directory / migration.IMAGE

    @property
    def uefi_vars(self) -> Path:
        """This guest's copy of UEFI's variables."""
        return self.directory / "uefi-vars.fd"


@dataclass(frozen=True)
class Boot:
    """What the host provides: how to run guest code, with which memory, and what is booted."""

    accelerator: str
    memory: int | None = None
    """The descriptor of a memfd in hugepages, which QEMU inherits; None: it makes its own, in 4 KiB pages."""
    kernel: Path | None = None
    initrd: Path | None = None
    uefi_code: Path | None = None
    image_format: str = "raw"


def arguments(spec: GuestSpec, runtime: Runtime, boot: Boot, listeners: Mapping[str, int]) -> list[str]:
    """All arguments of a QEMU of ours (without the program itself).

    :param listeners: descriptors that QEMU inherits, of sockets that listen already: `console`, `agent`, `qmp`.
    """
    return [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-accel", "tcg,thread=multi" if boot.accelerator == "tcg" else boot.accelerator),
        *("-cpu", "max" if boot.accelerator == "tcg" else "host", "-smp", str(spec.cpus)),
        *attachment(spec, _memory(spec, boot.memory), no_migration=runtime.no_migration),
        *_firmware(runtime, boot),
        *_socket("console", listeners["console"], log=runtime.console_log),
        *("-serial", "chardev:console"),
        *_socket("agent", listeners["agent"]),
        *("-serial", "chardev:agent"),
        *_socket("qmp", listeners["qmp"]),
        *("-qmp", "chardev:qmp"),
        *_system(spec, boot),
        *spec.qemu_args,
    ]


def memory_backend(spec: GuestSpec, *, hugepages: bool) -> dict[str, Any]:
    """The object that is a guest's memory, which QEMU makes."""
    memory = {"qom-type": "memory-backend-memfd", "id": "mem", "size": spec.memory, "share": True}
    if spec.memory_file is not None:
        return memory | {"qom-type": "memory-backend-file", "mem-path": str(spec.memory_file)}
    return memory | {"hugetlb": True, "hugetlbsize": 2 << 20} if hugepages else memory


def _memory(spec: GuestSpec, fd: int | None) -> dict[str, Any]:
    if fd is None:
        return memory_backend(spec, hugepages=False)
    path = f"/proc/self/fd/{fd}"
    return {"qom-type": "memory-backend-file", "id": "mem", "size": spec.memory, "share": True, "mem-path": path}


def attachment(
    spec: GuestSpec,
    memory: Mapping[str, Any],
    *,
    no_migration: Path,
    form: Callable[[Mapping[str, Any]], str] = json.dumps,
) -> list[str]:
    """The arguments that a guest's memory and controllers need, in any QEMU with a q35 machine.

    :param memory: the object that is its memory, named `mem`.
    :param no_migration: image of the node that blocks migration, where QEMU does not do so itself.
    :param form: how an object or a device is written: JSON, or `plain`; all alike, for QEMU makes first what is not in
        JSON.
    """
    result = ["-machine", f"{spec.machine_type},memory-backend=mem", "-m", f"{spec.memory >> 20}M"]
    result += ["-object", form(memory)]
    if spec.sockets and not spec.libvfio:
        result += ["-blockdev", json.dumps(migration.blocker(no_migration))]
    ports = len(spec.sockets) + spec.spare_ports
    for number in range(ports):
        result += ["-device", form(root_port(number, -(-ports // _PORT_SLOTS)))]
    for number, socket in enumerate(spec.sockets):
        bootable = {"bootindex": 1} if socket == spec.boot_from else {}
        directory = spec.directories[number] if spec.directories is not None else None
        result += ["-device", form({**controller(socket, f"port{number}", directory), **bootable})]
    return result


def plain(properties: Mapping[str, Any]) -> str:
    """An object or a device as people write it, `type,name=value,…`, which every QEMU reads."""

    def text(value: object) -> str:
        return ("on" if value else "off") if isinstance(value, bool) else str(value).replace(",", ",,")

    kind, *rest = properties.items()
    assert kind[0] in ("driver", "qom-type")
    return ",".join([text(kind[1]), *(f"{name}={text(value)}" for name, value in rest)])


def device_id(socket: Path) -> str:
    """By which a controller is known in QEMU: its socket's directory bears its name."""
    return f"nvmuser-{socket.parent.name}"


def controller(socket: Path, bus: str, directory: Path | None = None) -> dict[str, Any]:
    """The device that connects to an NVMe controller's vfio-user socket; also as arguments of QMP's device_add.

    :param directory: with libvfio: the device directory that stands for the socket.
    """
    device = {"driver": DRIVER if directory is None else PLAIN_DRIVER, "id": device_id(socket), "bus": bus}
    if directory is not None:
        return {**device, "sysfsdev": str(directory)}
    return {**device, "socket": {"type": "unix", "path": str(socket)}}


def root_port(number: int, per_slot: int) -> dict[str, Any]:
    """A port into which one controller fits, now or later, one of so many in each PCI slot.

    It forwards no I/O ports: NVMe needs none, and there are not enough of them for more than a few root ports.
    """
    return {
        "driver": "pcie-root-port",
        "id": f"port{number}",
        "bus": "pcie.0",
        "chassis": number + 1,
        "slot": number + 1,
        "addr": f"{_PORTS_AT + number // per_slot:x}.{number % per_slot}",
        "multifunction": number % per_slot == 0,
        "io-reserve": 0,
        "mem-reserve": 2 << 20,
    }


def _device(properties: Mapping[str, Any]) -> tuple[str, str]:
    return "-device", json.dumps(properties)


def _socket(identity: str, listener: int, *, log: Path | None = None) -> tuple[str, str]:
    # This option knows no JSON: a comma is doubled.
    more = f",logfile={str(log).replace(',', ',,')},logappend=on" if log else ""
    return "-chardev", f"socket,id={identity},fd={listener},server=on,wait=off{more}"


def _firmware(runtime: Runtime, boot: Boot) -> Iterator[str]:
    if boot.uefi_code is None:
        return
    for unit, (path, read_only) in enumerate([(boot.uefi_code, True), (runtime.uefi_vars, False)]):
        file = {"driver": "file", "filename": str(path)}
        node = {"driver": "raw", "node-name": f"flash{unit}", "read-only": read_only, "file": file}
        yield from ("-blockdev", json.dumps(node), "-machine", f"pflash{unit}=flash{unit}")


def _system(spec: GuestSpec, boot: Boot) -> list[str]:
    if spec.image is not None:
        file = {"driver": "file", "filename": str(spec.image)}
        node = {"driver": boot.image_format, "node-name": "image", "discard": "unmap", "file": file}
        disk = {"driver": "virtio-blk-pci", "id": "image", "drive": "image", "bootindex": 1}
        return ["-blockdev", json.dumps(node), *_device(disk)]
    if boot.kernel is None or boot.initrd is None:
        return []
    # `quiet`: a serial console costs a trap for each character, and the kernel waits for it.
    command_line = f"console=ttyS0 quiet panic=-1 {spec.append}".strip()
    return ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", command_line]

"""The parts of a libvirt domain that let its guest use our controllers.

libvirt has no element for vfio-user devices, so they go through `qemu:commandline`, which its schema knows. Pure:
nothing is looked up or started.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from nvmuser.guest import migration
from nvmuser.guest.qemu import controller
from nvmuser.guest.spec import GuestSpec

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
PRELOAD = "LD_PRELOAD"
_SLOTS_FROM = 0x18
"""libvirt hands out PCI slots from below, some fixed ones above 0x18, and does not know what the command line holds."""

_EMULATOR = "/usr/bin/qemu-system-x86_64"


def domain(
    spec: GuestSpec,
    *,
    name: str,
    hugepages: bool,
    kvm: bool,
    no_migration: Path,
    metadata: ET.Element | None = None,
    emulator: str = _EMULATOR,
    preload: str = "",
) -> str:
    """A whole domain: what is ours in it, and the least that libvirt wants around that.

    :param no_migration: see `nvmuser.guest.qemu.attachment`.
    :param metadata: by which the hook knows its controllers (`libvirt_hook.metadata`).
    :param preload: libvfio.so, where that serves the controllers.
    """
    ET.register_namespace("qemu", QEMU)
    root = ET.Element("domain", type="kvm" if kvm else "qemu")
    ET.SubElement(root, "name").text = name
    if metadata is not None:
        ET.SubElement(root, "metadata").append(metadata)
    ET.SubElement(root, "memory", unit="MiB").text = str(spec.memory >> 20)
    backing = ET.SubElement(root, "memoryBacking")
    if hugepages:
        ET.SubElement(ET.SubElement(backing, "hugepages"), "page", size="2", unit="MiB")
    ET.SubElement(backing, "source", type="memfd")
    # Shared, because SPDK reads and writes the guest's memory.
    ET.SubElement(backing, "access", mode="shared")
    ET.SubElement(root, "vcpu").text = str(spec.cpus)
    system = ET.SubElement(root, "os", {"firmware": "efi"} if spec.firmware == "uefi" else {})
    ET.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(root, "cpu", mode="host-passthrough" if kvm else "maximum")
    _devices(root, emulator)
    _command_line(root, spec, no_migration, preload)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")


def _devices(root: ET.Element, emulator: str) -> None:
    devices = ET.SubElement(root, "devices")
    ET.SubElement(devices, "emulator").text = emulator
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="serial")


def _command_line(root: ET.Element, spec: GuestSpec, no_migration: Path, preload: str) -> None:
    line = ET.SubElement(root, f"{{{QEMU}}}commandline")
    blocked = spec.sockets and not spec.libvfio
    values = ["-blockdev", json.dumps(migration.blocker(no_migration))] if blocked else []
    for number, socket in enumerate(spec.sockets):
        directory = spec.directories[number] if spec.directories is not None else None
        device = controller(socket, "pcie.0", directory) | {"addr": f"{_SLOTS_FROM - number:x}"}
        if socket == spec.boot_from:
            device["bootindex"] = 1
        values += ["-device", json.dumps(device)]
    for value in values:
        ET.SubElement(line, f"{{{QEMU}}}arg", value=value)
    if preload:
        ET.SubElement(line, f"{{{QEMU}}}env", name=PRELOAD, value=preload)

"""What libvirt's hook does at the host to which a domain comes by `virsh migrate`, or where it is restored from a file.

Its controllers are declared as its metadata describe them, with their volumes closed, and its description is fitted to
this host: what stands for a controller may have another number here, libvfio.so another place. libvirt first asks
whether the domain may come (`migrate`, `restore`), then prepares its start like any other: the file `run/arriving/UUID`
is how that one knows. It also has which controllers were declared for this domain: they are forgotten when it has gone,
or did not come. A guest that goes on here has opened their volumes, and they stay.
"""

from __future__ import annotations

import contextlib
import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from nvmuser.errors import NvmuserError, TargetError, UsageError
from nvmuser.guest import libvirt
from nvmuser.guest.libvirt_hook import NAMESPACE, Domain, until_served
from nvmuser.guest.qemu import PLAIN_DRIVER, device_id
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.model import incoming
from nvmuser.supervisor import control
from nvmuser.toolchain import libvfio

_SOON = 60.0
"""Seconds from libvirt's question whether a domain may come to the start of its QEMU: the same act of libvirt's."""


async def expect(domain: Domain, text: str | bytes, *, wait: float) -> str:
    """Expect the guest of a domain.

    :param text: libvirt's description of it.
    :param wait: seconds for the target.
    :returns: the description for this host; empty: nothing is to be changed in it.
    :raises NvmuserError: it cannot come. Nothing is left of it.
    """
    await until_served(domain, wait, controllers=False)
    made = list(_made(domain))  # by an attempt that libvirt has given up without a word
    try:
        for name in domain.controllers:
            if await _declare(domain, name):
                made.append(name)
        _remember(domain, made, asked=time.monotonic())
        return _fitted(domain, text)
    except BaseException:
        _remember(domain, made, asked=None)
        await forget(domain)
        raise


async def _declare(domain: Domain, name: str) -> bool:
    desired = control.load(domain.state)
    if name not in domain.descriptions:
        if any(one.name == name and one.away for one in desired.controllers()):
            return False
        raise UsageError(
            f"controller {name}: the domain's metadata do not describe it, by which this host could expect it: see "
            "`nvmuser guest qemu-args --via libvfio --libvirt` where it is"
        )
    change = incoming.change(desired, *incoming.expected(name, domain.descriptions[name]))
    if change:
        await control.submit(domain.state, change)
    return change is not None


def take_expected(domain: Domain) -> bool:
    """Whether libvirt has just asked for the domain, and starts its QEMU now because of that. True for one start."""
    try:
        known = json.loads(_path(domain).read_text(encoding="utf-8"))
        recent: bool = 0 <= time.monotonic() - known["asked"] < _SOON  # below 0: before a boot of the machine
    except (OSError, ValueError, LookupError, TypeError):
        return False
    _remember(domain, known["made"], asked=None)
    return recent


async def forget(domain: Domain) -> None:
    """Forget what was declared for this domain, unless its volumes are open here."""
    made = _made(domain)
    _path(domain).unlink(missing_ok=True)
    for name in made:
        with contextlib.suppress(NvmuserError):
            await control.submit(domain.state, incoming.forget(control.load(domain.state), name))


def _path(domain: Domain) -> Path:
    return domain.state.run / "arriving" / domain.uuid


def _made(domain: Domain) -> list[str]:
    try:
        return [str(name) for name in json.loads(_path(domain).read_text(encoding="utf-8"))["made"]]
    except (OSError, ValueError):
        return []


def _remember(domain: Domain, made: list[str], *, asked: float | None) -> None:
    """:raises TargetError: it cannot be written."""
    path = _path(domain)
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        path.write_text(json.dumps({"made": made, "asked": asked}), encoding="utf-8")
    except OSError as error:
        raise TargetError(f"{error.filename or path}: {error.strerror}") from error


def _fitted(domain: Domain, text: str | bytes) -> str:
    root, changed = ET.fromstring(text), False
    desired, devices = control.load(domain.state), Devices(domain.state)
    directories = {
        device_id(domain.state.socket(name)): str(devices.provide(desired.controller(name)))
        for name in domain.controllers
    }
    for value in root.iterfind(f"{{{libvirt.QEMU}}}commandline/{{{libvirt.QEMU}}}arg"):
        device = _device(value.get("value", ""))
        if device.get("driver") == PLAIN_DRIVER and device.get("id") in directories:
            fitted = json.dumps(device | {"sysfsdev": directories[str(device["id"])]})
            changed = changed or fitted != value.get("value")
            value.set("value", fitted)
    for variable in root.iterfind(f"{{{libvirt.QEMU}}}commandline/{{{libvirt.QEMU}}}env[@name='{libvirt.PRELOAD}']"):
        if Path(variable.get("value", "")).name == libvfio.NAME:
            place = str(libvfio.find_libvfio())
            changed = changed or variable.get("value") != place
            variable.set("value", place)
    if not changed:
        return ""
    ET.register_namespace("qemu", libvirt.QEMU)
    ET.register_namespace("nvmuser", NAMESPACE)
    return ET.tostring(root, encoding="unicode")


def _device(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

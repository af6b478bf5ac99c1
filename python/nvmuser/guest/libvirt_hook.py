"""What libvirt's hook does for a domain whose metadata name controllers: claimed and waited for before QEMU starts,
released when it has ended.

Owns the metadata's form and the claims: `run/claims/CONTROLLER`, a link to the domain that has it, by which two domains
with the same controller do not both start. It asks libvirt nothing, which waits for the hook (libvirt's hooks.html:
calling back is a deadlock). A claim of before the machine was booted holds nothing. Domains that come from another host
or from a file are `libvirt_arrival`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvmuser.errors import ConflictError, NotFoundError, NvmuserError, TargetError, TargetNotRunning, UsageError
from nvmuser.hostfs.sockets import answers
from nvmuser.model import incoming
from nvmuser.model.desired import Desired
from nvmuser.paths import StateDir
from nvmuser.supervisor import control, occupancy

NAMESPACE = "urn:nvmuser:libvirt:1"
WAIT = 30.0
"""Seconds that a domain waits for its controllers: the service may be starting too."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_INTERVAL = 0.1


@dataclass(frozen=True)
class Domain:
    """A domain, as far as its controllers go.

    :ivar descriptions: of controllers that can move (`incoming.description`), by name.
    """

    name: str
    uuid: str
    state: StateDir
    controllers: tuple[str, ...]
    descriptions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def metadata(state: StateDir, controllers: tuple[str, ...], *, desired: Desired | None = None) -> ET.Element:
    """The element of a domain's `<metadata>` that names its controllers.

    :param desired: where the controllers are described, by which another host can expect them; None: they stay here.
    """
    ET.register_namespace("nvmuser", NAMESPACE)
    element = ET.Element(f"{{{NAMESPACE}}}controllers", {"state-dir": str(state.root)})
    for name in controllers:
        child = ET.SubElement(element, f"{{{NAMESPACE}}}controller", name=name)
        if desired is not None:
            child.text = json.dumps(incoming.description(desired.controller(name), desired))
    return element


def parse(text: str | bytes) -> Domain | None:
    """The domain that libvirt describes to its hook, or None: it names no controllers.

    :raises UsageError: its description or its metadata are malformed.
    """
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise UsageError(f"libvirt's domain is no XML: {error}") from error
    found = root.find(f"metadata/{{{NAMESPACE}}}controllers")
    if found is None:
        return None
    directory = Path(found.get("state-dir", "/var/lib/nvmuser"))
    children = list(found.iter(f"{{{NAMESPACE}}}controller"))
    names = tuple(child.get("name", "") for child in children)
    if not directory.is_absolute() or not names or not all(names) or len(set(names)) < len(names):
        raise UsageError(
            "metadata of nvmuser: an absolute state-dir, and at least one controller with a name, each once"
        )
    name, uuid = root.findtext("name", ""), root.findtext("uuid", "")
    described = {one.get("name", ""): _described(one.text) for one in children if one.text and one.text.strip()}
    return Domain(name, uuid, StateDir(directory), names, described)


def _described(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError("metadata of nvmuser: what is in a controller's element does not describe one, as JSON")
    return found


async def prepare(domain: Domain, *, wait: float = WAIT, arriving: bool = False) -> None:
    """Wait until the controllers can be used, and claim them. What was claimed is released where that fails.

    :param arriving: its guest comes from elsewhere, and opens their volumes when it is here.
    :raises NotFoundError: there is no such controller.
    :raises ConflictError: another domain or guest has one.
    :raises TargetError: they are not served, nor within `wait` seconds.
    """
    declared = {controller.name for controller in control.load(domain.state).controllers()}
    for name in domain.controllers:
        if name not in declared:
            raise NotFoundError(f"there is no controller {name} in {domain.state.root}")
    await until_served(domain, wait)
    try:
        for name in domain.controllers:
            _claim(domain, name)
        if not arriving:
            await occupancy.check_free(domain.state, domain.controllers)
    except NvmuserError:
        release(domain)
        raise


def release(domain: Domain) -> None:
    """Give up what the domain has claimed, if anything."""
    for name in domain.controllers:
        path = _claims(domain.state) / name
        if _holder(path)[0] == domain.uuid:
            path.unlink(missing_ok=True)


def claims(state: StateDir) -> Iterator[tuple[str, str]]:
    """Controllers that domains have claimed since the machine was booted, each with the domain's name."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(_claims(state).iterdir()):
            _, boot, name = _holder(path)
            if boot == _boot_id():
                yield path.name, name


def _claims(state: StateDir) -> Path:
    return state.run / "claims"


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _holder(path: Path) -> tuple[str, str, str]:
    """A claim's domain (its UUID), boot of the machine, and the domain's name; all empty where there is none."""
    try:
        uuid, boot, name = os.readlink(path).split(":", 2)
    except (OSError, ValueError):
        return "", "", ""
    return uuid, boot, name


def _claim(domain: Domain, name: str) -> None:
    """:raises ConflictError: another domain has it. :raises TargetError: it cannot be recorded."""
    path = _claims(domain.state) / name
    uuid, boot, other = _holder(path)
    if uuid and uuid != domain.uuid and boot == _boot_id():
        raise ConflictError(f"controller {name} is domain {other}'s, which runs or is about to")
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(f"{domain.uuid}:{_boot_id()}:{domain.name}")
    except FileExistsError:
        raise ConflictError(f"controller {name} was claimed by another domain in this moment") from None
    except OSError as error:
        raise TargetError(f"{error.filename or path}: {error.strerror}") from error


async def until_served(domain: Domain, wait: float, *, controllers: bool = True) -> None:
    """Wait until the target is ready, and all controllers of the domain have their sockets.

    :param controllers: False: the target alone.
    :raises TargetError: not within `wait` seconds.
    """
    end = time.monotonic() + wait
    while reason := await _why_not_served(domain.state, domain.controllers if controllers else ()):
        if time.monotonic() >= end:
            raise TargetError(reason)
        await asyncio.sleep(_INTERVAL)


async def _why_not_served(state: StateDir, controllers: tuple[str, ...]) -> str:
    try:
        status = await control.ask(state, "status", timeout=5)
    except TargetNotRunning as error:
        return str(error)
    if not status["target"]["ready"]:
        return f"the target of {state.root} is not ready; `nvmuser target logs` says why"
    missing = (name for name in controllers if not answers(state.socket(name)))
    return next((f"controller {name} is not served; see `nvmuser status`" for name in missing), "")

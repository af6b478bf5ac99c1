"""Controllers into a running QEMU, ours or anybody's, over QMP.

Owns the pre-flight (all that can be known is checked before the first change), the choice of a free port, and the order
of events. It does not start QEMU and does not make controllers.

`device_del` is never sent to a QEMU that aborts on it; see `unplug`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from nvmuser.errors import ConflictError, GuestError, NotFoundError
from nvmuser.guest.qemu import DRIVER, PLAIN_DRIVER, controller, device_id
from nvmuser.guest.spec import HUGEPAGE
from nvmuser.sockets import answers

_CONNECT_DEADLINE = 10.0
_DELETE_DEADLINE = 30.0
_IOMMUS = ("intel-iommu", "amd-iommu", "virtio-iommu-pci")

_FIRST_WITHOUT_ABORT = (11, 2)
"""Up to 11.1.3 `device_del` aborts QEMU: the PBA region is torn down after its parent dropped it
(memory_region_del_subregion: Assertion `subregion->container == mr' failed)."""


@dataclass(frozen=True)
class Problem:
    """Something that stands in the way of plugging, and what to do about it."""

    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}"


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[QMPClient]:
    """A QMP session with the QEMU that listens at `path`.

    :raise GuestError: nobody answers there, somebody else has the session, or it is not QMP.
    """
    qmp = QMPClient("nvmuser")
    try:
        async with asyncio.timeout(_CONNECT_DEADLINE):
            await qmp.connect(os.fspath(path))
    except TimeoutError:
        raise GuestError(
            f"{path}: QMP does not answer: a monitor serves one client, is another one connected?"
        ) from None
    except QMPError as error:
        raise GuestError(f"{path}: no QMP there: {error.__cause__ or error}") from error
    try:
        yield qmp
    finally:
        with contextlib.suppress(QMPError, EOFError, OSError):
            await qmp.disconnect()


async def preflight(
    qmp: QMPClient, sockets: Sequence[Path], *, user: int | None = None, driver: str = DRIVER
) -> list[Problem]:
    """What stands in the way of plugging these controllers; nothing is changed.

    :param user: as whom QEMU runs; None: as we do.
    """
    problems = [
        *await _driver(qmp, driver),
        *await _memory(qmp),
        *await _iommu(qmp, driver),
        *await _ports(qmp, len(sockets)),
    ]
    for path in sockets:
        problems += _socket(path, os.geteuid() if user is None else user)
    return problems


async def plug(
    qmp: QMPClient, sockets: Sequence[Path], *, user: int | None = None, directories: Sequence[Path] | None = None
) -> list[str]:
    """Plug controllers in, each into a free root port; returns their ids in QEMU.

    Nothing is touched when the pre-flight finds something. When QEMU refuses one, those before it stay in and are
    named: they cannot be taken out again without danger (see `unplug`).

    :param directories: into a QEMU with libvfio: the device directory of each.
    :raise ConflictError: one of them is plugged in already.
    :raise GuestError: something stands in the way, or QEMU refused.
    """
    present = await _peripherals(qmp)
    for path in sockets:
        if device_id(path) in present:
            raise ConflictError(f"controller {path.parent.name} is plugged in already")
    driver = DRIVER if directories is None else PLAIN_DRIVER
    if problems := await preflight(qmp, sockets, user=user, driver=driver):
        raise GuestError("; ".join(map(str, problems)))
    ports = await free_ports(qmp)
    done: list[str] = []
    for number, path in enumerate(sockets):
        device = controller(path, ports[number], directories[number] if directories is not None else None)
        try:
            await qmp.execute("device_add", device)
        except ExecuteError as error:
            before = f" (plugged in before it: {', '.join(done)})" if done else ""
            raise GuestError(f"QEMU refused controller {path.parent.name}: {error}{before}") from error
        done.append(device["id"])
    return done


async def unplug(qmp: QMPClient, socket: Path) -> None:
    """Take a controller out.

    :raise NotFoundError: it is not plugged in.
    :raise GuestError: this QEMU would abort, the guest refused, or did not answer.
    """
    name = socket.parent.name
    driver = (await _peripherals(qmp)).get(device_id(socket))
    if driver is None:
        raise NotFoundError(f"controller {name} is not plugged in")
    version = await version_of(qmp)
    if driver == DRIVER and version < _FIRST_WITHOUT_ABORT:
        raise GuestError(
            f"QEMU {'.'.join(map(str, version))} aborts when a {DRIVER} device is unplugged, and the guest with it: "
            f"take its volumes away with `nvmuser controller detach {name} VOLUME`, which every guest handles "
            "(guests with --via libvfio can be unplugged from)"
        )
    await remove(qmp, device_id(socket))


async def remove(qmp: QMPClient, identity: str) -> None:
    """Unplug any device, and wait until the guest has let go of it.

    :raise GuestError: the guest refused, or did not answer.
    """
    names = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
    # Listening before the command: the event may come before its reply.
    with qmp.listener(names, lambda event: _data(event).get("device") == identity) as events:
        try:
            await qmp.execute("device_del", {"id": identity})
            event = await asyncio.wait_for(events.get(), _DELETE_DEADLINE)
        except ExecuteError as error:
            raise GuestError(f"QEMU does not unplug {identity}: {error}") from error
        except TimeoutError:
            raise GuestError(
                f"the guest did not let go of {identity} within {_DELETE_DEADLINE:g} s; it may yet"
            ) from None
    if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
        raise GuestError(f"the guest refused to let go of {identity}")


async def free_ports(qmp: QMPClient) -> list[str]:
    """The ids of the PCIe root ports with nothing in them."""
    ports = {name for name, kind in (await _peripherals(qmp)).items() if kind == "pcie-root-port"}
    taken = {
        device["qdev_id"]
        for bus in _list(await qmp.execute("query-pci"))
        for device in bus["devices"]
        if device.get("pci_bridge", {}).get("devices")
    }
    return sorted(ports - taken, key=lambda name: (len(name), name))


async def version_of(qmp: QMPClient) -> tuple[int, int, int]:
    """QEMU's version."""
    found = _dict(await qmp.execute("query-version"))["qemu"]
    return found["major"], found["minor"], found["micro"]


async def _peripherals(qmp: QMPClient) -> dict[str, str]:
    """The devices that have an id, and their types."""
    return dict(await _children(qmp, "/machine/peripheral"))


async def _children(qmp: QMPClient, path: str) -> list[tuple[str, str]]:
    listing = _list(await qmp.execute("qom-list", {"path": path}))
    return [(entry["name"], entry["type"][6:-1]) for entry in listing if entry["type"].startswith("child<")]


async def _driver(qmp: QMPClient, driver: str) -> list[Problem]:
    try:
        await qmp.execute("device-list-properties", {"typename": driver})
    except ExecuteError:
        version = ".".join(map(str, await version_of(qmp)))
        return [Problem(f"QEMU {version} has no {driver}", "QEMU 10.1 or later, built with it, is needed")]
    return []


async def _memory(qmp: QMPClient) -> list[Problem]:
    mend = "start it with -object memory-backend-memfd,id=mem,size=…,share=on -machine memory-backend=mem"
    backends = _list(await qmp.execute("query-memdev"))
    if not backends:
        return [Problem("the guest's memory is not shared", mend)]
    problems = []
    for backend in backends:
        name = backend.get("id", "(unnamed)")
        if not backend.get("share"):
            problems.append(Problem(f"the guest's memory {name} is not shared", mend))
        if backend["size"] % HUGEPAGE:
            odd = f"the guest's memory {name} has {backend['size']} bytes"
            problems.append(Problem(odd, "make it a multiple of 2 MiB: SPDK maps memory in such pieces"))
    return problems


async def _iommu(qmp: QMPClient, driver: str) -> list[Problem]:
    devices = [*await _children(qmp, "/machine/peripheral"), *await _children(qmp, "/machine/peripheral-anon")]
    return [
        Problem(
            f"the guest has an IOMMU ({kind})", f"start it without: {driver} maps memory behind it anew all the time"
        )
        for _, kind in devices
        if kind in _IOMMUS
    ]


async def _ports(qmp: QMPClient, wanted: int) -> list[Problem]:
    free = len(await free_ports(qmp))
    if free >= wanted:
        return []
    return [
        Problem(
            f"{wanted} free PCIe root ports are needed, the guest has {free}",
            "they are made when QEMU starts (-device pcie-root-port,id=…; --spare-ports for guests of ours)",
        )
    ]


def _socket(path: Path, user: int) -> Iterator[Problem]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        yield Problem(f"{path} does not exist", "create the controller, and start the target")
        return
    if not stat.S_ISSOCK(mode):
        yield Problem(f"{path} is not a socket", "name a controller")
    elif not answers(path):
        yield Problem(f"nobody answers at {path}", "start the target")
    elif closed := _closed_to(path, user):
        yield Problem(f"{closed} is closed to user {user}, as whom QEMU runs", "give the controller that --owner")


def _closed_to(path: Path, user: int) -> Path | None:
    """The first thing on the way to a socket that its mode closes to a user: a directory, or the socket itself."""
    if user == 0:
        return None
    groups = _groups(user)
    for part in (*reversed(path.parents), path):
        info = part.stat()
        needed = 0o2 if part == path else 0o1
        if info.st_uid == user:
            needed <<= 6
        elif info.st_gid in groups:
            needed <<= 3
        if not info.st_mode & needed:
            return part
    return None


def _groups(user: int) -> set[int]:
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return set()
    return set(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _list(value: object) -> list[Any]:
    assert isinstance(value, list)
    return value


def _dict(value: object) -> dict[str, Any]:
    assert isinstance(value, dict)
    return value


def _data(event: Any) -> dict[str, Any]:
    return _dict(event.get("data", {}))

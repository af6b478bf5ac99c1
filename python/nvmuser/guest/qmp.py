"""QMP sessions with any QEMU, and what can be asked of it about its devices.

Owns the session, and the form of QEMU's answers. Nothing here changes a guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError, StateError

from nvmuser.errors import GuestError
from nvmuser.guest.migration import NODE
from nvmuser.guest.qemu import DRIVER, PLAIN_DRIVER

_CONNECT_DEADLINE = 10.0
_PORT = "pcie-root-port"


@dataclass(frozen=True)
class MemoryBackend:
    """One piece of a guest's memory."""

    name: str
    size: int
    shared: bool
    page_size: int
    """0: not known."""
    backed: bool
    """Its pages are set aside: none can be missing when it is first touched."""


@dataclass(frozen=True)
class Facts:
    """What a running QEMU is made of, as far as our controllers are concerned."""

    version: tuple[int, int, int]
    drivers: frozenset[str]
    """Which of the devices that can be our controllers it has."""
    devices: Mapping[str, str]
    """Types of the devices that have an id."""
    unnamed: tuple[str, ...] = ()
    """Types of the others."""
    memory: tuple[MemoryBackend, ...] = ()
    free_ports: tuple[str, ...] = ()
    """Ids of PCIe root ports with nothing in them, into which something can be plugged."""

    migration_blocked: bool = False
    """It has the node that keeps it from migrating (`nvmuser.guest.migration`)."""

    @property
    def has_native(self) -> bool:
        """Whether a device of QEMU's own vfio-user client is in it."""
        return DRIVER in (*self.devices.values(), *self.unnamed)

    @property
    def version_text(self) -> str:
        """The version with dots."""
        return ".".join(map(str, self.version))


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[QMPClient]:
    """A QMP session with the QEMU that listens at `path`.

    :raises GuestError: nobody answers there, somebody else has the session, it is not QMP, or QEMU ended meanwhile.
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
    except (ExecInterruptedError, StateError) as error:  # at a command that waited, and at those after it
        raise GuestError(f"{path}: QEMU hung up before it answered: it has ended, or closed its monitor") from error
    finally:
        with contextlib.suppress(QMPError, EOFError, OSError):
            await qmp.disconnect()


async def look(qmp: QMPClient) -> Facts:
    """All facts, asked for at once: QEMU may be busy, and each answer takes its turn."""
    version, drivers, named, unnamed, memory, (buses, nodes) = await asyncio.gather(
        _dict(qmp, "query-version"),
        _drivers(qmp),
        _children(qmp, "/machine/peripheral"),
        _children(qmp, "/machine/peripheral-anon"),
        _list(qmp, "query-memdev"),
        asyncio.gather(_list(qmp, "query-pci"), _list(qmp, "query-named-block-nodes", {"flat": True})),
    )
    devices = dict(named)
    number = version["qemu"]
    return Facts(
        version=(number["major"], number["minor"], number["micro"]),
        drivers=drivers,
        devices=devices,
        unnamed=tuple(kind for _, kind in unnamed),
        memory=tuple(await asyncio.gather(*(_backend(qmp, backend) for backend in memory))),
        free_ports=await _free_ports(qmp, devices, buses),
        migration_blocked=any(node["node-name"] == NODE for node in nodes),
    )


async def _free_ports(qmp: QMPClient, devices: Mapping[str, str], buses: list[Any]) -> tuple[str, ...]:
    taken = {
        device["qdev_id"] for bus in buses for device in bus["devices"] if device.get("pci_bridge", {}).get("devices")
    }
    ports = [name for name, kind in devices.items() if kind == _PORT and name not in taken]
    able = await asyncio.gather(*(_property(qmp, f"/machine/peripheral/{name}", "hotplug") for name in ports))
    free = [name for name, hotplug in zip(ports, able, strict=True) if hotplug is not False]
    return tuple(sorted(free, key=lambda name: (len(name), name)))


async def _drivers(qmp: QMPClient) -> frozenset[str]:
    async def has(driver: str) -> bool:
        try:
            await qmp.execute("device-list-properties", {"typename": driver})
        except ExecuteError:
            return False
        return True

    drivers = (DRIVER, PLAIN_DRIVER)
    found = await asyncio.gather(*map(has, drivers))
    return frozenset(driver for driver, there in zip(drivers, found, strict=True) if there)


async def _backend(qmp: QMPClient, facts: dict[str, Any]) -> MemoryBackend:
    name = facts.get("id", "")
    huge, size, path = await asyncio.gather(
        *(_property(qmp, f"/objects/{name}", what) for what in ("hugetlb", "hugetlbsize", "mem-path"))
    )
    page_size = 0
    if path:
        with contextlib.suppress(OSError):  # it may be another mount namespace's
            page_size = os.statvfs(path).f_bsize
    elif huge is not None:
        page_size = (size or 2 << 20) if huge else os.sysconf("SC_PAGESIZE")
    return MemoryBackend(
        name=name or "(unnamed)",
        size=facts["size"],
        shared=bool(facts.get("share")),
        page_size=page_size,
        backed=bool(facts.get("prealloc")) or facts.get("reserve") is not False,
    )


async def _property(qmp: QMPClient, path: str, name: str) -> Any:
    """None where there is no such property: what is asked for differs by type."""
    try:
        return await qmp.execute("qom-get", {"path": path, "property": name})
    except ExecuteError:
        return None


async def _children(qmp: QMPClient, path: str) -> list[tuple[str, str]]:
    listing = await _list(qmp, "qom-list", {"path": path})
    return [(entry["name"], entry["type"][6:-1]) for entry in listing if entry["type"].startswith("child<")]


async def _list(qmp: QMPClient, command: str, arguments: dict[str, object] | None = None) -> list[Any]:
    value = await qmp.execute(command, arguments)
    assert isinstance(value, list)
    return value


async def _dict(qmp: QMPClient, command: str) -> dict[str, Any]:
    value = await qmp.execute(command)
    assert isinstance(value, dict)
    return value

"""A guest of ours moves to another state directory, with its controllers.

Owns what is there on both sides before and after: controllers that are expected, a QEMU that waits, the records. When
the guest does not arrive, nothing of it is left there. The migration itself is `nvmuser.guest.move`'s, who opens the
volumes the endpoints'.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from nvmuser.errors import ConflictError, GuestError, NvmuserError
from nvmuser.guest import move, saved
from nvmuser.guest.qmp import connected, look
from nvmuser.guest.registry import GuestRecord, registry
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.hostfs.sockets import check_socket_path
from nvmuser.model import incoming
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

_SOCKET = "move"
_OURS = "nvmuser-"


@dataclass(frozen=True)
class Options:
    """How a guest moves.

    :ivar uri: QEMU's, such as `tcp:HOST:PORT`; empty: a UNIX socket in the guest's new directory.
    :ivar bandwidth: bytes a second at most; 0: as fast as it can.
    :ivar downtime: seconds for which QEMU may stop the guest.
    """

    uri: str = ""
    bandwidth: int = 0
    downtime: float = move.DOWNTIME


async def relocate(
    here: StateDir,
    there: StateDir,
    name: str,
    options: Options,
    *,
    on_step: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[move.Progress], None] = lambda progress: None,
) -> move.Result:
    """Move a guest that runs `here`. When this fails, or is cancelled, it goes on here, unless it has left for good.

    :raises Stranded: it has arrived, and does not run: its volumes are `there`'s.
    :raises NvmuserError: it cannot move, or did not arrive.
    """
    record = registry(here).get(name)
    names = movable(record)
    check_memory(record)
    result, problem = None, "its QEMU there has ended"
    try:
        result = await _migrate(here, there, record, options, on_step, on_progress)
    except move.Stranded as error:
        problem = str(error)
    await registry(here).discard(name)
    if result and registry(there).get(name).running:
        return result
    for one in names:
        # Its QEMU may not have lived long enough to have them opened.
        with contextlib.suppress(NvmuserError):
            await control.take_back(there, one)
    raise move.Stranded(f"guest {name} has arrived, and {problem}: its disks are {there.root}'s")


async def _migrate(
    here: StateDir,
    there: StateDir,
    record: GuestRecord,
    options: Options,
    on_step: Callable[[str], None],
    on_progress: Callable[[move.Progress], None],
) -> move.Result:
    async with leaving(here, record) as source:
        on_step("preparing the destination")
        kind = await move.machine_type(source)
        async with _expected(here, there, movable(record)), _waiting(there, record, kind) as qmp:
            uri = options.uri or f"unix:{registry(there).runtime(record.name).directory / _SOCKET}"
            check_socket_path(Path(uri.removeprefix("unix:")))
            on_step("moving")
            async with connected(qmp) as destination:
                return await move.move(
                    source,
                    destination,
                    uri,
                    on_progress=on_progress,
                    bandwidth=options.bandwidth,
                    downtime=options.downtime,
                )


def check_memory(record: GuestRecord) -> None:
    """:raises GuestError: a guest's memory is a file, which stays where it is."""
    if file := record.machine.get("memory_file"):
        raise GuestError(f"guest {record.name!r} has its memory in {file}, which stays here: suspend and resume it")


async def suspend(
    state: StateDir, name: str, file: Path, *, on_progress: Callable[[move.Progress], None] = lambda progress: None
) -> move.Result:
    """Write a guest that runs to a file, and end its QEMU. When this fails, or is cancelled, it goes on.

    Beside the file lies what `resume` needs to know of the guest, with `.json` at the end of its name. Memory that is a
    file stays where it is, and is not written.

    :raises NvmuserError: it cannot be written.
    """
    record = registry(state).get(name)
    beside = _beside(file)
    if file.exists() or beside.exists():
        raise ConflictError(f"{file}: exists already")
    try:
        async with leaving(state, record) as source:
            kind = await move.machine_type(source)
            beside.write_text(json.dumps({"name": name, "machine": record.machine, "type": kind}), encoding="utf-8")
            without = bool(record.machine.get("memory_file"))
            result = await move.save(source, file, without_memory=without, on_progress=on_progress)
    except OSError as error:
        raise GuestError(f"{error.filename}: {error.strerror}; the guest goes on") from error
    except BaseException:
        for path in (file, beside):
            path.unlink(missing_ok=True)
        raise
    await registry(state).discard(name, keep_memory=True)
    return result


async def resume(state: StateDir, name: str, file: Path) -> None:
    """Have a guest go on that `suspend` has written, on the same controllers. The file stays when this fails.

    :raises NvmuserError: it cannot go on.
    """
    try:
        saying = json.loads(_beside(file).read_text(encoding="utf-8"))
        machine, kind = saying["machine"], saying.get("type", "q35")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise GuestError(f"{_beside(file)}: not what `nvmuser guest suspend` has written: {error}") from error
    record = GuestRecord(name, 0, 0, 0, 0, (), libvfio=True, machine=machine)
    memory = machine.get("memory_file")
    if memory and not Path(memory).exists():
        raise GuestError(f"{memory}: the guest's memory is gone: it ends with this machine, as its file system does")
    async with _waiting(state, record, kind) as qmp, connected(qmp) as destination:
        await move.load(destination, file, without_memory=bool(memory))
    # It must not go on a second time: its volumes have changed since.
    for path in (file, _beside(file)):
        path.unlink(missing_ok=True)


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


@contextlib.asynccontextmanager
async def leaving(here: StateDir, record: GuestRecord) -> AsyncIterator[QMPClient]:
    """A session with the QEMU of a guest that can move.

    :raises GuestError: it cannot.
    """
    names = movable(record)
    async with connected(registry(here).runtime(record.name).qmp) as source:
        await move.check(source)
        plugged = {identity for identity in (await look(source)).devices if identity.startswith(_OURS)}
        if plugged != {_OURS + one for one in names}:
            raise GuestError("controllers were plugged into this guest, or out of it: that is not moved yet")
        yield source


def movable(record: GuestRecord) -> list[str]:
    """Names of its controllers.

    :raises GuestError: it cannot move.
    """
    if not record.running:
        raise GuestError(f"guest {record.name!r} does not run any more")
    if record.sockets and not record.libvfio:
        raise GuestError(
            f"guest {record.name!r} uses QEMU's own vfio-user client, which loses the disks when it migrates: start it "
            "with --via libvfio"
        )
    return [Path(path).parent.name for path in record.sockets]


@contextlib.asynccontextmanager
async def _expected(here: StateDir, there: StateDir, names: Sequence[str]) -> AsyncIterator[None]:
    """The guest's controllers, expected there. What was declared for it goes again when it does not come: a guest that
    has arrived has its volumes there, whatever becomes of its QEMU.

    :raises NvmuserError: another controller, or another volume, is there.
    """
    source, made = control.load(here), list[str]()
    async with control.connected(there):
        pass
    try:
        for name in names:
            description = incoming.description(source.controller(name), source)
            if change := incoming.change(control.load(there), *incoming.expected(name, description)):
                await control.submit(there, change)
                made.append(name)
        yield
    except move.Stranded:
        raise
    except BaseException:
        for name in made:
            with contextlib.suppress(NvmuserError):
                await control.submit(there, incoming.forget(control.load(there), name))
        raise


@contextlib.asynccontextmanager
async def _waiting(there: StateDir, record: GuestRecord, machine_type: str) -> AsyncIterator[Path]:
    """A QEMU that waits for the guest; its QMP socket. It ends when the guest does not come.

    One that has it, and does not run it, has the only copy of its memory.
    """
    await start_incoming(there, record.name, record.machine, machine_type)
    try:
        yield registry(there).runtime(record.name).qmp
    except move.Stranded:
        raise
    except BaseException:
        await registry(there).discard(record.name, keep_memory=True)
        raise


async def start_incoming(there: StateDir, name: str, machine: Mapping[str, Any], machine_type: str) -> None:
    """Start a QEMU that waits for a guest.

    :param machine: as its record has it.
    :raises NvmuserError: it does not start.
    """
    names = [str(one) for one in machine.get("controllers", [])]
    devices, desired = Devices(there), control.load(there)
    directories = {one: devices.provide(desired.controller(one)) for one in names}
    spec = saved.from_json(machine, {one: there.socket(one) for one in names}, directories, machine_type)
    await registry(there).start(name, spec, incoming=True)

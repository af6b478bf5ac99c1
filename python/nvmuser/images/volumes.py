"""An import or export of a volume, from its beginning, or where an earlier one was interrupted, to its verification.

Owns the controller by which it reaches the volume: made for it, and deleted with it. A volume that another controller
shows is refused, since a guest could write to it meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.errors import ConflictError, TargetError, TargetNotRunning, UsageError
from nvmuser.images import formats, transfer
from nvmuser.images.checkpoint import Checkpoint, Copy, Direction
from nvmuser.images.formats import Format
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.model.sizes import format_size
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

Report = Callable[[str, float], None]
"""What goes on, and how much of it is done, from 0 to 1."""


@dataclass(frozen=True)
class Transferred:
    """What was copied."""

    size: int
    resumed_at: int
    sha256: str
    """Of the volume's data, which is that of the image."""

    def to_json(self) -> dict[str, Any]:
        """Of `volume import --json` and `volume export --json`."""
        return {"bytes": self.size, "resumed_at": self.resumed_at, "sha256": self.sha256}


async def import_(state: StateDir, name: str, path: Path, kind: Format, report: Report) -> Transferred:
    """Fill a volume with an image, and compare it with that.

    :raises NvmuserError: it cannot be, or is not the same afterwards.
    """
    volume = _volume(state, name)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    raw = path
    if kind == "qcow2":
        report("converting", 0)
        raw = state.transfers / f"{volume.uuid}.raw"
        raw.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not (raw.exists() and raw.stat().st_mtime_ns > path.stat().st_mtime_ns):
            part = raw.with_suffix(".part")
            await asyncio.to_thread(formats.to_raw, path, part)
            part.replace(raw)
    done = await _copied(state, volume, "import", raw, report)
    if raw != path:
        raw.unlink()
    return done


async def export(state: StateDir, name: str, path: Path, kind: Format, report: Report) -> Transferred:
    """Copy a volume to an image, and compare that with it. One that is there is taken only to resume.

    :raises NvmuserError: it cannot be, or is not the same afterwards.
    """
    volume = _volume(state, name)
    raw = path
    if kind == "qcow2":
        if path.exists():
            raise UsageError(f"{path}: exists; name another file, or remove it")
        raw = state.transfers / f"{volume.uuid}.export"
        raw.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    done = await _copied(state, volume, "export", raw, report)
    if raw != path:
        report("converting", 0)
        try:
            await asyncio.to_thread(formats.from_raw, raw, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        raw.unlink()
    return done


def _volume(state: StateDir, name: str) -> Volume:
    volume = control.load(state).get(Key("volume", name))
    assert isinstance(volume, Volume)
    return volume


async def _copied(state: StateDir, volume: Volume, direction: Direction, raw: Path, report: Report) -> Transferred:
    async with _shown(state, volume, direction) as directory:
        work = asyncio.to_thread(_copy, state, volume, direction, raw, directory, report)
        return await asyncio.shield(asyncio.ensure_future(work))


def _copy(
    state: StateDir, volume: Volume, direction: Direction, raw: Path, directory: Path, report: Report
) -> Transferred:
    flags = os.O_RDONLY if direction == "import" else os.O_RDWR | os.O_CREAT
    with contextlib.ExitStack() as stack:
        number = os.open(raw, flags | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, number)
        device = stack.enter_context(transfer.Device.open(directory))
        held = os.fstat(number).st_size
        size = device.size if direction == "export" else -(-held // 512) * 512
        if size > device.size:
            raise UsageError(
                f"{raw}: has {format_size(held)}, and volume {volume.name} {format_size(device.size)}: grow it first"
            )
        checkpoint = Checkpoint(state.transfers, Copy.of(direction, volume.uuid, raw, size))
        start = checkpoint.load()
        if direction == "export" and held and not start:
            raise UsageError(f"{raw}: exists; name another file, or remove it")

        def tick(done: int) -> None:
            checkpoint.save(done)
            report("copying", done / size if size else 1)

        if direction == "import":
            transfer.from_file(number, device, start, size, tick)
        else:
            checkpoint.save(start)
            transfer.to_file(device, number, start, size, tick)
        report("verifying", 0)
        here = transfer.digest_of_file(number, size, lambda done: report("verifying", done / size / 2))
        there = transfer.digest_of_device(device, size, lambda done: report("verifying", 0.5 + done / size / 2))
        checkpoint.forget()
        if here != there:
            raise TargetError(f"volume {volume.name} and {raw} differ: {there} and {here} (SHA-256)")
        return Transferred(size, start, here)


@contextlib.asynccontextmanager
async def _shown(state: StateDir, volume: Volume, direction: Direction) -> AsyncIterator[Path]:
    """The directory of a controller's socket that shows the volume, and nothing else."""
    controller = Controller(f"{direction}.{volume.name}"[:63], (Namespace(volume.name),), volatile=True)
    desired = control.load(state)
    left_over = controller.key in desired.entries
    users = [user for user in desired.users(volume.key) if user != controller.key.words]
    if users:
        raise ConflictError(f"{volume.key.words}: in use by {', '.join(users)}: detach it first, or copy a snapshot")
    if not left_over:
        outcome = await control.submit(state, Change(create=(controller,)))
        if outcome.pending:
            await control.submit(state, Change(delete=(controller.key,)))
            raise TargetNotRunning("the target is not running; start it with `nvmuser target start`")
    try:
        yield state.target_dir(controller.name)
    finally:
        await control.submit(state, Change(delete=(controller.key,)))

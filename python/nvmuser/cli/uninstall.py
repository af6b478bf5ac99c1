"""`nvmuser uninstall`: what nvmuser has made on this machine, listed and removed.

Owns the list of what is removed: only names that nvmuser gives, so that a directory with other files keeps them. The
Python package is not among them: what has installed it removes it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import counted, say
from nvmuser.errors import AccessError, ConflictError, NvmuserError
from nvmuser.guest.registry import Registry
from nvmuser.model.sizes import approximate
from nvmuser.paths import StateDir, cache_dir
from nvmuser.supervisor import control, daemon

_CACHE = ("accelerator.json", "apt", "bindings", "build", "download", "guest-*", "libvfio-*", "log", "qemu-*",
          "setup.lock", "spdk-*")  # fmt: skip
_STATE = ("hostid", "hostnqn", "log", "run", "spdk", "store.sqlite*", "supervisor.json*", "volumes")
_UNITS = Path("/etc/systemd/system")


@dataclass(frozen=True)
class Item:
    """Something to remove, as a person knows it.

    :param paths: what nvmuser has made in it, or itself.
    :param size: bytes on the disk.
    """

    path: Path
    what: str
    size: int
    paths: tuple[Path, ...]

    def remove(self) -> None:
        """Remove what nvmuser has made; the directory too when nothing else is in it.

        :raises OSError: something cannot be removed.
        """
        for path in self.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


@click.command()
@click.option("--yes", is_flag=True, help="Remove it. Without: only list what would be removed.")
@click.option("--keep-state", is_flag=True, help="Leave the state directory, with the data of its volumes.")
@json_option
@click.pass_obj
def uninstall(state: StateDir, yes: bool, keep_state: bool, as_json: bool) -> None:
    """List what nvmuser has made on this machine, and remove it with --yes: the cache, the state directory with the
    data of its volumes, and systemd units of it. Refused while a target or a guest runs.

    Files given by --path stay, and the Python package does: remove it as it was installed.

    \b
    Examples:
      nvmuser uninstall
      nvmuser --state-dir /srv/nvmuser uninstall --yes
      nvmuser uninstall --yes --keep-state
    """
    _check_unused(state)
    items = list(_items(state, keep_state=keep_state))
    stays = [] if keep_state else _outside(state)
    if yes:
        with _held(state):
            for item in items:
                item.remove()
    if as_json:
        say({"removed": yes, "items": [_json(item) for item in items], "stays": [str(path) for path in stays]})
        return
    for item in items:
        click.echo(f"{'removed' if yes else 'would remove'} {item.path}: {item.what}, {approximate(item.size)}")
    for path in stays:
        click.echo(f"stays {path}: the file of a volume")
    if not items:
        click.echo("nothing is there")
    elif not yes:
        click.echo("nothing was removed: pass --yes to remove it")


def _json(item: Item) -> dict[str, object]:
    facts = asdict(item)
    return facts | {"path": str(item.path), "paths": [str(path) for path in item.paths]}


def _check_unused(state: StateDir) -> None:
    """:raises ConflictError: something that would be removed is in use."""
    if live := control.live_processes(state):
        raise ConflictError(f"{state.root}: {' and '.join(live)} live; `nvmuser target stop` ends them")
    running = [record.name for record in Registry(state.run / "vm").list() if record.running]
    if running:
        raise ConflictError(f"guest {running[0]} runs; `nvmuser guest stop {running[0]}` ends it")
    for pid, program in _programs():
        if program.is_relative_to(cache_dir().absolute()):
            raise ConflictError(f"process {pid} runs {program}, of this or another state directory: end it first")


def _programs() -> Iterator[tuple[int, Path]]:
    """Processes that this user may see, and what they run."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            yield int(name), Path(os.readlink(f"/proc/{name}/exe"))


def _items(state: StateDir, *, keep_state: bool) -> Iterator[Item]:
    if paths := _matching(cache_dir(), _CACHE):
        yield Item(cache_dir(), "SPDK, QEMU and the guest", _size(paths), paths)
    for unit in _units(state):
        yield Item(unit[0], "a systemd unit; `systemctl daemon-reload` follows", _size(unit), unit)
    if not keep_state and (paths := _matching(state.root, _STATE)):
        yield Item(state.root, f"a deployment with {counted(_volumes(state), 'volume')}", _size(paths), paths)


def _matching(root: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    try:
        names = sorted(os.listdir(root))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(root / name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


def _units(state: StateDir) -> Iterator[tuple[Path, ...]]:
    """Units of this state directory, each with the links that have systemd start it (`nvmuser target unit`)."""
    words = f'--state-dir "{state.root}" target start'.replace("%", "%%")
    for unit in sorted(_UNITS.glob("*.service")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if words in unit.read_text(encoding="utf-8"):
                yield (unit, *sorted(_UNITS.glob(f"*.wants/{unit.name}")))


def _volumes(state: StateDir) -> int:
    """How many it has; 0 where its store is damaged, which is no reason to keep it."""
    try:
        return len(control.load(state).volumes())
    except AccessError:
        raise
    except NvmuserError:
        return 0


def _outside(state: StateDir) -> list[Path]:
    """Files of volumes that are not in the state directory."""
    try:
        paths = [Path(volume.path) for volume in control.load(state).volumes() if volume.path]
    except AccessError:
        raise
    except NvmuserError:
        return []
    return [path for path in paths if not path.is_relative_to(state.root)]


def _size(paths: tuple[Path, ...]) -> int:
    """Bytes that they take on the disk."""
    total = 0
    for path in paths:
        for place in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
            with contextlib.suppress(OSError):
                total += place.lstat().st_blocks * 512
    return total


@contextlib.contextmanager
def _held(state: StateDir) -> Iterator[None]:
    """No supervisor starts meanwhile.

    :raises ConflictError: one has.
    """
    with contextlib.ExitStack() as stack:
        if state.lock.is_file():
            stack.enter_context(daemon.locked(state))
        yield

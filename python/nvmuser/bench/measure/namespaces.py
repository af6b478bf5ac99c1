"""Hosts as network namespaces: a bridge, and for each host an interface with an address of its own, which can be cut.

Everything is in a network namespace of its own, in which this process must be already (`enter`), so that nothing has a
name outside of it, and all of it is gone with the last process in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nvmuser.errors import SetupError

_BRIDGE = "nu0"
_NET = "10.83.0"
_TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}


def enter(module: str, arguments: Sequence[str]) -> int:
    """Run a module in a network namespace of its own; as another user than root in a user namespace too.

    Returns its exit status.

    :raises SetupError: a program is missing, or namespaces are not allowed here.
    """
    for program, package in _TOOLS.items():
        if not shutil.which(program, path=_path()):
            raise SetupError(f"{program} is not installed: `apt-get install {package}`")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    within = ["unshare", *user, "--net"]
    probe = subprocess.run([*within, sys.executable, "-c", ""], capture_output=True, text=True, check=False)
    if probe.returncode:
        reason = probe.stderr.strip().removeprefix("unshare: ")
        raise SetupError(
            f"no network namespace can be made here ({reason}): run it as root, or allow user namespaces "
            "(`sysctl kernel.unprivileged_userns_clone=1`)"
        )
    return subprocess.run([*within, sys.executable, "-m", module, *arguments], check=False).returncode


def _path() -> str:
    """With the directories of root's programs, in which `ip` is."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Network:
    """The bridge, with an address for what all hosts reach. A context manager."""

    address = f"{_NET}.1"

    def __init__(self) -> None:
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        _ip("link", "set", "lo", "up")
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for holder in self._hosts.values():
            holder.kill()
            holder.wait()

    def add(self, name: str) -> str:
        """A host: a namespace with one interface. Returns its address.

        :raises SetupError: it cannot be made.
        """
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"], stdout=subprocess.PIPE
        )
        assert holder.stdout
        holder.stdout.readline()
        self._hosts[name] = holder
        address = f"{_NET}.{10 + len(self._hosts)}"
        _ip("link", "add", f"nu-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _ip("link", "set", f"nu-{name}", "master", _BRIDGE, "up")
        for words in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run([*self.within(name), "ip", *words.split()])
        return address

    def within(self, name: str) -> list[str]:
        """What comes before a command that runs on a host."""
        return ["nsenter", "--target", str(self._hosts[name].pid), "--net", "--"]

    def pid(self, name: str) -> int:
        """Of the process that holds a host's namespace."""
        return self._hosts[name].pid

    def cut(self, name: str, cut: bool = True) -> None:
        """Take a host off the network, or bring it back."""
        _ip("link", "set", f"nu-{name}", "down" if cut else "up")

    def power_off(self, name: str) -> None:
        """Kill all processes of a host at once. Its namespace stays."""
        holder = self._hosts[name].pid
        wanted = os.readlink(f"/proc/{holder}/ns/net")
        while pids := [pid for pid in _processes() if pid != holder and _network_of(pid) == wanted]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def keep(self) -> None:
        """Leave the namespaces to the processes in them."""
        self._hosts = {}

    async def run(self, name: str, *words: str, state: Path, statuses: Collection[int] = (0,)) -> str:
        """Run `nvmuser` on a host. Returns what it prints.

        :param statuses: those with which it has not failed.
        :raises SetupError: it failed.
        """
        command = [*self.within(name), sys.executable, "-c", "from nvmuser.cli.main import main; main()"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, "--state-dir", str(state), *words, stdout=pipe, stderr=pipe, stdin=asyncio.subprocess.DEVNULL
        )
        output, errors = await process.communicate()
        if process.returncode not in statuses:
            raise SetupError(f"host {name}: nvmuser {words[0]}: {errors.decode(errors='replace').strip()}")
        return output.decode()


def _processes() -> Iterator[int]:
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def _network_of(pid: int) -> str:
    """Empty where it has ended: what is left of it then is in no namespace."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: Sequence[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": _path()})
    if ended.returncode:
        raise SetupError(f"{' '.join(command[-6:])}: {ended.stderr.strip()}")

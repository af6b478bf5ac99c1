"""`nvmuser fleet demo`: etcd, three hosts, storage that two of them reach, and two guests, on this machine.

    python -m nvmuser.bench.scenarios.fleet_demo DIRECTORY [--json] [--keep] [--without ceph] [--without guests]

Controllers are declared; one moves, with its guest; a host loses its power, what it had is opened elsewhere, and its
guest is started there. Runs in a network namespace of its own (`nvmuser.bench.measure.namespaces`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.namespaces import Network
from nvmuser.bench.scenarios.fleet_demo_hosts import HOSTS, Hosts
from nvmuser.errors import NvmuserError, TargetError
from nvmuser.guest.registry import registry

PARTS = ("ceph", "guests")
"""What can be left out."""
_MOVES, _EVICTED = "vm3", "vm4"
_GUESTS = {_MOVES: "box", _EVICTED: "pad"}
"""Controller → its guest."""
_MACHINE = ("--via", "libvfio", "--memory", "512M", "--no-hugepages")
_NOTE = "/mnt/note"
_WRITE = f"mkfs.ext4 -q /dev/nvme0n1 && mkdir -p /mnt && mount /dev/nvme0n1 /mnt && echo {{}} > {_NOTE} && sync"
_READ = f"mkdir -p /mnt && (mountpoint -q /mnt || mount /dev/nvme0n1 /mnt) && cat {_NOTE}"


class Demo:
    """What is done with hosts that run.

    :param guests: whether there are any.
    """

    def __init__(self, hosts: Hosts, *, guests: bool) -> None:
        self._hosts = hosts
        self._guests = guests

    async def run(self) -> dict[str, Any]:
        """Everything in turn. Returns the document.

        :raises NvmuserError: something did not work.
        """
        applied = await self._timed("h1", "apply", "-f", str(self._hosts.write_spec()))
        if self._guests:
            for controller in _GUESTS:
                await self._boot("h1", controller)
                await self._in_guest("h1", controller, _WRITE.format(controller))
        moved = await self._move()
        away = await self._lose()
        return {
            "hosts": await self._where(),
            "moved": {_MOVES: moved},
            "evicted": {_EVICTED: away.pop("evict_s")},
            "apply_s": applied,
            "away": away,
            "ceph": self._hosts.ceph is not None,
            "pids": self._hosts.pids,
        }

    async def _timed(self, host: str, *words: str) -> float:
        began = time.monotonic()
        await self._hosts.on(host, *words)
        return time.monotonic() - began

    async def _boot(self, host: str, controller: str) -> None:
        await self._hosts.on(host, "guest", "start", _GUESTS[controller], "--controller", controller, *_MACHINE)

    async def _in_guest(self, host: str, controller: str, command: str) -> str:
        """Run a command in a guest. Returns what it prints."""
        async with registry(self._hosts.state(host)).agent(_GUESTS[controller]) as agent:
            return (await agent.run(command, timeout=120, check=True)).stdout.decode().strip()

    async def _check(self, host: str, controller: str) -> None:
        """:raises TargetError: a guest does not find what it wrote."""
        if (found := await self._in_guest(host, controller, _READ)) != controller:
            raise TargetError(f"guest {_GUESTS[controller]} finds {found!r} on host {host}, and wrote {controller!r}")

    async def _move(self) -> float:
        """To another host by its own. Returns the seconds of the command."""
        words = ("guest", "migrate", _GUESTS[_MOVES]) if self._guests else ("fleet", "move", _MOVES)
        took = await self._timed("h1", *words, "--to", "h2")
        if self._hosts.state("h1").socket(_MOVES).exists():
            raise TargetError(f"{_MOVES} has moved, and is served where it was")
        if self._guests:
            await self._check("h2", _MOVES)
        return took

    async def _lose(self) -> dict[str, float]:
        """A host loses its power, and comes back when others have what it had. Returns seconds."""
        self._hosts.say("h1 loses its power")
        self._hosts.power_off("h1")
        noticed = await self._hosts.until("h1", live=False)
        began = time.monotonic()
        self._hosts.say("h2$ nvmuser host evict h1")
        done = await self._hosts.ask("h2", "host", "evict", "h1")
        took = time.monotonic() - began
        if done["moved"] != {f"controller/{_EVICTED}": "h2"}:
            raise TargetError("; ".join(done["stayed"].values()) or f"{_EVICTED} is not on h2")
        if self._guests:
            await self._boot("h2", _EVICTED)
            await self._check("h2", _EVICTED)
        await self._hosts.start("h1")
        return {"evict_s": took, "noticed_s": noticed, "back_s": await self._hosts.until("h1", live=True)}

    async def _where(self) -> list[dict[str, Any]]:
        """What is on each host.

        :raises NvmuserError: etcd does not answer.
        """
        shown = await self._hosts.ask("h2", "host", "list")
        listed = await self._hosts.ask("h2", "fleet", "list", "--kind", "controller")
        return [
            {
                "name": host["name"],
                "address": self._hosts.addresses[host["name"]],
                "live": host["live"],
                "controllers": [row["name"] for row in listed if row["host"] == host["name"]],
                "volumes": host["volumes"],
                "guests": [one.name for one in registry(self._hosts.state(host["name"])).list() if one.running],
            }
            for host in shown
        ]


async def demonstrate(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it. Returns the document.

    :raises NvmuserError: something did not work.
    """
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network())
        hosts = Hosts(root, network, quiet=options.json)
        async with hosts.running(ceph="ceph" not in options.without, keep=options.keep):
            document = await Demo(hosts, guests="guests" not in options.without).run()
        if options.keep:
            network.keep()
    return document


def _print(document: dict[str, Any], directory: Path, *, keep: bool) -> None:
    print(f"{'host':6}{'address':14}{'state':8}{'volumes':9}{'controllers':20}guests")
    for host in document["hosts"]:
        state = "live" if host["live"] else "away"
        controllers, guests = (", ".join(host[what]) or "-" for what in ("controllers", "guests"))
        print(f"{host['name']:6}{host['address']:14}{state:8}{host['volumes']:<9}{controllers:20}{guests}")
    away, moved, evicted = document["away"], document["moved"][_MOVES], document["evicted"][_EVICTED]
    print(f"applied in {document['apply_s']:.2f} s; {_MOVES} moved from h1 to h2 in {moved:.2f} s")
    print(f"h1 without power: seen after {away['noticed_s']:.1f} s, evicted in {evicted:.2f} s: {_EVICTED} is on h2")
    print(f"h1 again: seen after {away['back_s']:.1f} s")
    if keep:
        _print_end(document, directory)


def _print_end(document: dict[str, Any], directory: Path) -> None:
    pids = document["pids"]
    within = f"nsenter --target {pids['h1']} {'' if _is_root() else '--user --preserve-credentials '}--net --"
    print("everything goes on; on h1, for example, and to end it:")
    print(f"    {within} nvmuser --state-dir {directory / 'h1'} fleet show")
    for host in document["hosts"]:
        if host["guests"]:
            print(f"    nvmuser --state-dir {directory / host['name']} guest stop {' '.join(host['guests'])}")
    stop = f"nvmuser --state-dir {directory}/$h target stop"
    print(f"    for h in {' '.join(HOSTS)}; do {stop}; done; kill {' '.join(map(str, pids.values()))}")


def _is_root() -> bool:
    """Outside of the user namespace too: in one, nobody is mapped but this user."""
    return Path("/proc/self/uid_map").read_text().split()[2] != "1"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="nvmuser.bench.scenarios.fleet_demo")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--without", action="append", choices=PARTS, default=[])
    options = parser.parse_args()
    try:
        document = asyncio.run(demonstrate(options.directory, options))
    except NvmuserError as error:
        print(f"nvmuser: {error}", file=sys.stderr)
        if options.json:  # as of every command (docs/cli.md)
            failure = {"code": error.kind, "message": str(error), "exit_status": error.exit_status}
            print(json.dumps({"error": failure}))
        return error.exit_status
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        _print(document, options.directory, keep=options.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())

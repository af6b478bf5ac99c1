"""`nvmuser fleet demo`: etcd and three hosts, each a network namespace with a state directory, on this machine.

    python -m nvmuser.bench.scenarios.fleet_demo DIRECTORY [--json] [--keep]

Two hosts serve guests, and one is the store whose namespace can be reached from both: a controller on it moves. Runs in
a network namespace of its own (`nvmuser.bench.measure.namespaces`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.etcd import Etcd
from nvmuser.bench.measure.namespaces import Network
from nvmuser.errors import NvmuserError, TargetError
from nvmuser.paths import StateDir
from nvmuser.rpc import Client

_HOSTS = {"h1": "balanced", "h2": "balanced", "h3": "eco"}
"""Host → its profile. What lies on a remote needs pollers."""
_STORE = "h3"
_NQN = "nqn.2026-11.org.nvmuser:fleet-demo"
_PORT = 4420
_SHARED_MIB = 64
_PATIENCE_S = 60.0

SPEC = """
version: 1
remotes:
  - {{name: store, nqn: '{nqn}', paths: [{{address: {address}, port: {port}}}]}}
volumes:
  - {{name: root1, size: 64M}}
  - {{name: root2, size: 64M}}
  - {{name: shared, backend: remote, remote: store, remote_nsid: 1}}
controllers:
  - {{name: vm1, namespaces: [root1], labels: {{role: guests}}}}
  - {{name: vm2, namespaces: [root2], labels: {{role: guests}}}}
  - {{name: vm3, namespaces: [shared], host: h1}}
"""


class Demo:
    """The hosts, once they run."""

    def __init__(self, root: Path, network: Network, *, quiet: bool) -> None:
        self._root = root
        self._network = network
        self._quiet = quiet
        self._began = time.monotonic()
        self.addresses: dict[str, str] = {}
        self.etcd_pid = 0

    def state(self, host: str) -> StateDir:
        return StateDir(self._root / host)

    def say(self, text: str) -> None:
        """A step, as it is done."""
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", file=sys.stderr, flush=True)

    async def on(self, host: str, *words: str) -> str:
        """`nvmuser` on a host.

        :raises NvmuserError: it failed.
        """
        if not self._quiet:
            self.say(f"{host}$ nvmuser {' '.join(words)}")
        return await self._network.run(host, *words, state=self.state(host).root)

    @contextlib.asynccontextmanager
    async def hosts(self, *, keep: bool) -> AsyncIterator[None]:
        """Their targets, for as long as the block lasts, or for good."""
        self.addresses = {host: self._network.add(host) for host in _HOSTS}
        try:
            start = ("target", "start", "--no-hugepages", "--profile")
            await asyncio.gather(*(self.on(host, *start, profile) for host, profile in _HOSTS.items()))
            yield
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                stops = (self._network.run(host, "target", "stop", state=self.state(host).root) for host in _HOSTS)
                await asyncio.gather(*stops, return_exceptions=True)

    async def serve(self) -> None:
        """Make the store's namespace reachable over TCP, with SPDK's own commands."""
        async with await Client.connect(self.state(_STORE).rpc_socket) as rpc:
            await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
            await rpc.call("bdev_malloc_create", {"name": "shared", "num_blocks": _SHARED_MIB << 11, "block_size": 512})
            await rpc.call("nvmf_create_subsystem", {"nqn": _NQN, "allow_any_host": True})
            await rpc.call("nvmf_subsystem_add_ns", {"nqn": _NQN, "namespace": {"bdev_name": "shared"}})
            where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": self.addresses[_STORE], "trsvcid": str(_PORT)}
            await rpc.call("nvmf_subsystem_add_listener", {"nqn": _NQN, "listen_address": where})

    async def join(self, url: str) -> None:
        """Make a fleet of them."""
        await self.on("h1", "fleet", "init", "--etcd", url)
        await asyncio.gather(*(self.on(host, "fleet", "join", "--etcd", url, "--name", host) for host in _HOSTS))
        for host in ("h1", "h2"):
            await self.on("h1", "host", "label", host, "role=guests")

    async def until(self, host: str, *, live: bool) -> float:
        """Wait until the fleet sees a host as alive, or not. Returns the seconds.

        :raises TargetError: it does not within a minute.
        """
        began = time.monotonic()
        asked = "h1" if host != "h1" else "h2"
        while True:
            found = json.loads(
                await self._network.run(asked, "host", "show", host, "--json", state=self.state(asked).root)
            )
            if found["live"] is live:
                return time.monotonic() - began
            if time.monotonic() - began > _PATIENCE_S:
                raise TargetError(f"host {host} is {'not ' if live else ''}seen after {_PATIENCE_S:.0f} s")
            await asyncio.sleep(0.2)

    async def where(self) -> dict[str, list[str]]:
        """Controllers of each host.

        :raises NvmuserError: etcd does not answer.
        """
        found = json.loads(await self._network.run("h2", "fleet", "list", "--json", state=self.state("h2").root))
        places: dict[str, list[str]] = {host: [] for host in _HOSTS}
        for row in found:
            if row["kind"] == "controller":
                places[row["host"]].append(row["name"])
        return places


async def demonstrate(root: Path, *, as_json: bool, keep: bool) -> dict[str, Any]:
    """Everything in turn. Returns the document.

    :raises NvmuserError: something did not work.
    """
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network())
        demo, etcd = Demo(root, network, quiet=as_json), Etcd(root / "etcd", address=network.address)
        etcd.start()
        assert etcd.process
        demo.etcd_pid = etcd.process.pid
        if not keep:
            stack.callback(etcd.kill)
        async with demo.hosts(keep=keep):
            await demo.serve()
            await demo.join(etcd.url)
            document = await _shown(demo, network, root)
        if keep:
            network.keep()
    return document


async def _shown(demo: Demo, network: Network, root: Path) -> dict[str, Any]:
    spec = root / "fleet.yaml"
    spec.write_text(SPEC.format(nqn=_NQN, address=demo.addresses[_STORE], port=_PORT))
    began = time.monotonic()
    await demo.on("h1", "apply", "-f", str(spec))
    applied = time.monotonic() - began
    began = time.monotonic()
    await demo.on("h1", "fleet", "move", "vm3", "--to", "h2")
    moved = time.monotonic() - began
    if not demo.state("h2").socket("vm3").exists() or demo.state("h1").socket("vm3").exists():
        raise TargetError("vm3 has moved, and is not served where it should be")
    demo.say("h1 is taken off the network")
    network.cut("h1")
    noticed = await demo.until("h1", live=False)
    network.cut("h1", False)
    back = await demo.until("h1", live=True)
    shown = json.loads(await network.run("h2", "host", "list", "--json", state=demo.state("h2").root))
    places = await demo.where()
    return {
        "hosts": [
            {
                "name": host["name"],
                "address": demo.addresses[host["name"]],
                "live": host["live"],
                "controllers": places[host["name"]],
                "volumes": host["volumes"],
                "guests": 0,
            }
            for host in shown
        ],
        "moved": {"vm3": moved},
        "evicted": {},
        "apply_s": applied,
        "cut": {"noticed_s": noticed, "back_s": back},
        "pids": {host: network.pid(host) for host in _HOSTS} | {"etcd": demo.etcd_pid},
    }


def _print(document: dict[str, Any], directory: Path, *, keep: bool) -> None:
    print(f"{'host':6}{'address':14}{'state':8}{'volumes':9}controllers")
    for host in document["hosts"]:
        state, controllers = "live" if host["live"] else "away", ", ".join(host["controllers"]) or "-"
        print(f"{host['name']:6}{host['address']:14}{state:8}{host['volumes']:<9}{controllers}")
    cut = document["cut"]
    print(f"applied in {document['apply_s']:.2f} s; vm3 moved from h1 to h2 in {document['moved']['vm3']:.2f} s")
    print(f"h1 off the network: seen after {cut['noticed_s']:.1f} s, back after {cut['back_s']:.1f} s")
    if keep:
        pids = document["pids"]
        within = f"nsenter --target {pids['h1']} {'' if _is_root() else '--user --preserve-credentials '}--net --"
        print("everything goes on; on h1, for example, and to end it:")
        print(f"    {within} nvmuser --state-dir {directory / 'h1'} fleet show")
        stop = f"nvmuser --state-dir {directory}/$h target stop"
        print(f"    for h in {' '.join(_HOSTS)}; do {stop}; done; kill {' '.join(map(str, pids.values()))}")


def _is_root() -> bool:
    """Outside of the user namespace too: in one, nobody is mapped but this user."""
    return Path("/proc/self/uid_map").read_text().split()[2] != "1"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="nvmuser.bench.scenarios.fleet_demo")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    try:
        document = asyncio.run(demonstrate(options.directory, as_json=options.json, keep=options.keep))
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

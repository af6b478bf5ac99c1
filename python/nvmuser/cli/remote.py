"""`nvmuser remote`: subsystems of other targets, over NVMe-oF TCP."""

from __future__ import annotations

import contextlib
import os

import click
from rich.table import Table

from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, run, say, say_object
from nvmuser.cli.rename import rename
from nvmuser.errors import RpcConnectionError
from nvmuser.hostfs import host_identity
from nvmuser.hostfs.host_identity import HostIdentity
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import FAIL_AFTER_MAX_S, KEEP_ALIVE_MAX_S, KEEP_ALIVE_S, RECONNECT_MAX_S, Remote
from nvmuser.model.remote_path import RemotePath, bracketed
from nvmuser.paths import StateDir
from nvmuser.reconcile import discovery
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.remotes import Routes, Way, ways
from nvmuser.supervisor import control


@click.group(cls=Group)
def remote() -> None:
    """Remotes: subsystems of other targets, whose namespaces become volumes.

    \b
    nvmuser remote create store --nqn nqn.2026-11.org.example:store --path 10.0.0.1:4420 --path 10.1.0.1:4420
    nvmuser volume create disk --backend remote --remote store --nsid 1
    """


@remote.command()
@click.argument("name")
@click.option("--nqn", required=True, help="The subsystem there.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    required=True,
    metavar="HOST[:PORT]",
    help="Several are paths to the same. May be repeated.",
)
@click.option(
    "--dhchap-key", metavar="FILE", default="", help="File of this host's secret for DH-HMAC-CHAP, mode 0600."
)
@click.option(
    "--dhchap-ctrlr-key", metavar="FILE", default="", help="File of the remote's secret, if it is to show it too."
)
@click.option("--psk", metavar="FILE", default="", help="File of the pre-shared key for TLS, mode 0600.")
@click.option(
    "--reconnect",
    "reconnect_s",
    type=click.IntRange(1, RECONNECT_MAX_S),
    default=1,
    show_default=True,
    help="Seconds between two attempts to connect by a path that is down.",
)
@click.option(
    "--fail-after",
    "fail_after_s",
    type=click.IntRange(0, FAIL_AFTER_MAX_S),
    default=0,
    show_default=True,
    help="Seconds without any path after which guests get errors, until there is one again; 0: their I/O waits.",
)
@click.option(
    "--keep-alive",
    "keep_alive_s",
    type=click.IntRange(1, KEEP_ALIVE_MAX_S),
    default=KEEP_ALIVE_S,
    show_default=True,
    help="Seconds in which it has to answer, or a connection counts as lost.",
)
@json_option
@click.pass_obj
def create(
    state: StateDir, /, name: str, nqn: str, paths: tuple[str, ...], reconnect_s: int, fail_after_s: int,
    keep_alive_s: int, as_json: bool, **keys: str,
) -> None:  # fmt: skip
    """Attach a subsystem of another target.

    HOST is an address (IPv6 in brackets where a port follows) or a name, which is resolved at each attachment.
    A target that admits only listed hosts has to list this one: `nvmuser remote host-id`.

    \b
    nvmuser remote create store --nqn nqn.2026-11.org.example:store --path store.example --path [fd00::1]:4421
    nvmuser remote create safe --nqn nqn.2026-11.org.example:safe --path 10.0.0.1 --dhchap-key /etc/nvmuser/safe.key
    """
    files = {field: os.path.abspath(path) for field, path in keys.items() if path}
    there = tuple(map(RemotePath.parse, paths))
    remote = Remote(
        name, nqn=nqn, paths=there, reconnect_s=reconnect_s, fail_after_s=fail_after_s, keep_alive_s=keep_alive_s,
        **files,
    )  # fmt: skip
    outcome = run(control.submit(state, Change(create=(remote,))))
    say_object(outcome, as_json, f"remote {name} {'declared' if outcome.pending else 'attached'}")


@remote.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every remote, and the ways to it."""
    desired = control.load(state)
    actual = run(control.actual(state)) if desired.remotes() else None
    used = {remote.name: _in_use(remote, actual) for remote in desired.remotes()}
    if as_json:
        say(
            [
                remote.to_json() | {"in_use": [way.to_json() for way in used[remote.name]]}
                for remote in desired.remotes()
            ]
        )
        return
    table = Table("remote", "NQN", "paths", "times", "in use")
    for remote in desired.remotes():
        used_ways = ", ".join(str(way).partition(": ")[2] for way in used[remote.name])
        table.add_row(remote.name, remote.nqn, ", ".join(map(str, remote.paths)), _times(remote), used_ways or "-")
    console().print(table)


def _times(remote: Remote) -> str:
    fails = f", fails after {remote.fail_after_s} s" if remote.fail_after_s else ""
    return f"keep-alive {remote.keep_alive_s} s, reconnect {remote.reconnect_s} s{fails}"


def _in_use(remote: Remote, actual: Actual | None) -> list[Way]:
    """By which addresses SPDK reaches it; none where no target could be asked."""
    alone = Desired({remote.key: Entry(remote)})
    return list(ways(alone, actual, Routes())) if actual else []


@remote.command()
@click.argument("name")
@json_option
@click.pass_obj
def delete(state: StateDir, name: str, as_json: bool) -> None:
    """Detach a remote; the volumes from it have to go first. Its data stays where it is."""
    outcome = run(control.submit(state, Change(delete=(Key("remote", name),))))
    say_object(outcome, as_json, f"remote {name} detached")


@remote.command()
@click.argument("address", metavar="HOST[:PORT]")
@json_option
@click.pass_obj
def discover(state: StateDir, address: str, as_json: bool) -> None:
    """Print what a discovery service offers to this host. Nothing is attached.

    Without PORT, 8009 is asked, and 4420 where nothing listens there.

    \b
    nvmuser remote discover store.example
    nvmuser remote discover [fd00::1]:4420 --json
    """
    path, host = RemotePath.parse(address), host_identity.load(state)
    asks_both = not address.endswith(f":{path.port}") or path.literal == address
    ports = (discovery.PORT, path.port) if asks_both else (path.port,)
    offers = run(_offered(path.address, ports, host))
    if as_json:
        say([offer.to_json() for offer in offers])
        return
    table = Table("NQN", "kind", "transport", "path", "")
    for offer in offers:
        there = bracketed(offer.address)
        table.add_row(offer.nqn, offer.kind, offer.transport, f"{there}:{offer.port}", "demands TLS" * offer.tls)
    console().print(table)


async def _offered(address: str, ports: tuple[int, ...], host: HostIdentity) -> list[discovery.Offer]:
    """By the first port at which somebody listens."""
    for port in ports[:-1]:
        with contextlib.suppress(RpcConnectionError):
            return await discovery.discover(address, port, host)
    return await discovery.discover(address, ports[-1], host)


@remote.command("host-id")
@click.option("--nqn", default="", help="Go by this host NQN from now on.")
@click.option("--id", "host_id", default="", metavar="UUID", help="And by this host identifier.")
@json_option
@click.pass_obj
def show_host_id(state: StateDir, nqn: str, host_id: str, as_json: bool) -> None:
    """Print by which host NQN and identifier remotes know this installation, or set them.

    They are made once and kept. Others take effect with what is attached from then on, hence with
    `nvmuser target restart` for all.

    \b
    nvmuser remote host-id
    nvmuser remote host-id --nqn "$(cat /etc/nvme/hostnqn)" --id "$(cat /etc/nvme/hostid)"
    """
    identity = host_identity.keep(state, nqn, host_id) if nqn or host_id else host_identity.load(state)
    if as_json:
        say({"nqn": identity.nqn, "id": identity.id})
    else:
        click.echo(f"host NQN  {identity.nqn}\nhost id   {identity.id}")


remote.add_command(rename("remote", "store archive"))

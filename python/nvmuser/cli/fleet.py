"""`nvmuser fleet …`: hosts that share what is wanted, in etcd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from nvmuser.cli.fleet_tenant import tenant
from nvmuser.cli.groups import Group
from nvmuser.cli.options import REPEATABLE, json_option
from nvmuser.cli.present import changed_fields, console, counted, run, say
from nvmuser.errors import ConflictError, FleetUnavailable, TargetNotRunning
from nvmuser.extras import require_extra
from nvmuser.fleet.overview import document
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.settings import FleetSettings
from nvmuser.hostfs import host_identity
from nvmuser.model.spec import SECTIONS
from nvmuser.paths import StateDir
from nvmuser.reconcile.outcome import Outcome
from nvmuser.supervisor import control
from nvmuser.supervisor.daemon import prepare
from nvmuser.toolchain import find_spdk

if TYPE_CHECKING:
    from nvmuser.fleet.view import View

_SEEN_S = 5.0
_KINDS = sorted({kind for kind in SECTIONS.values() if kind != "target"})


@click.group(cls=Group)
def fleet() -> None:
    """Many hosts with one declaration: it is kept in etcd, and each host's supervisor carries out its part.

    \b
    Examples:
      nvmuser fleet init --etcd https://etcd1:2379 --ca ca.pem --cert admin.pem --key admin.key
      nvmuser fleet join --etcd https://etcd1:2379 --ca ca.pem --cert h1.pem --key h1.key --adopt
      nvmuser fleet show
      nvmuser apply -f fleet.yaml
    """
    require_extra("fleet", "nvmuser fleet")


fleet.add_command(tenant)


def _etcd_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """By which etcd is reached."""
    for option in (
        click.option("--key", default="", metavar="FILE", help="The certificate's key, in PEM."),
        click.option("--cert", default="", metavar="FILE", help="By which etcd knows us: a certificate in PEM."),
        click.option("--ca", default="", metavar="FILE", help="The authority of etcd's certificate and ours, in PEM."),
        click.option("--fleet", "name", default="main", show_default=True, help="The fleet's name in that etcd."),
        click.option(
            "--etcd",
            "endpoints",
            multiple=True,
            required=True,
            metavar="URL",
            help=f"Address of a member. {REPEATABLE}",
        ),
    ):
        command = option(command)
    return command


def _settings(name: str, host: str, endpoints: tuple[str, ...], ca: str, cert: str, key: str) -> FleetSettings:
    files = [str(Path(path).absolute()) if path else "" for path in (ca, cert, key)]
    return FleetSettings(name, host, endpoints, *files)


@fleet.command()
@_etcd_options
@json_option
@click.pass_obj
def init(state: StateDir, endpoints: tuple[str, ...], name: str, ca: str, cert: str, key: str, as_json: bool) -> None:
    """Make a fleet in etcd. One that is there already stays as it is.

    \b
    nvmuser fleet init --etcd http://127.0.0.1:2379
    """
    from nvmuser.fleet import membership, session
    from nvmuser.fleet.keys import FleetKeys

    settings = _settings(name, "", endpoints, ca, cert, key)

    async def made() -> Any:
        async with session.opened(settings) as client:
            return await membership.init(client, FleetKeys(name))

    found = run(made())
    if as_json:
        say({"fleet": name, "id": found.id})
    else:
        click.echo(f"fleet {name} is there; `nvmuser fleet join` makes this host part of it")


@fleet.command()
@_etcd_options
@click.option("--name", "host", default="", metavar="HOST", help="This host's name. Default: its hostname.")
@click.option("--adopt", is_flag=True, help="Bring what this host has declared: it becomes the fleet's.")
@json_option
@click.pass_obj
def join(
    state: StateDir,
    endpoints: tuple[str, ...],
    name: str,
    ca: str,
    cert: str,
    key: str,
    host: str,
    adopt: bool,
    as_json: bool,
) -> None:
    """Make this host part of a fleet. Its guests go on, and its store stays what it starts from.

    \b
    nvmuser fleet join --etcd http://127.0.0.1:2379 --name h1 --adopt
    """
    from nvmuser.fleet import membership

    present = FleetSettings.load(state)
    settings = _settings(name, host or platform.node().partition(".")[0].lower(), endpoints, ca, cert, key)
    if present and (present.fleet, present.host) != (settings.fleet, settings.host):
        raise ConflictError(
            f"{state.root}: is host {present.host} of fleet {present.fleet}; `nvmuser fleet leave` comes first"
        )
    prepare(state)
    identity, local = host_identity.load(state).id, control.load(state)
    progress, brought = run(membership.join(settings, identity, local, control.local_actor(), adopt=adopt))
    progress.save(state)
    settings.save(state)
    run(_tell(state, settings))
    if as_json:
        say({"fleet": settings.fleet, "host": settings.host, "adopted": brought})
    else:
        with_ = f", with {counted(brought, 'object')}" if brought else ""
        click.echo(f"host {settings.host} is part of fleet {settings.fleet}{with_}")


async def _tell(state: StateDir, settings: FleetSettings | None = None) -> None:
    """Let a supervisor that runs know of it.

    :param settings: of the fleet in which it is to be seen.
    """
    try:
        await control.ask(state, "follow_fleet")
        if settings:
            await _until_seen(settings)
    except TargetNotRunning:
        click.echo("no supervisor runs here: the fleet is followed from the next `nvmuser target start` on", err=True)


async def _until_seen(settings: FleetSettings) -> None:
    """Wait until others see that this host lives: from then on a change waits for it."""
    from nvmuser.fleet.session import session
    from nvmuser.fleet.waiting import live_hosts

    async with session(settings) as one:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SEEN_S):
                while settings.host not in await live_hosts(one.client, one.keys):  # noqa: ASYNC110 (others' doing)
                    await asyncio.sleep(0.05)


@fleet.command()
@click.option("--force", is_flag=True, help="Also while etcd does not answer: the fleet goes on listing this host.")
@json_option
@click.pass_obj
def leave(state: StateDir, force: bool, as_json: bool) -> None:
    """Make this host a single one again, with all it has.

    \b
    nvmuser fleet leave
    """
    from nvmuser.fleet import membership

    settings = FleetSettings.required(state)
    try:
        left = 0 if force else run(membership.leave(settings, control.local_actor()))
    except FleetUnavailable as error:
        raise FleetUnavailable(f"{error}; --force leaves all the same") from error
    state.fleet.unlink()
    state.fleet_progress.unlink(missing_ok=True)
    run(_tell(state))
    if as_json:
        say({"fleet": settings.fleet, "host": settings.host, "kept": left})
    else:
        click.echo(f"host {settings.host} is no longer part of fleet {settings.fleet}")


@fleet.command("import")
@click.option("--drop", is_flag=True, help="Forget records of this host for what is not there.")
@json_option
@click.pass_obj
def import_(state: StateDir, drop: bool, as_json: bool) -> None:
    """Write back what this host has, after etcd has lost its data or came back from an older backup.

    Nothing on this host is changed. To be run on each host that `fleet show` or `status` names.

    \b
    nvmuser fleet import
    """
    from nvmuser.fleet.restore import restore

    settings = FleetSettings.required(state)
    identity, local = host_identity.load(state).id, control.load(state)
    restored = run(restore(settings, identity, local, control.local_actor(), drop=drop))
    restored.progress.save(state)
    run(_tell(state, settings))
    if as_json:
        say({"written": list(map(str, restored.written)), "dropped": list(map(str, restored.dropped))})
    else:
        gone = f", {len(restored.dropped)} forgotten" if restored.dropped else ""
        click.echo(f"host {settings.host}: {counted(len(restored.written), 'object')} written back{gone}")


@fleet.command()
@click.argument("controller")
@click.option("--to", required=True, metavar="HOST", help="Where it goes.")
@click.option("--force", is_flag=True, help="Fence the host that has it, instead of asking it.")
@json_option
@click.pass_obj
def move(state: StateDir, controller: str, to: str, force: bool, as_json: bool) -> None:
    """Move a controller to another host, with the volumes that it shows. Volumes whose data is on one host do not move.

    No guest may be connected to it. With --force the host that has it need not answer: its storage shuts it out, and if
    that cannot be confirmed, nothing moves.

    \b
    nvmuser fleet move vm1 --to h2
    nvmuser fleet move vm1 --to h2 --force
    """
    from nvmuser.fleet import move as moving
    from nvmuser.fleet.session import session

    settings, actor = FleetSettings.required(state), control.local_actor()

    async def moved() -> Outcome:
        async with session(settings) as one:
            return await moving.move(one, controller, to, actor, force=force)

    outcome = run(moved())
    if as_json:
        say({"controller": controller, "host": to, "pending": outcome.pending})
    else:
        click.echo(f"controller {controller} is on host {to}" + (", once its target runs" if outcome.pending else ""))


@fleet.command()
@json_option
@click.pass_obj
def show(state: StateDir, as_json: bool) -> None:
    """Show the fleet: its hosts, what is on them, what is wrong.

    Exit status 1 when a host does not answer, or something is not as declared.

    \b
    nvmuser fleet show --json | jq '.hosts[] | select(.live | not)'
    """
    from nvmuser.cli import fleet_shown

    settings = FleetSettings.required(state)
    found = run(document(settings, Progress.load(state)))
    if as_json:
        say(found)
    else:
        fleet_shown.show(found)
    if any(not host["live"] or host["problems"] for host in found["hosts"]) or found["errors"]:
        raise SystemExit(1)


@fleet.command()
@click.option("--keep", is_flag=True, help="Leave everything running.")
@click.option(
    "--without", multiple=True, type=click.Choice(["ceph", "guests"]), help="Leave this out. May be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: hosts[], moved, evicted, apply_s, away.")
def demo(keep: bool, without: tuple[str, ...], as_json: bool) -> None:
    """Start an etcd, a small Ceph and three hosts on this machine, each in a network namespace, and make a fleet of
    them, with two guests.

    Controllers are declared by host and by label; one on a volume that two hosts reach moves to another host, with its
    guest; the host that it has left loses its power, is evicted, and the second guest starts elsewhere and finds its
    data. Takes two minutes, of which a half without guests, 4 GiB of memory, and leaves nothing. A Ceph needs its
    packages; where they are not installed, it is left out.

    \b
    nvmuser fleet demo
    nvmuser fleet demo --without guests --without ceph
    nvmuser fleet demo --keep
    """
    import shutil
    import tempfile

    from nvmuser.bench.measure.etcd import binary
    from nvmuser.bench.measure.namespaces import enter

    find_spdk()
    binary()
    directory = Path(tempfile.mkdtemp(prefix="nvmuser-fleet."))
    words = [str(directory), *(["--json"] if as_json else []), *(["--keep"] if keep else [])]
    words += [word for part in without for word in ("--without", part)]
    status = 1
    try:
        status = enter("nvmuser.bench.scenarios.fleet_demo", words)
    finally:
        if not keep or status:
            shutil.rmtree(directory, ignore_errors=True)
    if status:
        raise SystemExit(status)


@fleet.command("list")
@click.option("--host", metavar="HOST", help="Only what is on this host.")
@click.option("--kind", type=click.Choice(_KINDS), help="Only objects of this kind.")
@json_option
@click.pass_obj
def list_(state: StateDir, host: str | None, kind: str | None, as_json: bool) -> None:
    """List what is declared in the fleet, and where it is.

    \b
    nvmuser fleet list --host h1 --kind controller
    """
    view = run(_view(FleetSettings.required(state)))
    rows = [
        {"host": one.host, "deleting": one.deleting, **one.spec}
        for key, one in sorted(view.objects.items())
        if (host is None or one.host == host) and (kind is None or key.kind == kind)
    ]
    if as_json:
        say(rows)
        return
    table = Table("kind", "name", "host", box=None)
    for row in rows:
        table.add_row(row["kind"], row["name"], (row["host"] or "-") + (" (deleting)" if row["deleting"] else ""))
    console().print(table)


async def _view(settings: FleetSettings) -> View:
    from nvmuser.fleet import session

    async with session.session(settings) as one:
        return await one.view()


@fleet.command()
@click.option("-n", "--lines", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The last so many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C; JSON: an object a line.")
@json_option
@click.pass_obj
def events(state: StateDir, lines: int, follow: bool, as_json: bool) -> None:
    """Show who changed what in the fleet, when, from which host, and how it was before.

    \b
    nvmuser fleet events -n 5
    nvmuser fleet events --follow --json
    """
    from nvmuser.fleet import audit

    settings = FleetSettings.required(state)

    async def followed() -> None:
        async for event in audit.followed(settings, lines):
            click.echo(json.dumps(event) if as_json else _event(event))

    if follow:
        run(followed())
        return
    found = run(audit.last(settings, lines))
    if as_json:
        say(found)
        return
    for event in found:
        click.echo(_event(event))


def _event(event: dict[str, Any]) -> str:
    import time

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.get("time", 0)))
    text = f"{when}  {event.get('who')} on {event.get('host') or 'no host'}  {event.get('action')}"
    if "kind" in event:
        text += f" {event['kind']} {event['name']}" + (f" (host {event['on']})" if event.get("on") else "")
        if event.get("before") and event.get("after"):
            text += f"  {changed_fields(event['before'], event['after'])}"
    return text

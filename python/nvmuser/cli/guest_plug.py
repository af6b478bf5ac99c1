"""`nvmuser guest plug` and `unplug`: controllers into a running guest, ours or anybody's, and out again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import run_until_ended, say
from nvmuser.errors import UsageError
from nvmuser.guest import hotplug
from nvmuser.guest import plug as plugs
from nvmuser.guest.hotplug import Hotplug, Plugged, Transport
from nvmuser.guest.qmp import connected
from nvmuser.guest.registry import registry
from nvmuser.paths import StateDir

_qmp_option = click.option(
    "--qmp",
    "qmp_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The QMP socket of a QEMU that is not ours, instead of GUEST.",
)


def _guest(state: StateDir, names: tuple[str, ...], qmp_path: Path | None) -> tuple[Path, tuple[str, ...], str | None]:
    """Of `[GUEST] CONTROLLER…`: the QMP socket, the controllers, and of a guest of ours how it was started."""
    via = None
    if qmp_path is None:
        name, *rest = names
        names = tuple(rest)
        via = "libvfio" if registry(state).get(name).libvfio else "native"
        qmp_path = registry(state).runtime(name).qmp
    if not names:
        raise UsageError("no controller named: `nvmuser guest plug GUEST CONTROLLER…`, or --qmp PATH CONTROLLER…")
    if len(set(names)) < len(names):
        raise UsageError("the same controller is named twice")
    return qmp_path, names, via


@click.command()
@click.argument("names", metavar="[GUEST] CONTROLLER...", nargs=-1, required=True)
@_qmp_option
@click.option("--direct", is_flag=True, help="Without the endpoint: the guest loses its disks with the target.")
@click.option(
    "--via",
    type=click.Choice(["native", "libvfio"]),
    help="How the QEMU of --qmp reaches controllers: its own client (default), or a preloaded libvfio.so.",
)
@click.option("--check", is_flag=True, help="Only print what would be done, and what stands in the way.")
@json_option
@click.pass_obj
def plug(
    state: StateDir,
    /,
    names: tuple[str, ...],
    qmp_path: Path | None,
    direct: bool,
    via: str | None,
    check: bool,
    as_json: bool,
) -> int:
    """Plug controllers into a running guest. All is checked before anything is changed.

    One that is in the guest already stays as it is. One for which there is no free port has its volumes shown by a
    controller that the guest has and that is empty. Where the guest was started with --via libvfio, they come
    through libvfio.

    \b
    Examples:
      nvmuser guest plug vm1 data logs
      nvmuser guest plug --qmp /run/vm1/qmp.sock data
      nvmuser guest plug --qmp /run/vm2/qmp.sock --via libvfio data
      nvmuser guest plug vm1 data --check
    """
    path, controllers, started_via = _guest(state, names, qmp_path)
    if via and started_via and via != started_via:
        raise UsageError(f"guest {names[0]} was started with --via {started_via}: leave --via {via} out")

    async def work() -> int:
        async with connected(path) as qmp:
            user = path.stat().st_uid  # QEMU has made this socket
            transport = Transport(direct=direct, libvfio="libvfio" in (via, started_via), user=user)
            if check:
                return _show_check(await hotplug.prepare(state, qmp, controllers, transport), as_json)
            _show_plugged(await hotplug.perform(state, qmp, controllers, transport), as_json)
        return 0

    return run_until_ended(work())


def _show_check(prepared: Hotplug, as_json: bool) -> int:
    problems = prepared.problems
    if as_json:
        say({"problems": [asdict(problem) for problem in problems]})
        return 1 if problems else 0
    for problem in problems:
        click.echo(f"✗ {problem}")
    if not problems:
        facts = prepared.intent.facts
        click.echo(f"✓ QEMU {facts.version_text}, {len(facts.free_ports)} free ports: nothing stands in the way")
    return 1 if problems else 0


def _show_plugged(plugged: list[Plugged], as_json: bool) -> None:
    if as_json:
        say([asdict(controller) for controller in plugged])
        return
    for controller in plugged:
        what = {
            "plugged": f"plugged in as {controller.device}",
            "present": f"is in the guest already, as {controller.device}",
            "reused": f"found no free port: its volumes are shown by {controller.device}, which was empty",
        }[controller.how]
        click.echo(f"controller {controller.controller} {what}")


@click.command()
@click.argument("names", metavar="[GUEST] CONTROLLER...", nargs=-1, required=True)
@_qmp_option
@json_option
@click.pass_obj
def unplug(state: StateDir, /, names: tuple[str, ...], qmp_path: Path | None, as_json: bool) -> int:
    """Take controllers out of a running guest, where its QEMU survives that.

    QEMU 10.1 to 11.1 aborts when a vfio-user-pci device is unplugged: there this refuses. `nvmuser controller detach
    --force` takes the volumes away instead, and the next `plug` of that controller finds it in the guest.

    \b
    Examples:
      nvmuser guest unplug vm1 data
      nvmuser guest unplug --qmp /run/vm1/qmp.sock data
    """
    path, controllers, _ = _guest(state, names, qmp_path)

    async def work() -> int:
        async with connected(path) as qmp:
            await plugs.unplug(qmp, [state.socket(name) for name in controllers])
        if as_json:
            say([{"controller": name} for name in controllers])
            return 0
        for name in controllers:
            click.echo(f"controller {name} unplugged")
        return 0

    return run_until_ended(work())

"""`nvmuser controller`: what guests connect to."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from nvmuser.cli import controller_handover
from nvmuser.cli.groups import Group
from nvmuser.cli.move import move
from nvmuser.cli.options import force_option, json_option
from nvmuser.cli.present import console, run, say, say_object
from nvmuser.cli.rename import rename
from nvmuser.model import change as changes
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.incoming import description
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace
from nvmuser.model.sizes import approximate
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote


@click.group(cls=Group)
def controller() -> None:
    """Controllers: each is controller NVMe controller for controller guest.

    \b
    nvmuser controller create vm1 --attach data
    nvmuser controller attach vm1 more
    nvmuser guest qemu-args vm1
    """


@controller.command()
@click.argument("name")
@click.option("--attach", "volumes", multiple=True, metavar="VOLUME", help="Attach this volume. May be repeated.")
@click.option("--nqn", default="", help="Default: made for you, and kept.")
@click.option("--serial", default="", help="Default: made for you, and kept.")
@click.option("--owner", default="", help="User whose QEMU may connect, such as libvirt-qemu.")
@click.option("--group", default="", help="Group whose QEMU may connect. Default: the owner's own.")
@click.option("--mode", type=click.Choice(Controller.modes), default="0660", show_default=True, help="Of the socket.")
@click.option(
    "--volatile",
    is_flag=True,
    help="Accept volumes that were created with --volatile: their data is lost "
    "when the target exits, so that a guest does not survive that.",
)
@click.option(
    "--target", default=DEFAULT_TARGET, metavar="NAME", help="Serve it by this target. Default: the default one."
)
@click.option("--volatile-ok", "volatile", is_flag=True, hidden=True)
@json_option
@click.pass_obj
def create(state: StateDir, /, name: str, volumes: tuple[str, ...], as_json: bool, **fields: Any) -> None:
    """Declare a controller.

    \b
    nvmuser controller create vm1 --attach data --attach logs
    """
    controller = Controller(name, tuple(Namespace(volume) for volume in volumes), **fields)
    control.load(state).check_surviving(controller)
    outcome = run(control.submit(state, Change(create=(controller,))))
    where = "" if isinstance(state, Remote) else f": {state.socket(name)}"
    say_object(outcome, as_json, f"controller {name} created{where}")


@controller.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every controller, and what it shows."""
    desired = control.load(state)
    if as_json:
        say([_described(controller, desired, state) for controller in desired.controllers()])
        return
    table = Table("controller", "target", "namespaces", "socket for QEMU", "")
    for controller in desired.controllers():
        shown = ", ".join(f"{ns.nsid}: {ns.volume}" for ns in controller.namespaces)
        note = "" if desired.surviving(controller) else "has data that dies with the target"
        note = "its volumes are another host's" if controller.away else note
        table.add_row(controller.name, controller.target, shown, str(state.socket(controller.name)), note)
    console().print(table)


@controller.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(state: StateDir, name: str, as_json: bool) -> None:
    """One controller in full, and which device in the guest each of its volumes is, where the guest has udev."""
    desired = control.load(state)
    controller = desired.controller(name)
    data = _described(controller, desired, state)
    if as_json:
        say(data)
        return
    for key in ("name", "target", "nqn", "serial", "cntlid", "socket", "direct_socket"):
        click.echo(f"{key:14} {data[key]}")
    for ns in data["namespaces"]:
        note = "; its data dies with the target" if ns["volatile"] else ""
        size = approximate(ns["size"]) if ns["size"] else "as large as what it lies on"
        click.echo(f"namespace {ns['nsid']:<4} {ns['volume']}, {size}, {ns['device']}{note}")


@controller.command()
@click.argument("name")
@force_option
@json_option
@click.pass_obj
def delete(state: StateDir, name: str, force: bool, as_json: bool) -> None:
    """Take a controller away. Its volumes stay. Refused while a guest is connected.

    \b
    nvmuser controller delete vm1
    """
    outcome = run(control.submit(state, Change(delete=(Key("controller", name),), force=force)))
    say_object(outcome, as_json, f"controller {name} deleted")


@controller.command()
@click.argument("name")
@click.argument("volume")
@click.option("--nsid", type=int, default=0, help="Number of the namespace. Default: the lowest that is free.")
@json_option
@click.pass_obj
def attach(state: StateDir, name: str, volume: str, nsid: int, as_json: bool) -> None:
    """Show one volume more; a running guest sees it at once."""

    def attached(desired: Desired) -> Controller:
        after = changes.attach(desired.controller(name), volume, nsid)
        desired.check_surviving(after)
        return after

    outcome = run(control.alter(state, attached))
    say_object(outcome, as_json, f"volume {volume} attached to controller {name}")


@controller.command()
@click.argument("name")
@click.argument("volume")
@force_option
@json_option
@click.pass_obj
def detach(state: StateDir, name: str, volume: str, force: bool, as_json: bool) -> None:
    """Show a volume no more. Refused while a guest is connected.

    With --force a running guest sees it go at once, as if it had been pulled out: unmount it first.

    \b
    nvmuser controller detach vm1 logs --force
    """

    def detached(desired: Desired) -> Controller:
        return changes.detach(desired.controller(name), volume)

    outcome = run(control.alter(state, detached, force=force))
    say_object(outcome, as_json, f"volume {volume} detached from controller {name}")


controller.add_command(rename("controller"))
controller.add_command(controller_handover.prepare_incoming)
controller.add_command(controller_handover.take_back)
controller.add_command(controller_handover.release)


@controller.command("move")
@click.argument("names", nargs=-1, required=True, metavar="CONTROLLER…")
@click.option("--to", required=True, metavar="TARGET", help="The target that serves them from now on.")
@json_option
@click.pass_obj
def move_command(state: StateDir, names: tuple[str, ...], to: str, as_json: bool) -> None:
    """Have controllers served by another target, one after the other. Guests go on: their I/O waits for a moment.

    What lies below a controller goes with it: its volumes, and a pool with all that is in it. Refused before anything
    is touched where another controller, which stays, needs it too: name both.

    \b
    Examples:
      nvmuser controller move vm1 --to fast
      nvmuser controller move vm1 vm2 --to spdk
    """
    move(state, names, to, as_json)


def _described(controller: Controller, desired: Desired, state: StateDir) -> dict[str, Any]:
    return description(controller, desired) | {
        "socket": str(state.socket(controller.name)),
        "direct_socket": str(state.socket(controller.name, direct=True)),
        "target": controller.target,
        "surviving": desired.surviving(controller),
    }

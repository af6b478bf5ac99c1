"""`nvmuser target create`, `list`, `delete` and `drain`: several targets on one host."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from nvmuser.cli.move import move
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, run, say, say_object
from nvmuser.errors import ConflictError, TargetNotRunning, UsageError
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.moves import on_target
from nvmuser.model.objects import MAX_CONTROLLERS, MEMORY_MIN, TargetSettings
from nvmuser.model.sizes import approximate, format_size, parse_size
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.supervisor import control


def parse_cores(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    """CPU numbers, as `--cores` has them.

    :raises UsageError: they are none.
    """
    try:
        return tuple(int(core) for core in value.split(",") if core)
    except ValueError:
        raise UsageError(f"--cores {value}: numbers with commas between them, such as 1 or 2,3") from None


def _memory(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    return parse_size(value)


_MEMORY = "That it takes when it starts."
_AS_OF_START = "As of `target start`."


@click.command()
@click.argument("name")
@click.option(
    "--profile",
    type=click.Choice(TargetSettings.profiles),
    default=TargetSettings.profile,
    show_default=True,
    help=_AS_OF_START,
)
@click.option(
    "--cores", default="", callback=parse_cores, help="CPU numbers. Default: the last that no other target has."
)
@click.option(
    "--memory", default=format_size(MEMORY_MIN), callback=_memory, show_default=True, metavar="SIZE", help=_MEMORY
)
@click.option("--standby", is_flag=True, help="Keep a second process started for it, to take over in no time.")
@click.option(
    "--max-controllers",
    type=click.IntRange(1, MAX_CONTROLLERS),
    default=MAX_CONTROLLERS,
    metavar="N",
    help=_AS_OF_START,
)
@json_option
@click.pass_obj
def create(state: StateDir, /, name: str, as_json: bool, **fields: Any) -> None:
    """Have one more target: an SPDK process of its own, for controllers that are created with `--target`, or moved.
    What happens to one target, its own guests alone notice.

    \b
    Examples:
      nvmuser target create fast --cores 3 --standby
      nvmuser target create quiet --profile eco
      nvmuser controller create vm1 --attach data --target fast
    """
    if name == DEFAULT_TARGET:
        raise ConflictError(
            f"target {name}: exists already: it is the default target; `nvmuser target start`, or `target:` in a "
            "specification, says how it is run"
        )
    outcome = run(control.submit(state, Change(create=(TargetSettings(name, **fields),))))
    say_object(outcome, as_json, f"target {name} created")


@click.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every target: how it is run, and what is on it.

    \b
    Example:
      nvmuser target list --json
    """
    desired = control.load(state)
    try:
        facts = run(control.ask(state, "status"))["targets"]
    except TargetNotRunning:
        facts = {}
    found = [_described(one, desired, facts.get(one.name)) for one in _targets(desired)]
    if as_json:
        say(found)
        return
    table = Table("target", "state", "pid", "profile", "cores", "memory", "standby", "controllers")
    for one in found:
        cores = ", ".join(map(str, one["cores"])) or "-"
        row = (one["name"], one["state"], one["pid"] or "-", one["profile"], cores, approximate(one["memory"]))
        table.add_row(*map(str, row), str(one["standby_pid"] or "-"), str(len(one["controllers"])))
    console().print(table)


def _targets(desired: Desired) -> list[TargetSettings]:
    return list({one.name: one for one in (desired.target(), *desired.targets())}.values())


def _described(one: TargetSettings, desired: Desired, facts: dict[str, Any] | None) -> dict[str, Any]:
    running = facts or {}
    state = "not running" if not facts else "ready" if running["ready"] and running["answers"] else "not ready"
    return {
        "name": one.name,
        "state": state,
        "pid": running.get("pid"),
        "profile": one.profile,
        "cores": list(running.get("cores") or one.cores),
        "memory": one.memory,
        "max_controllers": one.max_controllers,
        "standby": one.standby,
        "standby_pid": running.get("standby"),
        "restarts": running.get("restarts"),
        "controllers": on_target(desired, one.name),
    }


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def delete(state: StateDir, name: str, as_json: bool) -> None:
    """End a target on which nothing is any more. `target drain` empties it.

    \b
    Example:
      nvmuser target drain fast && nvmuser target delete fast
    """
    control.load(state).target(name)
    outcome = run(control.submit(state, Change(delete=(TargetSettings(name).key,))))
    say_object(outcome, as_json, f"target {name} deleted")


@click.command()
@click.argument("name")
@click.option("--to", metavar="TARGET", help="Where they go. Default: the default target.")
@json_option
@click.pass_obj
def drain(state: StateDir, name: str, to: str | None, as_json: bool) -> None:
    """Move every controller of a target to another, one after the other. Guests go on.

    \b
    Examples:
      nvmuser target drain fast
      nvmuser target drain spdk --to fast
    """
    desired = control.load(state)
    desired.target(name)
    if to is None and name == DEFAULT_TARGET:
        raise UsageError(f"{name} is the default target: say with --to where its controllers go")
    if to == name:
        raise UsageError(f"--to {to}: that is where they are")
    move(state, on_target(desired, name), to or DEFAULT_TARGET, as_json)

"""`nvmuser apply`, `diff`, `export`, `schema` and `reconcile`: everything at once.

What only some of them need is imported there: to apply what is there already takes little more than to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nvmuser.cli import failure
from nvmuser.cli.applied import Applied
from nvmuser.cli.fleet_spec import FleetSpec
from nvmuser.cli.options import force_option, json_option
from nvmuser.cli.present import changed_fields, counted, run, say
from nvmuser.errors import FleetError, NvmuserError, RpcError, TargetError, UsageError
from nvmuser.hostfs.sockets import answers
from nvmuser.model import spec as specs
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.sizes import rounding
from nvmuser.paths import StateDir
from nvmuser.reconcile.outcome import Outcome
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote

_file = click.option("-f", "--file", "path", required=True, metavar="FILE", help="YAML or JSON; - for stdin.")
_prune = click.option("--prune", is_flag=True, help="Take away what the file does not name.")
_host = click.option(
    "--host", metavar="HOST", help="In a fleet: the host of what names none, and the only one to prune."
)
_yes = click.option("--yes", is_flag=True, help="With --prune: data may be deleted too.")


@click.command()
@_file
@_prune
@_yes
@force_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the calls to SPDK, wave by wave, and make none; in a fleet: what comes to which host.",
)
@_host
@json_option
@click.pass_obj
def apply(
    state: StateDir, path: str, prune: bool, yes: bool, force: bool, dry_run: bool, host: str | None, as_json: bool
) -> None:
    """Make it so. On a host of a fleet: in the whole fleet.

    \b
    nvmuser apply -f spec.yaml
    nvmuser apply -f spec.yaml --prune --dry-run

    What a guest that is connected would lose is not taken away without --force.
    """
    text = _read(path)
    applied = None if dry_run or host else Applied.of(state, text, prune=prune)
    if applied and applied.is_known and answers(state.control_socket):
        _say_outcome(Outcome.from_json(run(control.ask(state, "reconcile"))), Change(), {}, as_json)
        return
    spec = _parse(text, path)
    fleet = FleetSpec.of(state, spec, host)
    desired = run(fleet.load()) if fleet else control.load(state)
    change = replace(specs.difference(desired, spec, prune=prune, wipe=yes), force=force)
    if applied and not change.keys:
        applied.remember()
    try:
        if dry_run and fleet:
            say(run(fleet.dry_run(change)))
            return
        if dry_run:
            say(run(_dry_run(state, change)))
            return
        outcome = run(fleet.submit(change) if fleet else _apply(state, change))
    except NvmuserError as error:
        explained = spec.explain(error)
        # What a target has refused was tried, and may have left files.
        if isinstance(state, Remote):
            raise explained from error
        if not isinstance(error, TargetError | RpcError) and _is_impossible(desired, change, state, fleet):
            explained.exit_status = 2  # as of `diff`
        raise explained from error
    _say_outcome(outcome, change, spec.sizes, as_json)


@click.command()
@_file
@_prune
@_host
@json_option
@click.pass_obj
def diff(state: StateDir, path: str, prune: bool, host: str | None, as_json: bool) -> None:
    """What `apply` would change, checked as `apply` does. Nothing is changed.

    Exit status: 0 when nothing would change, 1 when something would, 2 when the file cannot be applied.

    \b
    nvmuser diff -f spec.yaml --prune
    """
    with _trouble_is_2():
        spec = _parse(_read(path), path)
        fleet = FleetSpec.of(state, spec, host)
        desired = run(fleet.load()) if fleet else control.load(state)
        change = specs.difference(desired, spec, prune=prune, wipe=True)
        try:
            _check(desired, change, state, fleet)
        except NvmuserError as error:
            raise spec.explain(error) from error
    if as_json:
        say(change.to_json())
    else:
        for line in _lines(change, desired):
            click.echo(line)
    if change.keys:
        sys.exit(1)


def _check(desired: Desired, change: Change, state: StateDir, fleet: FleetSpec | None) -> None:
    """:raises NvmuserError: the change is not possible, as far as can be known without doing anything."""
    from nvmuser.reconcile.declare import declared

    if fleet:
        run(fleet.check(change))
    elif isinstance(state, Remote):
        state.plan(change)
    else:
        declared(desired, change, state)


def _is_impossible(desired: Desired, change: Change, state: StateDir, fleet: FleetSpec | None) -> bool:
    """Was it the file, and not what came when it was carried out?"""
    try:
        _check(desired, change, state, fleet)
    except (NvmuserError, OSError) as error:
        return not isinstance(error, FleetError)
    return False


@contextlib.contextmanager
def _trouble_is_2() -> Iterator[None]:
    """The statuses of diff(1), of which 1 is no failure."""
    try:
        yield
    except (NvmuserError, OSError) as error:
        described = failure.Failure.of(error)
        trouble = NvmuserError(described.message)
        trouble.kind, trouble.exit_status = described.kind, 2
        raise trouble from error


@click.command()
@json_option
@click.pass_obj
def export(state: StateDir, as_json: bool) -> None:
    """Print the specification of what is wanted now, identities included. Sizes are texts in YAML, bytes in JSON."""
    desired = control.load(state)
    if as_json:
        say(specs.export(desired, _volumes(state), texts=False))
    else:
        click.echo(specs.dump(specs.export(desired, _volumes(state))), nl=False)


def _volumes(state: StateDir) -> str:
    """Where files are that nobody has given a path; of another host that is not known, and paths are printed."""
    return "" if isinstance(state, Remote) else str(state.volumes)


@click.command()
def schema() -> None:
    """Print the JSON Schema of specifications, for an editor."""
    from nvmuser.model import spec_schema

    say(spec_schema.schema())


@click.command()
@json_option
@click.pass_obj
def reconcile(state: StateDir, as_json: bool) -> None:
    """Put right what has drifted: after somebody used `nvmuser rpc`, or a backing file is there again.

    Exit status 1 when something is still not as it should be.
    """
    outcome = Outcome.from_json(run(control.ask(state, "reconcile")))
    if as_json:
        say(outcome.to_json())
    else:
        click.echo(f"repaired with {counted(outcome.calls, 'call')}" if outcome.calls else "nothing to do")
        for problem in outcome.problems:
            click.echo(f"not right: {problem}")
    if outcome.problems:
        sys.exit(1)


def _read(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not text in UTF-8") from error


def _parse(text: str, path: str) -> specs.Spec:
    return specs.parse(text, "stdin" if path == "-" else path)


async def _apply(state: StateDir, change: Change) -> Outcome:
    """Also without a change, SPDK may have drifted: that is put right too."""
    if change.keys or (not isinstance(state, Remote) and not answers(state.control_socket)):
        return await control.submit(state, change)
    return Outcome.from_json(await control.ask(state, "reconcile"))


async def _dry_run(state: StateDir, change: Change) -> list[list[dict[str, Any]]]:
    from nvmuser.reconcile.dry_run import dry_run

    if isinstance(state, Remote):
        return await asyncio.to_thread(state.plan, change)
    async with control.spdk(state) as targets:
        return await dry_run(control.load(state), change, state, targets)


def _say_outcome(outcome: Outcome, change: Change, sizes: Mapping[Key, str], as_json: bool) -> None:
    if as_json:
        say(outcome.to_json() | {"changed": [str(key) for key in sorted(change.keys)]})
    else:
        _print(outcome, change, sizes)


def _print(outcome: Outcome, change: Change, sizes: Mapping[Key, str]) -> None:
    if not change.keys and not outcome.calls and not outcome.problems:
        click.echo("nothing to do" + ("; the target is not running" if outcome.pending else ""))
    rounded = _rounding(outcome, sizes)
    for word, keys in (
        ("created", [item.key for item in change.create]),
        ("changed", [item.key for item in change.update]),
        ("deleted", list(change.delete)),
    ):
        for key in keys:
            click.echo(f"{word} {key.words}{rounded.get(key, '')}")
    if not change.keys and outcome.calls:
        click.echo(f"repaired with {counted(outcome.calls, 'call')}")
    if outcome.pending and change.keys:
        click.echo("the target is not running: this takes effect when it starts (nvmuser target start)")
    for problem in outcome.problems:
        click.echo(f"note: {problem}")


def _rounding(outcome: Outcome, sizes: Mapping[Key, str]) -> dict[Key, str]:
    """What to say of volumes that have become larger than asked."""
    made = {
        Key("volume", item["name"]): int(item.get("size", 0)) for item in outcome.objects if item["kind"] == "volume"
    }
    return {key: rounding(made.get(key, 0), size) for key, size in sizes.items()}


def _lines(change: Change, desired: Desired) -> list[str]:
    lines = [f"+ {item.key.words}" for item in change.create]
    for item in change.update:
        before, after = desired.get(item.key).to_json(), item.to_json()
        lines.append(f"~ {item.key.words}  {changed_fields(before, after)}")
    return lines + [f"- {key.words}" for key in change.delete]

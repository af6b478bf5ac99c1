"""`nvmuser target …`: the processes of a state directory."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click

from nvmuser.cli.groups import Group
from nvmuser.cli.present import counted
from nvmuser.cli.status import status
from nvmuser.cli.target_named import create, delete, drain, list_, parse_cores
from nvmuser.errors import ConflictError, TargetNotRunning, UsageError
from nvmuser.hostfs.hugepages import why_unusable
from nvmuser.model.objects import MAX_CONTROLLERS, TargetSettings
from nvmuser.model.sizes import format_size, parse_size
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor import logs as log_module
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import MEMORY_MIB, Options
from nvmuser.supervisor.unit import unit
from nvmuser.toolchain import find_spdk

_LOG_SIZE_MIN = 64 << 10


@click.group(cls=Group)
def target() -> None:
    """Start, stop, watch and replace the SPDK processes of a state directory: the default target, and others by name.

    \b
    Examples:
      nvmuser target start --standby
      nvmuser target restart
      nvmuser target create fast --cores 3
      nvmuser target logs endpoint
    """


for command in (create, list_, delete, drain, status):
    target.add_command(command)


def _log_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if (size := parse_size(value)) < _LOG_SIZE_MIN:
        raise UsageError(f"--log-size {value}: at least {format_size(_LOG_SIZE_MIN)}")
    return size


@target.command()
@click.option("--hugepages/--no-hugepages", default=None, help="First default: hugepages where there are enough.")
@click.option(
    "--cores", default="", callback=parse_cores, help="CPU numbers for SPDK. Default: of those that you may use."
)
@click.option(
    "--profile",
    type=click.Choice(TargetSettings.profiles),
    default=None,
    help="throughput: polls. balanced: one core polls, others sleep while not needed. eco: interrupts, no polling.",
)
@click.option(
    "--max-controllers",
    type=click.IntRange(1, MAX_CONTROLLERS),
    metavar="N",
    help=f"Refuse more controllers than this; each takes about 75 KiB of memory. First default: {MAX_CONTROLLERS}.",
)
@click.option("--standby/--no-standby", default=None, help="Keep a second target started, to take over in no time.")
@click.option(
    "--log-size", callback=_log_size, metavar="SIZE", help="Put a log aside at this size. First default: 16M."
)
@click.option(
    "--log-files", type=click.IntRange(0, 99), help="How many older ones of each log are kept. First default: 4."
)
@click.option("--foreground", is_flag=True, help="Become the supervisor instead of starting one: for systemd.")
@click.pass_obj
def start(
    state: StateDir,
    hugepages: bool | None,
    cores: tuple[int, ...],
    profile: str | None,
    max_controllers: int | None,
    standby: bool | None,
    log_size: int | None,
    log_files: int | None,
    foreground: bool,
) -> None:
    """Start a target with everything that is wanted, under supervision, in the background.

    Options hold until others are given: here, or, for --profile, --cores and --max-controllers, in a specification. A
    target that an earlier supervisor has left running, because it was killed, is taken over with its guests. While a
    target runs under supervision, --standby or --no-standby alone takes effect at once.

    \b
    Examples:
      nvmuser target start --standby
      nvmuser target start --profile balanced --cores 2,3
      nvmuser target start --log-size 64M --log-files 9
    """
    others = (hugepages, cores or None, profile, max_controllers, log_size, log_files)
    if standby is not None and not foreground and all(said is None for said in others) and _stand_by(state, standby):
        return
    options = Options(hugepages, cores, profile or "", max_controllers or 0)
    said = Settings.load(state).with_said(standby=standby, hugepages=hugepages, log_size=log_size, log_files=log_files)
    if foreground:
        daemon.become(state, options, said)
    began = time.monotonic()
    reason = why_unusable(MEMORY_MIB << 20)
    memory = "hugepages"
    if not Options(said.hugepages, cores).resolve_hugepages():
        memory = f"no hugepages ({reason or 'as asked'})"
    before = control.live_processes(state)
    daemon.start(state, options, said)
    click.echo(f"memory: {memory}")
    facts = _call(state, "status")["target"]
    how = f"profile {facts['profile']}, core {_list(facts['cores'])}"
    how += ", taken over" if "target" in before else ""
    click.echo(f"target ready after {time.monotonic() - began:.1f} s, {how}; {state.root}")


def _stand_by(state: StateDir, wanted: bool) -> bool:
    """Give the target that runs a standby, or take it away. False when no supervisor runs."""
    try:
        _call(state, "stand_by", wanted=wanted)
    except TargetNotRunning:
        return False
    click.echo(f"the target goes on {'with a' if wanted else 'without'} standby, now and after later starts")
    return True


@target.command()
@click.option("--yes", is_flag=True, help="Also while guests are connected.")
@click.pass_obj
def stop(state: StateDir, yes: bool) -> None:
    """Stop the target. Guests would lose their controllers: shut them down first, or use `restart`."""
    try:
        guests = [] if yes else [guest["controller"] for guest in _call(state, "status")["guests"]]
        if guests:
            names = ", ".join(guests)
            raise ConflictError(f"guests on {names} would lose their disks; shut them down, or say --yes")
        asyncio.run(daemon.stop(state))
    except TargetNotRunning:
        if control.live_processes(state):
            raise
        click.echo("no target is running")
        return
    click.echo("stopped")


def _call(state: StateDir, method: str, **params: Any) -> Any:
    return asyncio.run(control.ask(state, method, params))


_rolling = click.option(
    "--rolling", is_flag=True, help="One controller at a time, while both processes live: each guest waits less."
)


@target.command()
@click.argument("name", required=False)
@_rolling
@click.pass_obj
def restart(state: StateDir, name: str | None, rolling: bool) -> None:
    """Replace a target by a new process of the same SPDK; without a name every target, one after the other. Guests stay
    and wait.

    \b
    Examples:
      nvmuser target restart
      nvmuser target restart fast --rolling
    """
    began = time.monotonic()
    moved = _call(state, "restart", target=name, rolling=rolling)
    click.echo(f"restarted in {time.monotonic() - began:.1f} s{_moved(moved, rolling)}")


def _moved(count: int, rolling: bool) -> str:
    return f"; {counted(count, 'controller')} moved, one after the other" if rolling else ""


@target.command()
@click.option(
    "--spdk",
    "prefix",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where it is installed. Default: the one that set-up built.",
)
@_rolling
@click.pass_obj
def upgrade(state: StateDir, prefix: Path | None, rolling: bool) -> None:
    """Replace every target by a process of another SPDK, now and at later starts. It is started before the old one
    ends, and the old one's I/O is finished and flushed. Guests stay and wait.

    \b
    Examples:
      nvmuser target upgrade --spdk /opt/spdk-26.05
      nvmuser target upgrade --rolling
      nvmuser target upgrade        # after `make setup` has built a new one
    """
    chosen = prefix.absolute() if prefix else find_spdk().prefix
    began = time.monotonic()
    moved = _call(state, "upgrade", prefix=str(chosen), rolling=rolling)
    seconds = time.monotonic() - began
    click.echo(f"the target is SPDK in {chosen} now; replaced in {seconds:.1f} s{_moved(moved, rolling)}")


@target.command("unit")
@click.option("--standby", is_flag=True, help="As of `target start`.")
@click.pass_obj
def show_unit(state: StateDir, standby: bool) -> None:
    """Print a systemd unit for this state directory. Run by systemd, guests survive even that the supervisor, the
    endpoint and the target are killed together.

    \b
    Example:
      nvmuser target unit --standby > /etc/systemd/system/nvmuser.service
      systemctl enable --now nvmuser
    """
    click.echo(unit(state, standby=standby), nl=False)


@target.command()
@click.argument("which", type=click.Choice(log_module.LOGS), default="target")
@click.option("--target", "name", default=DEFAULT_TARGET, metavar="NAME", help="Of which target. Default: the default.")
@click.option("-n", "--lines", type=click.IntRange(min=1), default=50, help="How many lines, from the end.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@click.pass_obj
def logs(state: StateDir, which: str, name: str, lines: int, follow: bool) -> None:
    """Show the log of the target, the endpoint or the supervisor.

    \b
    Examples:
      nvmuser target logs -n 200
      nvmuser target logs endpoint -f
      nvmuser target logs --target fast
    """
    if name != DEFAULT_TARGET:  # There always is one, also for who may read logs, and not the store.
        control.load(state).target(name)
    path = state.target_log(name) if which == "target" else state.logs / f"{which}.log"
    shown, end = log_module.tail(path, lines)
    click.echo("\n".join(shown))
    if follow:
        for text in log_module.follow(path, end):
            click.echo(text, nl=False)


def _list(cores: list[int]) -> str:
    return ", ".join(map(str, cores))

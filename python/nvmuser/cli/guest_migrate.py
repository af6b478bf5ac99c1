"""`nvmuser guest migrate`, `suspend` and `resume`: a guest of ours to another state directory, or a file and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from nvmuser.cli import guest_fleet
from nvmuser.cli import progress as progresses
from nvmuser.cli.options import json_option
from nvmuser.cli.present import say
from nvmuser.errors import NotFoundError, UsageError
from nvmuser.fleet.settings import FleetSettings
from nvmuser.guest import move
from nvmuser.guest import relocate as relocations
from nvmuser.guest.relocate import Options, relocate
from nvmuser.model.sizes import approximate, parse_size
from nvmuser.paths import StateDir


@click.command()
@click.argument("name")
@click.option(
    "--to",
    "destination",
    required=True,
    metavar="HOST|STATE_DIR",
    help="A host of the fleet; or, with a slash, the state directory of a running target on this machine. It has the "
    "volumes' files at the same paths.",
)
@click.option("--uri", default="", metavar="URI", help="For QEMU, to a state directory. Default: a UNIX socket.")
@click.option("--bandwidth", default="0", metavar="SIZE", help="A second, at most. Default: as fast as it can.")
@click.option("--downtime", default=0.3, show_default=True, help="Seconds for which QEMU may stop the guest.")
@json_option
@click.pass_obj
def migrate(
    state: StateDir, /, name: str, destination: str, uri: str, bandwidth: str, downtime: float, as_json: bool
) -> int:
    """Move a running guest, with its controllers, to another host of the fleet, or to another state directory.

    It was started with --via libvfio. The volumes are closed here and opened there while it stands still. When anything
    fails, the guest goes on here; to a state directory, after Ctrl-C too. In a fleet, its volumes are images in Ceph or
    namespaces of remotes.

    \b
    Examples:
      nvmuser guest migrate box --to h2
      nvmuser guest migrate box --to /var/lib/nvmuser2
      nvmuser guest migrate box --to /var/lib/nvmuser2 --bandwidth 500M
    """
    if "/" not in destination and (settings := FleetSettings.load(state)):
        if uri:
            raise UsageError("--uri: is for another state directory: in a fleet, the other host's QEMU chooses its own")
        guest_fleet.migrate(state, settings, name, destination, parse_size(bandwidth), downtime, as_json)
        return 0
    there = StateDir(Path(destination).absolute())
    if not there.root.is_dir():
        no_fleet = "" if "/" in destination else ", and this host belongs to no fleet"
        raise NotFoundError(f"{destination}: no such state directory{no_fleet}")
    if there.root.resolve() == state.root.resolve():
        raise UsageError(f"{destination}: the guest is there already")
    options = Options(uri, parse_size(bandwidth), downtime)
    if as_json:
        result = progresses.run(relocate(state, there, name, options))
        say({"name": name, **asdict(result), "to": str(there.root)})
        return 0
    result = _with_progress(state, there, name, options)
    click.echo(
        f"guest {name} runs in {there.root}: {result.total:.1f} s, {approximate(result.bytes)}, stopped for "
        f"{result.downtime:.2f} s; its controllers here can be forgotten: nvmuser controller release"
    )
    return 0


def _with_progress(here: StateDir, there: StateDir, name: str, options: Options) -> move.Result:
    with progresses.Progress() as progress:
        moving = relocate(here, there, name, options, on_step=progress.step, on_progress=_shown(progress))
        return progresses.run(moving)


def _shown(progress: progresses.Progress) -> Callable[[move.Progress], None]:
    def show(now: move.Progress) -> None:
        left = f"{approximate(now.remaining)} of {approximate(now.total)} left"
        progress.detail(f"{left}, {now.rate / 1e6:.0f} MB/s, expected stall {now.stall:.2f} s")

    return show


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@click.pass_obj
def suspend(state: StateDir, /, name: str, file: Path, as_json: bool) -> int:
    """Write a running guest to FILE, and end it; `resume` has it go on where it was.

    It was started with --via libvfio. Its volumes are closed until then. When anything fails, and after Ctrl-C, it goes
    on.

    \b
    Examples:
      nvmuser guest suspend box /var/tmp/box.guest
    """
    file = file.absolute()
    with progresses.Progress() as progress:
        progress.step(f"writing guest {name}")
        result = progresses.run(relocations.suspend(state, name, file, on_progress=_shown(progress)))
    if as_json:
        say({"name": name, **asdict(result), "file": str(file)})
    else:
        click.echo(f"guest {name} is in {file}: {result.total:.1f} s, {approximate(result.bytes)}")
    return 0


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@json_option
@click.pass_obj
def resume(state: StateDir, /, name: str, file: Path, as_json: bool) -> int:
    """Have a guest go on that `suspend` has written to FILE, which is removed then.

    \b
    Examples:
      nvmuser guest resume box /var/tmp/box.guest
    """
    with progresses.Progress() as progress:
        progress.step(f"reading guest {name}")
        progresses.run(relocations.resume(state, name, file.absolute()))
    if as_json:
        say({"name": name})
    else:
        click.echo(f"guest {name} runs")
    return 0

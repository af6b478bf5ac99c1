"""`nvmuser volume import` and `export`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import say
from nvmuser.cli.progress import Progress, run
from nvmuser.images import formats, volumes
from nvmuser.images.volumes import Report, Transferred
from nvmuser.model.sizes import format_size
from nvmuser.paths import StateDir

_format = click.option(
    "--format", "kind", type=click.Choice(formats.FORMATS), help="Default: qcow2 for FILE.qcow2, else raw."
)


@click.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@_format
@json_option
@click.pass_obj
def import_(state: StateDir, name: str, file: Path, kind: formats.Format | None, as_json: bool) -> None:
    """Fill the volume NAME with an image, and verify it.

    What the volume holds is overwritten, up to the image's size. No controller may show it. Once interrupted, the same
    command goes on where it was.

    \b
    nvmuser volume create debian --size 8G && nvmuser volume import debian debian-12.qcow2
    """
    done = _followed(lambda report: volumes.import_(state, name, file, kind or formats.format_of(file), report))
    _say(done, as_json, f"volume {name} holds {file}")


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@_format
@json_option
@click.pass_obj
def export(state: StateDir, name: str, file: Path, kind: formats.Format | None, as_json: bool) -> None:
    """Copy the volume NAME to an image, sparse, and verify it.

    No controller may show the volume; of one that is in use, export a snapshot. Once interrupted, the same command
    goes on where it was.

    \b
    nvmuser volume snapshot friday data && nvmuser volume export friday friday.qcow2
    """
    done = _followed(lambda report: volumes.export(state, name, file, kind or formats.format_of(file), report))
    _say(done, as_json, f"volume {name} is in {file}")


def _followed(work: Callable[[Report], Coroutine[Any, Any, Transferred]]) -> Transferred:
    with Progress() as progress:
        step = ""

        def report(what: str, share: float) -> None:
            nonlocal step
            if what != step:
                step = what
                progress.step(what)
            progress.detail(f"{share:.0%}")

        return run(work(report))


def _say(done: Transferred, as_json: bool, text: str) -> None:
    if as_json:
        say(done.to_json())
        return
    resumed = f", resumed at {format_size(done.resumed_at)}" if done.resumed_at else ""
    click.echo(f"{text}: {format_size(done.size)}{resumed}, verified, SHA-256 {done.sha256}")

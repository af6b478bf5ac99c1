"""`nvmuser setup` and `nvmuser doctor`."""

from __future__ import annotations

import json
import signal
from types import FrameType
from typing import cast

import click
from rich.console import Console

from nvmuser.paths import StateDir
from nvmuser.toolchain import doctor as checks
from nvmuser.toolchain import older_qemu
from nvmuser.toolchain import setup as row
from nvmuser.toolchain.appliance import Suite
from nvmuser.toolchain.older_qemu import SUITES


@click.command()
@click.option(
    "--guest-kernel",
    type=click.Choice(["trixie", "bookworm"]),
    default="trixie",
    show_default=True,
    help="Debian suite whose kernel the guest runs.",
)
@click.option(
    "--qemu",
    "older_qemus",
    type=click.Choice(SUITES),
    multiple=True,
    help="Also this Debian suite's QEMU, which has no vfio-user client: for the tests of libvfio.",
)
def setup(guest_kernel: str, older_qemus: tuple[str, ...]) -> None:
    """Get SPDK, QEMU and the guest. What is there already is left alone; an interrupted set-up goes on."""
    # As ctrl-C: what is half-done is cleaned up on the way out, and no build goes on behind our back.
    signal.signal(signal.SIGTERM, _interrupt)
    row.run(Console(), cast(Suite, guest_kernel), cast(tuple[older_qemu.Suite, ...], older_qemus))


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
@click.pass_obj
def doctor(state: StateDir, as_json: bool) -> int:
    """Check all that nvmuser needs; for what is amiss, say what mends it. Fails when guests could not be served."""
    results = checks.examine(state)
    if as_json:
        click.echo(
            json.dumps({"ok": checks.usable(results), "checks": [check.to_json() for check in results]}, indent=2)
        )
    else:
        for check in results:
            mark = (
                click.style("✓", fg="green") if check.ok else click.style("✗", fg="red" if check.needed else "yellow")
            )
            click.echo(f"{mark} {check.name}: {check.finding}{f'  → {check.mend}' if check.mend else ''}")
    return 0 if checks.usable(results) else 1

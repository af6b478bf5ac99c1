"""`nvmuser setup`."""

from __future__ import annotations

import signal
from types import FrameType
from typing import cast

import click
from rich.console import Console

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
    help="Also this Debian suite's QEMU, which has no vfio-user client: for the tests of libvfio. May be repeated.",
)
@click.option(
    "--with",
    "extras",
    type=click.Choice(row.EXTRAS),
    multiple=True,
    help="rbd: also what volumes in Ceph need, if librbd's headers are there (librbd-dev). May be repeated.",
)
def setup(guest_kernel: str, older_qemus: tuple[str, ...], extras: tuple[str, ...]) -> None:
    """Get SPDK, QEMU and the guest. What is there already is left alone; an interrupted set-up goes on.

    \b
    nvmuser setup
    nvmuser setup --with rbd
    """
    # As ctrl-C: what is half-done is cleaned up on the way out, and no build goes on behind our back.
    signal.signal(signal.SIGTERM, _interrupt)
    row.run(Console(), cast(Suite, guest_kernel), cast(tuple[older_qemu.Suite, ...], older_qemus), extras)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

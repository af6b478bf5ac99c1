"""The options of `nvmuser guest` that describe a machine, and the specification that they make."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from nvmuser.errors import AccessError
from nvmuser.guest.spec import MIB, GuestSpec
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.hostfs.sockets import answers
from nvmuser.model.sizes import parse_size
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


def _memory(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    size = parse_size(value)
    return -(-size // (2 * MIB)) * 2 * MIB


via_option = click.option(
    "--via",
    type=click.Choice(["native", "libvfio"]),
    default="native",
    show_default=True,
    help="How QEMU reaches controllers: its own vfio-user client, or vfio-pci and a preloaded libvfio.so.",
)


memory_file_option = click.option(
    "--memory-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The guest's memory, such as /dev/shm/NAME: it stays there while the guest is suspended.",
)


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that makes a QEMU: CPUs, memory, firmware, transport."""
    for option in reversed(
        (
            click.option("--cpus", default=1, show_default=True, help="Virtual CPUs."),
            click.option("--memory", default="1G", show_default=True, callback=_memory, help="Such as 512M or 4G."),
            click.option(
                "--direct", is_flag=True, help="Without the endpoint: the guest loses its disks with the target."
            ),
            via_option,
            click.option("--boot-from", metavar="C", help="Boot from this controller (with SeaBIOS or --uefi)."),
            click.option("--hugepages/--no-hugepages", default=None, help="Default: hugepages if enough are free."),
            click.option(
                "--uefi", "firmware", flag_value="uefi", default=None, help="UEFI firmware instead of SeaBIOS."
            ),
        )
    ):
        command = option(command)
    return command


def boot_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the commands that boot a guest, with those of `machine_options`."""
    for option in reversed(
        (
            click.option(
                "--controller",
                "controllers",
                multiple=True,
                metavar="C",
                help="Connect this controller. May be repeated.",
            ),
            click.option(
                "--image",
                type=click.Path(path_type=Path, exists=True, dir_okay=False),
                help="Boot this disk (raw or qcow2) instead of the appliance.",
            ),
            click.option(
                "--guest-kernel",
                "suite",
                type=click.Choice(["trixie", "bookworm"]),
                default="trixie",
                help="Of which Debian the appliance's kernel is.",
            ),
            click.option("--append", default="", help="For the appliance's kernel, such as nvme.poll_queues=1."),
            click.option(
                "--spare-ports", default=4, show_default=True, help="PCIe root ports for what is plugged later."
            ),
            click.option("--qemu-arg", "qemu_args", multiple=True, help="One more argument for QEMU. May be repeated."),
        )
    ):
        command = option(command)
    return machine_options(command)


def device_directories(state: StateDir, controllers: Iterable[str], *, direct: bool = False) -> tuple[Path, ...]:
    """What stands for the controllers on the command line of a QEMU with libvfio."""
    desired, devices = control.load(state), Devices(state, direct=direct)
    return tuple(devices.provide(desired.controller(name)) for name in controllers)


def _check_declared(state: StateDir, controllers: Iterable[str]) -> None:
    """Tell a name that nothing bears from a controller whose target does not run.

    :raises NotFoundError: there is no such controller.
    """
    # A user who may connect need not be one who may read what is declared.
    with contextlib.suppress(AccessError):
        for name in controllers:
            control.load(state).controller(name)


def make_spec(state: StateDir, controllers: tuple[str, ...], direct: bool, via: str, **options: Any) -> GuestSpec:
    """The specification that the options of `boot_options` describe.

    :raises UsageError: they contradict each other.
    :raises NotFoundError: there is no such controller.
    """
    boot_from = options.pop("boot_from", None)
    if boot_from and boot_from not in controllers:
        controllers = (*controllers, boot_from)
    _check_declared(state, [name for name in controllers if not answers(state.socket(name, direct=direct))])
    if options.get("memory_file"):
        options["memory_file"] = options["memory_file"].absolute()
    options["firmware"] = options.get("firmware") or "seabios"
    return GuestSpec(
        sockets=tuple(state.socket(name, direct=direct) for name in controllers),
        directories=device_directories(state, controllers, direct=direct) if via == "libvfio" else None,
        boot_from=state.socket(boot_from, direct=direct) if boot_from else None,
        **options,
    )

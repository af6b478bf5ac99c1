"""`nvmuser guest qemu-args` and `qemu`: for those who start QEMU themselves."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import click

from nvmuser.cli.guest_options import machine_options, make_spec, via_option
from nvmuser.cli.options import json_document
from nvmuser.errors import SetupError, UsageError
from nvmuser.guest import cloud_hypervisor, libvirt, libvirt_hook, migration
from nvmuser.guest import qemu as arguments_of
from nvmuser.guest.spec import GuestSpec, use_hugepages
from nvmuser.hostfs.sockets import answers
from nvmuser.paths import StateDir
from nvmuser.supervisor import control
from nvmuser.toolchain import accelerator, find_qemu, libvfio
from nvmuser.toolchain.qemu import BINARY


@click.command("qemu-args")
@click.argument("controllers", nargs=-1, required=True)
@machine_options
@click.option("--libvirt", "as_libvirt", is_flag=True, help="A domain for `virsh define` instead.")
@click.option(
    "--vmm",
    type=click.Choice(["qemu", "cloud-hypervisor"]),
    default="qemu",
    show_default=True,
    help="Whose command line to print.",
)
@json_document("a list of strings")
@click.pass_obj
def qemu_args(
    state: StateDir, /, controllers: tuple[str, ...], as_libvirt: bool, vmm: str, as_json: bool, **options: Any
) -> None:
    """Print a command line for a QEMU with these controllers, machine q35, to which more can be added.

    It names the QEMU that `nvmuser doctor` names ($NVMUSER_QEMU, if that is set); with --via libvfio the one on PATH.

    \b
    Examples:
      eval "$(nvmuser guest qemu-args vm1) -nographic -drive file=system.qcow2"
      eval "$(nvmuser guest qemu-args vm1 --via libvfio) -nographic -drive file=system.qcow2"
      nvmuser guest qemu-args vm1 vm2 --memory 4G --libvirt > vm1.xml
      nvmuser guest qemu-args vm1 --via libvfio --libvirt > vm1.xml    # which virsh migrates
      eval "$(nvmuser guest qemu-args vm1 --vmm cloud-hypervisor) --kernel vmlinux --disk path=system.raw"
    """
    if as_libvirt and as_json:
        raise UsageError("--libvirt prints XML: not together with --json")
    spec = make_spec(state, controllers, **options, spare_ports=0)
    if vmm == "cloud-hypervisor":
        if as_libvirt:
            raise UsageError("--libvirt prints a domain of QEMU: not together with --vmm cloud-hypervisor")
        _note_who_is_missing(spec)
        words = cloud_hypervisor.attachment(spec, hugepages=use_hugepages(spec))
        _print([cloud_hypervisor.PROGRAM], words, as_json=as_json)
        return
    # Report what is missing before anything is printed.
    command = _command(with_libvfio=spec.libvfio)
    hugepages, image = use_hugepages(spec), migration.image_beside(spec.sockets)
    if not spec.libvfio:
        migration.write_image(image)
    _note_who_is_missing(spec)
    if as_libvirt:
        click.echo(_domain(state, controllers, spec, hugepages=hugepages, no_migration=image))
        return
    form = arguments_of.plain if spec.libvfio else json.dumps
    arguments = arguments_of.attachment(
        spec, arguments_of.memory_backend(spec, hugepages=hugepages), no_migration=image, form=form
    )
    _print(command, arguments, as_json=as_json)


def _print(command: list[str], arguments: list[str], *, as_json: bool) -> None:
    """The words as JSON, or as lines for a shell, one for each option."""
    if as_json:
        click.echo(json.dumps([*command, *arguments], indent=2))
        return
    lines = [command]
    for word in arguments:
        lines.append([word]) if word.startswith("-") else lines[-1].append(word)
    click.echo(" \\\n".join(map(shlex.join, lines)))


def _domain(
    state: StateDir, controllers: tuple[str, ...], spec: GuestSpec, *, hugepages: bool, no_migration: Path
) -> str:
    names = tuple(dict.fromkeys(path.parent.name for path in spec.sockets))
    return libvirt.domain(
        spec,
        name=controllers[0],
        hugepages=hugepages,
        kvm=accelerator() == "kvm",
        no_migration=no_migration,
        metadata=libvirt_hook.metadata(state, names, desired=control.load(state) if spec.libvfio else None),
        preload=str(libvfio.find_libvfio()) if spec.libvfio else "",
    )


def _command(*, with_libvfio: bool) -> list[str]:
    """The QEMU to start."""
    if with_libvfio:
        return ["env", libvfio.preload(), os.environ.get("NVMUSER_QEMU") or BINARY]
    try:
        return list(find_qemu().argv)
    except SetupError as error:
        click.echo(f"note: {error}", err=True)
        return [BINARY]


def _note_who_is_missing(spec: GuestSpec) -> None:
    for path in spec.sockets:
        if not (path.exists() and answers(path)):
            click.echo(f"note: nobody answers at {path} yet: QEMU will not start before the target does", err=True)


@click.command(context_settings={"ignore_unknown_options": False})
@via_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def qemu(via: str, arguments: tuple[str, ...]) -> None:
    """Run the QEMU that `nvmuser doctor` names, with ARGUMENTS and nothing else.

    With --via libvfio it has libvfio.so preloaded. This process becomes QEMU: signals and exit status are QEMU's.

    \b
    Examples:
      nvmuser guest qemu -- -device vfio-user-pci,help
      nvmuser guest qemu -- -machine q35 -m 1G -nographic
    """
    with_libvfio = via == "libvfio"
    found = find_qemu(arguments_of.PLAIN_DRIVER if with_libvfio else arguments_of.DRIVER)
    argv = [*(("env", libvfio.preload()) if with_libvfio else ()), *found.argv, *arguments]
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise SetupError(f"{argv[0]}: {error.strerror}") from error

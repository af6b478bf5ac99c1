"""`nvmuser guest`: virtual machines that use our controllers."""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

import click

from nvmuser.cli import guest_libvirt, guest_migrate, guest_plug, guest_qemu
from nvmuser.cli.groups import Group
from nvmuser.cli.guest_options import boot_options, make_spec, memory_file_option
from nvmuser.cli.options import json_option
from nvmuser.cli.present import run_until_ended, say
from nvmuser.guest import machine, qemu, terminal
from nvmuser.guest.registry import GuestRecord, registry
from nvmuser.guest.spec import MIB, GuestSpec
from nvmuser.paths import StateDir
from nvmuser.supervisor import occupancy


@click.group(cls=Group)
def guest() -> None:
    """Boot guests with NVMe controllers, and run commands in them.

    \b
    Examples:
      nvmuser guest run --controller vm1 -- nvme list
      nvmuser guest run --controller vm1 --controller vm2 --memory 2G --cpus 2
      nvmuser guest start box --controller vm1 && nvmuser guest exec box lsblk
      nvmuser guest plug box vm2
      nvmuser guest qemu-args vm1
      nvmuser guest qemu-args vm1 --via libvfio
      nvmuser guest qemu -- -version
    """


guest.add_command(guest_migrate.migrate)
guest.add_command(guest_migrate.suspend)
guest.add_command(guest_migrate.resume)
guest.add_command(guest_plug.plug)
guest.add_command(guest_plug.unplug)
guest.add_command(guest_qemu.qemu_args)
guest.add_command(guest_qemu.qemu)
guest.add_command(guest_libvirt.libvirt_hook_command)


@guest.command(context_settings={"ignore_unknown_options": False})
@boot_options
@click.argument("command", nargs=-1)
@click.pass_obj
def run(state: StateDir, /, command: tuple[str, ...], **options: Any) -> int:
    """Boot a guest, run COMMAND in it, and end it. Without COMMAND: its console.

    The exit status is the command's. What is piped in is the command's input. No process is left, however this ends.
    """
    spec = make_spec(state, **options)
    runtime = registry(state).runtime(f"run-{os.getpid()}")
    return run_until_ended(_run_command(state, runtime, spec, command))


async def _run_command(state: StateDir, runtime: qemu.Runtime, spec: GuestSpec, command: tuple[str, ...]) -> int:
    await _check_free(state, spec)
    async with machine.launch(spec, runtime.directory, wait=bool(command)) as guest:
        if not command:
            await terminal.console(runtime.console)
            return 0
        async with guest.stream(_shell(command)) as process:
            return await terminal.relay(process)


async def _check_free(state: StateDir, spec: GuestSpec) -> None:
    direct = any(path == state.socket(path.parent.name, direct=True) for path in spec.sockets)
    await occupancy.check_free(state, [path.parent.name for path in spec.sockets], direct=direct)


def _shell(command: tuple[str, ...]) -> str:
    """A single word is a line for the guest's shell; several are a command and its arguments."""
    return command[0] if len(command) == 1 else shlex.join(command)


@guest.command()
@click.argument("name")
@boot_options
@memory_file_option
@click.option("--no-wait", is_flag=True, help="Do not wait for the guest's agent (a system without one).")
@json_option
@click.pass_obj
def start(state: StateDir, /, name: str, no_wait: bool, as_json: bool, **options: Any) -> int:
    """Start a guest that goes on in the background.

    \b
    Examples:
      nvmuser guest start box --controller vm1
      nvmuser guest start mine --image disk.qcow2 --controller vm1 --no-wait
      nvmuser guest start mine --boot-from vm1 --uefi --no-wait
      nvmuser guest start box --controller vm1 --via libvfio --memory-file /dev/shm/box
    """
    spec = make_spec(state, **options)

    async def work() -> GuestRecord:
        await _check_free(state, spec)
        return await registry(state).start(name, spec, wait=not no_wait)

    record = asyncio.run(work())
    if as_json:
        say(_described(state, record))
    else:
        click.echo(f"guest {name} runs (pid {record.pid}); QMP: {registry(state).runtime(name).qmp}")
    return 0


def _described(state: StateDir, record: GuestRecord) -> dict[str, Any]:
    fields = ("name", "pid", "running", "cpus", "memory", "sockets")
    described = {field: getattr(record, field) for field in fields}
    return described | {"qmp": str(registry(state).runtime(record.name).qmp)}


@guest.command("list")
@json_option
@click.pass_obj
def list_guests(state: StateDir, /, as_json: bool) -> None:
    """The guests that were started and not stopped.

    \b
    Example:
      nvmuser guest list --json
    """
    records = registry(state).list()
    if as_json:
        say([_described(state, record) for record in records])
        return
    for record in records:
        status = f"pid {record.pid}" if record.running else "ended"
        controllers = " ".join(Path(path).parent.name for path in record.sockets) or "-"
        click.echo(f"{record.name:20} {status:12} {record.cpus} CPUs {record.memory // MIB:6} MiB  {controllers}")


@guest.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@click.pass_obj
def exec_command(state: StateDir, /, name: str, command: tuple[str, ...]) -> int:
    """Run COMMAND in a guest that was started. One at a time: a second one prints that it waits for its turn.

    The exit status is the command's. What is piped in is its input. A guest with a system of its own needs the agent.

    \b
    Examples:
      nvmuser guest exec box nvme list
      nvmuser guest exec box -- nvme list
      nvmuser guest exec box 'dd of=/dev/nvme0n1 bs=1M' < disk.raw
    """
    # Options end with the guest's name; those who write `--` after it, as with `run`, do not name a command by it.
    command = command[command[0] == "--" :]
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")

    def waits(pid: int) -> None:
        click.echo(f"guest {name} runs a command of process {pid}; waiting for its end", err=True)

    async def work() -> int:
        async with (
            registry(state).agent(name, on_wait=waits) as agent,
            agent.stream(_shell(command)) as process,
        ):
            return await terminal.relay(process)

    return run_until_ended(work())


@guest.command()
@click.argument("name")
@click.pass_obj
def console(state: StateDir, /, name: str) -> int:
    """Connect this terminal with a guest's serial console. Ctrl-] leaves it; the guest goes on.

    \b
    Example:
      nvmuser guest console box
    """
    guests = registry(state)
    guests.get(name)

    async def work() -> int:
        await terminal.console(guests.runtime(name).console)
        return 0

    return run_until_ended(work())


@guest.command()
@click.argument("names", nargs=-1, required=True)
@json_option
@click.pass_obj
def stop(state: StateDir, /, names: tuple[str, ...], as_json: bool) -> int:
    """Shut guests down, and remove what was theirs.

    \b
    Example:
      nvmuser guest stop box mine
    """
    guests = registry(state)
    for name in names:
        guests.get(name)

    async def work() -> int:
        results = await asyncio.gather(*(guests.stop(name) for name in names))
        if as_json:
            say([{"name": name, "shut_down": graceful} for name, graceful in zip(names, results, strict=True)])
            return 0
        for name, graceful in zip(names, results, strict=True):
            click.echo(f"guest {name} {'shut down' if graceful else 'did not shut down by itself and was ended'}")
        return 0

    return run_until_ended(work())

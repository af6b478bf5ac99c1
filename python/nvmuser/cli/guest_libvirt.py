"""`nvmuser guest libvirt-hook`: what libvirt calls before a domain starts and after it has ended."""

from __future__ import annotations

import asyncio
import sys

import click

from nvmuser.guest import libvirt_hook


@click.command("libvirt-hook")
@click.argument("domain")
@click.argument("operation")
@click.argument("suboperation", default="begin")
@click.argument("extra", default="-")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=libvirt_hook.WAIT,
    show_default=True,
    help="Seconds that a domain waits for its controllers.",
)
def libvirt_hook_command(domain: str, operation: str, suboperation: str, extra: str, wait: float) -> None:
    """For /etc/libvirt/hooks/qemu.d: claim the controllers that a domain's metadata name, and wait for them, before it
    starts; release them when it has ended. The domain's XML is read from stdin; any other is none of our concern.

    \b
    Examples:
      nvmuser guest libvirt-hook vm1 prepare begin - < vm1.xml
      nvmuser guest libvirt-hook vm1 release end - < vm1.xml
    """
    if operation not in ("prepare", "release"):
        return
    named = libvirt_hook.parse(sys.stdin.buffer.read())
    if named is None:
        return
    if operation == "prepare":
        asyncio.run(libvirt_hook.prepare(named, wait=wait))
    else:
        libvirt_hook.release(named)

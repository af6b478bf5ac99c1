"""`nvmuser guest libvirt-hook`: what libvirt calls before a domain starts or arrives, and after it has ended."""

from __future__ import annotations

import asyncio
import sys

import click

from nvmuser.guest import libvirt_arrival, libvirt_hook


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
    starts; release them when it has ended. Where a domain comes from another host, or from a file, its controllers are
    expected, and its description for this host is printed, if it has to be another. The domain's XML is read from
    stdin; any other is none of our concern.

    \b
    Examples:
      nvmuser guest libvirt-hook vm1 prepare begin - < vm1.xml
      nvmuser guest libvirt-hook vm1 migrate begin - < vm1.xml
      nvmuser guest libvirt-hook vm1 release end - < vm1.xml
    """
    if operation not in ("prepare", "migrate", "restore", "release"):
        return
    text = sys.stdin.buffer.read()
    named = libvirt_hook.parse(text)
    if named is not None:
        click.echo(asyncio.run(_act(named, operation, text, wait)), nl=False)


async def _act(domain: libvirt_hook.Domain, operation: str, text: bytes, wait: float) -> str:
    """What is to be printed."""
    match operation:
        case "prepare":
            await libvirt_hook.prepare(domain, wait=wait, arriving=libvirt_arrival.take_expected(domain))
        case "release":
            libvirt_hook.release(domain)
            await libvirt_arrival.forget(domain)
        case _:
            return await libvirt_arrival.expect(domain, text, wait=wait)
    return ""

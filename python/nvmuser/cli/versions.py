"""`nvmuser --version`: its own, and those of what it runs on, as far as that is here.

Owns the lines. The first one alone is for programs: it never changes its form.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

import click

from nvmuser import __version__
from nvmuser.errors import NvmuserError
from nvmuser.toolchain import artifact, find_libvfio, find_qemu, find_spdk, recipe


def show(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print them and end, as the callback of an option."""
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"nvmuser, version {__version__}")
    for name, look in _PARTS.items():
        click.echo(f"  {name:8} {_found(look)}")
    ctx.exit()


def _found(look: Callable[[], str]) -> str:
    try:
        return look()
    except NvmuserError as error:
        return f"none: {str(error).splitlines()[0]}"


def _spdk() -> str:
    found = find_spdk()
    facts = artifact.read_manifest(found.prefix)
    if facts is None:
        return f"{found.version}, not ours, in {found.prefix}"
    return f"{found.version} for {facts['cpu_level']}, patches applied: {len(facts['patches'])}, in {found.prefix}"


def _patches() -> str:
    """Those that belong to this nvmuser, whichever SPDK is used: what a bug report has to name."""
    patches = recipe.load().patches
    last = patches[-1].name.partition("-")[0] if patches else "none"
    return f"{artifact.digest(*_contents())} ({len(patches)}, the last is {last})"


def _contents() -> Iterator[bytes]:
    for patch in recipe.load().patches:
        yield patch.name.encode()
        yield patch.read_bytes()


def _qemu() -> str:
    found = find_qemu()
    return f"{found.version} ({found.origin})"


def _libvfio() -> str:
    return str(find_libvfio())


_PARTS: dict[str, Callable[[], str]] = {
    "SPDK": _spdk,
    "patches": _patches,
    "QEMU": _qemu,
    "libvfio": _libvfio,
    "Python": lambda: f"{platform.python_version()}, Linux {platform.release()}",
}

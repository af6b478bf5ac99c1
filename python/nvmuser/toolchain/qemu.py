"""A QEMU that has `vfio-user-pci` (10.1 and later).

Owns where it comes from: $NVMUSER_QEMU, the one on PATH, or Debian's package of trixie-backports unpacked into the
cache, which runs on an older Debian through its own dynamic loader. It starts no guest.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.paths import SETUP, cache_dir
from nvmuser.toolchain import apt, artifact, proc
from nvmuser.toolchain.steps import Reporter

BINARY = "qemu-system-x86_64"
DEVICE = "vfio-user-pci"
_SUITES = ("trixie-backports", "trixie")
_PACKAGES = ("qemu-system-x86", "qemu-utils", "ovmf", "seabios")

# Nothing that a guest needs, and half of the size: manuals, desktop files, what packages bring that are depended on.
LEAVE_OUT = (
    "./usr/share/doc*", "./usr/share/man", "./usr/share/locale", "./usr/share/icons", "./usr/share/lintian",
    "./usr/share/bash-completion", "./usr/share/perl5", "./usr/share/applications", "./usr/share/pixmaps",
    "./usr/share/alsa", "./usr/share/info", "./usr/share/bug", "./usr/share/debconf", "./etc", "./var",
    "./usr/sbin", "./usr/lib/systemd", "./usr/lib/udev", "./usr/share/qemu/*.dtb", "./usr/share/qemu/hppa*",
    "./usr/share/qemu/openbios*", "./usr/share/qemu/skiboot*", "./usr/share/qemu/s390*", "./usr/share/qemu/npcm*",
    "./usr/share/qemu/u-boot*", "./usr/share/qemu/slof*",
)  # fmt: skip
_UEFI_DIRS = ("usr/share/OVMF",)


@dataclass(frozen=True)
class Qemu:
    """How to run QEMU: `argv` and then QEMU's own arguments."""

    argv: tuple[str, ...]
    version: str
    origin: str
    """Where it was found, for people: `NVMUSER_QEMU`, `PATH` or `cache`."""
    firmware: Path | None = None
    """OVMF's code (read-only flash)."""
    uefi_vars: Path | None = None
    """OVMF's template of variables (each guest needs a copy)."""
    _tool: Callable[[str], tuple[str, ...]] = field(default=lambda name: (name,), repr=False, compare=False)

    def tool(self, name: str) -> tuple[str, ...]:
        """How to run another program of QEMU: qemu-img, qemu-storage-daemon …"""
        return self._tool(name)


def artifact_dir(cache: Path) -> Path:
    """Where the unpacked Debian package lies."""
    return cache / f"qemu-{artifact.digest(*_SUITES, *_PACKAGES, *LEAVE_OUT)}"


def find_qemu(device: str = DEVICE) -> Qemu:
    """The QEMU to use, one that has `device`.

    If that is not DEVICE, one with both is preferred unless $NVMUSER_QEMU names another: a comparison then needs only
    one QEMU.

    :raises SetupError: $NVMUSER_QEMU has no such device, or there is none at all and set-up has not run.
    """
    named, path = os.environ.get("NVMUSER_QEMU", ""), os.environ.get("PATH", "")
    if device == DEVICE:
        return _find(named, path, cache_dir())
    if named:
        return _named(named, path, device)
    try:
        return _find(named, path, cache_dir())
    except SetupError:
        if found := _on_path(path, device):
            return found
        raise


@functools.cache
def _find(named: str, path: str, cache: Path) -> Qemu:
    if host := host_qemu(named, path):
        return host
    facts = artifact.read_manifest(artifact_dir(cache))
    if facts is None:
        raise SetupError(f"no QEMU with {DEVICE} (QEMU 10.1 or later) here: run `{SETUP}`, or set NVMUSER_QEMU")
    return _unpacked(artifact_dir(cache), facts["version"])


def host_qemu(named: str, path: str) -> Qemu | None:
    """The QEMU that $NVMUSER_QEMU names, or the one on PATH if it has `vfio-user-pci`.

    :raises SetupError: $NVMUSER_QEMU has no such device.
    """
    return _named(named, path, DEVICE) if named else _on_path(path, DEVICE)


@functools.cache
def _named(named: str, path: str, device: str) -> Qemu:
    binary = shutil.which(named, path=path)
    if binary is None:
        raise SetupError(f"NVMUSER_QEMU={named}: not an executable file")
    if not has_device((binary,), device):
        wanted = "QEMU 10.1 or later is needed, or --via libvfio" if device == DEVICE else "it cannot be used"
        raise SetupError(f"NVMUSER_QEMU={named} has no {device} device: {wanted}")
    return _installed(Path(binary), "NVMUSER_QEMU")


def _on_path(path: str, device: str) -> Qemu | None:
    found = shutil.which(BINARY, path=path)
    return _installed(Path(found), "PATH") if found and has_device((found,), device) else None


def has_device(argv: tuple[str, ...], device: str = DEVICE) -> bool:
    """Whether this QEMU reports a device of this name."""
    try:
        return f'name "{device}"' in proc.output([*argv, "-device", "help"], timeout=30)
    except proc.CommandError:
        return False


def version_of(argv: tuple[str, ...]) -> str:
    """QEMU's own version number."""
    text = proc.output([*argv, "--version"], timeout=30)
    match = re.search(r"version (\d[\w.]*)", text)
    return match[1] if match else "unknown"


def _installed(binary: Path, origin: str) -> Qemu:
    def tool(name: str) -> tuple[str, ...]:
        beside = binary.with_name(name)
        return (str(beside),) if beside.exists() else (name,)

    code, variables = _uefi(Path("/"))
    if code is None:
        code, variables = _uefi(artifact_dir(cache_dir()))
    return Qemu((str(binary),), version_of((str(binary),)), origin, code, variables, tool)


def _unpacked(root: Path, version: str) -> Qemu:
    code, variables = _uefi(root)
    return Qemu(unpacked_argv(root, BINARY), version, "cache", code, variables, lambda name: unpacked_argv(root, name))


def unpacked_argv(root: Path, name: str) -> tuple[str, ...]:
    """How to run a program of QEMU out of unpacked packages."""
    # Its own loader and libraries: the host's C library may be older. QEMU finds its data by -L only, because
    # /proc/self/exe is the loader. Other programs of QEMU know no -L.
    # Not by usr/lib64: Debian 12's link there is absolute, and leads to the host's loader.
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries))
    data = ("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")) if name == BINARY else ()
    # Modules are looked for at the place of an installed QEMU, which may be another, whose modules end this one.
    return ("env", f"QEMU_MODULE_DIR={libraries / 'qemu'}", *loader, str(root / "usr/bin" / name), *data)


def _uefi(root: Path) -> tuple[Path | None, Path | None]:
    for directory in _UEFI_DIRS:
        code, variables = root / directory / "OVMF_CODE_4M.fd", root / directory / "OVMF_VARS_4M.fd"
        if code.exists() and variables.exists():
            return code, variables
    return None, None


def is_done() -> bool:
    """Whether there is a QEMU to use."""
    try:
        find_qemu()
    except SetupError:
        # A named QEMU that cannot be used is an error of its own, not something to install.
        if os.environ.get("NVMUSER_QEMU"):
            raise
        return False
    return True


def install(reporter: Reporter) -> None:
    """Unpack Debian's QEMU into the cache."""
    cache = cache_dir()
    private = apt.PrivateApt(cache / "apt/qemu", _SUITES)
    private.update(reporter)
    packages = private.fetch_packages(_PACKAGES, reporter)
    with artifact.assembling(artifact_dir(cache)) as root:
        apt.unpack(packages, root, reporter, leave_out=LEAVE_OUT)
        reporter.update(f"looking for {DEVICE}")
        if not has_device(unpacked_argv(root, BINARY)):
            raise SetupError(f"QEMU {apt.package_version(packages, 'qemu-system-x86')} of {_SUITES[0]} has no {DEVICE}")
        package = apt.package_version(packages, "qemu-system-x86")
        artifact.write_manifest(root, version=version_of(unpacked_argv(root, BINARY)), package=package)
    artifact.remove(private.root)
    _find.cache_clear()

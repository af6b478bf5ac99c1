"""Puts the guest's initramfs together.

Owns which programs and kernel modules are in it and what they need (libraries, module dependencies). It neither
downloads anything nor knows what /init does.

The guest's own files come from one directory: `init` and every other file lie in the initramfs under the same name at
the root, executable; the C files of a directory NAME are compiled into one static program NAME.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.toolchain import cpio, proc
from nvmuser.toolchain.steps import Reporter

_PROGRAMS = (
    "badblocks", "blkdiscard", "blkid", "blockdev", "chrt", "debugfs", "dmesg", "dumpe2fs", "e2fsck",
    "fallocate", "findmnt", "fio", "flock", "fsfreeze", "fstrim", "gpiodetect", "gpioget", "gpioinfo",
    "gpiomon", "gpioset", "ionice", "losetup", "lsblk", "lscpu", "mke2fs", "mount", "mountpoint", "nvme",
    "partx", "resize2fs", "sfdisk", "taskset", "tune2fs", "umount", "wipefs",
)  # fmt: skip
_LINKS = {"mkfs.ext4": "mke2fs", "fsck.ext4": "e2fsck"}
MODULES = ("nvme", "virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "loop", "gpio-pci-idio-16", "virtio-rng")

# Opened with dlopen, so that no dependency names it: pthread_cancel and pthread_exit want it.
_EXTRA_LIBRARIES = ("libgcc_s.so.1",)
_LAYOUT = 1
"""Raise when this module puts the same things together in another way: the cached images then count as old."""

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LIBRARY_DIRS = (_LIBRARIES, f"{_LIBRARIES}/ceph")
"""The second stands in the RUNPATH of librados (fio links to it) as an absolute path: that would be the host's."""


@dataclass(frozen=True)
class Parts:
    """What an initramfs is made of: unpacked programs, an unpacked kernel of a version, and the guest's own files.

    :param modules: of the kernel, with what they depend on.
    """

    tools: Path
    kernel: Path
    version: str
    guest: Path
    modules: tuple[str, ...] = MODULES


def recipe() -> list[str]:
    """What decides the content, besides the parts themselves."""
    return [*_PROGRAMS, *_LINKS, *MODULES, *_EXTRA_LIBRARIES, str(_LAYOUT)]


def build(parts: Parts, out: Path, reporter: Reporter) -> str:
    """Write the initramfs; return the version of the fio in it.

    :raises SetupError: a program, library or module is missing from the packages.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        root = Path(scratch)
        _layout(root)
        reporter.update("programs and libraries", 0.0)
        _copy_programs(parts.tools, root)
        reporter.update("kernel modules", 0.4)
        _copy_modules(parts, root, reporter)
        reporter.update("the agent", 0.6)
        _copy_guest(parts.guest, root, reporter)
        reporter.update("the archive", 0.8)
        # Not compressed: under software emulation unpacking costs more than loading.
        with out.open("wb") as archive:
            cpio.write_archive(root, archive)
    return proc.output([*_loader(parts.tools), parts.tools / "usr/bin/fio", "--version"]).strip()


def _layout(root: Path) -> None:
    for name in ("usr/bin", _LIBRARIES, "usr/lib64", "proc", "sys", "run", "tmp", "mnt", "root", "etc"):
        (root / name).mkdir(parents=True)
    for name, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        (root / name).symlink_to(target)
    (root / "usr/sbin").symlink_to("bin")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="utf-8")
    (root / "etc/group").write_text("root:x:0:\n", encoding="utf-8")
    (root / "etc/mtab").symlink_to("/proc/mounts")


def _loader(tools: Path) -> list[str]:
    path = ":".join(str(tools / directory) for directory in _LIBRARY_DIRS)
    return [str(tools / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", path]


def _find_program(tools: Path, name: str) -> Path:
    for directory in ("usr/bin", "usr/sbin"):
        if (tools / directory / name).exists():
            return (tools / directory / name).resolve()
    raise SetupError(f"the guest's packages hold no program {name}")


def _copy_programs(tools: Path, root: Path) -> None:
    programs = {name: _find_program(tools, name) for name in _PROGRAMS}
    for name, path in programs.items():
        shutil.copy(path, root / "usr/bin" / name)
    for link, name in _LINKS.items():
        (root / "usr/bin" / link).symlink_to(name)
    libraries = [tools / _LIBRARIES / name for name in _EXTRA_LIBRARIES]
    for library in sorted({*libraries, *_needed(tools, [*programs.values(), *libraries])}):
        target = root / library.relative_to(tools)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(library.resolve(), target)
    shutil.copy(tools / "usr/lib64/ld-linux-x86-64.so.2", root / "usr/lib64")
    if (tools / "etc/mke2fs.conf").exists():
        shutil.copy(tools / "etc/mke2fs.conf", root / "etc")
    _copy_busybox(_find_program(tools, "busybox"), root)


def _needed(tools: Path, binaries: Iterable[Path]) -> set[Path]:
    """The libraries that the dynamic loader finds for these binaries."""
    found: set[Path] = set()
    for binary in binaries:
        listing = proc.output([*_loader(tools), "--list", binary])
        if missing := re.findall(r"(\S+) => not found", listing):
            raise SetupError(f"{binary.name} needs {', '.join(missing)}, which the guest's packages do not hold")
        found.update(Path(path) for path in re.findall(r"=> (/\S+) \(", listing))
    return {path for path in found if not path.name.startswith("ld-linux")}


def _copy_busybox(busybox: Path, root: Path) -> None:
    """busybox, with a link for each of its programs of which there is no real one."""
    shutil.copy(busybox, root / "usr/bin/busybox")
    for name in proc.output([busybox, "--list"]).split():
        link = root / "usr/bin" / name
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")


def _copy_modules(parts: Parts, root: Path, reporter: Reporter) -> None:
    source = parts.kernel / "usr/lib/modules" / parts.version
    target = root / "usr/lib/modules" / parts.version
    depmod = [*_loader(parts.tools), "--argv0", "depmod", str(_find_program(parts.tools, "kmod"))]
    proc.run([*depmod, "-b", parts.kernel, parts.version], log=reporter.log)
    builtin = (source / "modules.builtin").read_text(encoding="utf-8")
    for module in module_closure((source / "modules.dep").read_text(encoding="utf-8"), builtin, parts.modules):
        data = (source / module).read_bytes()
        # Unpacked, because not every modprobe and kernel can.
        plain = target / module.removesuffix(".xz")
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(lzma.decompress(data) if module.endswith(".xz") else data)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / name, target)
    proc.run([*depmod, "-b", root, parts.version], log=reporter.log)


def module_closure(dependencies: str, builtin: str, wanted: Sequence[str]) -> list[str]:
    """The files of modules and of all that they depend on; modules.dep lists each with its whole closure.

    :raises SetupError: a wanted one is neither a module nor part of the kernel.
    """
    by_name: dict[str, list[str]] = {}
    for line in dependencies.splitlines():
        path, _, needs = line.partition(":")
        by_name[_module_name(path)] = [path, *needs.split()]
    in_kernel = {_module_name(path) for path in builtin.splitlines()}
    files: set[str] = set()
    for name in (_module_name(module) for module in wanted):
        if name not in by_name and name not in in_kernel:
            raise SetupError(f"the guest's kernel has no module {name}")
        files.update(by_name.get(name, ()))
    return sorted(files)


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _copy_guest(guest: Path, root: Path, reporter: Reporter) -> None:
    for path in sorted(guest.iterdir()):
        target = root / path.name
        if sources := sorted(path.glob("*.c")):
            proc.run(["gcc", "-static", "-O2", "-s", "-Wall", "-o", target, *sources], log=reporter.log)
        elif path.is_file() and path.suffix != ".md":
            shutil.copy(path, target)
            target.chmod(0o755)

"""The guest that comes with nvmuser: Debian's generic kernel and an initramfs of Debian's programs.

Owns which packages and modules go in, and where the result lies. What runs in it (/init, the agent) belongs to
`nvmuser.guest`, in python/nvmuser/guest/appliance/; how the tree is put together, to `initramfs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nvmuser.errors import SetupError
from nvmuser.paths import SETUP, cache_dir
from nvmuser.toolchain import apt, artifact, initramfs
from nvmuser.toolchain.steps import Reporter

Suite = Literal["trixie", "bookworm"]

_KEPT_IMAGES = 3

_TOOLS_SUITE = "trixie"
"""The programs are always of this suite, so that two kernels are compared with the same fio."""
_TOOLS = ("busybox-static", "e2fsprogs", "fdisk", "fio", "gpiod", "kmod", "mount", "nvme-cli", "util-linux")
_LEAVE_OUT = (
    "./usr/share", "./var", "./usr/lib/python3*", "./usr/lib/systemd", "./usr/include",
    "./usr/lib/modules/*/kernel/drivers/net", "./usr/lib/modules/*/kernel/drivers/gpu",
    "./usr/lib/modules/*/kernel/drivers/media", "./usr/lib/modules/*/kernel/sound",
)  # fmt: skip


@dataclass(frozen=True)
class Appliance:
    """What QEMU's -kernel and -initrd are given."""

    kernel: Path
    initrd: Path
    kernel_version: str
    fio_version: str


def guest_files() -> Path:
    """/init, the agent, and what belongs to them."""
    return Path(__file__).resolve().parent.parent / "guest/appliance"


def find_appliance(suite: Suite = "trixie") -> Appliance:
    """The guest with the kernel of a Debian suite.

    :raises SetupError: set-up has not run, or not since the guest's own files changed.
    """
    directory = _image_dir(suite)
    facts = artifact.read_manifest(directory)
    if facts is None:
        way_out = f"`{SETUP}`" if suite == "trixie" else f"`nvmuser setup --guest-kernel {suite}`"
        raise SetupError(f"the guest's kernel and initramfs ({suite}) are not in {directory.parent}: run {way_out}")
    return Appliance(directory / "vmlinuz", directory / "initrd.img", facts["kernel"], facts["fio"])


def is_done(suite: Suite) -> bool:
    """Whether the guest with this suite's kernel is there and up to date."""
    return artifact.read_manifest(_image_dir(suite)) is not None


def tools_dir() -> Path:
    """Where the guest's programs are unpacked, or will be."""
    return cache_dir() / f"guest-tools-{artifact.digest(_TOOLS_SUITE, *_TOOLS, *_LEAVE_OUT)}"


def _kernel_dir(suite: Suite) -> Path:
    return cache_dir() / f"guest-kernel-{suite}-{artifact.digest(*_LEAVE_OUT)}"


def _image_dir(suite: Suite) -> Path:
    parts = [suite, tools_dir().name, _kernel_dir(suite).name, *initramfs.recipe(), *_guest_parts()]
    return cache_dir() / f"guest-{suite}-{artifact.digest(*parts)}"


def _guest_parts() -> Iterator[str | bytes]:
    for path in sorted(guest_files().rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(guest_files()))
            yield path.read_bytes()


def tools_done() -> bool:
    """Whether the guest's programs are unpacked."""
    return artifact.read_manifest(tools_dir()) is not None


def fetch_tools(reporter: Reporter) -> None:
    """Unpack the guest's programs, with the libraries that they need."""
    private = apt.PrivateApt(cache_dir() / "apt/guest-tools", (_TOOLS_SUITE,))
    private.update(reporter)
    packages = private.fetch_packages(_TOOLS, reporter)
    with artifact.assembling(tools_dir()) as root:
        apt.unpack(packages, root, reporter, leave_out=_LEAVE_OUT)
        artifact.write_manifest(root, versions={name: apt.package_version(packages, name) for name in _TOOLS})
    artifact.remove(private.root)


def kernel_done(suite: Suite) -> bool:
    """Whether the guest's kernel is unpacked."""
    return artifact.read_manifest(_kernel_dir(suite)) is not None


def fetch_kernel(suite: Suite, reporter: Reporter) -> None:
    """Unpack the generic kernel of a suite and its modules."""
    private = apt.PrivateApt(cache_dir() / f"apt/guest-kernel-{suite}", (suite,))
    private.update(reporter)
    # linux-image-amd64 names the current kernel; some suites have its modules in a package of their own.
    wanted = [
        name for name in private.depends("linux-image-amd64") if name.startswith(("linux-image-", "linux-modules-"))
    ]
    wanted += [name for image in wanted for name in private.depends(image) if name.startswith("linux-modules-")]
    packages = private.fetch_packages(sorted(set(wanted)), reporter, alone=True)
    with artifact.assembling(_kernel_dir(suite)) as root:
        apt.unpack(packages, root, reporter, leave_out=_LEAVE_OUT)
        images = sorted((root / "boot").glob("vmlinuz-*"))
        if len(images) != 1:
            raise SetupError(f"{', '.join(wanted)} of {suite} hold {len(images)} kernels instead of one")
        artifact.write_manifest(root, kernel=images[0].name.removeprefix("vmlinuz-"))
    artifact.remove(private.root)


def build(suite: Suite, reporter: Reporter) -> None:
    """Put kernel and initramfs together."""
    if not (guest_files() / "init").exists():
        raise SetupError(f"{guest_files()}/init is missing: the guest has nothing to run")
    kernel = _kernel_dir(suite)
    facts = artifact.read_manifest(kernel)
    assert facts is not None
    with artifact.assembling(_image_dir(suite)) as image:
        (image / "vmlinuz").write_bytes((kernel / f"boot/vmlinuz-{facts['kernel']}").read_bytes())
        parts = initramfs.Parts(tools_dir(), kernel, facts["kernel"], guest_files())
        fio = initramfs.build(parts, image / "initrd.img", reporter)
        artifact.write_manifest(image, kernel=facts["kernel"], fio=fio)
    artifact.forget_older(cache_dir(), f"guest-{suite}-*", _KEPT_IMAGES)
